"""The digest names the base model, however it was loaded and whatever is injected."""

import torch

from share_dist.adapters import inject, model_digest
from tests.adapters.conftest import random_coefficients, tiny_bert


def test_equal_weights_give_equal_digests(bert):
    """Two models with the same weights have one digest, across precision of the load."""
    assert model_digest(bert) == model_digest(tiny_bert())
    assert model_digest(bert) == model_digest(tiny_bert().bfloat16())


def test_injection_and_training_leave_it(bert, bert_subspace):
    """An injected, active or merged model has the digest of its base."""
    plain = model_digest(bert)
    with inject(bert, bert_subspace) as injected:
        injected.set_coefficients("t", random_coefficients(bert_subspace))
        injected.activate("t")
        assert model_digest(bert) == plain
        injected.merge_into_base("t")
        assert model_digest(injected) == plain
        assert model_digest(bert) != plain
    assert model_digest(bert) == plain


def test_other_weights_names_or_shapes_differ(bert):
    """A weight, a name or a shape that differs gives another digest."""
    digests = {model_digest(bert), model_digest(bert.bert), model_digest(tiny_bert(num_labels=4))}
    with torch.no_grad():
        bert.bert.pooler.dense.bias[0] += 1
    assert len(digests | {model_digest(bert)}) == 4


def test_a_head_can_be_left_out(bert):
    """A head drawn at random is left out by its module's name."""
    before = model_digest(bert, exclude=["classifier"])
    torch.nn.init.normal_(bert.classifier.weight)
    assert model_digest(bert, exclude=["classifier"]) == before
    assert model_digest(bert) != before


def test_sampled_positions_are_the_two_ends_and_between():
    """Of a large parameter both ends count: a change in the last value is seen."""
    model = torch.nn.Linear(100, 100, bias=False)
    before = model_digest(model)
    with torch.no_grad():
        model.weight[-1, -1] += 1
    assert model_digest(model) != before

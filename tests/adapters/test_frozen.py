"""A frozen model is named by what its checkpoint holds."""

import pytest
import torch

from share_dist.adapters import load_frozen


@pytest.fixture
def without_pooler(tmp_path):
    """A tiny BERT, saved without the pooler that loading it draws at random."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
    )
    model = BertModel(config, add_pooling_layer=False)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model", model


def test_what_is_drawn_at_random_is_not_part_of_the_name(without_pooler):
    """Two processes that load the same checkpoint agree, whatever their random poolers."""
    folder, _ = without_pooler
    torch.manual_seed(1)
    one, first = load_frozen(folder)
    torch.manual_seed(2)
    other, second = load_frozen(folder)
    assert not torch.equal(one.pooler.dense.weight, other.pooler.dense.weight)
    assert first == second


def test_another_checkpoint_has_another_name(without_pooler):
    """One weight matrix that differs changes the digest."""
    folder, model = without_pooler
    _, before = load_frozen(folder)
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight.mul_(1.5)
    model.save_pretrained(folder)
    _, after = load_frozen(folder)
    assert before != after

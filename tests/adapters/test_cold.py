"""Subspaces of a model for which no adapter exists yet."""

import pytest
import torch
from torch import nn

from share_dist.adapters import find_targets, inject
from share_dist.adapters.cold import gather_moments, subspace_of_inputs, subspace_of_weights
from share_dist.errors import RankTooLarge, ShapeMismatch
from tests.adapters.conftest import GPT2_TARGETS, tiny_gpt2


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 5))


def shapes_of(model):
    return find_targets(model, "all-linear")


def projector(columns):
    return columns @ columns.mT


def test_the_weights_subspace_says_the_weights_best(model):
    """No ``k`` directions of a side hold more of a weight; its energies are those that they hold."""
    for name, layer in subspace_of_weights(model, shapes_of(model), 3).layers.items():
        W = model.get_submodule(name).weight.detach()
        sigma = torch.linalg.svdvals(W.double())[:3]
        for side, basis in layer:
            held = W @ basis.leading if side == "a" else W.mT @ basis.leading
            assert torch.allclose(held.double().norm() ** 2, sigma.square().sum(), rtol=1e-5)
            assert torch.allclose(basis.energies, sigma.square(), rtol=1e-5)
            gram = basis.leading.mT @ basis.leading
            assert torch.allclose(gram, torch.eye(3), atol=1e-5)


def test_the_inputs_subspace_holds_what_layers_are_given(model):
    """Inputs that lie in two directions lie in side A, and what the layer makes of them in side B."""
    plane = torch.linalg.qr(torch.randn(8, 2)).Q
    batch = torch.randn(50, 2) @ plane.mT
    with torch.no_grad(), gather_moments(model, shapes_of(model)) as moments:
        model(batch[:20])
        model(batch[20:])
    assert torch.allclose(moments["0"], batch.mT @ batch, atol=1e-4)
    layer = subspace_of_inputs(model, shapes_of(model), moments, 2).layers["0"]
    assert torch.allclose(projector(layer.a.leading), projector(plane), atol=1e-4)
    answers = torch.linalg.qr(model[0].weight.detach() @ plane).Q
    assert torch.allclose(projector(layer.b.leading), projector(answers), atol=1e-4)


def test_the_model_is_left_as_it_was(model):
    """No hook stays, and what was summed up stays as it is."""
    with gather_moments(model, shapes_of(model)) as moments:
        model(torch.ones(1, 8))
    before = moments["0"].clone()
    model(torch.ones(1, 8))
    assert torch.equal(moments["0"], before)


def test_a_transposed_weight_is_read_as_what_it_does():
    """Layers of GPT-2 keep weights the other way round; the subspaces have the sides of what they compute."""
    model = tiny_gpt2()
    shapes = find_targets(model, GPT2_TARGETS)
    with torch.no_grad(), gather_moments(model, shapes) as moments:
        model(torch.arange(6)[None])
    for subspace in (
        subspace_of_weights(model, shapes, 2),
        subspace_of_inputs(model, shapes, moments, 2),
    ):
        assert subspace.shapes == shapes
        with inject(model, subspace, num_temporary=0) as injected:
            injected.add_task("movies")


def test_what_cannot_be_is_refused(model):
    """More factors than features, and a layer that nothing ran through, are named."""
    with pytest.raises(RankTooLarge, match="at most 5"):
        subspace_of_weights(model, shapes_of(model), 6)
    with pytest.raises(ShapeMismatch, match="0 was given no inputs"):
        subspace_of_inputs(model, shapes_of(model), {}, 2)

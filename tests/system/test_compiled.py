"""A compiled model computes the plain one's gradients."""

import pytest
import torch

from share_dist.adapters import inject
from share_dist.core.values import Subspace
from tests.worker import toys
from worker.backbone import load_backbone
from worker.stream import read_stream

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(600),
    # torch's own compiler uses what torch has deprecated
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


def gradients(stream_path, training):
    """Of one batch of unequal lengths, in all parameters that a task trains."""
    model = toys.make_model(stream_path.parent / "model")
    stream_path.write_text(toys.stream_text(model, "north", ("mood",), training))
    backbone = load_backbone(read_stream(stream_path), torch.device("cpu"))
    texts = [text for text, _ in toys.sentences("mood", 16, seed=2)]
    with inject(backbone.model, Subspace.empty(backbone.shapes)) as injected:
        injected.add_task("mood", num_temporary=2, seed=7)
        injected.activate("mood")
        parameters = injected.trainable_parameters("mood")
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for each in parameters:
                each.add_(0.05 * torch.randn(each.shape, generator=generator))
        features = backbone.pooled(backbone.modality.encode(texts))
        weights = torch.randn(features.shape, generator=generator)
        (features * weights).sum().backward()
        return torch.cat([each.grad.flatten() for each in parameters])


def test_a_compiled_model_has_the_plain_gradients(tmp_path):
    """One step's gradients agree to 1e-5 of their norm: only the order of sums differs."""
    plain = gradients(tmp_path / "plain.toml", "")
    compiled = gradients(tmp_path / "compiled.toml", "compile = true")
    assert not torch.equal(compiled, plain)  # it was compiled, and rounds in another order
    assert float((compiled - plain).norm() / plain.norm()) < 1e-5

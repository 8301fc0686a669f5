"""A compiled model computes the plain one's gradients."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from share_dist.adapters import inject
from share_dist.core.values import Subspace
from tests.system.support import REPOSITORY
from tests.worker import toys
from worker.backbone import load_backbone
from worker.stream import read_stream

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


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
    """One step's gradients agree to 1e-5 of their norm, and not to the bit: only the order of sums differs."""
    # in a process of its own: the checks of shapes that tests run under cannot be compiled
    command = [sys.executable, "-m", "tests.system.test_compiled", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < 1e-5


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    plain = gradients(folder / "plain.toml", "")
    compiled = gradients(folder / "compiled.toml", "compile = true")
    print(float((compiled - plain).norm() / plain.norm()))

"""What is asked of every program, and adapters with known spectra to ask it with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from share_dist.adapters import LoraAdapter, save_lora
from share_dist.core.values import Factors, LayerFactors, LayerShape


class Peer(Protocol):
    """
    One program; its state is whatever it makes of the adapters.

    Adapters come as PEFT directories, which all of these programs read. ``read`` is not timed.
    """

    name: str

    def start(self, folders: Sequence[Path], num_factors: int) -> Any:
        """Bring all adapters in at once; tasks go by their folders' names."""
        ...

    def read(self, folder: Path) -> Any:
        """Bring an adapter into the form that ``add`` takes."""
        ...

    def add(self, state: Any, name: str, adapter: Any) -> Any:
        """Merge one more: what is timed. The state may be changed in place."""
        ...

    def factors(self, state: Any, name: str) -> Factors:
        """Reconstruct one task."""
        ...

    def held_bytes(self, state: Any) -> int:
        """Bytes of the tensors that must be held to reconstruct every task."""
        ...

    def num_factors(self, held_bytes: int, shapes: Mapping[str, LayerShape], rank: int, num_tasks: int) -> int:  # fmt: skip
        """The largest number of components that fits into so many bytes, at least 1."""
        ...


def bytes_of(*groups: Mapping[str, Tensor]) -> int:
    """Bytes of all tensors."""
    return sum(each.numel() * each.element_size() for group in groups for each in group.values())


def features_of(shapes: Mapping[str, LayerShape]) -> int:
    """Features of all sides of all layers."""
    return sum(sum(shape) for shape in shapes.values())


ROBERTA = {
    f"roberta.encoder.layer.{index}.attention.self.{kind}": LayerShape(768, 768)
    for index in range(12)
    for kind in ("query", "value")
}
"""Query and value of RoBERTa-base."""


def mistral(num_layers: int) -> dict[str, LayerShape]:
    """Query and value of some layers of Mistral-7B."""
    return {
        f"model.layers.{index}.self_attn.{kind}": LayerShape(4096, features)
        for index in range(num_layers)
        for kind, features in (("q_proj", 4096), ("v_proj", 1024))
    }


def random_adapter(
    shapes: Mapping[str, LayerShape], rank: int, decay: float, seed: int
) -> dict[str, LayerFactors]:
    """
    Draw an adapter from a population whose factors have singular values falling as ``i ** -decay``.

    Adapters share the directions and nothing else; each column has norm one in expectation.
    """
    generator = torch.Generator().manual_seed(seed)

    def factor(features: int) -> Tensor:
        scale = torch.arange(1, features + 1, dtype=torch.float32).pow(-decay)
        scale = scale / scale.norm()
        return torch.randn(features, rank, generator=generator) * scale.unsqueeze(1)

    return {
        name: LayerFactors(factor(shape.in_features), factor(shape.out_features))
        for name, shape in shapes.items()
    }


def write_adapters(
    folder: Path,
    shapes: Mapping[str, LayerShape],
    num_adapters: int,
    *,
    rank: int,
    decay: float,
) -> list[Path]:
    """Write adapters as PEFT directories, in which the scale is 1; what is there stays."""
    folders = [folder / f"task-{index:04d}" for index in range(num_adapters)]
    for seed, path in enumerate(folders):
        if not path.exists():
            save_lora(LoraAdapter(random_adapter(shapes, rank, decay, seed)), path)
    return folders

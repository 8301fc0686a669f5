"""Random adapters with the spectra that break merges, and the slow obvious oracles."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from share_dist.core.merge import MergeOutcome, merge
from share_dist.core.subspace import reconstruct, update_from_factors
from share_dist.core.values import (
    Factors,
    LayerFactors,
    LayerShape,
    MergedTask,
    Metric,
    Side,
    Subspace,
)

SHAPES = {
    "attention.q": LayerShape(24, 24),
    "attention.v": LayerShape(24, 18),
    "out": LayerShape(30, 24),
}
SPECTRA = ("random", "rank-deficient", "repeated", "ill-scaled", "one-column")
METRICS: tuple[Metric, ...] = ("delta", "factors")


def random_factors(
    seed: int,
    spectrum: str = "random",
    *,
    rank: int = 4,
    shapes: Mapping[str, LayerShape] = SHAPES,
    dtype: torch.dtype = torch.float64,
) -> dict[str, LayerFactors]:
    """One adapter over all layers of ``shapes``."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: LayerFactors(*(
            _factor(features, 1 if spectrum == "one-column" else rank, spectrum, side, generator).to(dtype)
            for side, features in (("a", shape.in_features), ("b", shape.out_features))
        ))
        for name, shape in shapes.items()
    }  # fmt: skip


def _factor(
    features: int, rank: int, spectrum: str, side: Side, generator: torch.Generator
) -> Tensor:
    drawn = torch.randn(features, rank, generator=generator, dtype=torch.float64)
    if spectrum == "rank-deficient":
        return drawn[:, : rank // 2].repeat(1, 2)
    if spectrum == "repeated":
        return torch.linalg.qr(drawn).Q
    if spectrum == "ill-scaled":
        return drawn * (1e30 if side == "a" else 1e-30)
    return drawn


def merge_in_sequence(
    adapters: Sequence[Factors],
    metric: Metric,
    num_factors: int | None = None,
    oversample: int = 0,
    group: int = 1,
) -> list[tuple[Subspace, Mapping[str, MergedTask], MergeOutcome]]:
    """Merge adapters ``group`` at a time; each entry is (before, tasks before, outcome)."""
    first = next(iter(adapters[0].values()))
    shapes = {name: layer.shape for name, layer in adapters[0].items()}
    subspace, tasks = Subspace.empty(shapes, metric, first.a.dtype), {}
    history = []
    for start in range(0, len(adapters), group):
        updates = [
            update_from_factors(subspace, adapter, f"task-{start + index:03d}")
            for index, adapter in enumerate(adapters[start : start + group])
        ]
        outcome = merge(subspace, tasks, updates, num_factors, oversample=oversample)
        history.append((subspace, tasks, outcome))
        subspace, tasks = outcome.subspace, outcome.tasks
    return history


def delta_weights(
    subspace: Subspace, tasks: Mapping[str, MergedTask]
) -> dict[str, dict[str, Tensor]]:
    """Every task's dense ``dW`` in every layer, as served."""
    return {
        task_id: {
            name: layer.delta_weight()
            for name, layer in reconstruct(subspace, task.served(subspace)).items()
        }
        for task_id, task in tasks.items()
    }


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Frobenius norm of the difference over all layers."""
    return sum(float((one[name] - other[name]).square().sum()) for name in one) ** 0.5


def norm(weights: Mapping[str, Tensor]) -> float:
    """Frobenius norm over all layers."""
    return sum(float(weight.square().sum()) for weight in weights.values()) ** 0.5


def metric_columns(layer: LayerFactors, side: Side, metric: Metric) -> Tensor:
    """The weighted columns that an adapter brings in, by a root of the other side's Gram matrix."""
    own, other = layer[side].double(), layer["b" if side == "a" else "a"].double()
    if metric == "factors":
        return own / own.norm()
    values, vectors = torch.linalg.eigh(other.mT @ other)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.mT
    columns = own @ root
    return columns / columns.norm()


def kept_columns(subspace: Subspace, task: MergedTask, name: str, side: Side) -> Tensor:
    """The weighted columns ``sqrt(w) V E N^(1/2)`` of a merged task, from all that is kept of it."""
    layer = task.layers[name]
    values, vectors = torch.linalg.eigh(layer.grams[side])
    root = vectors * values.clamp_min(0).sqrt() @ vectors.mT
    V = subspace.layers[name][side].vectors.double()
    return layer.weights[side] ** 0.5 * (V @ layer.coefficients[side].double() @ root)


def projector(vectors: Tensor) -> Tensor:
    """``V V.T``: what of a span does not depend on signs and rotations."""
    return vectors @ vectors.mT

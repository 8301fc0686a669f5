"""
A stream of merges against the SVD of everything at once: `make bench`.

Adapters of one layer, 768 features on both sides and pseudo-rank 8, come one by one and up to 15 versions
late; both their factors are drawn from one population, whose singular values decay as a power of their number.
For each decay, number ``o`` of extra columns and order of arrival it tells the energy that the 32 leading
columns capture over that of the leading 32 of the batch SVD, of the same weighted columns in float64, the
worse of both sides. Frequent-Directions shrinkage stands beside it, with its error in the direction where it is largest
and the bound that is proven for it, both as shares of the whole energy.
"""

import argparse
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from share_dist.core.prepared import prepare_merge
from share_dist.core.sides import Truncation
from share_dist.core.subspace import update_from_factors
from share_dist.core.values import SIDES, LayerFactors, LayerShape, Side, Subspace
from tests.benchmarks import measuring
from tests.core.adapters import metric_columns

FEATURES, PSEUDO_RANK, NUM_FACTORS, MOST_LAG = 768, 8, 32, 15
DECAYS = (0.0, 0.25, 0.5, 1.0)
OVERSAMPLES = (0, 8, 32)
ORDERS = ("as drawn", "weakest first", "strongest first", "theme by theme")
NUM_THEMES = 8
TARGETS = {0.25: 0.985, 0.5: 0.995, 1.0: 0.995}
LAYER = "layer"
FEWER = 100

Arrivals = Sequence[Mapping[str, LayerFactors]]


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--arrivals", type=int, nargs="+", default=[100, 400, 1000])
    parser.add_argument("--seeds", type=int, default=3, help=f"at up to {FEWER} arrivals, else 1")
    parser.add_argument("--output", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    report = {
        "features": FEATURES,
        "num_factors": NUM_FACTORS,
        "pseudo_rank": PSEUDO_RANK,
        "most_lag": MOST_LAG,
        "targets": {str(decay): target for decay, target in TARGETS.items()},
        "rows": rows,
    }
    for num_arrivals in options.arrivals:
        for seed in range(options.seeds if num_arrivals <= FEWER else 1):
            for decay, order in itertools.product(DECAYS, ORDERS):
                found = _rows(num_arrivals, seed, decay, order)
                print(*found, sep="\n", flush=True)
                rows += found
        measuring.write(report, options.output)


def _rows(num_arrivals: int, seed: int, decay: float, order: str) -> list[dict[str, object]]:
    arrivals = _arrivals(num_arrivals, seed, decay, order)
    batches = {side: _batch(_stack(arrivals, side)) for side in SIDES}
    said = {"arrivals": num_arrivals, "seed": seed, "decay": decay, "order": order}
    rows = []
    for oversample in OVERSAMPLES:
        subspace = _streamed(arrivals, Truncation(NUM_FACTORS, oversample=oversample), seed)
        rows.append(
            {
                **said,
                "oversample": oversample,
                "shrink": False,
                "captured": _captured(subspace, batches),
            }
        )
    oversample = max(OVERSAMPLES)
    subspace = _streamed(
        arrivals, Truncation(NUM_FACTORS, oversample=oversample, shrink=True), seed
    )
    rows.append(
        {
            **said,
            "oversample": oversample,
            "shrink": True,
            "captured": _captured(subspace, batches),
            **_shrinkage(subspace, batches),
        }
    )
    return rows


def _arrivals(num_arrivals: int, seed: int, decay: float, order: str) -> Arrivals:
    """
    Draw adapters and put them in order.

    Theme by theme, each of eight groups has a strength of its own in every direction, and
    one group comes after the other: the stream changes its nature as it goes.
    """
    generator = torch.Generator().manual_seed(seed)
    strengths = torch.arange(1, FEATURES + 1) ** -decay
    themes = torch.ones(NUM_THEMES, FEATURES, 2)
    if order == "theme by theme":
        themes = torch.randn(NUM_THEMES, FEATURES, 2, generator=generator).exp()
    adapters = []
    for index in range(num_arrivals):
        theme = themes[index * NUM_THEMES // num_arrivals]
        drawn = torch.randn(2, FEATURES, PSEUDO_RANK, generator=generator)
        a, b = (drawn[i] * (strengths * theme[:, i]).unsqueeze(1) for i in range(2))
        adapters.append({LAYER: LayerFactors(a, b)})
    if order in {"weakest first", "strongest first"}:
        adapters.sort(key=_strength, reverse=order == "strongest first")
    return adapters


def _strength(adapter: Mapping[str, LayerFactors]) -> float:
    """How much of an adapter lies in the population's 32 leading directions, which are the first axes."""
    columns = metric_columns(adapter[LAYER], "a", "delta")
    return float(columns[:NUM_FACTORS].square().sum())


def _streamed(arrivals: Arrivals, truncation: Truncation, seed: int) -> Subspace:
    """Merge one after the other, each as trained up to 15 versions ago; tasks are not needed for it."""
    late = random.Random(seed)
    versions = [Subspace.empty({LAYER: LayerShape(FEATURES, FEATURES)})]
    for index, adapter in enumerate(arrivals):
        lag = late.randint(0, min(MOST_LAG, len(versions) - 1))
        update = update_from_factors(versions[-1 - lag], adapter, f"task-{index:04d}")
        bases = {each.version: each for each in versions}
        prepared = prepare_merge(versions[-1], {}, [update], bases=bases)
        versions = [*versions[-MOST_LAG:], prepared.cut(truncation).subspace]
    return versions[-1]


@dataclass(frozen=True, slots=True)
class _Batch:
    """All columns of one side as their second moment, and its eigenvalues, largest first."""

    moment: Tensor
    energies: Tensor


def _stack(arrivals: Arrivals, side: Side) -> Tensor:
    return torch.cat([metric_columns(each[LAYER], side, "delta") for each in arrivals], dim=1)


def _batch(stack: Tensor) -> _Batch:
    moment = stack @ stack.mT
    return _Batch(moment, torch.linalg.eigvalsh(moment).flip(0))


def _captured(subspace: Subspace, batches: Mapping[Side, _Batch]) -> float:
    shares = []
    for side, batch in batches.items():
        V = subspace.layers[LAYER][side].leading.double()
        best = float(batch.energies[:NUM_FACTORS].sum())
        shares.append(float((V * (batch.moment @ V)).sum()) / best)
    return round(min(shares), 5)


def _shrinkage(subspace: Subspace, batches: Mapping[Side, _Batch]) -> dict[str, float]:
    """The largest energy that is lost in one direction, and what is proven of it."""
    errors, bounds = [], []
    for side, batch in batches.items():
        basis = subspace.layers[LAYER][side]
        V, whole = basis.vectors.double(), float(batch.energies.sum())
        lost = torch.linalg.eigvalsh(batch.moment - V * basis.energies @ V.mT)
        errors.append(float(lost[-1]) / whole)
        bounds.append(basis.cut_energy / (basis.num_columns + 1) / whole)
    return {"error": round(max(errors), 6), "bound": round(max(bounds), 6)}


if __name__ == "__main__":
    main()

"""
A stream of merges against the SVD of everything at once: `make bench`.

Adapters of pseudo-rank 8, in a layer with 768 features, come one by one and up to 15 versions late. Side by side their
columns have singular values that decay exactly as a power of their number. For each decay, number ``o`` of
extra columns and order of arrival it tells the energy that the 32 leading columns capture over that of the leading 32 of the
batch SVD. Theme by theme is the hardest order: eight groups, each strong where others are weak, come one group
after the other. Merges that credit new directions with what was cut before stand beside them; Frequent-Directions shrinkage too, with its error in the direction where it is largest
and the bound that is proven for it, both as shares of the whole energy.
"""

import argparse
import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from share_dist.core.prepared import prepare_merge
from share_dist.core.subspace import update_from_factors
from share_dist.core.truncation import Truncation
from share_dist.core.values import Basis, LayerFactors, LayerShape, Subspace, TaskUpdate
from tests.benchmarks import measuring

FEATURES, PSEUDO_RANK, NUM_FACTORS, MOST_LAG = 768, 8, 32, 15
DECAYS = (0.0, 0.25, 0.5, 1.0)
OVERSAMPLES = (0, 8, 32)
ORDERS = ("as drawn", "weakest first", "strongest first", "theme by theme")
NUM_THEMES = 8
TARGETS = {0.25: 0.985, 0.5: 0.995, 1.0: 0.995}
LAYER = "layer"
FEWER = 100


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
    stack = torch.cat(arrivals, dim=1).double()
    moment = stack @ stack.mT
    said = {"arrivals": num_arrivals, "seed": seed, "decay": decay, "order": order}
    rows: list[dict[str, object]] = []
    most = max(OVERSAMPLES)
    for oversample, how in (*((o, "") for o in OVERSAMPLES), (most, "credit"), (most, "shrink")):
        gives_credit, shrink = how == "credit", how == "shrink"
        truncation = Truncation(NUM_FACTORS, oversample=oversample, shrink=shrink)
        basis = _streamed(arrivals, truncation, seed, gives_credit=gives_credit)
        row = {
            "oversample": oversample,
            "gives_credit": gives_credit,
            "shrink": shrink,
            "captured": _captured(basis, moment),
        }
        rows.append(said | row | (_shrinkage(basis, moment) if shrink else {}))
    return rows


def _arrivals(num_arrivals: int, seed: int, decay: float, order: str) -> list[Tensor]:
    """
    Draw each adapter's columns of side A, ``(768, 8)``, and put them in order.

    Together they are ``diag(i ** -decay) W`` with orthonormal rows ``W``. With themes, ``W`` is drawn with a strength for
    each group in every direction, before its rows are made orthonormal.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(num_arrivals, PSEUDO_RANK, FEATURES, generator=generator)
    if order == "theme by theme":
        themes = torch.randn(NUM_THEMES, 1, FEATURES, generator=generator).exp()
        drawn *= themes[torch.arange(num_arrivals) * NUM_THEMES // num_arrivals]
    W = torch.linalg.qr(drawn.flatten(end_dim=1).double()).Q
    strengths = torch.arange(1, W.shape[1] + 1) ** -decay
    columns = list(torch.split((W * strengths).float().mT.contiguous(), PSEUDO_RANK, dim=1))
    if order in {"weakest first", "strongest first"}:
        columns.sort(key=_strength, reverse=order == "strongest first")
    return columns


def _strength(columns: Tensor) -> float:
    """How much of an adapter lies in the 32 leading directions, which are the first axes."""
    return float(columns[:NUM_FACTORS].square().sum() / columns.square().sum())


def _update(base: Subspace, columns: Tensor, task_id: str) -> TaskUpdate:
    """With an orthonormal side B, the metric's columns are those of side A; the weight undoes unit norms."""
    update = update_from_factors(
        base, {LAYER: LayerFactors(columns, torch.eye(PSEUDO_RANK))}, task_id
    )
    return replace(update, weight=float(columns.square().sum()))


def _streamed(
    arrivals: Sequence[Tensor], truncation: Truncation, seed: int, *, gives_credit: bool
) -> Basis:
    """Merge one after the other, each as trained up to 15 versions ago; tasks are not needed for it."""
    late = random.Random(seed)
    versions = [Subspace.empty({LAYER: LayerShape(FEATURES, PSEUDO_RANK)})]
    for index, columns in enumerate(arrivals):
        lag = late.randint(0, min(MOST_LAG, len(versions) - 1))
        update = _update(versions[-1 - lag], columns, f"task-{index:04d}")
        bases = {each.version: each for each in versions}
        prepared = prepare_merge(versions[-1], {}, [update], bases=bases, gives_credit=gives_credit)
        versions = [*versions[-MOST_LAG:], prepared.cut(truncation).subspace]
    return versions[-1].layers[LAYER].a


def _captured(basis: Basis, moment: Tensor) -> float:
    V = basis.leading.double()
    best = float(torch.linalg.eigvalsh(moment)[-NUM_FACTORS:].sum())
    return round(float((V * (moment @ V)).sum()) / best, 5)


def _shrinkage(basis: Basis, moment: Tensor) -> dict[str, float]:
    """The largest energy that is lost in one direction, and what is proven of it."""
    V, whole = basis.vectors.double(), float(moment.trace())
    lost = torch.linalg.eigvalsh(moment - V * basis.energies @ V.mT)
    bound = basis.cut_energy / (basis.num_columns + 1)
    return {"error": round(float(lost[-1]) / whole, 6), "bound": round(bound / whole, 6)}


if __name__ == "__main__":
    main()

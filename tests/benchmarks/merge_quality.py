"""
How much of real adapters' ``dW`` is left in how many bytes, in every form: `make bench`.

Ten tasks' rank-8 LoRAs (``python -m tests.benchmarks.real_adapters FOLDER``), three seeds. At each ``k`` and in the same
bytes the bases are found in several ways; then each is written in fewer bits. Told are the bytes of
bases and coefficients as they are stored, the relative error of ``dW`` over all layers, mean and worst over the tasks, and
that of two adapters of ten which were held out when the bases were found, over five such pairs. ``own`` is no
subspace at all: each adapter's own best rank. Forms are functions from adapters and ``k`` to bases; another
program's can stand beside them.
"""

import argparse
import functools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from share_dist.core.allocation import Spectrum, allocate
from share_dist.core.many import delta_error
from share_dist.core.merge import merge
from share_dist.core.outcome import MergeOutcome
from share_dist.core.refinement import refine
from share_dist.core.subspace import evenly_split, project, reconstruct, update_from_factors
from share_dist.core.values import (
    SIDES,
    Coefficients,
    Factors,
    Head,
    LayerCoefficients,
    LayerFactors,
    LayerSubspace,
    Metric,
    Pair,
    Subspace,
)
from share_dist.wire.precision import (
    subspace_from_precision,
    subspace_to_precision,
    task_from_precision,
    task_to_precision,
)
from share_dist.wire.records import PRECISIONS, Precision
from share_dist.wire.tensors import payload_sizes
from tests.benchmarks import measuring
from tests.benchmarks.real_adapters import adapters_of, seeds_of

HELD_OUT = 2
RANK = 8
BALANCE_ROUNDS = 8


class Adapters(dict[str, Factors]):
    """Task -> its adapter; hashed by identity, so that what several forms are made of is made once."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    @functools.cached_property
    def folds(self) -> list[tuple["Adapters", "Adapters"]]:
        """Every pair once held out, with the others."""
        names = list(self)
        outs = [names[start : start + HELD_OUT] for start in range(0, len(names), HELD_OUT)]
        return [
            (
                Adapters({task: self[task] for task in names if task not in out}),
                Adapters({task: self[task] for task in out}),
            )
            for out in outs
        ]


Form = Callable[[Adapters, int], Subspace]


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("adapters", type=Path, help="folder of real_adapters")
    parser.add_argument("--num-factors", type=int, nargs="+", default=[16, 32, 48])
    parser.add_argument("--seeds", type=int, nargs="+", default=None, help="all that there are")
    parser.add_argument("--output", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args()
    seeds = options.seeds or seeds_of(options.adapters)
    found: dict[tuple[str, ...], list[dict[str, float]]] = {}
    for seed in seeds:
        trained = adapters_of(options.adapters, seed).items()
        adapters = Adapters({task: each.factors for task, each in trained})
        for key, row in _rows(adapters, options.num_factors):
            found.setdefault(key, []).append(row)
            print(seed, *key, row, flush=True)
    rows = [_summed_up(key, each) for key, each in found.items()]
    report = {
        "adapters": len(adapters),
        "rank": RANK,
        "seeds": seeds,
        "held_out": HELD_OUT,
        "rows": rows,
    }
    _mark_best(rows)
    measuring.write(report, options.output)


def _rows(
    adapters: Adapters, ks: Sequence[int]
) -> Iterator[tuple[tuple[str, ...], dict[str, float]]]:
    for k in ks:
        for name, form in FORMS.items():
            bases = form(adapters, k)
            exact = _measured(adapters, bases, "float32", "float32")
            if name in SHORTENED:
                exact["held_out"] = _held_out(adapters, form, k)
            yield (name, str(k), "float32"), exact
            for written in WRITTEN if name in SHORTENED else ():
                yield (
                    (name, str(k), " + ".join(dict.fromkeys(written))),
                    _measured(adapters, bases, *written),
                )
        for mean_rank in (2, 4, 6):
            fewer = _shortened(adapters, mean_rank)
            bases = _refined(fewer, k)
            for precision in PRECISIONS:
                key = (f"refined, p {mean_rank} on average", str(k), precision)
                yield key, _measured(adapters, bases, precision, precision, said=fewer)
    for rank in range(1, RANK + 1):
        for precision in PRECISIONS:
            yield ("own", str(rank), precision), _own(adapters, rank, precision)


@functools.lru_cache(maxsize=64)
def _merged(adapters: Adapters, metric: Metric, *, unit_norm: bool = True) -> MergeOutcome:
    """Everything that the adapters have, in one merge that cuts nothing."""
    first = next(iter(adapters.values()))
    empty = Subspace.empty({name: layer.shape for name, layer in first.items()}, metric)
    updates = [
        replace(
            update_from_factors(empty, factors, task),
            weight=1.0 if unit_norm else _norm(factors) ** 2,
        )
        for task, factors in adapters.items()
    ]
    return merge(empty, {}, updates)


def _norm(factors: Factors) -> float:
    return sum(_square(layer) for layer in factors.values()) ** 0.5


def _square(layer: LayerFactors) -> float:
    """``||dW||_F^2`` of one layer."""
    a, b = layer.a.double(), layer.b.double()
    return float(((a.mT @ a) * (b.mT @ b)).sum())


def _leading(subspace: Subspace, ks: int | Mapping[str, Pair[int]]) -> Subspace:
    """Keep the leading columns of every side."""
    layers = {
        name: LayerSubspace(*(
            replace(basis, num_factors=min(basis.num_columns, ks if isinstance(ks, int) else ks[name][side]))
            for side, basis in layer
        ))
        for name, layer in subspace.layers.items()
    }  # fmt: skip
    return replace(subspace, layers=layers).without_tail()


def _plain(metric: Metric, *, unit_norm: bool = True) -> Form:
    return lambda adapters, k: _leading(_merged(adapters, metric, unit_norm=unit_norm).subspace, k)


def _refined(adapters: Adapters, k: int) -> Subspace:
    everything = _merged(adapters, "delta")
    return refine(everything.subspace, everything.tasks, k).subspace


def _balanced(adapters: Adapters, k: int) -> Subspace:
    """Refine again and again; each time those count more who lost more than the others."""
    everything = _merged(adapters, "delta")
    weights = dict.fromkeys(adapters, 1.0)
    refined = refine(everything.subspace, everything.tasks, k)
    for _ in range(BALANCE_ROUNDS):
        mean = statistics.fmean(refined.lost.values())
        weights = {task: weights[task] * lost / mean for task, lost in refined.lost.items()}
        refined = refine(everything.subspace, everything.tasks, k, weights=weights)
    return refined.subspace


def _allocated(adapters: Adapters, k: int) -> Subspace:
    """The bytes of ``k`` everywhere, spent where they explain most."""
    everything = _merged(adapters, "delta")
    return _leading(everything.subspace, _shares(adapters, everything.subspace, k))


def _allocated_refined(adapters: Adapters, k: int) -> Subspace:
    everything = _merged(adapters, "delta")
    ks = _shares(adapters, everything.subspace, k)
    return refine(everything.subspace, everything.tasks, ks).subspace


def _shares(adapters: Adapters, subspace: Subspace, k: int) -> dict[str, Pair[int]]:
    importance = _importance(adapters)
    spectra = {
        (name, side): Spectrum(
            basis.energies,
            4 * (basis.features + RANK * len(adapters)),
            importance[name],
        )
        for name, layer in subspace.layers.items()
        for side, basis in layer
    }
    chosen = allocate(spectra, sum(k * each.column_bytes for each in spectra.values()))
    return {name: Pair(*(chosen[name, side] for side in SIDES)) for name in subspace.layers}


def _importance(adapters: Adapters) -> dict[str, float]:
    """Share of each layer in the squared norm of ``dW``, the mean over adapters."""
    norms = {task: _norm(factors) ** 2 for task, factors in adapters.items()}
    names = next(iter(adapters.values()))
    return {
        name: statistics.fmean(_square(factors[name]) / norms[task] for task, factors in adapters.items())
        for name in names
    }  # fmt: skip


def _shared_input(adapters: Adapters, k: int) -> Subspace:
    """
    One basis of side A for the query and the value of a layer, which read the same input.

    It gets as many columns as take the bytes of two bases of ``k``, with the coefficients in them.
    """
    everything = _merged(adapters, "delta").subspace
    layers = dict(_leading(everything, k).layers)
    for query in [name for name in layers if name.endswith("query")]:
        value = query.removesuffix("query") + "value"
        a = [everything.layers[name].a for name in (query, value)]
        U, sigma, _ = torch.linalg.svd(
            torch.cat([each.vectors.double() * each.energies.sqrt() for each in a], dim=1), full_matrices=False
        )  # fmt: skip
        features, coefficients = a[0].features, RANK * len(adapters)
        wider = 2 * k * (features + coefficients) // (features + 2 * coefficients)
        shared = replace(
            a[0], vectors=U[:, :wider].float().contiguous(), energies=sigma[:wider].square(),
            num_factors=min(wider, U.shape[1]),
        )  # fmt: skip
        for name in (query, value):
            layers[name] = LayerSubspace(shared, layers[name].b)
    return replace(everything, layers=layers)


FORMS: dict[str, Form] = {
    "factors, weighed by norm": _plain("factors", unit_norm=False),
    "factors": _plain("factors"),
    "delta, weighed by norm": _plain("delta", unit_norm=False),
    "delta": _plain("delta"),
    "delta, one input basis for query and value": _shared_input,
    "delta, allocated": _allocated,
    "refined": _refined,
    "refined, balanced": _balanced,
    "refined, allocated": _allocated_refined,
}
"""How bases are found; the first is nearest to the paper, the fourth is what a coordinator does."""

SHORTENED = ("factors", "delta", "refined", "refined, allocated")
WRITTEN: tuple[tuple[Precision, Precision], ...] = (
    ("bfloat16", "bfloat16"),
    ("int8", "int8"),
    ("int4", "int4"),
    ("int4", "int8"),
)
"""Of bases, and of coefficients."""


def _measured(
    adapters: Adapters,
    bases: Subspace,
    of_bases: Precision,
    of_coefficients: Precision,
    said: Adapters | None = None,
) -> dict[str, float]:
    """Write bases and tasks as they are stored, read them again, and compare."""
    short = subspace_to_precision(bases, of_bases)
    read = subspace_from_precision(
        short.payload, precision=of_bases, version=bases.version, metric=bases.metric
    )
    shared = {id(layer.a.vectors) for layer in bases.layers.values()}
    held = payload_sizes(short.payload).data_bytes * _share_stored(bases, len(shared))
    errors = []
    for task, factors in adapters.items():
        # said in the bases as they are read: what was rounded away of these costs least so
        coefficients = project(read, (said or adapters)[task])
        again, num_bytes = _stored(coefficients, of_coefficients)
        held += num_bytes
        errors.append(delta_error(factors, reconstruct(read, again)))
    return {"bytes": round(held), "error": statistics.fmean(errors), "worst": max(errors)}


def _share_stored(bases: Subspace, distinct: int) -> float:
    """Of what is written, the share that needs to be: a basis that two layers share counts once."""
    sizes = {
        name: [basis.features * basis.num_factors for _, basis in layer]
        for name, layer in bases.layers.items()
    }
    whole = sum(map(sum, sizes.values()))
    if distinct == len(bases.layers):
        return 1.0
    twice = sum(a for name, (a, _) in sizes.items() if name.endswith("value"))
    return 1 - twice / whole


def _stored(coefficients: Coefficients, precision: Precision) -> tuple[Coefficients, int]:
    short = task_to_precision(coefficients, Head(), precision)
    again, _ = task_from_precision(
        short.payload, precision=precision, version=coefficients.version, head_info=Head()
    )
    return again, payload_sizes(short.payload).data_bytes


def _held_out(adapters: Adapters, form: Form, k: int) -> float:
    """Mean error of adapters that the bases were not made of."""
    errors = []
    for inside, out in adapters.folds:
        bases = form(inside, k)
        errors += [
            delta_error(factors, reconstruct(bases, project(bases, factors)))
            for factors in out.values()
        ]
    return statistics.fmean(errors)


def _cut_to(layer: LayerFactors, rank: int) -> LayerFactors:
    """The best of that rank: an even split has the singular values in order."""
    even = evenly_split(layer)
    return LayerFactors(
        even.a[:, :rank].float().contiguous(), even.b[:, :rank].float().contiguous()
    )


def _shortened(adapters: Adapters, mean_rank: int) -> Adapters:
    """Spend so many singular values a layer and task, on average, where a task's ``dW`` has most."""
    short = Adapters()
    for task, factors in adapters.items():
        spectra = {
            name: Spectrum(evenly_split(layer).a.square().sum(dim=0).square(), 1)
            for name, layer in factors.items()
        }
        ranks = allocate(spectra, mean_rank * len(factors))
        short[task] = {name: _cut_to(layer, ranks[name]) for name, layer in factors.items()}
    return short


def _own(adapters: Adapters, rank: int, precision: Precision) -> dict[str, float]:
    """No subspace: every adapter's own best rank, each layer and task the same."""
    held, errors = 0, []
    for factors in adapters.values():
        cut = {name: _cut_to(layer, rank) for name, layer in factors.items()}
        as_said = {name: LayerCoefficients(layer.a, layer.b) for name, layer in cut.items()}
        again, num_bytes = _stored(Coefficients(as_said, 1), precision)
        held += num_bytes
        read = {name: LayerFactors(layer.a, layer.b) for name, layer in again.layers.items()}
        errors.append(delta_error(factors, read))
    mean = statistics.fmean(errors)
    return {"bytes": held, "error": mean, "worst": max(errors), "held_out": mean}


def _summed_up(key: tuple[str, ...], rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Mean over seeds, with the standard deviation of the error."""
    form, size, precision = key
    means = {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}
    spread = statistics.stdev(row["error"] for row in rows) if len(rows) > 1 else 0.0
    return {
        "form": form,
        "size": int(size),
        "precision": precision,
        "bytes": round(means.pop("bytes")),
        **{name: round(value, 4) for name, value in means.items()},
        "error_deviation": round(spread, 4),
    }


def _mark_best(rows: list[dict[str, Any]]) -> None:
    """Mark what nothing beats that is as small: the Pareto front; and the same without ``own``."""
    for row in rows:
        for mark, rivals in (
            ("is_best", rows),
            ("is_best_subspace", [each for each in rows if each["form"] != "own"]),
        ):
            row[mark] = row in rivals and not any(
                other["bytes"] <= row["bytes"] and other["error"] < row["error"] for other in rivals
            )


if __name__ == "__main__":
    main()

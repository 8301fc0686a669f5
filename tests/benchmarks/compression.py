"""
Bytes of N tasks in one subspace against N rank-8 LoRAs, everything counted: `make bench`.

All are payloads as they are stored and sent, with their headers: the bases once, and for each task its coefficients and
its head. *Marginal* is one task more; *in all* is everything. Beside the bytes stands what they cost: the mean
relative error of ``dW``. Adapters are real ones (``--adapters``, a folder of ``real_adapters``), or drawn from
populations whose singular values decay as stated, of two layers of the same size: what a task shares with others
is what decides, and real streams lie somewhere between.
"""

import argparse
import itertools
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from share_dist.core.many import delta_error, subspace_from_many
from share_dist.core.subspace import project, reconstruct
from share_dist.core.values import Factors, Head, LayerFactors, Subspace
from share_dist.wire.precision import (
    subspace_from_precision,
    subspace_to_precision,
    task_from_precision,
    task_to_precision,
)
from share_dist.wire.records import Precision
from share_dist.wire.tensors import tensors_to_bytes
from tests.benchmarks import measuring
from tests.benchmarks.real_adapters import adapters_of

FEATURES, RANK, NUM_LABELS = 384, 8, 2
COUNTS = (10, 100, 1000)
DECAYS = (0.5, 1.0)
WRITTEN: tuple[Precision, ...] = ("float32", "int8", "int4")


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--adapters", type=Path, default=None, help="folder of real_adapters")
    parser.add_argument("--num-factors", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--output", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args()
    rows = []
    for name, adapters in _populations(options.adapters):
        for row in _rows(name, adapters, options.num_factors):
            print(row, flush=True)
            rows.append(row)
    report = {"features": FEATURES, "rank": RANK, "head_labels": NUM_LABELS, "rows": rows}
    measuring.write(report, options.output)


def _populations(folder: Path | None) -> Iterator[tuple[str, Sequence[Factors]]]:
    if folder:
        yield "real", [each.factors for each in adapters_of(folder, 0).values()]
    for decay, count in itertools.product(DECAYS, COUNTS):
        yield f"drawn, i^-{decay:g}", _drawn(count, decay)


def _rows(name: str, adapters: Sequence[Factors], ks: Sequence[int]) -> Iterator[dict[str, Any]]:
    for k in ks:
        named = ((f"task-{index:04d}", each) for index, each in enumerate(adapters))
        bases = subspace_from_many(named, k)
        for precision in WRITTEN:
            yield {
                "adapters": name,
                "count": len(adapters),
                "num_factors": k,
                "precision": precision,
                **_account(bases, adapters, precision),
            }


def _drawn(count: int, decay: float) -> list[Factors]:
    """Adapters of two layers from one population: strong directions are strong in all of them."""
    generator = torch.Generator().manual_seed(count)
    strengths = torch.arange(1, FEATURES + 1).unsqueeze(1) ** -decay

    def factor() -> torch.Tensor:
        return torch.randn(FEATURES, RANK, generator=generator) * strengths

    return [
        {name: LayerFactors(factor(), factor()) for name in ("layer.query", "layer.value")}
        for _ in range(count)
    ]


def _account(bases: Subspace, adapters: Sequence[Factors], precision: Precision) -> dict[str, Any]:
    short = subspace_to_precision(bases, precision)
    read = subspace_from_precision(
        short.payload, precision=precision, version=bases.version, metric=bases.metric
    )
    head = Head({"weight": torch.zeros(NUM_LABELS, FEATURES), "bias": torch.zeros(NUM_LABELS)})
    marginal, errors = [], []
    for factors in adapters:
        task = task_to_precision(project(read, factors), head, precision)
        again, _ = task_from_precision(
            task.payload, precision=precision, version=read.version, head_info=Head()
        )
        marginal.append(len(task.payload))
        errors.append(delta_error(factors, reconstruct(read, again)))
    lora = _lora_bytes(adapters[0], head)
    task_bytes, count = round(statistics.fmean(marginal)), len(adapters)
    in_all = len(short.payload) + sum(marginal)
    saved = lora - task_bytes
    return {
        "error": round(statistics.fmean(errors), 4),
        "worst": round(max(errors), 4),
        "basis_bytes": len(short.payload),
        "marginal_bytes": task_bytes,
        "marginal_lora_bytes": lora,
        "marginal_share": round(task_bytes / lora, 4),
        "in_all_bytes": in_all,
        "in_all_lora_bytes": count * lora,
        "in_all_share": round(in_all / (count * lora), 4),
        "break_even": len(short.payload) // saved + 1 if saved > 0 else None,
    }


def _lora_bytes(factors: Factors, head: Head) -> int:
    """One adapter as float32 safetensors, its head with it."""
    tensors = {f"head.{name}": tensor for name, tensor in head.tensors.items()}
    for name, layer in factors.items():
        tensors |= {f"{name}.{side}": factor.float() for side, factor in layer}
    return len(tensors_to_bytes(tensors))


if __name__ == "__main__":
    main()

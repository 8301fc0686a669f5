"""
Time of one merge, against the floor that the machine sets and against the batch SVD: `make bench`.

Everything is measured in one run, in turns. For each shape and number of earlier tasks:

- the commit, which is ``merge`` with the drift of all tasks bounded from the energies alone, over the
  same with the fewest earlier tasks, and over the floor: the larger of the bytes that it must read and write,
  at the speed of a copy, and of ``2 d (m^2 + 3 m q + 2 q^2)`` operations at the speed of a large float32 product;
- the exact drift of all tasks, and the first read after a hundred merges, over one pass of memory
  over all coefficients, which is a copy of them that is whole in the end, as the table is after a read;
- the batch SVD of all tasks, as the Share paper describes it, on one layer, where it has not too many columns.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from share_dist.core.merge import merge
from share_dist.core.subspace import update_from_factors
from share_dist.core.table import SideBlock, TaskGroup, TaskTable
from share_dist.core.values import (
    Basis,
    LayerFactors,
    LayerShape,
    LayerSubspace,
    Pair,
    Subspace,
    TaskUpdate,
)
from tests.benchmarks.measuring import write

MERGES_BEFORE_READ = 100


@dataclass(frozen=True)
class Shape:
    """What is adapted: the layers repeat until there are enough of them."""

    name: str
    layers: tuple[LayerShape, ...]
    num_layers: int
    num_factors: int
    pseudo_rank: int


SHAPES = (
    Shape("RoBERTa-base q, v", (LayerShape(768, 768),), 24, 32, 8),
    # of 96 layers an eighth: all of them do not fit beside ten thousand tasks into 16 GiB
    Shape(
        "Mistral-7B q, k, v",
        (LayerShape(4096, 4096), LayerShape(4096, 1024), LayerShape(4096, 1024)),
        12,
        64,
        16,
    ),
    Shape("one side of 4096", (LayerShape(4096, 4096),), 4, 64, 16),
)


@dataclass(frozen=True)
class State:
    """A version with many tasks in it, and what comes next."""

    subspace: Subspace
    tasks: TaskTable
    update: TaskUpdate
    num_factors: int


def our_merge_seconds(state: State, device: str = "cpu") -> float:
    """Time one merge of one update into a state."""
    return seconds(
        partial(merge, state.subspace, state.tasks, [state.update], state.num_factors), device
    )


def seconds(work: Callable[[], object], device: str) -> float:
    """
    Time of one call, all of it done.

    On one thread of a processor it is the thread's own time: what others do on the machine
    meanwhile counts only for what it takes of caches and memory.
    """
    if device == "cuda":
        torch.cuda.synchronize()
    started = _clock(device)
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return _clock(device) - started


def _clock(device: str) -> float:
    return time.thread_time() if _is_alone(device) else time.perf_counter()


def _is_alone(device: str) -> bool:
    return device == "cpu" and torch.get_num_threads() == 1


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--tasks", type=int, nargs="+", default=[10, 100, 1_000, 10_000])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--batch-columns", type=int, default=1_000, help="most that the batch SVD is given"
    )
    parser.add_argument(
        "--shapes", type=int, nargs="+", default=[0, 1, 2], help="which of the shapes"
    )
    parser.add_argument("--output", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args()  # fmt: skip
    report = {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "clock": "thread" if _is_alone(options.device) else "wall",
        "rounds": options.rounds,
        "shapes": [_measured(SHAPES[index], options) for index in options.shapes],
    }
    write(report, options.output)


def _measured(shape: Shape, options: argparse.Namespace) -> dict[str, object]:
    states = {count: _state(shape, count, options.device) for count in options.tasks}
    speeds: list[tuple[float, float]] = []
    commits: dict[int, list[float]] = {count: [] for count in states}
    for round_number in range(options.rounds + 1):
        speeds.append(_speeds(options.device))
        for count, state in states.items():
            taken = our_merge_seconds(state, options.device)
            if round_number:
                commits[count].append(taken)
    flops, copied = (max(each) for each in zip(*speeds, strict=True))
    floor = _floor_seconds(states[options.tasks[0]], flops, copied)
    print(f"{shape.name}: floor {floor * 1e3:.2f} ms, product {flops / 1e9:.0f} GF/s, copy {copied / 1e9:.1f} GB/s")  # fmt: skip
    rows = []
    for count, state in states.items():
        row = {
            "tasks": count,
            "merge_seconds": statistics.median(commits[count]),
            "over_fewest_tasks": statistics.median(
                mine / first for mine, first in zip(commits[count], commits[options.tasks[0]], strict=True)
            ),
            "over_floor": min(commits[count]) / floor,
            **_reads(state, options),
            **_batch_row(state, shape, options),
        }  # fmt: skip
        rows.append(row)
        print("  " + ", ".join(f"{key} {value:.4g}" for key, value in row.items() if value is not None))  # fmt: skip
    return asdict(shape) | {
        "floor_seconds": floor,
        "product_flops": flops,
        "copy_bytes_per_second": copied,
        "rows": rows,
    }


def _reads(state: State, options: argparse.Namespace) -> dict[str, float]:
    """Time the exact drift of all tasks and the first read after many merges, over a copy of all coefficients."""
    device = options.device
    blocks = [block for group in state.tasks.groups for both in group.layers.values() for _, block in both]  # fmt: skip
    copy_seconds = min(seconds(lambda: _copied(blocks), device) for _ in range(3))
    drift_seconds = []
    for _ in range(3):
        outcome = merge(state.subspace, state.tasks, [state.update], state.num_factors)
        drift_seconds.append(seconds(partial(len, outcome.report.drift), device))
    subspace, tasks = state.subspace, state.tasks
    for index in range(MERGES_BEFORE_READ):
        update = TaskUpdate(f"u{index}", f"new{index}", state.subspace.version, state.update.layers)
        bases = {state.subspace.version: state.subspace}
        outcome = merge(subspace, tasks, [update], state.num_factors, bases=bases)
        subspace, tasks = outcome.subspace, outcome.tasks
    # each copy of the table owes what the first one owes
    read_seconds = min(seconds(lambda: copy.copy(tasks).groups, device) for _ in range(3))
    return {
        "copy_seconds": copy_seconds,
        "drift_over_copy": min(drift_seconds) / copy_seconds,
        "first_read_over_copy": read_seconds / copy_seconds,
    }


def _copied(blocks: Sequence[SideBlock]) -> list[torch.Tensor]:
    return [block.rows.clone() for block in blocks]


def _batch_row(state: State, shape: Shape, options: argparse.Namespace) -> dict[str, float | None]:
    """Time the batch SVD of one layer, and say it of all."""
    if len(state.tasks) * shape.pseudo_rank > options.batch_columns:
        return {"batch_seconds": None, "batch_over_merge": None}
    taken = min(seconds(partial(_batch, state), options.device) for _ in range(2))
    merged = min(our_merge_seconds(state, options.device) for _ in range(2))
    whole = taken * shape.num_layers
    return {"batch_seconds": whole, "batch_over_merge": whole / merged}


def _batch(state: State) -> None:
    """Reconstruct all tasks, stack, SVD, project all again; both sides of the first layer."""
    name, layer = next(iter(state.subspace.layers.items()))
    for side, basis in layer:
        rows = state.tasks.groups[0].layers[name][side].rows.flatten(0, 1)
        stacked = basis.vectors @ rows.mT
        U, _, _ = torch.linalg.svd(stacked, full_matrices=False)
        _ = U[:, : state.num_factors].mT @ stacked


def _floor_seconds(state: State, flops: float, copied: float) -> float:
    """Sum over all sides the larger of what must be computed and what must be read and written."""
    total = 0.0
    for name, layer in state.subspace.layers.items():
        for side, basis in layer:
            d, m = basis.vectors.shape
            q = state.update.layers[name][side].pseudo_rank
            total += max(
                2 * d * (m * m + 3 * m * q + 2 * q * q) / flops, 4 * d * (2 * m + q) / copied
            )
    return total  # fmt: skip


def _speeds(device: str) -> tuple[float, float]:
    """Operations per second of a large float32 product, and bytes per second read and written of a copy."""
    size = 1024 if device == "cpu" else 8192
    square = torch.randn(size, size, device=device)
    source = torch.randn(32 * 2**20, device=device)
    target = torch.empty_like(source)
    product = min(seconds(lambda: square @ square, device) for _ in range(3))
    copied = min(seconds(lambda: target.copy_(source), device) for _ in range(3))
    return 2 * size**3 / product, 2 * source.nbytes / copied


def _state(shape: Shape, num_tasks: int, device: str) -> State:
    """A subspace with many tasks in it, made directly: only what comes after them is timed."""
    generator = torch.Generator().manual_seed(0)
    k, p = shape.num_factors, shape.pseudo_rank
    names = {
        f"layer{index:02d}": shape.layers[index % len(shape.layers)]
        for index in range(shape.num_layers)
    }

    def basis(features: int) -> Basis:
        vectors, _ = torch.linalg.qr(torch.randn(features, k, generator=generator))
        energies = num_tasks * torch.arange(1, k + 1, dtype=torch.float64) ** -1.0
        return Basis(vectors.contiguous().to(device), energies.to(device), k)

    def block() -> SideBlock:
        rows = torch.randn(num_tasks, p, k, generator=generator).to(device)
        ones = torch.ones(num_tasks, dtype=torch.float64, device=device)
        # the accounts are not what is timed: all tasks share one Gram matrix
        grams = torch.eye(p, dtype=torch.float64, device=device).expand(num_tasks, p, p)
        return SideBlock(rows, grams, ones, ones, torch.zeros_like(ones))

    subspace = Subspace(
        {
            name: LayerSubspace(basis(each.in_features), basis(each.out_features))
            for name, each in names.items()
        },
        version=num_tasks,
    )
    task_ids = tuple(f"task{index:06d}" for index in range(num_tasks))
    group = TaskGroup(task_ids, {name: Pair(block(), block()) for name in names})
    factors = {
        name: LayerFactors(*(torch.randn(size, p, generator=generator).to(device) for size in each))
        for name, each in names.items()
    }
    update = update_from_factors(subspace, factors, "new")
    return State(subspace, TaskTable(num_tasks, [group]), update, k)


if __name__ == "__main__":
    main()

"""
Time of one merge against the batch SVD of everything, in one run: `make bench`.

For each number of earlier tasks it prints the seconds of ``merge`` and of the
way the Share paper describes, reconstruct all tasks, stack, SVD, project all
again, both on the same tensors, in the same dtype and threads; and the ratio of
the merge to the same merge with the fewest earlier tasks.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from share_dist.core.merge import merge
from share_dist.core.subspace import update_from_factors
from share_dist.core.values import (
    Basis,
    LayerCoefficients,
    LayerFactors,
    LayerShape,
    LayerSubspace,
    MergedLayer,
    MergedTask,
    Pair,
    Subspace,
)

RUNS = 3


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--layers", type=int, default=24, help="adapted layers")
    parser.add_argument("--features", type=int, default=768, help="features of both sides")
    parser.add_argument("--num-factors", type=int, default=32)
    parser.add_argument("--pseudo-rank", type=int, default=8)
    parser.add_argument("--tasks", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--output", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args()
    rows = []
    for num_tasks in options.tasks:
        subspace, tasks, update = _state(options, num_tasks)
        merged = _seconds(
            partial(merge, subspace, tasks, [update], options.num_factors), options.device
        )
        batch = _seconds(partial(_batch, subspace, tasks, options.num_factors), options.device)
        first = rows[0]["merge_seconds"] if rows else merged
        rows.append({
            "tasks": num_tasks,
            "merge_seconds": merged,
            "batch_seconds": batch,
            "batch_over_merge": batch / merged,
            "over_fewest_tasks": merged / first,
        })  # fmt: skip
        print(
            f"{num_tasks:6d} tasks before: merge {merged * 1e3:9.1f} ms, batch SVD {batch * 1e3:9.1f} ms, "
            f"ratio {batch / merged:6.1f}x; merge over that at {options.tasks[0]} tasks {merged / first:5.2f}x"
        )
    report = {
        "device": torch.cuda.get_device_name()
        if options.device == "cuda"
        else platform.processor(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "layers": options.layers,
        "features": options.features,
        "num_factors": options.num_factors,
        "pseudo_rank": options.pseudo_rank,
        "rows": rows,
    }
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n")


def _state(options: argparse.Namespace, num_tasks: int):
    """A subspace with many tasks in it, made directly: only the merge after them is timed."""
    generator = torch.Generator().manual_seed(0)
    d, k, p = options.features, options.num_factors, options.pseudo_rank
    names = [f"layer{index:02d}" for index in range(options.layers)]

    def basis() -> Basis:
        vectors, _ = torch.linalg.qr(torch.randn(d, k, generator=generator))
        energies = num_tasks * torch.arange(1, k + 1, dtype=torch.float64) ** -1.0
        return Basis(vectors.to(options.device), energies.to(options.device), k)

    subspace = Subspace(
        {name: LayerSubspace(basis(), basis()) for name in names}, version=num_tasks
    )
    gram = torch.eye(p, dtype=torch.float64, device=options.device)

    def layer() -> MergedLayer:
        a, b = torch.randn(2, k, p, generator=generator).to(options.device)
        return MergedLayer(LayerCoefficients(a, b), Pair(gram, gram), Pair(1.0, 1.0))

    tasks = {
        f"task{index:05d}": MergedTask(
            f"task{index:05d}", num_tasks, {name: layer() for name in names}
        )
        for index in range(num_tasks)
    }
    factors = {
        name: LayerFactors(*torch.randn(2, d, p, generator=generator).to(options.device))
        for name in names
    }
    assert next(iter(subspace.layers.values())).shape == LayerShape(d, d)
    return subspace, tasks, update_from_factors(subspace, factors, "new")


def _batch(subspace: Subspace, tasks: dict[str, MergedTask], num_factors: int) -> None:
    """Reconstruct all tasks, stack, SVD, project all again; layer by layer and side by side."""
    for name, layer in subspace.layers.items():
        for side, basis in layer:
            stacked = torch.cat(
                [basis.vectors @ task.layers[name].coefficients[side] for task in tasks.values()],
                dim=1,
            )
            U, _, _ = torch.linalg.svd(stacked, full_matrices=False)
            _ = U[:, :num_factors].mT @ stacked


def _seconds(work: Callable[[], object], device: str) -> float:
    """Median wall time, after one run to warm up."""
    taken = []
    for _ in range(RUNS + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


if __name__ == "__main__":
    main()

"""
Peak memory of a merge, and memory of holding tasks, beside the bytes of the state itself: `make bench`.

The state is what share-dist must remember: every basis with its tail and energies, and every task's
coefficients, Gram matrices and accounts, as they are stored. ``holding`` is how much the resident set of
a fresh process rose when it read that state from its bytes; ``merging`` is the most that is
alive at once while one adapter more is merged, the state before and the state after included. The C
library is told to give back what is freed: what it keeps for later differs from run to run.
"""

import argparse
import gc
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from share_dist.core.merge import merge
from share_dist.core.subspace import update_from_factors
from share_dist.core.values import MergedTask, Subspace
from share_dist.wire.payloads import (
    merged_tasks_from_bytes,
    merged_tasks_to_bytes,
    subspace_from_bytes,
    subspace_to_bytes,
)
from tests.benchmarks.init_from_many import status_bytes
from tests.benchmarks.measuring import write
from tests.benchmarks.peer_time import quiet
from tests.benchmarks.peers.base import ROBERTA, random_adapter

K = 32
RANK = 8


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--output", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args()
    rows = []
    for num_tasks in options.tasks:
        with tempfile.TemporaryDirectory() as folder:
            row = {"tasks": num_tasks, **_in_processes(Path(folder), num_tasks)}
        print(
            f"{num_tasks:6,} tasks: state {row['state_bytes'] / 1e6:7.1f} MB, held in "
            f"{row['holding_over_state']:.2f} of it, merged in {row['merging_over_state']:.2f} of it",
            flush=True,
        )
        rows.append(row)
    report = {"torch": torch.__version__, "adapted": len(ROBERTA), "num_factors": K, "rank": RANK}
    write({**report, "rows": rows}, options.output)


def _in_processes(folder: Path, num_tasks: int) -> dict[str, float]:
    """Write a state in one process, and measure it in another that has held nothing else."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(_write, folder, num_tasks).result()
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure, folder).result()


def _write(folder: Path, num_tasks: int) -> None:
    """Merge a few adapters, and let every task be one of them: their bytes are all the same."""
    quiet()
    subspace, tasks = Subspace.empty(ROBERTA), {}
    for seed in range(9):
        update = update_from_factors(subspace, random_adapter(ROBERTA, RANK, 0.5, seed), f"{seed}")
        outcome = merge(subspace, tasks, [update], K, oversample=K)
        subspace, tasks = outcome.subspace, outcome.tasks
    many = {
        name: MergedTask(name, subspace.version, tasks[f"{index % 9}"].layers)
        for index, name in enumerate(f"task-{index:05d}" for index in range(num_tasks))
    }
    (folder / "subspace").write_bytes(subspace_to_bytes(subspace))
    (folder / "tasks").write_bytes(merged_tasks_to_bytes(many))
    (folder / "version").write_text(str(subspace.version))


def _measure(folder: Path) -> dict[str, float]:
    quiet()
    version = int((folder / "version").read_text())
    _merge_something_small()
    gc.collect()
    before = status_bytes("VmRSS")
    subspace = subspace_from_bytes((folder / "subspace").read_bytes(), version=version, metric="delta")  # fmt: skip
    tasks = merged_tasks_from_bytes((folder / "tasks").read_bytes(), version=version)
    gc.collect()
    held = status_bytes("VmRSS") - before
    Path("/proc/self/clear_refs").write_text("5")  # let the highest mark begin at what is held
    update = update_from_factors(subspace, random_adapter(ROBERTA, RANK, 0.5, 99), "new")
    outcome = merge(subspace, tasks, [update], K, oversample=K)
    peak = status_bytes("VmHWM") - before
    assert len(outcome.tasks) == len(tasks) + 1
    state = sum((folder / part).stat().st_size for part in ("subspace", "tasks"))
    return {
        "state_bytes": state,
        "holding_bytes": held,
        "merging_bytes": peak,
        "holding_over_state": round(held / state, 3),
        "merging_over_state": round(peak / state, 3),
    }


def _merge_something_small() -> None:
    """Load what is loaded once."""
    shapes = dict(list(ROBERTA.items())[:1])
    empty = Subspace.empty(shapes)
    update = update_from_factors(empty, random_adapter(shapes, RANK, 0.5, 0), "small")
    merge(empty, {}, [update], K, oversample=K)


if __name__ == "__main__":
    main()

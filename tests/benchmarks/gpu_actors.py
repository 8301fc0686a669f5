"""
Actors on GPUs, through Ray: part of `make bench-gpu`.

One actor a GPU (Ray's ``num_gpus=1``), then two actors on each, half of a GPU for each. All learn real tasks in bfloat16 products against a
coordinator in a process of its own: every task must be merged, and every actor must have said that it was on a GPU.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from share_dist.client import ShareClient
from share_dist.wire.records import UpdateState
from tests.benchmarks.measuring import coordinator, write

TASKS = ("movies", "tweets")

STREAM = """
[model]
path = "{model}"
targets = ["query", "value"]
[training]
epochs = 2
precision = "bf16"
"""

TASK = """
[[task]]
id = "{worker_id}-{name}"
type = "text-classification"
source = {{ entry_point = "worker.kit_tasks:{name}" }}
max_train = {rows}
max_test = 500
seed = {seed}
"""


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda; cpu to try the benchmark itself")
    parser.add_argument("--model", default="kit:model")
    parser.add_argument("--rows", type=int, default=800, help="training rows of each task")
    parser.add_argument("--output", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args()  # fmt: skip
    is_cuda = options.device == "cuda"
    if is_cuda and not torch.cuda.is_available():
        parser.error("there is no CUDA device here: run it where there is one")
    num_devices = torch.cuda.device_count() if is_cuda else 1
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if is_cuda else "cpu",
        "devices": num_devices,
        "precision": "bf16",
        "rows": options.rows,
        "runs": [],
    }
    for each in (1, 2):
        with tempfile.TemporaryDirectory(prefix="share-dist-bench-") as folder:
            found = _run(Path(folder), num_devices * each, options)
        report["runs"].append({"actors_each": each, **found})
        print(json.dumps(report["runs"][-1], indent=2), flush=True)
    write(report, options.output)


def _run(folder: Path, num_actors: int, options: argparse.Namespace) -> dict[str, Any]:
    streams = [_stream(folder, f"worker-{number}", options, number) for number in range(num_actors)]
    workdir = folder / "work"
    with coordinator(folder / "store") as (address, _), ShareClient(address) as client:
        command = [sys.executable, "-m", "share_dist", "worker", "run", *map(str, streams)]
        command += ["--coordinator", address, "--workdir", str(workdir), "--json"]
        began = time.monotonic()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.monotonic() - began
        states = {each.task_id: each.state for each in client.tasks()}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    devices = _devices([json.loads(line) for line in lines])
    missing = [name for name, state in states.items() if state is not UpdateState.MERGED]
    is_elsewhere = [each for each in devices if not each.startswith(options.device)]
    if len(states) != num_actors * len(TASKS) or missing or is_elsewhere:
        raise SystemExit(f"tasks that are not merged: {missing} of {len(states)}; actors ran on {devices}")  # fmt: skip
    tasks = [
        task
        for path in sorted(workdir.glob("*/results.json"))
        for task in json.loads(path.read_text())["tasks"]
    ]
    return {
        "actors": num_actors,
        "devices": devices,
        "merged": len(states),
        "seconds": round(seconds, 1),
        "training_seconds": round(sum(each["seconds"]["train"] for each in tasks), 1),
        "scores": {each["task_id"]: round(each["learnt"], 4) for each in tasks},
        "frozen": {each["task_id"]: round(each["frozen"], 4) for each in tasks},
    }


def _devices(events: Sequence[Mapping[str, Any]]) -> list[str]:
    return [each["device"] for each in events if each["event"] == "worker_started"]


def _stream(folder: Path, worker_id: str, options: argparse.Namespace, seed: int) -> Path:
    tasks = (
        TASK.format(worker_id=worker_id, name=name, rows=options.rows, seed=seed) for name in TASKS
    )
    path = folder / f"{worker_id}.toml"
    path.write_text(STREAM.format(model=options.model) + "".join(tasks))
    return path


if __name__ == "__main__":
    main()

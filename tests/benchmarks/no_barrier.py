"""
What one slow actor costs the others, with and without a barrier: part of `make bench`.

Actors are processes with the worker's own loop, a real coordinator and real tasks. Each gives up a share of its time: for every second of processor time that it
used it sleeps ``--idle`` seconds, and the slow one so many more that it takes ``--slower`` times as long for the same: 17, so that with all that no sleep
lengthens a task takes it about ten times as long. Nobody waits for a processor, and the slow
actor takes from the others no more than a tenth of what one of them does: their share of the cores is the same in all three runs, and processors remain free.

- *without*: the others alone;
- *with*: the same beside the slow one, asynchronously;
- *in rounds*: the same four, and nobody begins its next task before everybody's update of the round is merged. The barrier stands in
  the loop's own port for rows; all else is the same code.

Rounds of the benchmark take all three in turn. Clocks start when every process has its model.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty
from typing import Any

from share_dist.client import ShareClient
from share_dist.wire.records import UpdateState
from tests.benchmarks.measuring import coordinator, spread, write

TASKS = ("movies", "tweets", "amazon", "nyt")
OTHERS, SLOW = ("north", "south", "west"), "slow"
WITHOUT, WITH, IN_ROUNDS = "without", "with", "in rounds"
MOST_MERGED = 0.75


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=32, help="training rows of each task")
    parser.add_argument(
        "--idle", type=float, default=1.0, help="seconds of sleep per second of processor time"
    )
    parser.add_argument("--slower", type=float, default=17.0)
    parser.add_argument("--output", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args()  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="share-dist-bench-") as name:
        folder = Path(name)
        idle = dict.fromkeys(OTHERS, options.idle)
        idle[SLOW] = options.slower * (1 + options.idle) - 1
        crew = {
            each: Member(each, _stream(folder, each, options.rows), share)
            for each, share in idle.items()
        }
        try:
            rounds = [_round(folder / f"round-{number}", crew) for number in range(options.rounds)]
        finally:
            for member in crew.values():
                member.process.kill()
    report = {
        "load_average": os.getloadavg(),
        "actors": len(crew),
        "tasks_each": len(TASKS),
        "rows": options.rows,
        "idle": options.idle,
        "slower": options.slower,
        "rounds": options.rounds,
        **_summary(rounds),
        "runs": rounds,
    }
    print(json.dumps({name: each for name, each in report.items() if name != "runs"}, indent=2))
    write(report, options.output)


def _summary(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def of(run: str, figure: str) -> list[float]:
        return [each[run][figure] for each in rounds]

    def over(run: str, base: str, figure: str) -> dict[str, float]:
        return spread([a / b for a, b in zip(of(run, figure), of(base, figure), strict=True)], 3)

    return {
        "tasks_per_minute": {
            run: spread(of(run, "tasks_per_minute"), 2) for run in (WITHOUT, WITH, IN_ROUNDS)
        },
        "others_seconds": {
            run: spread(of(run, "others_seconds"), 2) for run in (WITHOUT, WITH, IN_ROUNDS)
        },
        "most_merged_seconds": {
            run: spread(of(run, "most_merged_seconds"), 2) for run in (WITH, IN_ROUNDS)
        },
        "slow_task_to_others": spread(of(IN_ROUNDS, "slow_task_to_others"), 2),
        "pace_beside_slow": over(WITH, WITHOUT, "tasks_per_minute"),
        "others_in_rounds_to_async": over(IN_ROUNDS, WITH, "others_seconds"),
        "most_merged_in_rounds_to_async": over(IN_ROUNDS, WITH, "most_merged_seconds"),
    }


def _stream(folder: Path, worker_id: str, rows: int) -> Path:
    """A stream of the same tasks as everybody's, with rows of its own."""
    listed = "".join(
        f"""
[[task]]
id = "{worker_id}-{index}"
type = "text-classification"
source = {{ entry_point = "worker.kit_tasks:{name}" }}
max_train = {rows}
max_test = 16
seed = {sum(worker_id.encode())}
"""
        for index, name in enumerate(TASKS)
    )
    path = folder / f"{worker_id}.toml"
    path.write_text(
        f'[model]\npath = "kit:model"\ntargets = ["query", "value"]\n[training]\nepochs = 1\nbatch_size = 8\n{listed}'
    )
    return path


# One run


def _round(folder: Path, crew: Mapping[str, "Member"]) -> dict[str, dict[str, Any]]:
    folder.mkdir()
    others = {name: each for name, each in crew.items() if name != SLOW}
    runs = {
        WITHOUT: partial(_run, folder / "without", others, is_in_rounds=False),
        WITH: partial(_run, folder / "with", crew, is_in_rounds=False),
        IN_ROUNDS: partial(_run, folder / "in-rounds", crew, is_in_rounds=True),
    }
    found = {}
    for name, run in runs.items():
        found[name] = run()
        print(folder.name, name, found[name], flush=True)
    return found


def _run(folder: Path, crew: Mapping[str, "Member"], *, is_in_rounds: bool) -> dict[str, Any]:
    """Let everybody go, until the others have finished and most tasks are merged."""
    folder.mkdir()
    num_tasks = len(crew) * len(TASKS)
    with coordinator(folder / "store") as (address, _), ShareClient(address) as client:
        for member in crew.values():
            member.answer("ready")
        begun = time.time()
        for member in crew.values():
            member.orders.put(Order(address, folder, tuple(crew), is_in_rounds))
        finished = [crew[name].answer("worker_finished")["time"] for name in crew if name != SLOW]
        while (merged := _num_merged(client)) < MOST_MERGED * num_tasks:
            time.sleep(0.1)
        most_at = _moment(client, MOST_MERGED * num_tasks)
        (folder / "stop").touch()
        for member in crew.values():
            member.answer("ended")
    others_seconds = max(finished) - begun
    return {
        "others_seconds": round(others_seconds, 2),
        "most_merged_seconds": round(most_at - begun, 2),
        "tasks_per_minute": round(60 * len(OTHERS) * len(TASKS) / others_seconds, 2),
        "slow_task_to_others": _slowness(crew),
        "merged": merged,
    }


def _num_merged(client: ShareClient) -> int:
    return sum(each.state is UpdateState.MERGED for each in client.tasks())


def _moment(client: ShareClient, num_tasks: float) -> float:
    """When a version came to be with which so many tasks are merged."""
    seen: set[str] = set()
    for event in client.watch(after_version=0):
        seen.update(event.task_ids)
        if len(seen) >= num_tasks:
            return event.merged_at.timestamp()
    raise AssertionError("the watch ended")


def _slowness(crew: Mapping[str, "Member"]) -> float | None:
    """How much longer the slow actor trained on its first task than the others, on average."""
    if SLOW not in crew or not crew[SLOW].first_seconds:
        return None
    others = [each.first_seconds for name, each in crew.items() if name != SLOW]
    return round(crew[SLOW].first_seconds / (sum(others) / len(others)), 2)


# An actor's process


@dataclass(frozen=True)
class Order:
    """What a member does next: learn its stream against this coordinator, alone or in rounds with the crew."""

    address: str
    folder: Path
    crew: tuple[str, ...]
    is_in_rounds: bool


class Member:
    """A process that loads its model once, and learns its stream for each order."""

    def __init__(self, name: str, stream: Path, idle: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.orders: Any = context.Queue()
        self._told: Any = context.Queue()
        self.first_seconds = 0.0
        self.process = context.Process(
            target=_work, args=(stream, idle, self.orders, self._told), daemon=True
        )
        self.process.start()

    def answer(self, wanted: str) -> dict[str, Any]:
        """Wait until it tells of an event."""
        while True:
            try:
                said: dict[str, Any] = self._told.get(timeout=1)
            except Empty:
                assert self.process.is_alive(), f"{self.name} has ended"
                continue
            if said["event"] == "task_learnt" and said["task_id"].endswith("-0"):
                self.first_seconds = said["since_order"]
            if said["event"] == wanted:
                return said


def _work(stream_path: Path, idle: float, orders: Any, told: Any) -> None:
    import torch

    from worker.backbone import load_backbone
    from worker.loop import Stopped, TaskLoop
    from worker.sources import load_rows
    from worker.stream import read_stream

    torch.set_num_threads(1)
    stream = read_stream(stream_path)
    backbone = load_backbone(stream)
    while True:
        told.put({"event": "ready"})
        order = orders.get()
        begun = time.time()

        def tell(event: Any, begun: float = begun, **fields: Any) -> None:
            now = time.time()
            told.put({"event": event.value, "time": now, "since_order": now - begun, **fields})

        pace = _Pace(idle, order.folder / "stop")
        load = _barrier(order, load_rows) if order.is_in_rounds else load_rows
        with ShareClient(order.address) as client:
            loop = TaskLoop(
                stream, backbone, client, order.folder / stream.worker_id, emit=tell, should_stop=pace, load=load
            )  # fmt: skip
            with contextlib.suppress(Stopped):
                loop.run()
        told.put({"event": "ended"})


class _Pace:
    """Asked at every step whether to stop, sleeps first: so long for each second of processor time."""

    def __init__(self, idle: float, stop: Path) -> None:
        self._idle = idle
        self._stop = stop
        self._paid = time.process_time()

    def __call__(self) -> bool:
        if threading.current_thread() is threading.main_thread():
            until = time.monotonic() + self._idle * (time.process_time() - self._paid)
            while time.monotonic() < until and not self._stop.exists():
                time.sleep(min(0.2, max(0.0, until - time.monotonic())))
            self._paid = time.process_time()
        return self._stop.exists()


def _barrier(order: Order, load: Callable[..., Any]) -> Callable[..., Any]:
    """Rows of a task, once everybody's update of the round before is merged."""

    def load_in_round(task: Any, folder: Path) -> Any:
        number = int(task.id.rpartition("-")[2])
        wanted = {f"{name}-{number - 1}" for name in order.crew} if number else set()
        with ShareClient(order.address) as client:
            while wanted - {
                each.task_id for each in client.tasks() if each.state is UpdateState.MERGED
            }:
                if (order.folder / "stop").exists():
                    break
                time.sleep(0.05)
        return load(task, folder)

    return load_in_round


if __name__ == "__main__":
    main()

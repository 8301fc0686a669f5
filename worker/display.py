"""
The display: on a terminal one line per worker that changes in place; elsewhere one line per event.

With ``--json`` every event is one line of JSON on standard output.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from typing_extensions import Self

from worker.progress import WorkerEvent

PROGRESS_SECONDS = 15.0
"""Where lines stay, a worker's steps are told at most this often."""

_COLUMNS = (
    *("worker", "task", "of", "doing", "step", "loss", "score", "version", "lag", "ETA"),
    "coordinator",
)


class ProgressDisplay:
    """
    Shows what workers do, on a terminal or to a program.

    Args:
        worker_ids: A line each, in this order.
        as_json: Print every event as a line of JSON on standard output instead.
        console: Where the table goes; standard error by default.
    """

    def __init__(
        self, worker_ids: Sequence[str], *, as_json: bool, console: Console | None = None
    ) -> None:
        self._as_json = as_json
        self._lines = {each: dict.fromkeys(_COLUMNS[1:], "") for each in worker_ids}
        self._console = console or Console(stderr=True)
        self._is_live = self._console.is_terminal and not as_json
        self._live = Live(console=self._console, auto_refresh=False)
        self._told_at = dict.fromkeys(worker_ids, 0.0)

    def __enter__(self) -> Self:
        if self._is_live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_live:
            self._live.stop()

    def show(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Take in events, oldest first."""
        for event in events:
            if self._as_json:
                print(json.dumps(event), flush=True)  # what --json promises
            self._lines[event["worker_id"]].update(_cells(event))
            if not (self._as_json or self._is_live):
                self._tell(event)
        if self._is_live:
            self._live.update(self.table(), refresh=True)

    def _tell(self, event: Mapping[str, Any]) -> None:
        worker_id, seconds = event["worker_id"], event["seconds"]
        is_step = event["event"] == WorkerEvent.TASK_PROGRESSED.value
        if is_step and seconds - self._told_at[worker_id] < PROGRESS_SECONDS:
            return
        self._told_at[worker_id] = seconds
        cells = _cells(event)
        said = cells if "coordinator" in cells else {"task": event.get("task_id", "")} | cells
        words = " ".join(f"{name} {text}" for name, text in said.items() if text)
        self.say(f"{seconds:7.1f} s  {worker_id}: {words}")

    def say(self, line: str) -> None:
        """One sentence for people."""
        self._console.print(line, highlight=False, soft_wrap=True)

    def table(self) -> Table:
        """The present lines."""
        table = Table(*_COLUMNS)
        for worker_id, cells in self._lines.items():
            table.add_row(worker_id, *cells.values())
        return table


_DOING = {
    WorkerEvent.MEMORY_SHORT.value: "memory short: {rows_at_once} rows at once",
    WorkerEvent.DISK_FULL.value: "disk full: make room in {path}, and it goes on",
    WorkerEvent.ROLLED_BACK.value: "rolled back from step {step}: {rate_share:.3g} of the rates left",
    WorkerEvent.METRICS_SERVED.value: "metrics at {address}",
    WorkerEvent.REPORTER_FAILED.value: "{reporter} is told nothing more: {reason}",
}
"""What says more than an event's name."""

_COORDINATOR = {
    WorkerEvent.COORDINATOR_AWAY.value: "away since {since}, updates waiting: {num_waiting}",
    WorkerEvent.COORDINATOR_BACK.value: "back after {away_seconds:.0f} s, updates waiting: {num_waiting}",
    WorkerEvent.UPDATE_PUSHED.value: "has {task_id}",
    WorkerEvent.UPDATE_SET_ASIDE.value: "{state} {task_id}: {reason}",
    WorkerEvent.UPDATE_LOST.value: "no longer has {task_id}: it is pushed again",
    WorkerEvent.PUSH_POSTPONED.value: "does not take {task_id} for now: {reason}",
    WorkerEvent.BASE_REFUSED.value: "no longer has version {base_version}: {task_id} is said in the newest",
    WorkerEvent.LEASE_RENEWED.value: "gave lease {lease_epoch}",
    WorkerEvent.MERGE_AWAITED.value: "has yet to merge: {num_pending}",
}
"""What goes on beside the training: it changes nothing else of a worker's line."""


def _cells(event: Mapping[str, Any]) -> dict[str, str]:
    """The cells of a worker's line that one event changes."""
    name = event["event"]
    if name in _COORDINATOR:
        return {"coordinator": _COORDINATOR[name].format(**{**event, **_local_time(event)})}
    cells = {
        "doing": _DOING.get(name, name.replace("_", " ").removeprefix("task ")).format(**event)
    }
    if "task_id" in event:
        cells["task"] = event["task_id"]
    match name:
        case WorkerEvent.TASK_PROGRESSED.value:
            cells["step"] = f"{event['step']}/{event['num_steps']}"
            cells |= {"loss": f"{event['loss']:.3f}", "ETA": f"{event['eta_seconds']:.0f} s"}
            cells |= {"version": str(event["version"]), "lag": str(event["lag"])}
        case WorkerEvent.ROLLED_BACK.value:
            cells["step"] = str(event["back_to_step"])
        case WorkerEvent.TASK_STARTED.value:
            cells |= {"of": f"{event['task_index']}/{event['num_tasks']}", "lag": ""}
            cells |= {"score": "", "loss": "", "version": str(event["base_version"])}
        case WorkerEvent.TASK_LEARNT.value:
            cells |= {"score": _score(event), "ETA": ""}
        case WorkerEvent.TASK_RESCORED.value:
            cells |= {"score": _score(event), "lag": str(event["lag"])}
        case (
            WorkerEvent.VERSION_FOLLOWED.value | WorkerEvent.STARTED.value | WorkerEvent.MOVED.value
        ):
            cells["version"] = str(event["version"])
    return cells


def _local_time(event: Mapping[str, Any]) -> dict[str, str]:
    """When something began, as a clock on the wall shows it."""
    if "since" not in event:
        return {}
    return {"since": f"{datetime.fromisoformat(event['since']).astimezone():%H:%M:%S}"}


def _score(event: Mapping[str, Any]) -> str:
    return f"{event['metric']} {event['score']:.3f}"

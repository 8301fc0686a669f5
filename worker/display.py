"""The display: one line per worker while it works, or one JSON line per event."""

import json
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from typing_extensions import Self

from worker.progress import WorkerEvent

_COLUMNS = ("worker", "task", "doing", "step", "loss", "accuracy", "version", "lag", "ETA")


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
        self._live = Live(console=self._console, auto_refresh=False)

    def __enter__(self) -> Self:
        if not self._as_json:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._as_json:
            self._live.stop()

    def show(self, events: Iterable[dict[str, Any]]) -> None:
        """Take in events, oldest first."""
        for event in events:
            if self._as_json:
                print(json.dumps(event), flush=True)  # what --json promises
            self._lines[event["worker_id"]].update(_cells(event))
        if not self._as_json:
            self._live.update(self.table(), refresh=True)

    def say(self, line: str) -> None:
        """One sentence for people."""
        self._console.print(line, highlight=False)

    def table(self) -> Table:
        """The present lines."""
        table = Table(*_COLUMNS)
        for worker_id, cells in self._lines.items():
            table.add_row(worker_id, *cells.values())
        return table


def _cells(event: dict[str, Any]) -> dict[str, str]:
    """The cells of a worker's line that one event changes."""
    cells = {"doing": event["event"].replace("_", " ").removeprefix("task ")}
    if "task_id" in event:
        cells["task"] = event["task_id"]
    match event["event"]:
        case WorkerEvent.TASK_PROGRESSED.value:
            cells["step"] = f"{event['step']}/{event['num_steps']}"
            cells["loss"] = f"{event['loss']:.3f}"
            cells["ETA"] = f"{event['eta_seconds']:.0f} s"
        case WorkerEvent.TASK_STARTED.value:
            cells |= {"accuracy": "", "loss": "", "version": str(event["base_version"])}
        case WorkerEvent.TASK_LEARNT.value:
            cells |= {"accuracy": f"{event['accuracy']:.3f}", "ETA": ""}
        case WorkerEvent.TASK_RESCORED.value:
            cells |= {"accuracy": f"{event['accuracy']:.3f}", "lag": str(event["lag"])}
        case WorkerEvent.VERSION_FOLLOWED.value | WorkerEvent.STARTED.value:
            cells["version"] = str(event["version"])
    return cells

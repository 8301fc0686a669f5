"""`share-dist tasks`: what a coordinator has learnt."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from share_dist.commands.connection import DEFAULT_CONNECTION, Connection, connecting
from share_dist.commands.console import JsonOption, rows, show

if TYPE_CHECKING:
    from rich.table import Table

    from share_dist.wire.records import TaskSummary

COLUMNS = ("task", "worker", "state", "version", "lag", "drift", "scores", "update bytes")


@connecting
def tasks(
    connection: Connection = DEFAULT_CONNECTION,
    as_json: JsonOption = False,
) -> None:
    """
    List every task that has been merged or waits to be.

    Lag: how many versions it was late. Drift: how far all later merges have
    moved it, Frobenius norm of the change of its dW. A task that was pushed again
    is told by what is merged of it, with the state of the newer update.
    """
    with connection.client() as client:
        found = client.tasks()
    show(found, as_json=as_json, table=lambda: _table(connection.address, found))


def _table(address: str, found: "Sequence[TaskSummary]") -> "Table | str":
    if not found:
        return f"the coordinator at {address} has no tasks yet"
    return rows(f"tasks of {address}", COLUMNS, [_line(task) for task in found])


def _line(task: "TaskSummary") -> tuple[object, ...]:
    return (
        task.task_id,
        task.worker_id,
        _state(task),
        task.merged_version,
        task.lag,
        task.cumulative_drift,
        ", ".join(f"{name} {score:.3f}" for name, score in task.scores.items()),
        task.update_bytes,
    )


def _state(task: "TaskSummary") -> str:
    shown = task.state.value
    return shown if task.newer is None else f"{shown}, newer {task.newer.state.value}"

"""`share-dist versions`, `diff` and `bisect`: how the subspace came to be what it is."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from share_dist.commands.connection import DEFAULT_CONNECTION, Connection, connecting
from share_dist.commands.console import JsonOption, make_console, rows, show

if TYPE_CHECKING:
    from rich.table import Table

    from share_dist.wire.records import (
        LayerDiff,
        TaskMove,
        VersionDiff,
        VersionEvent,
        VersionSummary,
    )

MAX_NAMED_TASKS = 4
"""Tasks of one version that a line names; the rest is counted."""

VERSION_COLUMNS = (
    "version", "kind", "tasks", "k", "energy kept", "lowest", "angle, rad", "largest drift",
    "merged at", "digest", "stored bytes",
)  # fmt: skip
NARROW_COLUMNS = ("version", "kind", "tasks", "k", "energy kept", "largest drift", "merged at")
"""Of these columns, those that a terminal of 80 characters has room for."""

WIDE = 140
"""Characters that all columns need."""

LAYER_COLUMNS = ("layer", "side", "angle, rad", "k before", "k after")


@connecting
def versions(
    after: Annotated[int, typer.Option("--after", min=0, help="Only versions after this one.")] = 0,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The newest so many of them.")] = 50,
    connection: Connection = DEFAULT_CONNECTION,
    as_json: JsonOption = False,
) -> None:
    """
    List the versions of a subspace with what made each of them, oldest first.

    Energy kept: share of all merged energy that the factors keep, mean and lowest over
    layers. Angle: largest principal angle to the version before. Drift: how far the
    version moved the one task that it moved most. Stored bytes: none for a version that
    was compacted; it can no longer be pulled, compared or rolled back to.
    """
    with connection.admin() as client:
        newest = client.status().current_version
        found = client.versions(max(after, newest - limit))[-limit:]
    title = f"versions of {connection.subspace} at {connection.address}"
    show(found, as_json=as_json, table=lambda: _versions_table(title, found))


@connecting
def diff(
    version_a: Annotated[int, typer.Argument(metavar="A", min=0, help="The one version.")],
    version_b: Annotated[int, typer.Argument(metavar="B", min=0, help="The other one.")],
    connection: Connection = DEFAULT_CONNECTION,
    as_json: JsonOption = False,
) -> None:
    """
    Show what lies between two versions.

    For each layer and side the angle between the two bases and their numbers of factors;
    tasks that came and went; and how far the tasks that are in both have moved.
    """
    with connection.admin() as client:
        found = client.diff(version_a, version_b)
    show(found, as_json=as_json, table=lambda: _diff_tables(found))


@connecting
def bisect(
    task: Annotated[str, typer.Option("--task", help="The task to ask about.")],
    count: Annotated[int, typer.Option("--count", min=1, help="Show the so many largest.")] = 10,
    connection: Connection = DEFAULT_CONNECTION,
    as_json: JsonOption = False,
) -> None:
    """
    Ask which merge moved a task most.

    The merges are ranked by the task's drift, the Frobenius norm of the change of its
    dW. A merge of the task's own update replaces it, so it begins anew there; such
    merges are not ranked.
    """
    with connection.admin() as client:
        history = client.task_history(task)
    moves = sorted(
        (move for move in history if not move.is_own_merge and move.drift > 0),
        key=lambda move: (-move.drift, move.version),
    )[:count]
    show(moves, as_json=as_json, table=lambda: _moves_table(task, moves))


def tasks_of(event: "VersionEvent") -> str:
    """Name the tasks of a version, the first few of them."""
    if event.kind.value == "rollback":
        return f"content of version {event.content_version}"
    named = ", ".join(event.task_ids[:MAX_NAMED_TASKS])
    others = len(event.task_ids) - MAX_NAMED_TASKS
    return f"{named} and {others:,} more" if others > 0 else named


def _versions_table(title: str, found: "Sequence[VersionSummary]") -> "Table | str":
    if not found:
        return "nothing has been merged yet: the first version comes with the first push"
    lines = [dict(zip(VERSION_COLUMNS, _version_line(each), strict=True)) for each in found]
    is_wide = make_console().width >= WIDE
    columns = VERSION_COLUMNS if is_wide else NARROW_COLUMNS
    table = rows(title, columns, [[line[column] for column in columns] for line in lines])
    if not is_wide:
        table.caption = f"{WIDE} characters show more columns, and --json shows all"
        table.caption_justify = "left"
    return table


def _version_line(version: "VersionSummary") -> tuple[object, ...]:
    event = version.event
    return (
        event.version,
        event.kind.value,
        tasks_of(event),
        event.num_factors,
        event.mean_energy_kept,
        event.lowest_energy_kept,
        event.angle,
        event.largest_drift,
        f"{event.merged_at:%Y-%m-%d %H:%M}",
        event.digest[:12],
        version.stored_bytes if version.is_kept else 0,
    )


def _diff_tables(found: "VersionDiff") -> "Table":
    table = rows(
        f"from version {found.version_a} to {found.version_b}",
        LAYER_COLUMNS,
        [_layer_line(layer) for layer in found.layers],
    )
    table.caption = "\n".join(_told(found))
    table.caption_justify = "left"
    return table


def _layer_line(layer: "LayerDiff") -> tuple[object, ...]:
    return (layer.layer, layer.side, layer.angle, layer.num_factors_a, layer.num_factors_b)


def _told(found: "VersionDiff") -> list[str]:
    ranked = sorted(found.drift.items(), key=lambda item: -item[1])
    said = [
        f"largest angle: {found.angle:.3f} rad",
        f"tasks that came: {', '.join(found.added_task_ids) or 'none'}",
        f"tasks that went: {', '.join(found.removed_task_ids) or 'none'}",
        f"tasks that moved: {found.num_moved:,}",
    ]
    return [*said, *(f"  {drift:.4g}  {task_id}" for task_id, drift in ranked[:10])]


def _moves_table(task: str, moves: "Sequence[TaskMove]") -> "Table | str":
    if not moves:
        return f"no merge has moved {task!r} since it was merged itself"
    total = sum(move.drift for move in moves)
    columns = ("version", "drift", "share of these", "updates")
    lines = [
        (move.version, move.drift, move.drift / total, ", ".join(move.update_ids)) for move in moves
    ]
    return rows(f"merges that moved {task!r} most", columns, lines)

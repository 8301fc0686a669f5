"""`share-dist top`: what happens at a coordinator, as it happens."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from rich.console import Group

from share_dist.commands.connection import DEFAULT_CONNECTION, Connection, connecting
from share_dist.commands.console import JsonOption, rows
from share_dist.commands.live import CountOption, EveryOption, show_live
from share_dist.commands.status import watchers_of
from share_dist.commands.versions import tasks_of
from share_dist.wire.records import (
    CoordinatorStatus,
    SubspaceSummary,
    UpdateState,
    UpdateSummary,
    VersionSummary,
)

if TYPE_CHECKING:
    from rich.table import Table

    from share_dist.client.admin import AdminClient

NUM_VERSIONS = 5
NUM_UPDATES = 8

_WAITING = (UpdateState.PENDING, UpdateState.PARKED, UpdateState.QUARANTINED)


@dataclass(frozen=True, slots=True)
class Look:
    """
    What is seen at one look.

    Args:
        at: When, by this machine's clock.
        subspaces: All that the coordinator serves.
        status: Of the one that is looked at.
        versions: Its newest, newest first.
        waiting: Its updates that wait or were set aside, newest first; None for who may not see them.
    """

    at: datetime
    subspaces: tuple[SubspaceSummary, ...]
    status: CoordinatorStatus
    versions: tuple[VersionSummary, ...]
    waiting: tuple[UpdateSummary, ...] | None


@connecting
def top(
    every: EveryOption = 2.0,
    count: CountOption = None,
    connection: Connection = DEFAULT_CONNECTION,
    as_json: JsonOption = False,
) -> None:
    """
    Watch a coordinator: workers, newest versions, what waits, bytes on their way.

    Drawn anew every --every seconds until Ctrl-C. What waits is seen by the role admin
    only. Lag: how many versions a worker is behind, by what it pulled or pushed on last.
    """
    with connection.admin() as client:
        show_live(lambda: _look(client), _draw, every=every, count=count, as_json=as_json)


def _look(client: "AdminClient") -> Look:
    status = client.status()
    versions = client.versions(max(status.current_version - NUM_VERSIONS, 0))
    is_admin = status.role == "admin"
    return Look(
        at=datetime.now(timezone.utc),
        subspaces=tuple(client.subspaces()),
        status=status,
        versions=tuple(reversed(versions))[:NUM_VERSIONS],
        waiting=tuple(client.updates(_WAITING, limit=NUM_UPDATES)) if is_admin else None,
    )


def _draw(look: Look) -> Group:
    status = look.status
    tables = [
        _subspaces(look.subspaces, status),
        _workers(status, look.at),
        _versions(look.versions, look.at),
    ]
    if look.waiting is not None:
        tables.append(_waiting(look.waiting, look.at))
    return Group(*tables)


def _subspaces(subspaces: Sequence[SubspaceSummary], status: CoordinatorStatus) -> "Table":
    lines = [
        (
            f"{'> ' if each.name == status.subspace else '  '}{each.name}",
            each.current_version,
            each.num_tasks,
            each.num_pending,
            each.role or None,
        )
        for each in subspaces
    ]
    table = rows("subspaces", ("subspace", "version", "tasks", "pending", "your role"), lines)
    table.caption = (
        f"watchers {watchers_of(status)}   parked {status.num_parked:,}   "
        f"quarantined {status.num_quarantined:,}   bytes in flight {status.bytes_in_flight:,}"
    )
    table.caption_justify = "left"
    return table


def _workers(status: CoordinatorStatus, at: datetime) -> "Table":
    lines = [
        (
            worker.worker_id,
            "live" if worker.is_live else "gone",
            max(status.current_version - worker.base_version, 0) if worker.num_merged else None,
            worker.num_merged,
            age_of(worker.last_heartbeat_at, at),
        )
        for worker in status.workers
    ]
    return rows("workers", ("worker", "lease", "lag", "merged", "heard, s ago"), lines)


def _versions(versions: Sequence[VersionSummary], at: datetime) -> "Table":
    columns = (
        "version",
        "kind",
        "tasks",
        "k",
        "energy kept",
        "angle, rad",
        "drift",
        "took, s",
        "s ago",
    )
    lines = [
        (
            version.event.version,
            version.event.kind.value,
            tasks_of(version.event),
            version.event.num_factors,
            version.event.mean_energy_kept,
            version.event.angle,
            version.event.largest_drift,
            version.event.merge_seconds,
            age_of(version.event.merged_at, at),
        )
        for version in versions
    ]
    return rows("newest versions", columns, lines)


def _waiting(updates: Sequence[UpdateSummary], at: datetime) -> "Table":
    lines = [
        (
            update.receipt.update_id[:12],
            update.receipt.state.value,
            update.task_id,
            update.worker_id,
            update.update_bytes,
            age_of(update.pushed_at, at),
            update.receipt.reason,
        )
        for update in updates
    ]
    columns = ("update", "state", "task", "worker", "bytes", "s ago", "reason")
    return rows("waiting and set aside", columns, lines)


def age_of(moment: datetime, at: datetime) -> int:
    """Whole seconds from a moment to another; 0 where the clocks say that it is yet to come."""
    return max(int((at - moment).total_seconds()), 0)

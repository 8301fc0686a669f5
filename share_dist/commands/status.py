"""`share-dist status`: how a coordinator is."""

from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from share_dist.commands.connection import DEFAULT_CONNECTION, Connection, connecting
from share_dist.commands.console import JsonOption, rows, show
from share_dist.commands.live import CountOption, EveryOption, show_live

if TYPE_CHECKING:
    from rich.table import Table

    from share_dist.wire.records import CoordinatorStatus, WorkerStatus


@connecting
def status(
    live: Annotated[
        bool, typer.Option("--live", help="Look again every few seconds, until Ctrl-C.")
    ] = False,
    every: EveryOption = 2.0,
    count: CountOption = None,
    connection: Connection = DEFAULT_CONNECTION,
    as_json: JsonOption = False,
) -> None:
    """
    Show how a coordinator is: its version, how many tasks, which workers.

    Also who you are to it, and what you may do. `share-dist doctor` says what of it
    needs a person.
    """
    draw = partial(_table, connection.address)
    with connection.client() as client:
        if live:
            show_live(client.status, draw, every=every, count=count, as_json=as_json)
            return
        found = client.status()
    show(found, as_json=as_json, table=partial(draw, found))


def _table(address: str, found: "CoordinatorStatus") -> "Table":
    model = found.fingerprint
    lines = [
        ("subspace", found.subspace),
        ("current version", found.current_version),
        ("came to be at", _at(found.newest_version_at)),
        ("first version", found.first_version),
        ("digest", found.digest[:12] or None),
        ("tasks", found.num_tasks),
        ("pending", found.num_pending),
        *([("merging", _failing(found))] if found.merge_failure else []),
        ("parked", found.num_parked),
        ("quarantined", found.num_quarantined),
        ("watchers", watchers_of(found)),
        ("bytes in flight", found.bytes_in_flight),
        ("base model", f"{model.base_model[:12]}, {len(model.layers)} layers" if model else None),
        ("metric", model.metric if model else None),
        ("you are", f"{found.principal or 'unknown'}, {found.role or 'nobody'}"),
        ("started at", _at(found.started_at)),
        ("release", found.release),
        ("store", found.store_id or None),
    ]
    lines += [(f"worker {worker.worker_id}", _worker(worker)) for worker in found.workers]
    return rows(f"coordinator at {address}", ("", ""), lines)


def _failing(found: "CoordinatorStatus") -> str:
    return f"fails since {_at(found.merges_fail_since)}, and is tried again: {found.merge_failure}"


def _worker(worker: "WorkerStatus") -> str:
    return (
        f"{'live' if worker.is_live else 'gone'}, lease epoch {worker.lease_epoch}, base version "
        f"{worker.base_version}, {worker.num_merged:,} merged"
    )


def watchers_of(found: "CoordinatorStatus") -> str:
    """Say how many watchers there are, and how far behind."""
    return (
        f"{found.num_watchers:,}: {found.num_synced_watchers:,} synced, "
        f"{found.num_catching_up_watchers:,} catching up, {found.num_slow_watchers:,} slow"
    )


def _at(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds") if moment else None

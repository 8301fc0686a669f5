"""`share-dist status`: how a coordinator is."""

from typing import TYPE_CHECKING

from share_dist.commands.connection import DEFAULT_CONNECTION, Connection, connecting
from share_dist.commands.console import JsonOption, rows, show

if TYPE_CHECKING:
    from rich.table import Table

    from share_dist.wire.records import CoordinatorStatus


@connecting
def status(
    connection: Connection = DEFAULT_CONNECTION,
    as_json: JsonOption = False,
) -> None:
    """Show how a coordinator is: its version, how many tasks, which workers."""
    with connection.client() as client:
        found = client.status()
    show(found, as_json=as_json, table=lambda: _table(connection.address, found))


def _table(address: str, found: "CoordinatorStatus") -> "Table":
    model = found.fingerprint
    lines = [
        ("current version", found.current_version),
        ("first version", found.first_version),
        ("tasks", found.num_tasks),
        ("pending", found.num_pending),
        ("quarantined", found.num_quarantined),
        ("watchers", found.num_watchers),
        ("base model", f"{model.base_model[:12]}, {len(model.layers)} layers" if model else None),
        ("metric", model.metric if model else None),
        ("started at", found.started_at.isoformat(timespec="seconds")),
        ("release", found.release),
    ]
    lines += [
        (
            f"worker {worker.worker_id}",
            f"{'live' if worker.is_live else 'gone'}, lease epoch {worker.lease_epoch}",
        )
        for worker in found.workers
    ]
    return rows(f"coordinator at {address}", ("", ""), lines)

"""`share-dist subspaces`: what one coordinator serves."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from share_dist.commands.connection import DEFAULT_CONNECTION, Connection, connecting
from share_dist.commands.console import JsonOption, rows, show

if TYPE_CHECKING:
    from rich.table import Table

    from share_dist.wire.records import SubspaceSummary

COLUMNS = ("subspace", "version", "first version", "tasks", "pending", "base model", "your role")


@connecting
def subspaces(
    connection: Connection = DEFAULT_CONNECTION,
    as_json: JsonOption = False,
) -> None:
    """
    List the named subspaces of a coordinator, and what you may do in each.

    Each has its own frozen model, versions, policy and roles; any command works on the
    one that --subspace names.
    """
    with connection.admin() as client:
        found = client.subspaces()
    show(found, as_json=as_json, table=lambda: _table(connection.address, found))


def _table(address: str, found: "Sequence[SubspaceSummary]") -> "Table":
    return rows(f"subspaces at {address}", COLUMNS, [_line(each) for each in found])


def _line(subspace: "SubspaceSummary") -> tuple[object, ...]:
    model = subspace.fingerprint
    return (
        subspace.name,
        subspace.current_version,
        subspace.first_version,
        subspace.num_tasks,
        subspace.num_pending,
        f"{model.base_model[:12]}, {len(model.layers)} layers" if model else None,
        subspace.role or None,
    )

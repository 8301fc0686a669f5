"""`share-dist audit`: who changed what, and when."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from share_dist.commands.connection import DEFAULT_CONNECTION, Connection, connecting
from share_dist.commands.console import JsonOption, rows, show

if TYPE_CHECKING:
    from rich.table import Table

    from share_dist.wire.records import AuditEntry

COLUMNS = ("line", "at", "who", "what", "subspace", "of what", "digest", "detail")


@connecting
def audit(
    after: Annotated[int | None, typer.Option("--after", min=0, help="The lines after this one; 0 begins with the first. [default: the newest lines]", show_default=False)] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many lines.")] = 200,
    connection: Connection = DEFAULT_CONNECTION,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """
    Print the audit log, oldest line first: every change of state, and every refused caller.

    Of all subspaces of the coordinator. Needs the role admin in every one.
    """
    with connection.admin() as client:
        found = client.newest_audit(limit) if after is None else client.audit(after, limit=limit)
    show(found, as_json=as_json, table=lambda: _table(found, after or 0))


def _table(found: "Sequence[AuditEntry]", after: int) -> "Table | str":
    if not found:
        return f"there is no line after {after:,}"
    table = rows("audit log", COLUMNS, [_line(entry) for entry in found])
    table.caption, table.caption_justify = f"go on with --after {found[-1].sequence}", "left"
    return table


def _line(entry: "AuditEntry") -> tuple[object, ...]:
    return (
        entry.sequence,
        entry.at.isoformat(timespec="seconds"),
        entry.principal,
        entry.action,
        entry.subspace,
        entry.subject,
        entry.digest[:12],
        entry.detail,
    )

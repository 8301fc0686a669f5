"""`share-dist updates`: what became of each push, and what to do with those set aside."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from share_dist.commands.connection import DEFAULT_CONNECTION, Connection, connecting
from share_dist.commands.console import JsonOption, YesOption, confirm, rows, show
from share_dist.commands.lineage import ReasonOption
from share_dist.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from share_dist.wire.records import UpdateInspection, UpdateState, UpdateSummary

app = typer.Typer(
    help="See what became of pushes; let in or give up what was set aside.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

COLUMNS = (
    "update", "state", "task", "worker", "base version", "version", "pushed at", "bytes", "reason"
)  # fmt: skip
LAYER_COLUMNS = ("layer", "norm of dW", "largest singular", "smallest singular", "energy outside")

IdArgument = Annotated[
    str, typer.Argument(metavar="UPDATE", help="Its id, as the list and the logs have it.")
]


@app.command("list")
@connecting
def list_(
    states: Annotated[list[str], typer.Option("--state", help="Only updates in this state; may be said several times. [default: all]")] = [],  # noqa: B006 - typer makes a new one
    limit: Annotated[int, typer.Option("--limit", min=1, help="The newest so many.")] = 50,
    connection: Connection = DEFAULT_CONNECTION,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """
    List updates, newest first.

    States: pending, merged, parked (set aside by the merge policy), quarantined (set
    aside at the door), refused (not kept, only the last of them are remembered), rolled
    back, dropped. Needs the role admin.
    """
    wanted = [_state(text) for text in states]
    with connection.admin() as client:
        found = client.updates(wanted, limit=limit)
    show(found, as_json=as_json, table=lambda: _table(found))


@app.command()
@connecting
def inspect(
    update_id: IdArgument,
    connection: Connection = DEFAULT_CONNECTION,
    as_json: JsonOption = False,
) -> None:
    """
    Measure one update: norms, singular values, what the bases cannot say of it.

    Also how far it would move other tasks if it alone were merged now. Needs the role
    admin.
    """
    with connection.admin() as client:
        found = client.inspect_update(update_id)
    show(found, as_json=as_json, table=lambda: _inspection(found))


@app.command()
@connecting
def replay(
    update_id: IdArgument,
    reason: ReasonOption = "",
    connection: Connection = DEFAULT_CONNECTION,
    as_json: JsonOption = False,
) -> None:
    """
    Let an update be merged after all: one that is quarantined, parked or rolled back.

    It waits again as if it had just come, and what was suspicious about it stays consented
    to. It cannot be replayed once the version that it was trained on was compacted, or its
    payload was let go of: then let its worker push it again, or drop it. Needs the role
    admin.
    """
    with connection.admin() as client:
        receipt = client.replay_update(update_id, reason)
    show(receipt, as_json=as_json, table=lambda: f"update {update_id} is {receipt.state.value}")


@app.command()
@connecting
def drop(
    update_id: IdArgument,
    reason: ReasonOption = "",
    yes: YesOption = False,
    connection: Connection = DEFAULT_CONNECTION,
    as_json: JsonOption = False,
) -> None:
    """
    Give an update up for good: one that waits, or was set aside or rolled back.

    Its worker is told so when it asks. Needs the role admin.
    """
    with connection.admin() as client:
        confirm(f"give update {update_id} up for good", yes=yes, as_json=as_json)
        receipt = client.drop_update(update_id, reason)
    show(receipt, as_json=as_json, table=lambda: f"update {update_id} is {receipt.state.value}")


def _state(text: str) -> "UpdateState":
    from share_dist.wire.records import UpdateState

    known = {state.value: state for state in UpdateState}
    found = known.get(text.replace("-", " ").replace("_", " ").lower())
    if found is None:
        raise ConfigError(f"--state is {text!r}: give {', '.join(known)}", key="state")
    return found


def _table(found: "Sequence[UpdateSummary]") -> "Table | str":
    if not found:
        return "there is no such update"
    return rows("updates, newest first", COLUMNS, [_line(update) for update in found])


def _line(update: "UpdateSummary") -> tuple[object, ...]:
    return (
        update.receipt.update_id,
        update.receipt.state.value,
        update.task_id,
        update.worker_id,
        update.base_version,
        update.receipt.version or None,
        update.pushed_at.isoformat(timespec="seconds"),
        update.update_bytes,
        "; ".join(filter(None, (update.receipt.reason, _let_go(update)))),
    )


def _let_go(update: "UpdateSummary") -> str:
    at = update.let_go_at
    return "" if at is None else f"payload let go of by a compaction at version {at}"


def _inspection(found: "UpdateInspection") -> "Table":
    update = found.update
    table = rows(
        f"update {update.receipt.update_id} of task {update.task_id!r}: {update.receipt.state.value}",
        LAYER_COLUMNS,
        [
            (
                layer.layer,
                layer.norm,
                layer.largest_singular,
                layer.smallest_singular,
                layer.energy_outside,
            )
            for layer in found.layers
        ],
    )
    ranked = sorted(found.influence.items(), key=lambda item: -item[1])[:10]
    said = [
        f"reason: {update.receipt.reason or '-'}",
        *filter(None, [_let_go(update)]),
        "drift of others if it alone were merged now:",
        *(f"  {drift:.4g}  {task_id}" for task_id, drift in ranked),
    ]
    table.caption, table.caption_justify = "\n".join(said if ranked else said[:-1]), "left"
    return table

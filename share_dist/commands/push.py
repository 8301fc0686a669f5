"""`share-dist push` and `share-dist import`: LoRA adapters that exist become tasks."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from share_dist.commands.base_model import ModelOption, fingerprint_of, rename_layers
from share_dist.commands.connection import DEFAULT_CONNECTION, Connection, connecting
from share_dist.commands.console import JsonOption, jsonable, rows, show
from share_dist.errors import ConfigError, DeadlineExceeded, ShapeMismatch, ShareError

if TYPE_CHECKING:
    from share_dist.adapters import LoraAdapter
    from share_dist.client import ShareClient
    from share_dist.core.values import Fingerprint, Subspace, TaskUpdate
    from share_dist.wire.records import CoordinatorStatus, Receipt

WorkerOption = Annotated[
    str | None,
    typer.Option(
        "--worker",
        help="Who pushes; listed with the tasks and in the status. [default: cli, and your name "
        "behind it where the coordinator knows you]",
        show_default=False,
    ),
]
WaitOption = Annotated[
    bool,
    typer.Option(
        "--wait/--no-wait",
        help="Wait until a version contains it, or only until it is safe on disk.",
    ),
]

TAKEN = ("pending", "merged")
"""States of an update that needs nobody; in any other it is set aside, or will not be merged."""


@connecting
def push(
    adapter: Annotated[Path, typer.Argument(help="LoRA directory of PEFT or diffusers, trained anywhere, of any rank.", exists=True, file_okay=False)],
    task: Annotated[str | None, typer.Option("--task", help="What to call the task; a task of that name is replaced. [default: the folder's name]")] = None,
    worker: WorkerOption = None,
    model: ModelOption = None,
    wait: WaitOption = True,
    connection: Connection = DEFAULT_CONNECTION,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """
    Push one LoRA adapter that exists as a task.

    Nothing of it is lost on the way: what the subspace cannot say yet travels
    along as temporary factors.
    """
    task_id = task or adapter.resolve().name
    receipts = _push_all({task_id: adapter}, worker, model, connection, wait=wait)
    _show(receipts, next(iter(_as_json(receipts))), as_json=as_json)


@connecting
def import_(
    adapters: Annotated[list[Path], typer.Argument(help="LoRA directories of PEFT or diffusers, of any ranks; each becomes the task of its folder's name.", exists=True, file_okay=False)],
    worker: WorkerOption = None,
    model: ModelOption = None,
    wait: WaitOption = True,
    connection: Connection = DEFAULT_CONNECTION,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """
    Start a subspace from LoRA adapters that exist, or add them to one.

    All are read and checked before the first is sent.
    """
    folders = _by_name(adapters)
    receipts = _push_all(folders, worker, model, connection, wait=wait)
    _show(receipts, _as_json(receipts), as_json=as_json)


def _by_name(adapters: list[Path]) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for adapter in adapters:
        name = adapter.resolve().name
        if name in folders:
            raise ConfigError(
                f"{folders[name]} and {adapter} would both become the task {name!r}: rename one, "
                "or push each with its own --task",
                key="adapters",
            )
        folders[name] = adapter
    return folders


def _push_all(
    folders: Mapping[str, Path],
    worker: str | None,
    model: Path | None,
    connection: Connection,
    *,
    wait: bool,
) -> "dict[str, Receipt]":
    from share_dist.adapters import load_lora

    loaded = {task_id: load_lora(folder) for task_id, folder in folders.items()}
    with connection.client() as client:
        known = client.status()
        fingerprint = fingerprint_of(next(iter(loaded.values())), model, known.fingerprint)
        subspace = _newest(client, fingerprint, known.current_version)
        # made before the coordinator hears of any: one that does not fit must not leave half of them
        updates = [
            _update(adapter, task_id, folders[task_id], subspace)
            for task_id, adapter in loaded.items()
        ]
        client.register(worker or _worker_of(known), fingerprint)
        receipts = {update.task_id: client.push(update) for update in updates}
        if wait:
            receipts = {update.task_id: _merged(client, update) for update in updates}
    return receipts


def _worker_of(known: "CoordinatorStatus") -> str:
    """A worker belongs to one caller, so each has one; not its bare name, which a worker may go by."""
    return f"cli-{known.principal}" if known.principal not in {"", "local"} else "cli"


def _newest(client: "ShareClient", fingerprint: "Fingerprint", current_version: int) -> "Subspace":
    from share_dist.core.values import Subspace

    if current_version == 0:
        return Subspace.empty(fingerprint.layers, fingerprint.metric)
    subspace = client.pull()
    assert subspace is not None, "nothing was held, so something came"
    return subspace


def _update(
    adapter: "LoraAdapter", task_id: str, folder: Path, subspace: "Subspace"
) -> "TaskUpdate":
    from share_dist.adapters import update_from_lora

    try:
        return update_from_lora(rename_layers(adapter, subspace.layers), task_id, subspace=subspace)
    except ShapeMismatch as error:
        raise ShapeMismatch(f"{folder}: {error.message}", **error.details) from error


def _merged(client: "ShareClient", update: "TaskUpdate") -> "Receipt":
    """Wait until an update that is safe on disk is merged."""
    try:
        return client.push(update, wait="merged")
    except DeadlineExceeded as error:
        raise DeadlineExceeded(
            f"task {update.task_id!r} is safe with the coordinator, but was not merged within "
            f"{client.timeout_seconds:.0f} s: it will be; see `share-dist tasks`, or push with "
            "--no-wait",
            address=client.address,
            seconds=client.timeout_seconds,
        ) from error


def _as_json(receipts: "Mapping[str, Receipt]") -> list[dict[str, object]]:
    return [{"task": task_id, **jsonable(receipt)} for task_id, receipt in receipts.items()]


def _show(receipts: "Mapping[str, Receipt]", found: object, *, as_json: bool) -> None:
    lines = [
        (task_id, receipt.state.value, receipt.version or None, receipt.lag, receipt.reason)
        for task_id, receipt in receipts.items()
    ]
    columns = ("task", "state", "version", "lag", "reason")
    show(found, as_json=as_json, table=lambda: rows("pushed", columns, lines))
    if any(receipt.state.value not in TAKEN for receipt in receipts.values()):
        raise typer.Exit(ShareError.exit_code)

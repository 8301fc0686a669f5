"""Commands that ask a coordinator: pull, push, watch, tasks, status, export, import, inspect."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from share_dist.commands.console import (
    DEFAULT_ADDRESS,
    AddressOption,
    JsonOption,
    TimeoutOption,
    jsonable,
    rows,
    show,
)
from share_dist.errors import AdapterFormatError, ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from share_dist.adapters import LoraAdapter
    from share_dist.client import ShareClient
    from share_dist.core.values import Fingerprint, LayerShape, Subspace
    from share_dist.wire.records import Receipt, VersionEvent

DEFAULT_TIMEOUT_SECONDS = 60.0

ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model",
        exists=True,
        help="Folder of the frozen base model. Needed by the first push to a coordinator, to tell "
        "it what everyone works on; checked against the coordinator's afterwards.",
    ),
]


def status(
    address: AddressOption = DEFAULT_ADDRESS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
    as_json: JsonOption = False,
) -> None:
    """Show how a coordinator is: version, tasks, workers."""
    with _client(address, timeout) as client:
        found = client.status()
    lines: list[tuple[str, object]] = [
        ("current version", found.current_version),
        ("first version", found.first_version),
        ("tasks", found.num_tasks),
        ("pending", found.num_pending),
        ("quarantined", found.num_quarantined),
        ("watchers", found.num_watchers),
        ("layers", len(found.fingerprint.layers) if found.fingerprint else "none yet"),
        ("release", found.release),
        ("started at", found.started_at.isoformat(timespec="seconds")),
    ]
    lines += [
        (
            f"worker {worker.worker_id}",
            f"{'live' if worker.is_live else 'gone'}, lease epoch {worker.lease_epoch}",
        )
        for worker in found.workers
    ]
    show(found, as_json=as_json, table=lambda: rows(address, ("", "value"), lines))


def tasks(
    address: AddressOption = DEFAULT_ADDRESS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
    as_json: JsonOption = False,
) -> None:
    """List every task that has been merged or waits to be."""
    with _client(address, timeout) as client:
        found = client.tasks()

    def table() -> "Table":
        return rows(
            f"tasks of {address}",
            ("task", "worker", "state", "version", "lag", "drift", "scores", "bytes"),
            [
                (
                    task.task_id,
                    task.worker_id,
                    task.state.value,
                    task.merged_version,
                    task.lag,
                    task.cumulative_drift,
                    ", ".join(f"{name} {score:.3f}" for name, score in task.scores.items()),
                    task.update_bytes,
                )
                for task in found
            ],
        )

    show(found, as_json=as_json, table=table)


def pull(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    task: Annotated[
        str | None, typer.Option("--task", help="Pull this task's coefficients and head instead.")
    ] = None,
    version: Annotated[
        int | None, typer.Option("--version", min=0, help="A version; by default the newest.")
    ] = None,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
    as_json: JsonOption = False,
) -> None:
    """Pull the newest subspace, or one task, into a safetensors file."""
    from share_dist.adapters import save_subspace, save_task

    if task is not None and version is not None:
        raise ConfigError(
            "a task is told in the newest version only: drop --version", key="version"
        )
    with _client(address, timeout) as client:
        if task is not None:
            pulled = client.pull_task(task)
            save_task(output, pulled.coefficients, pulled.head)
            found_version = pulled.coefficients.version
        else:
            subspace = client.pull(version)
            assert subspace is not None, "nothing was held, so something came"
            save_subspace(output, subspace)
            found_version = subspace.version
    _say_written(output, {"version": found_version, "task": task}, as_json=as_json)


def push(
    adapter: Annotated[Path, typer.Argument(help="A PEFT LoRA directory, trained anywhere.")],
    task: Annotated[str | None, typer.Option("--task", help="What to call it; by default the folder's name.")] = None,
    worker: Annotated[str, typer.Option("--worker", help="Who pushes.")] = "cli",
    model: ModelOption = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until a version contains it.")] = True,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Push one existing LoRA adapter as a task; nothing of it is lost on the way."""
    task_ids = [task or adapter.resolve().name]
    receipts = _push_all([adapter], task_ids, worker, model, address, timeout, wait=wait)
    _show_receipts(task_ids, receipts, as_json=as_json)


def import_(
    adapters: Annotated[list[Path], typer.Argument(help="PEFT LoRA directories; each becomes the task of its folder's name.")],
    worker: Annotated[str, typer.Option("--worker", help="Who pushes.")] = "cli",
    model: ModelOption = None,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Start a subspace from adapters that exist, or add many of them to one."""
    task_ids = [adapter.resolve().name for adapter in adapters]
    twice = {name for name in task_ids if task_ids.count(name) > 1}
    if twice:
        raise ConfigError(
            f"{task_ids.count(min(twice))} folders are called {min(twice)!r}: rename them, or push "
            "each with its own --task",
            key="adapters",
        )
    receipts = _push_all(adapters, task_ids, worker, model, address, timeout, wait=True)
    _show_receipts(task_ids, receipts, as_json=as_json)


def export(
    task: Annotated[str, typer.Argument(help="The task to export.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write.")],
    base_model: Annotated[str | None, typer.Option("--base-model", help="Name or path to note as the base model.")] = None,
    head_module: Annotated[str, typer.Option("--head-module", help="Where the head lies in the base model, such as classifier; by default the head goes into a file of its own.")] = "",
    conv1d: Annotated[bool, typer.Option("--conv1d", help="The base model's layers are Conv1D, as in GPT-2.")] = False,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Export one task as a PEFT LoRA directory, which plain peft loads."""
    from share_dist.adapters import lora_from_task, save_lora
    from share_dist.adapters.files import write_tensors

    with _client(address, timeout) as client:
        pulled = client.pull_task(task)
    lora = lora_from_task(
        pulled.subspace,
        pulled.coefficients,
        pulled.head if head_module else None,
        head_module=head_module,
    )
    save_lora(lora, output, base_model=base_model, fan_in_fan_out=conv1d)
    if pulled.head.tensors and not head_module:
        write_tensors(output / "head.safetensors", pulled.head.tensors, {"format": "pt"})
    facts = {
        "task": task,
        "version": pulled.coefficients.version,
        "layers": len(lora.factors),
        "rank": max(lora.ranks.values()),
    }
    _say_written(output, facts, as_json=as_json)


def watch(
    after_version: Annotated[int | None, typer.Option("--after", min=0, help="Begin after this version; by default after the current one.")] = None,
    count: Annotated[int | None, typer.Option("--count", min=1, help="Stop after so many versions.")] = None,
    address: AddressOption = DEFAULT_ADDRESS,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Print each version as it comes to be, until Ctrl-C. A cut misses nothing."""
    with _client(address, timeout) as client:
        for number, event in enumerate(client.watch(after_version), start=1):
            show(event, as_json=as_json, table=partial(_event_line, event))
            if number == count:
                return


def _event_line(event: "VersionEvent") -> str:
    return (
        f"version {event.version}: {', '.join(event.task_ids)}; "
        f"k {event.num_factors}, energy kept {event.mean_energy_kept:.3f} "
        f"(lowest {event.lowest_energy_kept:.3f}), angle {event.angle:.3f} rad, "
        f"largest drift {max(event.drift.values(), default=0.0):.3g}"
    )


def inspect(
    path: Annotated[Path, typer.Argument(help="A PEFT LoRA directory, or a file that `pull` wrote.")],
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Show what is inside an adapter, a subspace file or a task file."""
    kind, facts, lines = _describe(path)
    found = {"path": str(path), "kind": kind, **facts, "layers": [dict(line) for line in lines]}
    columns = tuple(lines[0]) if lines else ("layer",)
    title = f"{path}: {kind}, " + ", ".join(f"{name} {value}" for name, value in facts.items())
    show(
        found,
        as_json=as_json,
        table=lambda: rows(title, columns, [tuple(line.values()) for line in lines]),
    )


def _describe(path: Path) -> tuple[str, dict[str, object], list[dict[str, object]]]:
    from share_dist.adapters import load_lora, load_subspace, load_task
    from share_dist.adapters.files import read_tensors

    if not path.exists():
        raise AdapterFormatError(f"{path} does not exist", path=str(path))
    if path.is_dir():
        lora = load_lora(path)
        return "PEFT LoRA", {"head tensors": len(lora.head), **lora.metadata}, [
            {
                "layer": name,
                "in": layer.shape.in_features,
                "out": layer.shape.out_features,
                "rank": layer.a.shape[1],
                "norm of dW": float((layer.b @ layer.a.mT).norm()),
            }
            for name, layer in lora.factors.items()
        ]  # fmt: skip
    _, metadata = read_tensors(path)
    if "share-dist task" in metadata.get("share_dist", ""):
        coefficients, head = load_task(path)
        return "task", {"version": coefficients.version, "labels": head.num_labels}, [
            {"layer": name, "k of A": layer.a.shape[0], "k of B": layer.b.shape[0], "p": layer.pseudo_rank}
            for name, layer in coefficients.layers.items()
        ]  # fmt: skip
    subspace = load_subspace(path)
    return "subspace", {"version": subspace.version, "metric": subspace.metric}, [
        {
            "layer": name,
            "side": side,
            "features": basis.features,
            "k": basis.num_factors,
            "energy": float(basis.energies.sum()),
            "in the first factor": float(basis.energies[0] / basis.energies.sum()) if basis.num_columns else 0.0,
        }
        for name, layer in subspace.layers.items()
        for side, basis in layer
    ]  # fmt: skip


def _client(address: str, timeout: float) -> "ShareClient":
    from share_dist.client import ShareClient

    return ShareClient(address, timeout_seconds=timeout)


def _push_all(
    adapters: Sequence[Path],
    task_ids: Sequence[str],
    worker: str,
    model: Path | None,
    address: str,
    timeout: float,
    *,
    wait: bool,
) -> "list[Receipt]":
    from share_dist.adapters import load_lora, update_from_lora

    loaded = [load_lora(adapter) for adapter in adapters]
    with _client(address, timeout) as client:
        fingerprint = _fingerprint(client, loaded[0], model)
        client.register(worker, fingerprint)
        subspace = _newest(client, fingerprint)
        # made before the first one is sent: a folder that does not fit must not leave half of them
        updates = [
            update_from_lora(adapter, task_id, subspace=subspace)
            for adapter, task_id in zip(loaded, task_ids, strict=True)
        ]
        receipts = [client.push(update, wait="durable") for update in updates]
        if wait:
            receipts = [client.push(update, wait="merged") for update in updates]
    return receipts


def _fingerprint(
    client: "ShareClient", adapter: "LoraAdapter", model: Path | None
) -> "Fingerprint":
    from share_dist.core.values import Fingerprint

    bound = client.status().fingerprint
    if model is None and bound is None:
        raise ConfigError(
            f"the coordinator at {client.address} does not know a base model yet: tell it with "
            "--model, the folder of the frozen model that all adapters belong to",
            key="model",
        )
    if model is None:
        assert bound is not None, "checked just above"
        return bound
    shapes: dict[str, LayerShape] = {name: layer.shape for name, layer in adapter.factors.items()}
    mine = Fingerprint(_digest(model), shapes, bound.metric if bound else "delta")
    if bound is not None:
        bound.require(mine)
    return mine


def _digest(model: Path) -> str:
    from transformers import AutoModel

    from share_dist.adapters import model_digest

    return model_digest(AutoModel.from_pretrained(model))


def _newest(client: "ShareClient", fingerprint: "Fingerprint") -> "Subspace":
    from share_dist.core.values import Subspace

    if client.status().current_version == 0:
        return Subspace.empty(fingerprint.layers, fingerprint.metric)
    subspace = client.pull()
    assert subspace is not None, "nothing was held, so something came"
    return subspace


def _show_receipts(
    task_ids: Sequence[str], receipts: "Sequence[Receipt]", *, as_json: bool
) -> None:
    found = [
        {"task": task_id, **jsonable(receipt)}
        for task_id, receipt in zip(task_ids, receipts, strict=True)
    ]
    lines = [
        (task_id, receipt.state.value, receipt.version, receipt.lag, receipt.reason)
        for task_id, receipt in zip(task_ids, receipts, strict=True)
    ]
    columns = ("task", "state", "version", "lag", "reason")
    show(found, as_json=as_json, table=lambda: rows("pushed", columns, lines))


def _say_written(path: Path, facts: dict[str, Any], *, as_json: bool) -> None:
    told = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
    show({"path": str(path), **facts}, as_json=as_json, table=lambda: f"{path} written: {told}")

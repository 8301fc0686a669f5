"""`share-dist export`: one task as a PEFT LoRA directory."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from share_dist.commands.connection import DEFAULT_CONNECTION, Connection, connecting
from share_dist.commands.console import JsonOption, show, writing
from share_dist.errors import ConfigError

if TYPE_CHECKING:
    from share_dist.adapters import LoraAdapter
    from share_dist.wire.records import PulledTask

HEAD_FILE = "head.safetensors"


@connecting
def export(
    task: Annotated[str, typer.Argument(help="The task, as `share-dist tasks` lists it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to make; see --force for one that is there.")],
    base_model: Annotated[str | None, typer.Option("--base-model", help="Name or path of the base model, noted in the config for peft to find it.")] = None,
    prefix: Annotated[str, typer.Option("--prefix", help="What a model with a head on top calls its backbone, put before each layer's name: bert for BertForSequenceClassification. [default: none, as AutoModel names them]")] = "",
    head_module: Annotated[str, typer.Option("--head-module", help=f"Where in that model the task's head belongs, such as classifier. [default: into {HEAD_FILE}, a file of its own]")] = "",
    conv1d: Annotated[bool, typer.Option("--conv1d", help="The adapted layers are Conv1D, as in GPT-2.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an export that is in the directory; other files there stay.")] = False,
    connection: Connection = DEFAULT_CONNECTION,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """
    Export one task as a PEFT LoRA directory, which plain peft loads.

    The dW of every layer is the task's own under the newest version, its rank
    the task's pseudo-rank. A head that was pushed with an adapter goes back to
    the module it came from.
    """
    if not force and output.exists() and (output.is_file() or any(output.iterdir())):
        raise ConfigError(
            f"{output} is there already: name another --output, or replace it with --force",
            key="output",
        )
    with connection.client() as client:
        pulled = client.pull_task(task)
    lora = _lora(pulled, prefix, head_module)
    own_file = bool(pulled.head.tensors) and not lora.head
    with writing(output):
        _write(output, lora, pulled if own_file else None, base_model, conv1d=conv1d)
    found = {
        "path": output,
        "task": task,
        "version": pulled.coefficients.version,
        "num_layers": len(lora.factors),
        "rank": max(lora.ranks.values()),
        "head": HEAD_FILE if own_file else sorted(lora.head) or None,
    }
    show(found, as_json=as_json, table=lambda: _sentence(found))


def _lora(pulled: "PulledTask", prefix: str, head_module: str) -> "LoraAdapter":
    from share_dist.adapters import lora_from_task

    tensors = pulled.head.tensors
    names_its_module = any("." in name for name in tensors)
    if head_module and (names_its_module or not tensors):
        held = f"is {', '.join(tensors)} already" if tensors else "was never pushed"
        raise ConfigError(
            f"the head of {pulled.summary.task_id!r} {held}: drop --head-module", key="head_module"
        )
    head = pulled.head if head_module or names_its_module else None
    lora = lora_from_task(pulled.subspace, pulled.coefficients, head, head_module=head_module)
    front = f"{prefix.rstrip('.')}." if prefix else ""
    return replace(lora, factors={f"{front}{name}": pair for name, pair in lora.factors.items()})


def _write(
    output: Path, lora: "LoraAdapter", of_head: "PulledTask | None", base_model: str | None, *, conv1d: bool
) -> None:  # fmt: skip
    """Write beside the place and rename: the directory is there whole, or not at all."""
    from share_dist.adapters import save_lora
    from share_dist.adapters.files import write_tensors

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        unfinished = Path(folder) / "export"
        save_lora(lora, unfinished, base_model=base_model, fan_in_fan_out=conv1d)
        if of_head is not None:
            write_tensors(unfinished / HEAD_FILE, of_head.head.tensors, {"format": "pt"})
        if not output.exists():
            unfinished.replace(output)
            return
        (output / HEAD_FILE).unlink(missing_ok=True)
        for path in unfinished.iterdir():
            path.replace(output / path.name)


def _sentence(found: dict[str, object]) -> str:
    head = found["head"]
    where = f"its head in {head}" if isinstance(head, str) else f"head {', '.join(head)}" if isinstance(head, list) else "no head"  # fmt: skip
    return (
        f"{found['path']}: task {found['task']!r} of version {found['version']}, "
        f"{found['num_layers']} layers of rank {found['rank']}, {where}"
    )

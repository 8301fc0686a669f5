"""`share-dist lora-start`: a PEFT LoRA that begins in a subspace."""

from pathlib import Path
from typing import Annotated

import typer

from share_dist.commands.console import JsonOption, show, writing
from share_dist.errors import ConfigError


def lora_start(
    subspace: Annotated[Path, typer.Argument(help="Subspace file, such as `share-dist init` or `share-dist pull` writes.", exists=True, dir_okay=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to make.")],
    rank: Annotated[int, typer.Option("--rank", "-r", min=1, help="Of the LoRA: so many leading principal factors.")] = 8,
    base_model: Annotated[str | None, typer.Option("--base-model", help="Name or path of the base model, noted in the config for peft to find it.")] = None,
    conv1d: Annotated[bool, typer.Option("--conv1d", help="The adapted layers are Conv1D, as in GPT-2.")] = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """
    Start an ordinary LoRA in a subspace, for plain peft to train.

    Its side A are the leading principal factors, its side B is zero: until it is trained it changes nothing.
    """
    from share_dist.adapters import load_subspace, save_lora
    from share_dist.adapters import lora_start as start

    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise ConfigError(
            f"{output} is there already: name another --output, or remove it first", key="output"
        )
    held = load_subspace(subspace)
    lora = start(held, rank)
    with writing(output):
        save_lora(lora, output, base_model=base_model, fan_in_fan_out=conv1d)
    found = {
        "path": output,
        "version": held.version,
        "num_layers": len(lora.factors),
        "rank": rank,
    }
    sentence = f"{output}: a LoRA of rank {rank} in {len(lora.factors)} layers, started in version {held.version}"
    show(found, as_json=as_json, table=lambda: sentence)

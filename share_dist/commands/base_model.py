"""The frozen base model as a command sees it: a folder, its digest, the names of its layers."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from share_dist.errors import ConfigError

if TYPE_CHECKING:
    from share_dist.adapters import LoraAdapter
    from share_dist.core.values import Fingerprint, LayerShape

ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model",
        exists=True,
        file_okay=False,
        help="Folder of the frozen base model, as transformers saves it. The first push to a "
        "coordinator needs it, to tell what everyone works on; later ones check it if given.",
    ),
]


def fingerprint_of(
    adapter: "LoraAdapter", model: Path | None, bound: "Fingerprint | None"
) -> "Fingerprint":
    """
    Tell what a push of this adapter works on.

    Args:
        adapter: Its layers may be named as in a model with a head on top.
        model: Folder of the base model, where it is known.
        bound: What the coordinator works on, unless it does not know yet.

    Raises:
        ConfigError: Neither is known, the folder holds no model, or the model has no such layers.
        FingerprintMismatch: The coordinator works on another model.
    """
    from share_dist.core.values import Fingerprint

    if model is None:
        if bound is None:
            raise ConfigError(
                "the coordinator does not know a base model yet: tell it with --model, the folder "
                "of the frozen model that all adapters belong to",
                key="model",
            )
        return bound
    loaded, digest = load_model(model)
    names = {name for name, _ in loaded.named_modules()}
    shapes: dict[str, LayerShape] = {
        name: layer.shape for name, layer in rename_layers(adapter, names).factors.items()
    }
    strange = sorted(shapes.keys() - names)
    if strange:
        raise ConfigError(
            f"the model in {model} has no layer {strange[0]!r} ({len(strange)} of the adapter's "
            f"{len(shapes)} layers are missing): give the model that the adapter was trained on",
            key="model",
        )
    mine = Fingerprint(digest, shapes, bound.metric if bound else "delta")
    if bound is not None:
        bound.require(mine)
    return mine


def rename_layers(adapter: "LoraAdapter", names: "set[str] | Mapping[str, object]") -> "LoraAdapter":  # fmt: skip
    """
    Name an adapter's layers as the bare base model names them.

    An adapter that was trained below a head has the backbone's own name in
    front of each layer, such as ``bert.encoder...`` for ``encoder...``.

    Args:
        adapter: Returned as it is where no one prefix explains its names.
        names: Of the layers that there are.
    """
    first = next(iter(adapter.factors), "")
    parts = first.split(".")
    for start in range(len(parts)):
        prefix = "".join(f"{part}." for part in parts[:start])
        if all(_without(prefix, name) in names for name in adapter.factors):
            renamed = {name.removeprefix(prefix): pair for name, pair in adapter.factors.items()}
            return replace(adapter, factors=renamed)
    return adapter


def load_model(folder: Path) -> tuple[Any, str]:
    """
    Load the bare base model and its digest, as workers do.

    Raises:
        ConfigError: The folder holds none.
    """
    import transformers

    from share_dist.adapters import load_frozen

    quiet: Any = transformers.utils.logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    try:
        return load_frozen(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder} holds no model that transformers can load ({error}): give the folder that "
            "has its config.json and model.safetensors",
            key="model",
        ) from error


def _without(prefix: str, name: str) -> str | None:
    return name.removeprefix(prefix) if name.startswith(prefix) else None

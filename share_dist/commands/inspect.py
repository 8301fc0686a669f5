"""`share-dist inspect`: what is inside a file or a directory."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from share_dist.commands.console import JsonOption, rows, show

HEADINGS = {
    "in_features": "in",
    "out_features": "out",
    "delta_norm": "norm of dW",
    "num_factors": "k",
    "num_factors_a": "k of A",
    "num_factors_b": "k of B",
    "pseudo_rank": "p",
    "first_share": "in the first factor",
}
"""Field of a layer -> heading, where the two differ."""


@dataclass(frozen=True)
class Contents:
    """What a file or directory holds: its kind, facts of the whole, one line per layer or side."""

    kind: str
    facts: dict[str, Any]
    layers: list[dict[str, Any]]


def inspect(
    path: Annotated[Path, typer.Argument(help="LoRA directory of PEFT or diffusers, or a file that `share-dist pull` wrote.", exists=True)],
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """
    Show what is inside an adapter, a subspace file or a task file.

    Asks no coordinator.
    """
    found = _adapter(path) if path.is_dir() else _reader(path)(path)
    told = "".join(f", {name.replace('_', ' ')} {_say(value)}" for name, value in found.facts.items() if value)  # fmt: skip
    columns = [HEADINGS.get(name, name) for name in found.layers[0]] if found.layers else ["layer"]
    show(
        {"path": path, "kind": found.kind, **found.facts, "layers": found.layers},
        as_json=as_json,
        table=lambda: rows(
            f"{path}: {found.kind}{told}",
            columns,
            [tuple(layer.values()) for layer in found.layers],
        ),
    )


def _say(value: object) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def _reader(path: Path) -> Callable[[Path], Contents]:
    from share_dist.adapters import task_file
    from share_dist.adapters.files import read_tensors

    _, metadata = read_tensors(path)
    try:
        described = json.loads(metadata.get("share_dist", ""))["format"]
    except (ValueError, KeyError, TypeError):
        described = ""
    return _task if described == task_file.FORMAT else _subspace


def _adapter(path: Path) -> Contents:
    from share_dist.adapters import load_lora

    lora = load_lora(path)
    facts = {**lora.metadata, "head_tensors": sorted(lora.head)}
    layers = [
        {
            "layer": name,
            "in_features": layer.shape.in_features,
            "out_features": layer.shape.out_features,
            "rank": layer.a.shape[1],
            # the norm of B A.T through its r x r core: the product itself is never made
            "delta_norm": float(((layer.a.mT @ layer.a) * (layer.b.mT @ layer.b)).sum().sqrt()),
        }
        for name, layer in lora.factors.items()
    ]
    return Contents("LoRA", facts, layers)


def _task(path: Path) -> Contents:
    from share_dist.adapters import load_task

    coefficients, head = load_task(path)
    facts = {
        "version": coefficients.version,
        "head_tensors": list(head.tensors),
        "num_labels": head.num_labels,
    }
    layers = [
        {
            "layer": name,
            "num_factors_a": layer.a.shape[0],
            "num_factors_b": layer.b.shape[0],
            "pseudo_rank": layer.pseudo_rank,
        }
        for name, layer in coefficients.layers.items()
    ]
    return Contents("task", facts, layers)


def _subspace(path: Path) -> Contents:
    from share_dist.adapters import load_subspace

    subspace = load_subspace(path)
    facts = {"version": subspace.version, "metric": subspace.metric}
    layers = [
        {
            "layer": name,
            "side": side.upper(),
            "features": basis.features,
            "num_factors": basis.num_factors,
            "energy": float(basis.energies.sum()),
            "first_share": float(basis.energies[0] / basis.energies.sum()) if basis.num_columns else None,
        }
        for name, layer in subspace.layers.items()
        for side, basis in layer
    ]  # fmt: skip
    return Contents("subspace", facts, layers)

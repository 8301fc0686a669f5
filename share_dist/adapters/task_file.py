"""A task on disk: its coefficients and its head in one safetensors file, described in JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from share_dist.adapters.files import read_tensors, require_keys, write_tensors
from share_dist.core.values import Coefficients, Head, LayerCoefficients
from share_dist.errors import AdapterFormatError

FORMAT = "share-dist task 1"


def save_task(path: str | Path, coefficients: Coefficients, head: Head | None = None) -> None:
    """
    Write a task. The JSON lies in the header of the safetensors file, so that
    one rename puts both in place: a reader sees the old task or the new one.

    Args:
        path: The file to write.
        coefficients: What the task says in its version's bases, which are not
            written: they belong to all tasks.
        head: The task's own output layer.
    """
    head = head or Head()
    tensors = {
        f"layers/{name}/{side}": tensor
        for name, layer in coefficients.layers.items()
        for side, tensor in layer
    } | {f"head/{name}": tensor for name, tensor in head.tensors.items()}
    description = {
        "format": FORMAT,
        "version": coefficients.version,
        "layers": list(coefficients.layers),
        "head": {
            "tensors": list(head.tensors),
            "task_type": head.task_type,
            "num_labels": head.num_labels,
            "label_names": list(head.label_names),
        },
    }
    write_tensors(Path(path), tensors, {"share_dist": json.dumps(description)})


def load_task(path: str | Path) -> tuple[Coefficients, Head]:
    """
    Read a task.

    Raises:
        AdapterFormatError: The file is no task, or tensors are missing or
            unexpected; the message names them.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    description = _description(path, metadata)
    layers, head = description["layers"], description["head"]
    expected = {f"layers/{name}/{side}" for name in layers for side in "ab"}
    expected |= {f"head/{name}" for name in head["tensors"]}
    require_keys(path, expected, tensors)
    coefficients = Coefficients(
        {
            name: LayerCoefficients(tensors[f"layers/{name}/a"], tensors[f"layers/{name}/b"])
            for name in layers
        },
        version=description["version"],
    )
    return coefficients, Head(
        tensors={name: tensors[f"head/{name}"] for name in head["tensors"]},
        task_type=head["task_type"],
        num_labels=head["num_labels"],
        label_names=tuple(head["label_names"]),
    )


def _description(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        description: dict[str, Any] = json.loads(metadata["share_dist"])
        found = description["format"]
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterFormatError(
            f"{path} is a safetensors file, but no task: its header lacks the description "
            "that save_task writes",
            path=str(path),
        ) from error
    if found != FORMAT:
        raise AdapterFormatError(
            f"{path} has format {found!r}, this release reads {FORMAT!r}: use a newer release",
            path=str(path),
        )
    return description

"""A task on disk: its coefficients and its head in one safetensors file, described in JSON."""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from share_dist.adapters.files import read_tensors, require_keys, write_tensors
from share_dist.core.values import Coefficients, Head, LayerCoefficients
from share_dist.errors import AdapterFormatError

FORMAT = "share-dist task 1"
HEADER_KEY = "share_dist"


class _HeadDescription(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    tensors: list[str]
    task_type: str
    num_labels: int
    label_names: list[str]


class _TaskDescription(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    format: str
    version: int
    layers: list[str]
    head: _HeadDescription

    def tensor_names(self) -> set[str]:
        of_layers = {f"layers/{name}/{side}" for name in self.layers for side in "ab"}
        return of_layers | {f"head/{name}" for name in self.head.tensors}


def save_task(path: str | Path, coefficients: Coefficients, head: Head | None = None) -> None:
    """
    Write a task.

    The JSON lies in the header of the safetensors file, so that one rename puts
    both in place: a reader sees the old task or the new one.

    Args:
        path: The file to write.
        coefficients: What the task says in its version's bases, which are not
            written: they belong to all tasks.
        head: The task's own output layer.
    """
    head = head or Head()
    description = _TaskDescription(
        format=FORMAT,
        version=coefficients.version,
        layers=list(coefficients.layers),
        head=_HeadDescription(
            tensors=list(head.tensors),
            task_type=head.task_type,
            num_labels=head.num_labels,
            label_names=list(head.label_names),
        ),
    )
    tensors = {
        f"layers/{name}/{side}": tensor
        for name, layer in coefficients.layers.items()
        for side, tensor in layer
    } | {f"head/{name}": tensor for name, tensor in head.tensors.items()}
    write_tensors(Path(path), tensors, {HEADER_KEY: description.model_dump_json()})


def load_task(path: str | Path) -> tuple[Coefficients, Head]:
    """
    Read a task.

    Raises:
        AdapterFormatError: The file is no task, or tensors are missing or
            unexpected; the message names them.
        NotFinite: A tensor holds NaN or infinity.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    description = _read_description(path, metadata)
    require_keys(path, description.tensor_names(), tensors)
    layers = {
        name: LayerCoefficients(tensors[f"layers/{name}/a"], tensors[f"layers/{name}/b"])
        for name in description.layers
    }
    head = Head(
        tensors={name: tensors[f"head/{name}"] for name in description.head.tensors},
        task_type=description.head.task_type,
        num_labels=description.head.num_labels,
        label_names=tuple(description.head.label_names),
    )
    return Coefficients(layers, version=description.version), head


def _read_description(path: Path, metadata: Mapping[str, str]) -> _TaskDescription:
    try:
        described = json.loads(metadata[HEADER_KEY])
        found = described["format"]
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
    try:
        return _TaskDescription.model_validate(described)
    except ValidationError as error:
        raise AdapterFormatError(
            f"{path} has a damaged description ({error}): write it again from its source",
            path=str(path),
        ) from error

"""
Updates that were recorded from real training: PEFT adapters, and checkpoints of workers.

A worker keeps what it has learnt in ``tasks/<task>/update.safetensors``, said in the bases of the version that it was
trained in. One that was trained in version 0 says itself; for others that version is needed, as
``share-dist pull --version N`` writes it.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from share_dist.adapters.lora import CONFIG_FILE, load_lora
from share_dist.adapters.subspace_file import load_subspace
from share_dist.core.subspace import evenly_split
from share_dist.core.temporary import factor_of
from share_dist.core.values import (
    Factors,
    Head,
    LayerFactors,
    LayerShape,
    Subspace,
    TaskUpdate,
)
from share_dist.errors import AdapterFormatError, ConfigError, ShapeMismatch
from share_dist.wire.codec import update_from_record

UPDATE_FILE = "update.json"


@dataclass(frozen=True)
class Recording:
    """
    What one real task has learnt.

    Args:
        name: Where it comes from, such as ``seed-0/movies``.
        factors: Layer name -> factors, each ``dW`` evenly split between both.
        head: The task's output layer, if it was recorded.
    """

    name: str
    factors: Factors
    head: Head = field(default_factory=Head)


def read_recorded(
    folders: Sequence[Path], bases: Sequence[Path] = (), layers: int | None = None
) -> list[Recording]:
    """
    Read all that some folders hold, at any depth.

    Args:
        folders: With PEFT LoRA directories, work folders of workers, or both.
        bases: Subspace files, for updates that were trained in a later version than 0.
        layers: Keep only the first so many layers, by name; all where None.

    Returns:
        By name, sorted.

    Raises:
        ConfigError: There is nothing, or an update's base version is not among ``bases``.
        AdapterFormatError: A file is damaged.
        ShapeMismatch: They are not all of the same layers.
    """
    versions = {subspace.version: subspace for subspace in map(load_subspace, bases)}
    found = [
        Recording(str(path.parent.relative_to(folder)), _split(factors, layers), head)
        for folder in folders
        for path, factors, head in itertools.chain(
            _adapters(folder), _checkpoints(folder, versions)
        )
    ]
    if not found:
        raise ConfigError(
            f"{', '.join(map(str, folders))}: no {CONFIG_FILE} of a PEFT adapter is in there, and no "
            f"{UPDATE_FILE} of a worker's task: give folders with recorded updates",
            key="recorded",
        )
    _require_alike(found)
    return sorted(found, key=lambda each: each.name)


def _adapters(folder: Path) -> Iterator[tuple[Path, Factors, Head]]:
    for path in folder.rglob(CONFIG_FILE):
        adapter = load_lora(path.parent)
        yield path, adapter.factors, Head(adapter.head)


def _checkpoints(
    folder: Path, versions: Mapping[int, Subspace]
) -> Iterator[tuple[Path, Factors, Head]]:
    for path in folder.rglob(UPDATE_FILE):
        update = _read_update(path)
        yield path, _factors(update, _base_of(update, versions, path)), update.head


def _read_update(path: Path) -> TaskUpdate:
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        payload = path.with_suffix(".safetensors").read_bytes()
        expected, metadata = described["sha256"], described["update"]
        base_digest = str(described.get("base_digest", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterFormatError(
            f"{path} and the tensors beside it are no update that a worker kept ({error}): remove "
            "them, or give another folder",
            path=str(path),
        ) from error
    if hashlib.sha256(payload).hexdigest() != expected:
        raise AdapterFormatError(
            f"the tensors beside {path} are not those that it describes: remove both",
            path=str(path),
        )
    return replace(update_from_record(metadata, payload), base_digest=base_digest)


def _base_of(update: TaskUpdate, versions: Mapping[int, Subspace], path: Path) -> Subspace:
    """Find the bases in which an update says itself."""
    number = update.base_version
    if number == 0:
        return Subspace.empty({
            name: LayerShape(layer.a.temporary.shape[0], layer.b.temporary.shape[0])
            for name, layer in update.layers.items()
        })  # fmt: skip
    base = versions.get(number)
    is_known = base is not None and update.base_digest in {"", base.digest}
    if base is None or not is_known or base.shapes.keys() != update.layers.keys():
        raise ConfigError(
            f"{path} was trained in version {number} and says itself in its bases, which --bases does "
            f"not hold: get them by `share-dist pull --version {number}` from where it was pushed",
            key="bases",
        )
    return base


def _factors(update: TaskUpdate, base: Subspace) -> Factors:
    return {
        name: LayerFactors(*(
            factor_of(base.layers[name][side].leading, each) for side, each in layer
        ))
        for name, layer in update.layers.items()
    }  # fmt: skip


def _split(factors: Factors, layers: int | None) -> Factors:
    """Split the ``dW`` of the first layers evenly."""
    return {name: _even(factors[name]) for name in sorted(factors)[:layers]}


def _even(layer: LayerFactors) -> LayerFactors:
    even = evenly_split(layer)
    return LayerFactors(even.a.float().contiguous(), even.b.float().contiguous())


def _require_alike(found: Sequence[Recording]) -> None:
    first = found[0]
    shapes = {name: layer.shape for name, layer in first.factors.items()}
    for each in found:
        if {name: layer.shape for name, layer in each.factors.items()} != shapes:
            raise ShapeMismatch(
                f"{each.name} and {first.name} are not of the same layers and features: give only "
                "what was recorded on one base model with the same targets"
            )

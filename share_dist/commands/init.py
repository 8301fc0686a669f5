"""`share-dist init`: a subspace file out of LoRA adapters that exist, with no coordinator."""

import enum
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track

from share_dist.commands.console import JsonOption, rows, show, writing
from share_dist.errors import ConfigError, NotFinite, ShapeMismatch
from share_dist.files import make_folder, sync_folder

if TYPE_CHECKING:
    from share_dist.adapters import LoraAdapter
    from share_dist.core.values import Subspace

SUBSPACE_FILE = "subspace.safetensors"
TASK_FOLDER = "tasks"

AUGMENT_SEED = 0
"""Everybody who augments the same subspace gets the same directions."""


class MetricChoice(str, enum.Enum):
    """The metrics, where asking for them must not bring torch."""

    DELTA = "delta"
    FACTORS = "factors"


def init(
    adapters: Annotated[list[Path], typer.Argument(help="LoRA directories of PEFT or diffusers, of any ranks, or folders that hold some; each becomes the task of its folder's name.", exists=True, file_okay=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make: subspace.safetensors, and a file per task in tasks/.")],
    num_factors: Annotated[int, typer.Option("--num-factors", "-k", min=1, help="Principal factors of each side.")] = 32,
    energy: Annotated[float | None, typer.Option("--energy", help="Keep fewer where that explains this share of the energy, 0 to 1.")] = None,
    metric: Annotated[MetricChoice, typer.Option("--metric", help="What is kept best: the weight changes, dW, or the factors.")] = MetricChoice.DELTA,
    oversample: Annotated[int | None, typer.Option("--oversample", min=0, help="Columns kept beyond, for the sake of what is merged later. [default: as many as --num-factors]")] = None,
    max_bytes: Annotated[int | None, typer.Option("--max-bytes", min=1, help="Bytes of all bases together: each side gets as many factors as explain most in them, of its --num-factors and --oversample columns.")] = None,
    augment: Annotated[int, typer.Option("--augment", min=0, help="Random directions added to each side, for learning by coefficients only from few adapters; without the columns of --oversample.")] = 0,
    same_base: Annotated[bool, typer.Option("--same-base", help="Adapters that name different base models belong to one all the same.")] = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """
    Make a subspace of any number of LoRA adapters, with no coordinator.

    Each is read twice, one at a time: to find the bases, and to say it in them. The folder is
    there whole or not at all. `share-dist inspect` shows what is in its files; in
    Python, load_subspace and load_task read them.
    """
    from share_dist.core.allocation import within_bytes
    from share_dist.core.many import subspace_from_many

    folders = _folders(adapters)
    _require_free(output)
    reader = _Reader(folders, same_base=same_base)
    named = ((name, adapter.factors) for name, adapter in _told(reader, "reading", as_json=as_json))
    subspace = subspace_from_many(named, num_factors, energy, metric.value, oversample=oversample)
    if max_bytes is not None:
        subspace = within_bytes(subspace, max_bytes)
    subspace = _augmented(subspace, augment)
    with writing(output), _made_whole(output) as unfinished:
        told = _told(reader, "writing", as_json=as_json)
        errors = {name: _write_task(unfinished, subspace, name, each) for name, each in told}
        _write_subspace(unfinished, subspace)
    _show(output, subspace, errors, as_json=as_json)


def _augmented(subspace: "Subspace", num_random: int) -> "Subspace":
    import torch

    from share_dist.core.subspace import augment

    if not num_random:
        return subspace
    return augment(subspace, num_random, torch.Generator().manual_seed(AUGMENT_SEED))


class _Reader:
    """
    Reads adapters one at a time, as often as wanted, and lets none pass that does not fit the first.

    Args:
        folders: Task -> PEFT directory.
        same_base: Different names of base models are no error.
    """

    def __init__(self, folders: Mapping[str, Path], *, same_base: bool) -> None:
        self._folders = folders
        self._same_base = same_base

    def __len__(self) -> int:
        return len(self._folders)

    def __iter__(self) -> "Iterator[tuple[str, LoraAdapter]]":
        """
        Yield name and adapter.

        Raises:
            AdapterFormatError: A folder cannot be read.
            NotFinite: A tensor holds NaN or infinity; names the folder.
            ShapeMismatch: Layers or their features are not those of the first; names the folder.
            ConfigError: It belongs to another base model.
        """
        from share_dist.commands.base_model import rename_layers
        from share_dist.core.subspace import check_layers
        from share_dist.core.values import Subspace

        empty: Subspace | None = None
        base: tuple[str, Path] | None = None
        for name, folder in self._folders.items():
            with _naming(folder):
                adapter = _load(folder)
                if empty is None:
                    empty = Subspace.empty({layer: pair.shape for layer, pair in adapter.factors.items()})  # fmt: skip
                adapter = rename_layers(adapter, empty.layers)
                check_layers(empty, adapter.factors)
            found = adapter.metadata.get("base_model")
            base = base or ((found, folder) if found else None)
            if found and base and not self._same_base:
                _require_base(base, (found, folder))
            yield name, adapter


def _load(folder: Path) -> "LoraAdapter":
    from share_dist.adapters import load_lora

    return load_lora(folder)


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Say of which folder an error is that knows layers only."""
    try:
        yield
    except (NotFinite, ShapeMismatch) as error:
        raise type(error)(f"{folder}: {error.message}", **error.details) from error


def _require_base(first: tuple[str, Path], found: tuple[str, Path]) -> None:
    if first[0] != found[0]:
        raise ConfigError(
            f"{first[1]} was trained on {first[0]!r}, {found[1]} on {found[0]!r}: adapters of one "
            "subspace share one base model; leave one out, or say --same-base if it is one "
            "model under two names",
            key="adapters",
        )


def _folders(given: Sequence[Path]) -> dict[str, Path]:
    """
    Find the PEFT directories that are meant: task -> folder, in the order given, sorted within one.

    Raises:
        ConfigError: A folder holds none, or two would become one task.
    """
    folders: dict[str, Path] = {}
    for path in given:
        for found in _within(path):
            name = found.resolve().name
            if name in folders:
                raise ConfigError(
                    f"{folders[name]} and {found} would both become the task {name!r}: rename one",
                    key="adapters",
                )
            folders[name] = found
    return folders


def _within(path: Path) -> list[Path]:
    from share_dist.adapters.diffusers_lora import WEIGHTS_FILE
    from share_dist.adapters.lora import CONFIG_FILE, is_lora

    if is_lora(path):
        return [path]
    found = sorted(each for each in path.iterdir() if is_lora(each))
    if not found:
        raise ConfigError(
            f"{path} holds no adapters: neither it nor a folder in it has an {CONFIG_FILE} "
            f"or a {WEIGHTS_FILE}; give directories that PEFT or diffusers wrote, or a folder of such directories",
            key="adapters",
        )
    return found


def _require_free(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(
            f"{output} is there already: choose another --output, or remove it first", key="output"
        )


@contextmanager
def _made_whole(output: Path) -> Iterator[Path]:
    """Give a folder beside the place, which becomes it by one rename when all went well."""
    make_folder(output.absolute().parent)
    unfinished = output.absolute().parent / f".{uuid.uuid4().hex}.tmp"
    make_folder(unfinished)
    try:
        yield unfinished
        unfinished.replace(output)
    except BaseException:
        shutil.rmtree(unfinished)
        raise
    sync_folder(output.absolute().parent)


def _write_subspace(folder: Path, subspace: "Subspace") -> None:
    from share_dist.adapters import save_subspace

    save_subspace(folder / SUBSPACE_FILE, subspace)


def _write_task(folder: Path, subspace: "Subspace", name: str, adapter: "LoraAdapter") -> float:
    """Write what an adapter says in a subspace; return the relative error of its ``dW``."""
    from share_dist.adapters import save_task
    from share_dist.core.many import delta_error
    from share_dist.core.subspace import project, reconstruct
    from share_dist.core.values import Head

    coefficients = project(subspace, adapter.factors)
    path = folder / TASK_FOLDER / f"{name}.safetensors"
    save_task(path, coefficients, Head(tensors=adapter.head))
    return delta_error(adapter.factors, reconstruct(subspace, coefficients))


def _told(reader: _Reader, what: str, *, as_json: bool) -> "Iterator[tuple[str, LoraAdapter]]":
    """Go through the adapters, and tell a person who waits how far."""
    if as_json or not sys.stderr.isatty():
        yield from reader
        return
    console = Console(stderr=True)
    yield from track(reader, f"{what} {len(reader)} adapters", console=console, transient=True)


def _show(
    output: Path, subspace: "Subspace", errors: Mapping[str, float], *, as_json: bool
) -> None:
    sizes = [path.stat().st_size for path in output.rglob("*.safetensors")]
    found = {
        "path": output,
        "file_bytes": sum(sizes),
        "version": subspace.version,
        "num_factors": subspace.num_factors,
        "num_layers": len(subspace.layers),
        "tasks": [{"task": name, "error": error} for name, error in errors.items()],
    }
    worst = max(errors, key=lambda name: errors[name])
    mean = sum(errors.values()) / len(errors)
    lines = [
        ("adapters", len(errors)),
        ("layers", len(subspace.layers)),
        ("principal factors", subspace.num_factors),
        ("bytes", sum(sizes)),
        ("relative error of dW, mean", mean),
        (f"the same, worst ({worst})", errors[worst]),
    ]
    show(found, as_json=as_json, table=lambda: rows(f"{output}: a subspace", ("", ""), lines))

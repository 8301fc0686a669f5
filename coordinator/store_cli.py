"""The commands of a store: ``share-dist store ...``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from share_dist.commands.console import JsonOption, rows, show

if TYPE_CHECKING:
    from rich.table import Table

    from coordinator.store.base import Finding
    from coordinator.store.tools import CatalogInfo, Copied

app = typer.Typer(
    name="store", help="Look after a coordinator's store, also while it runs.", no_args_is_help=True
)

StoreOption = Annotated[
    str, typer.Option("--store", help="Folder of the store, or a postgresql:// URL.")
]
BlobsOption = Annotated[
    str | None,
    typer.Option(
        "--blobs",
        help="Folder or URL of large payloads, as the coordinator was told. [default: STORE/blobs]",
    ),
]


@app.command()
def info(store: StoreOption, blobs: BlobsOption = None, as_json: JsonOption = False) -> None:
    """Say what a store holds, and which coordinator owns it."""
    from coordinator.store import tools
    from coordinator.store.place import Place

    found = tools.info(Place(store, blobs))
    show(found, as_json=as_json, table=lambda: _info_table(found))


@app.command()
def verify(store: StoreOption, blobs: BlobsOption = None, as_json: JsonOption = False) -> None:
    """Walk over all that a store keeps, and name what is broken; exit code 3 if anything is."""
    from coordinator.store import tools
    from coordinator.store.place import Place
    from share_dist.errors import StoreCorrupt

    found = list(tools.verify(Place(store, blobs)))
    show(found, as_json=as_json, table=lambda: _findings_table(found))
    if not all(finding.is_harmless for finding in found):
        raise typer.Exit(StoreCorrupt.exit_code)


@app.command()
def backup(
    target: Annotated[Path, typer.Argument(help="Folder to make; it must not be there.")],
    store: StoreOption,
    blobs: BlobsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a store as it is at one moment; its coordinator goes on meanwhile."""
    from coordinator.store import tools
    from coordinator.store.place import Place

    with _progress("copying") as progress:
        copied = tools.backup(Place(store, blobs), target, progress)
    show(copied, as_json=as_json, table=lambda: f"backed up to {_told(copied)}")


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(help="Folder that `store backup` made.")],
    store: StoreOption,
    blobs: BlobsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a store from a backup, where there is none."""
    from coordinator.store import tools
    from coordinator.store.place import Place

    with _progress("copying") as progress:
        copied = tools.restore(source, Place(store, blobs), progress)
    show(copied, as_json=as_json, table=lambda: f"restored to {_told(copied)}")


@app.command()
def migrate(store: StoreOption, blobs: BlobsOption = None, as_json: JsonOption = False) -> None:
    """Bring a store of an older release up to date; a coordinator does the same when it starts."""
    from coordinator.store import tools
    from coordinator.store.place import Place

    before, after = tools.bring_up_to_date(Place(store, blobs))
    show(
        {"store": store, "schema_version_before": before, "schema_version": after},
        as_json=as_json,
        table=lambda: f"{store}: schema version {before} before, {after} now",
    )


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show on standard error how far a copy is, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


def _told(copied: "Copied") -> str:
    return (
        f"{copied.place}: {copied.num_files:,} files, {copied.file_bytes:,} bytes beside the rows"
    )


def _findings_table(found: "list[Finding]") -> "Table | str":
    if not found:
        return "nothing is broken"
    lines = [(finding.subject, finding.problem, finding.remedy) for finding in found]
    return rows("findings", ("what", "problem", "what to do"), lines)


def _info_table(found: "CatalogInfo") -> "Table":
    owner = "nobody"
    if found.owner is not None:
        left = (
            "its process is dead"
            if found.owner.is_provably_dead
            else f"{found.owner.seconds_left:.0f} s left"
        )
        owner = f"process {found.owner.pid} on {found.owner.host} ({left})"
    lines: list[tuple[str, object]] = [
        ("database", found.database),
        ("blobs", found.blobs),
        ("store id", found.store_id),
        ("schema version", found.schema_version),
        ("owner", owner),
        ("tokens", found.num_tokens),
        ("audit lines", found.num_audit_lines),
    ]
    for subspace in found.subspaces:
        updates = ", ".join(f"{count} {state}" for state, count in subspace.num_updates.items())
        told = f"version {subspace.current_version}, {subspace.num_kept_versions} kept, {subspace.num_tasks} tasks"
        lines.append((f"subspace {subspace.name}", f"{told}; updates: {updates or 'none'}"))
    return rows("store", ("", ""), lines)

"""The command line: `share-dist`, composed of this package's commands and those of the programs."""

from collections.abc import Callable
from importlib.metadata import entry_points, version
from typing import Annotated

import typer

from share_dist.commands import (
    audit,
    certs,
    cluster,
    console,
    doctor,
    export,
    init,
    inspect,
    kit,
    lineage,
    lora_start,
    pull,
    push,
    quickstart,
    simulate,
    status,
    subspaces,
    tasks,
    top,
    updates,
    versions,
    watch,
)

COMMAND_GROUP = "share_dist.commands"
"""Entry points of this group, ``name = "module:typer_app"``, become groups of commands."""

app = typer.Typer(
    name="share-dist",
    help="Let many private task streams learn into one shared low-rank subspace.",
    epilog="Begin with `share-dist quickstart`: eight real tasks, two workers, one report.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"share-dist {version('share-dist')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the release."
        ),
    ] = False,
) -> None:
    pass


_COMMANDS: dict[str, Callable[..., None]] = {
    "quickstart": quickstart.quickstart,
    "status": status.status,
    "tasks": tasks.tasks,
    "pull": pull.pull,
    "push": push.push,
    "watch": watch.watch,
    "export": export.export,
    "import": push.import_,
    "init": init.init,
    "lora-start": lora_start.lora_start,
    "inspect": inspect.inspect,
    "subspaces": subspaces.subspaces,
    "versions": versions.versions,
    "diff": versions.diff,
    "bisect": versions.bisect,
    "rollback": lineage.rollback,
    "compact": lineage.compact,
    "remove": lineage.remove,
    "audit": audit.audit,
    "top": top.top,
    "doctor": doctor.doctor,
    "simulate": simulate.simulate,
}
for name, command in _COMMANDS.items():
    app.command(name)(command)

app.add_typer(kit.app, name="kit")
app.add_typer(updates.app, name="updates")
app.add_typer(certs.app, name="certs")
app.add_typer(cluster.app, name="cluster")

for entry in sorted(entry_points(group=COMMAND_GROUP), key=lambda entry: entry.name):
    app.add_typer(entry.load(), name=entry.name)


def main() -> None:
    """Run `share-dist`."""
    console.run(app)

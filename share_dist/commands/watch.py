"""`share-dist watch`: versions as they come to be."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from share_dist.commands.connection import DEFAULT_CONNECTION, Connection, connecting
from share_dist.commands.console import JsonOption, show
from share_dist.commands.versions import tasks_of

if TYPE_CHECKING:
    from share_dist.wire.records import VersionEvent


@connecting
def watch(
    after_version: Annotated[int | None, typer.Option("--after", min=0, help="Begin with the version after this one; 0 tells all. [default: the current version]")] = None,
    count: Annotated[int | None, typer.Option("--count", min=1, help="Stop after so many versions. [default: go on until Ctrl-C]")] = None,
    connection: Connection = DEFAULT_CONNECTION,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """
    Print each version as it comes to be, one line each, until Ctrl-C.

    Nothing is missed when the connection is cut, as long as the coordinator is
    back within --timeout.
    """
    with connection.client() as client:
        for number, event in enumerate(client.watch(after_version), start=1):
            show(event, as_json=as_json, table=partial(_line, event))
            if number == count:
                return


def _line(event: "VersionEvent") -> str:
    kind = "" if event.kind.value == "merge" else f", {event.kind.value}"
    return (
        f"version {event.version}{kind}: {tasks_of(event)}; "
        f"k {event.num_factors}, energy kept {event.mean_energy_kept:.3f} "
        f"(lowest {event.lowest_energy_kept:.3f}), angle {event.angle:.3f} rad, "
        f"largest drift {max(event.drift.values(), default=0.0):.3g}"
    )

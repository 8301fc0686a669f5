"""The ``worker`` commands."""

from pathlib import Path
from typing import Annotated

import typer

from share_dist.commands.connection import (
    CaOption,
    CertificateOption,
    Connection,
    KeyOption,
    PlainTokenOption,
    SubspaceOption,
    TokenFileOption,
)
from share_dist.wire.records import DEFAULT_SUBSPACE

app = typer.Typer(
    help="Learn task streams and push what is learnt.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def _group() -> None:
    """Learn task streams and push what is learnt."""


@app.command()
def run(
    streams: Annotated[list[Path], typer.Argument(help="Stream files; one actor learns each.")],
    coordinator: Annotated[str, typer.Option(help="host:port of the coordinator.")],
    workers: Annotated[
        int | None, typer.Option(min=1, help="How many streams are learnt at once. [default: all]")
    ] = None,
    workdir: Annotated[Path, typer.Option(help="Folder for checkpoints and results.")] = Path(
        "runs/worker"
    ),
    ray_address: Annotated[
        str | None,
        typer.Option(envvar="RAY_ADDRESS", help="A Ray cluster that runs. [default: a local one]"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where it was left.")
    ] = False,  # typer makes a flag of it
    compare: Annotated[
        bool, typer.Option("--compare", help="Also train each task's own LoRA.")
    ] = False,  # typer makes a flag of it
    subspace: SubspaceOption = DEFAULT_SUBSPACE,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    token_file: TokenFileOption = None,
    insecure: PlainTokenOption = False,  # typer makes a flag of it
    as_json: Annotated[
        bool, typer.Option("--json", help="Print events, one JSON a line.")
    ] = False,  # typer makes a flag of it
) -> None:
    """
    Learn streams with one actor each, and score all tasks under the last version.

    Ctrl-C stops the actors after their step; --resume goes on. An actor on another machine
    reads certificate, key and token file there, at the same paths.
    """
    from worker.driver import Driver, RunRequest
    from worker.loop import LoopOptions

    connection = Connection(coordinator, subspace, None, ca, certificate, key, token_file, insecure)
    request = RunRequest(
        streams=tuple(streams),
        address=coordinator,
        workdir=workdir,
        num_at_once=workers or len(streams),
        ray_address=ray_address,
        options=LoopOptions(compare=compare, resume=resume),
        subspace=subspace,
        credentials=connection.credentials,
    )
    raise typer.Exit(Driver(request, as_json=as_json).run())

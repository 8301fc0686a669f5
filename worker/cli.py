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

_SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Of all streams' [training] and [model], instead of what their files say, such as training.epochs=5; repeat for more.",
    ),
]
_ReportOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Reporter of losses and scores, such as tensorboard; more than one may be given. [default: the stream's report_to]"
    ),
]
_PortOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65535,
        help="Port of the first actor's Prometheus metrics; each further one takes the next. 0: free ones. [default: not served]",
    ),
]
_HostOption = Annotated[str, typer.Option(help="Host of the same, on the actor's machine.")]

_OF_NODES = "Of `worker run`'s {}, on the cluster's machines. [default: the cluster's own]"

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
    changes: _SetOption = None,
    subspace: SubspaceOption = DEFAULT_SUBSPACE,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    token_file: TokenFileOption = None,
    insecure: PlainTokenOption = False,  # typer makes a flag of it
    report_to: _ReportOption = None,
    metrics_port: _PortOption = None,
    metrics_host: _HostOption = "127.0.0.1",
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
        changes=tuple(changes or ()),
        report_to=tuple(report_to) if report_to else None,
        metrics=None if metrics_port is None else (metrics_host, metrics_port),
    )
    raise typer.Exit(Driver(request, as_json=as_json).run())


@app.command()
def submit(
    streams: Annotated[list[Path], typer.Argument(help="Stream files; one actor learns each.")],
    cluster: Annotated[
        Path | None,
        typer.Option(help="The cluster.yaml of `share-dist cluster init`, reached over ssh."),
    ] = None,
    dashboard: Annotated[
        str | None,
        typer.Option(help="Instead: URL of a cluster's dashboard, such as http://127.0.0.1:8265."),
    ] = None,
    ray_token_file: Annotated[
        Path | None, typer.Option(help="With --dashboard: file with Ray's token.")
    ] = None,
    coordinator: Annotated[
        str | None,
        typer.Option(help="host:port, as the cluster sees it. [default: the cluster's own]"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="How many streams are learnt at once. [default: all]")
    ] = None,
    workdir: Annotated[
        str, typer.Option(help="Folder for checkpoints and results, on the cluster's machines.")
    ] = "~/share-dist-work",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where it was left.")
    ] = False,  # typer makes a flag of it
    compare: Annotated[
        bool, typer.Option("--compare", help="Also train each task's own LoRA.")
    ] = False,  # typer makes a flag of it
    changes: _SetOption = None,
    subspace: SubspaceOption = DEFAULT_SUBSPACE,
    ca: Annotated[str | None, typer.Option(help=_OF_NODES.format("--ca"))] = None,
    certificate: Annotated[str | None, typer.Option(help=_OF_NODES.format("--certificate"))] = None,
    key: Annotated[str | None, typer.Option(help=_OF_NODES.format("--key"))] = None,
    report_to: _ReportOption = None,
    metrics_port: _PortOption = None,
    metrics_host: _HostOption = "127.0.0.1",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print events, one JSON a line.")
    ] = False,  # typer makes a flag of it
) -> None:
    """
    Learn streams on a cluster that runs, with one actor each.

    Only the stream files are sent, with Ray's token; rows and models are read where the actors
    are. Ctrl-C stops the job after the actors' step; --resume goes on.
    """
    from worker.submission import Submission, SubmitRequest, reached

    own = {"coordinator": coordinator, "ca": ca, "certificate": certificate, "key": key}
    with reached(cluster, dashboard, ray_token_file, own) as (url, token, shown):
        flags = [part for name, value in shown.items() for part in (f"--{name}", value)]
        flags += ["--workdir", workdir, "--subspace", subspace]
        flags += ["--workers", str(workers)] if workers else []
        flags += [part for name in report_to or () for part in ("--report-to", name)]
        if metrics_port is not None:
            flags += ["--metrics-port", str(metrics_port), "--metrics-host", metrics_host]
        flags += ["--resume"] * resume + ["--compare"] * compare
        request = SubmitRequest(tuple(streams), url, token, tuple(changes or ()), tuple(flags))
        raise typer.Exit(Submission(request, as_json=as_json).run())

"""The commands of the coordinator: ``share-dist coordinator ...``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from coordinator.app import CoordinatorApp
    from coordinator.config import CoordinatorConfig

NUM_THREADS = 64
"""Threads in which calls wait for the store."""

app = typer.Typer(
    name="coordinator",
    help="The server that merges updates and broadcasts versions.",
    no_args_is_help=True,
)


@app.callback()
def commands() -> None:
    """Keep ``serve`` a named command, also while it is the only one."""


@app.command()
def serve(
    store: Annotated[
        str | None,
        typer.Option(
            help="Folder of the store, made if it is not there; or a postgresql:// URL, which needs "
            "--blobs."
        ),
    ] = None,
    blobs: Annotated[
        str | None,
        typer.Option(help="Folder or URL of large tensors. [default: STORE/blobs]"),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            help="Address to serve on; port 0 takes a free one. [default: 127.0.0.1:50551]"
        ),
    ] = None,
    port_file: Annotated[
        Path | None, typer.Option(help="File to write the port to once serving.")
    ] = None,
    num_factors: Annotated[
        int | None, typer.Option(help="Principal factors per side, at most. [default: 32]")
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(help="Keep the fewest factors that explain this share of the energy."),
    ] = None,
    oversample: Annotated[
        int | None,
        typer.Option(help="Columns kept beyond those, for later merges. [default: 32]"),
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(
            help="Bytes of all factors, at most, shared out by what each explains; "
            "up to --num-factors for each side."
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="What a merge keeps best: delta or factors. [default: delta]"),
    ] = None,
    metrics_listen: Annotated[
        str | None, typer.Option(help="Address to serve Prometheus metrics on.")
    ] = None,
    web_listen: Annotated[
        str | None,
        typer.Option(help="Address to serve the operator's page on, such as 127.0.0.1:8080."),
    ] = None,
    insecure: Annotated[
        bool | None,
        typer.Option("--insecure", help="Serve beyond this machine without encryption."),
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="Certificate of this coordinator; turns TLS on.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key of --tls-certificate.")] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(help="Let only those in who show a certificate of these authorities."),
    ] = None,
    require_token: Annotated[
        bool | None,
        typer.Option("--require-token", help="Let only those in who show a token."),
    ] = None,
    log_format: Annotated[
        str | None,
        typer.Option(help="How logs are written: console or json. [default: console]"),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file with any of these keys, and more.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON once serving.")
    ] = False,
) -> None:
    """Serve until SIGINT or SIGTERM; the merge in hand is finished first."""
    from coordinator.config import load_config

    flags: dict[str, Any] = {
        "store": store,
        "blobs": blobs,
        "listen": listen,
        "port_file": port_file,
        "num_factors": num_factors,
        "energy": energy,
        "oversample": oversample,
        "max_bytes": max_bytes,
        "metric": metric,
        "metrics_listen": metrics_listen,
        "web_listen": web_listen,
        "insecure": insecure,
        "tls_certificate": tls_certificate,
        "tls_key": tls_key,
        "tls_client_ca": tls_client_ca,
        "require_token": require_token,
        "log_format": log_format,
    }
    _serve(load_config(flags, config), as_json=as_json)


def _serve(config: "CoordinatorConfig", *, as_json: bool) -> None:
    import asyncio

    from coordinator import allocator

    # before torch and gRPC start their threads
    allocator.use_few_heaps()
    allocator.keep_no_product_buffers()
    allocator.keep_a_buffer()
    if config.tls_certificate is not None:
        # before anything that logs, and before gRPC is imported
        from coordinator import handshakes

        handshakes.listen()

    import torch

    from share_dist.telemetry import configure_logging

    configure_logging(config.log_format, config.log_level)
    torch.set_num_threads(config.threads)
    asyncio.run(_serve_until_told(config, as_json=as_json))


async def _serve_until_told(config: "CoordinatorConfig", *, as_json: bool) -> None:
    import asyncio
    import signal
    from concurrent.futures import ThreadPoolExecutor

    from coordinator import allocator
    from coordinator.app import build
    from share_dist.errors import ExitCode

    # a push waits in a thread for the commit that it shares with others: the default few
    # threads would let only a few share one
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(NUM_THREADS, "call"))
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    giving_back = asyncio.create_task(allocator.keep_giving_back())
    async with build(config) as running:
        typer.echo(_ready_line(running, as_json=as_json))
        sys.stdout.flush()
        was_told = await running.serve_until(told)
    giving_back.cancel()
    if was_told:
        return
    typer.echo(
        "a bug ended the merging, so this coordinator stopped: its log has the traceback under "
        "writer_failed. Every update that was acknowledged is in the store; start again",
        err=True,
    )
    raise typer.Exit(ExitCode.FAILED)


def _ready_line(running: "CoordinatorApp", *, as_json: bool) -> str:
    import json
    import os

    ready = {
        "address": running.address,
        "port": running.port,
        "metrics_address": running.metrics_address,
        "web_address": running.web_address,
        "pid": os.getpid(),
        **running.facts(),
    }
    if as_json:
        return json.dumps(ready)
    return f"serving version {ready['version']} on {ready['address']}, stop with Ctrl-C"

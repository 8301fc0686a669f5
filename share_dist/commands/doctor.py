"""`share-dist doctor`: what of a coordinator needs a person."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib.metadata import version as release_of
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from share_dist.commands import diagnosis
from share_dist.commands.connection import DEFAULT_CONNECTION, Connection, connecting
from share_dist.commands.console import JsonOption, rows, show
from share_dist.commands.diagnosis import Check, finding, not_checked, well
from share_dist.commands.processes import share_dist_command
from share_dist.errors import ConfigError, ExitCode, ShareError
from share_dist.wire.records import UpdateState

if TYPE_CHECKING:
    from rich.table import Table

    from share_dist.client.admin import AdminClient
    from share_dist.wire.records import CoordinatorStatus

NUM_VERSIONS = 1000
"""How many of the newest versions are walked over."""

_CONNECT_SECONDS = 5.0
_STORE_SECONDS = 600.0
_MAX_METRICS_BYTES = 2**24
_SYNCED_BYTES = 4096


@connecting
def doctor(
    store: Annotated[str | None, typer.Option("--store", help="Also look at this store: on the coordinator's machine, its folder; anywhere, its postgresql:// URL.", show_default=False)] = None,
    blobs: Annotated[str | None, typer.Option("--blobs", help="With --store: where its large tensors are, as the coordinator was told. [default: STORE/blobs]", show_default=False)] = None,
    metrics: Annotated[str | None, typer.Option("--metrics", help="Also look at Prometheus metrics at this host:port.", show_default=False)] = None,
    cluster: Annotated[Path | None, typer.Option("--cluster", help="Look at a cluster instead, by its cluster.yaml: at every machine over ssh, and at its coordinator.", show_default=False)] = None,
    wait: Annotated[float, typer.Option("--wait", min=0, help="With --cluster: seconds to wait for workers that are on their way.")] = 0.0,
    connection: Connection = DEFAULT_CONNECTION,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """
    Look a coordinator over, and say what needs a person and what to do about it.

    Checks have fixed numbers. 1 reachable; 2 its certificate and 3 your own; 4 release;
    5 clocks; 6 workers gone; 7 workers behind; 8 slow watchers; 9 quarantine; 10 parked
    updates; 11 updates that are not merged; 12 the lineage of versions; 13 metrics; and
    with --store 15 free space, 16 the disk's speed, 17 the store's owner and schema, 18
    everything it keeps. With --cluster also, of each machine, 21 login by ssh, 22 versions, 23
    clock, 24 accelerators, 25 ports, 26 Ray's token; 27 that the coordinator's certificate is
    the planned one, 28 the model it is bound to; 29 workers that are missing, each with the reason.

    It changes nothing. Ends with 0 when all is well, 7 when something was found.
    """
    if cluster is not None:
        title, checks = str(cluster), list(_of_cluster(cluster, wait))
    else:
        connection.require_address()
        title = f"coordinator at {connection.address}"
        checks = [*_of_coordinator(connection, metrics), *_of_store(store, blobs)]
    show(checks, as_json=as_json, table=lambda: _table(title, checks))
    if any(check.outcome == "finding" for check in checks):
        raise typer.Exit(ExitCode.FINDINGS)


def _of_cluster(path: Path, wait_seconds: float) -> Iterator[Check]:
    from share_dist.commands import cluster_doctor
    from share_dist.launching.known import read_cluster

    cluster = read_cluster(path)
    cluster_doctor.require_files(cluster)
    checks, is_started = cluster_doctor.of_machines(cluster, wait_seconds)
    yield from checks
    if not is_started:
        yield not_checked(1, "coordinator", "it runs while the cluster does")
        return
    try:
        with cluster_doctor.coordinator_of(cluster) as connection:
            yield from cluster_doctor.of_coordinator(cluster, connection)
            yield from _of_coordinator(connection, None)
    except ConfigError as error:
        yield finding(1, "reachable", error.message, "start the cluster, or see check 21")


# --- over the network ---------------------------------------------------------------------------


def _of_coordinator(connection: Connection, metrics: str | None) -> Iterator[Check]:
    reached = _reach(connection.address)
    yield reached
    if reached.outcome == "finding":
        return
    yield from _certificates(connection)
    try:
        with connection.admin() as client:
            status = client.status()
            now = datetime.now(timezone.utc)
            yield from diagnosis.of_status(status, now, release_of("share-dist"))
            yield _pending(client, status, now)
            yield _lineage(client, status)
    except ShareError as error:
        remedy = "do what it says, then look again: the other checks need an answer"
        yield finding(4, "answer", error.message, remedy)
        return
    yield _metrics(metrics, status)


def _reach(address: str) -> Check:
    host, _, port = address.rpartition(":")
    started = time.perf_counter()
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS):
            took = time.perf_counter() - started
    except (OSError, ValueError, OverflowError) as error:
        remedy = "check --coordinator, that the coordinator runs, and that a firewall lets through"
        return finding(1, "reachable", f"{address} cannot be reached: {error}", remedy)
    return well(1, "reachable", f"{address} answers, in {took * 1000:.1f} ms")


def _certificates(connection: Connection) -> Iterator[Check]:
    now = datetime.now(timezone.utc)
    if not connection.credentials.is_encrypted:
        yield not_checked(
            2, "its certificate", "nothing was said of TLS: give --ca where it is used"
        )
    else:
        yield _its_certificate(connection, now)
    if connection.certificate is None:
        yield not_checked(3, "your certificate", "none was given")
        return
    from share_dist.certificates import describe

    described = describe(connection.certificate.read_bytes())
    yield diagnosis.of_certificate(3, "your certificate", described.not_after, now)


def _its_certificate(connection: Connection, now: datetime) -> Check:
    host, _, port = connection.address.rpartition(":")
    try:
        context = ssl.create_default_context(cafile=connection.ca)
        context.set_alpn_protocols(["h2"])
        if connection.certificate:
            context.load_cert_chain(connection.certificate, connection.key)
        with (
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host.strip("[]")) as encrypted,
        ):
            shown: Any = encrypted.getpeercert()
    except (OSError, ValueError) as error:
        remedy = "check --ca, the name that you call it by, and the dates: `share-dist certs show`"
        return finding(2, "its certificate", f"the TLS handshake failed: {error}", remedy)
    ends_at = datetime.fromtimestamp(ssl.cert_time_to_seconds(shown["notAfter"]), timezone.utc)
    return diagnosis.of_certificate(2, "its certificate", ends_at, now)


def _pending(client: "AdminClient", status: "CoordinatorStatus", now: datetime) -> Check:
    if status.merge_failure:
        return diagnosis.of_failure(status.merge_failure)
    if status.role != "admin":
        return not_checked(
            11, "merging", f"it needs the role admin, you are {status.role or 'nobody'}"
        )
    waiting = client.updates([UpdateState.PENDING])
    return diagnosis.of_pending(min(waiting, key=lambda each: each.sequence, default=None), now)


def _lineage(client: "AdminClient", status: "CoordinatorStatus") -> Check:
    return diagnosis.of_lineage(client.versions(max(status.current_version - NUM_VERSIONS, 0)))


def _metrics(at: str | None, status: "CoordinatorStatus") -> Check:
    if at is None:
        return not_checked(
            13, "metrics", "give --metrics where the coordinator has --metrics-listen"
        )
    url = f"http://{at}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=_CONNECT_SECONDS) as response:
            text = response.read(_MAX_METRICS_BYTES).decode()
    except (OSError, ValueError) as error:
        remedy = "start the coordinator with --metrics-listen, or check the address"
        return finding(13, "metrics", f"{url} cannot be read: {error}", remedy)
    return diagnosis.of_metrics(_samples(text), status, at)


def _samples(text: str) -> dict[str, float]:
    found = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if name and not line.startswith("#"):
            found[name] = float(value)
    return found


# --- on the coordinator's machine ---------------------------------------------------------------


def _of_store(store: str | None, blobs: str | None) -> Iterator[Check]:
    if store is None:
        return
    if "://" not in store:
        yield from _disk(Path(store))
    yield from _contents(("--store", store, *(("--blobs", blobs) if blobs else ())))


def _disk(folder: Path) -> Iterator[Check]:
    try:
        free = shutil.disk_usage(folder).free
        seconds = _time_of_sync(folder)
    except OSError as error:
        remedy = "check --store; look with the account under which the coordinator runs"
        yield finding(15, "free space", f"{folder}: {error.strerror or error}", remedy)
        return
    yield diagnosis.of_space(free, str(folder))
    yield diagnosis.of_sync(seconds, str(folder))


def _time_of_sync(folder: Path) -> float:
    # beside the store's own files under a name that nothing of the store has, and gone at once
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(_SYNCED_BYTES))
        started = time.perf_counter()
        file.flush()
        os.fsync(file.fileno())
        return time.perf_counter() - started


def _contents(place: tuple[str, ...]) -> Iterator[Check]:
    # the store belongs to the other program: it is asked as a process
    try:
        yield diagnosis.of_store(_ask_store("info", place))
        yield diagnosis.of_verify(_ask_store("verify", place))
    except ConfigError as error:
        yield finding(
            17, "store", error.message, "check --store; `share-dist store info` says more"
        )


def _ask_store(question: str, place: tuple[str, ...]) -> Any:
    ended = subprocess.run(  # noqa: S603 - our own command line
        share_dist_command("store", question, *place, "--json"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_STORE_SECONDS,
        check=False,
    )
    try:
        answer = json.loads(ended.stdout)
    except json.JSONDecodeError:
        answer = {"error": "none", "message": ended.stderr.strip() or "it said nothing"}
    if isinstance(answer, dict) and "error" in answer:
        raise ConfigError(
            f"`share-dist store {question}` ended with {ended.returncode}: {answer['message']}"
        )
    return answer


def _table(title: str, checks: list[Check]) -> "Table":
    lines = [
        (check.number, check.outcome, check.subject, check.said, check.remedy) for check in checks
    ]
    table = rows(title, ("", "", "what", "seen", "what to do"), lines)
    num_findings = sum(check.outcome == "finding" for check in checks)
    table.caption = (
        f"{num_findings} of {len(checks)} checks found something" if num_findings else "all is well"
    )
    table.caption_justify = "left"
    return table

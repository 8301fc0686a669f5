"""The machines of a cluster, asked over ssh, all at once."""

import hashlib
import json
import shlex
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from share_dist.commands.connection import Connection
from share_dist.commands.diagnosis import Check, finding
from share_dist.errors import ConfigError, ShareError
from share_dist.launching import diagnosis
from share_dist.launching.diagnosis import Answer
from share_dist.launching.known import KnownCluster, head_of, workers_of
from share_dist.launching.nodes import HEAD, NODES, script
from share_dist.launching.shell import Shell

ANSWER_SECONDS: Final = 60.0
"""How long a machine may take to say what it has."""

_AT_ONCE = 16
_POLL_SECONDS = 2.0
_TLS_SECONDS = 10.0
_MARK = "PROBE "
_NOT_REACHED = 255
"""With which ssh itself ends."""


def of_machines(cluster: KnownCluster, wait_seconds: float) -> tuple[list[Check], bool]:
    """
    Look at every machine of a cluster: checks 21 to 26, and 29.

    Args:
        cluster: Which.
        wait_seconds: How long workers that are not there are waited for.

    Returns:
        The checks, and whether the cluster was started, so that it has a coordinator.
    """
    answers, waited = _answers(cluster, wait_seconds)
    digest = hashlib.sha256(cluster.token.read_bytes().strip()).hexdigest()
    checks = [
        check for answer in answers for check in diagnosis.of_machine(cluster, answer, digest)
    ]
    checks += diagnosis.of_nodes(cluster, answers, waited)
    return checks, diagnosis.is_started(answers[0])


@contextmanager
def coordinator_of(cluster: KnownCluster) -> Iterator[Connection]:
    """
    Reach a cluster's coordinator from here for a while, over ssh, as its operator.

    Raises:
        ConfigError: ssh does not get there.
    """
    port = int(cluster.coordinator.rpartition(":")[2])
    folder = cluster.folder
    with Shell(cluster.ssh_user, cluster.ssh_key).port(
        head_of(cluster), port, at=_listening_host(cluster)
    ) as own:
        yield Connection(
            address=f"127.0.0.1:{own}",
            ca=folder / "ca.crt",
            certificate=folder / "operator.crt",
            key=folder / "operator.key",
        )


def of_coordinator(cluster: KnownCluster, connection: Connection) -> Iterator[Check]:
    """Look whether the coordinator is the one that was planned, and what it is bound to: 27, 28."""
    try:
        shown = _shown_certificate(connection)
    except (OSError, ValueError) as error:
        yield finding(
            diagnosis.CERTIFICATE, "coordinator's certificate", f"none is shown at {cluster.coordinator}: {error}",
            f"look into ~/{cluster.on_node.removeprefix('~/')}/{HEAD}/coordinator.log on the head",
        )  # fmt: skip
        return
    from share_dist.certificates import describe

    own = (cluster.folder / HEAD / "coordinator.crt").read_bytes()
    expected = ssl.PEM_cert_to_DER_cert(own.decode())
    yield diagnosis.of_certificate(
        hashlib.sha256(shown).hexdigest(),
        hashlib.sha256(expected).hexdigest(),
        describe(own).not_after,
        datetime.now(timezone.utc),
        cluster.coordinator,
    )
    try:
        with connection.client() as client:
            bound = client.status().fingerprint
    except ShareError as error:
        yield finding(
            diagnosis.FINGERPRINT, "fingerprint", error.message, "do what it says, then look again"
        )
        return
    yield diagnosis.of_fingerprint(bound.digest if bound else "")


def _shown_certificate(connection: Connection) -> bytes:
    host, _, port = connection.address.rpartition(":")
    context = ssl.create_default_context()
    # whoever answers: what is shown is compared with what was made
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if connection.certificate:
        context.load_cert_chain(connection.certificate, connection.key)
    with (
        socket.create_connection((host, int(port)), _TLS_SECONDS) as plain,
        context.wrap_socket(plain) as encrypted,
    ):
        return encrypted.getpeercert(binary_form=True) or b""


def _listening_host(cluster: KnownCluster) -> str:
    # a cloud's coordinator listens on every address of the head, a given head's on that one
    return cluster.head or "127.0.0.1"


def _answers(cluster: KnownCluster, wait_seconds: float) -> tuple[list[Answer], float]:
    """Ask until the head counts every worker, or the time is over."""
    shell, started = Shell(cluster.ssh_user, cluster.ssh_key), time.monotonic()
    head, workers = head_of(cluster), workers_of(cluster)
    while True:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            asked = [
                pool.submit(_ask, cluster, shell, host, head if host != head else "", workers)
                for host in (head, *workers)
            ]
            answers = [each.result() for each in asked]
        waited = time.monotonic() - started
        found = answers[0].found
        there = set(found["nodes"]) if found else set()
        all_there = there >= set(workers) and len(workers) >= cluster.num_workers
        # a head that does not run, or cannot be asked, is not waited for
        if all_there or not there or waited >= wait_seconds:
            return answers, waited
        time.sleep(_POLL_SECONDS)
        workers = workers_of(cluster)


def _ask(
    cluster: KnownCluster, shell: Shell, host: str, head: str, workers: tuple[str, ...]
) -> Answer:
    asked = {
        "environment": cluster.environment,
        "node": f"{cluster.on_node}/{NODES}",
        "peers": _peers(cluster, head or host),
        **({} if head else {"watched": list(workers)}),
    }
    python = f"{cluster.environment}/bin/python3"
    command = f"p={python}; [ -x $p ] || p=python3; exec $p - {shlex.quote(json.dumps(asked))}"
    started, begun = time.time(), time.monotonic()
    ended = shell.run(host, f"bash -c {shlex.quote(command)}", script("probe.py"), ANSWER_SECONDS)
    seconds = time.monotonic() - begun
    lines = [line for line in ended.stdout.splitlines() if line.startswith(_MARK)]
    found: dict[str, Any] | None = json.loads(lines[-1].removeprefix(_MARK)) if lines else None
    error = "" if lines else _why(ended.returncode, ended.stderr)
    return Answer(host, not head, started + seconds / 2, seconds, found, error)


def _why(code: int, said: str) -> str:
    last = (said.strip().splitlines() or [f"it ended with {code}"])[-1]
    return last if code == _NOT_REACHED else f"{last} (exit code {code})"


def _peers(cluster: KnownCluster, head: str) -> list[tuple[str, int]]:
    host, _, port = cluster.coordinator.rpartition(":")
    return [(head, cluster.gcs_port), (host.strip("[]"), int(port))]


def require_files(cluster: KnownCluster) -> None:
    """
    Raise unless the cluster's own files are on this machine.

    Raises:
        ConfigError: One is missing.
    """
    needed = [
        cluster.token,
        *(cluster.folder / name for name in ("ca.crt", "operator.crt", "operator.key")),
        cluster.folder / HEAD / "coordinator.crt",
    ]
    missing: list[Path] = [path for path in needed if not path.is_file()]
    if missing:
        raise ConfigError(
            f"{missing[0]} is not there: look from the machine on which `share-dist cluster init` wrote "
            f"{cluster.path}",
            key="cluster",
        )

"""
Who may do what, from end to end: certificates of ``share-dist certs``, a coordinator that asks everybody for one, real workers.

```
north    its own certificate              learns, and its task is its own
north    a certificate of another         NotAuthenticated     6   handshake_refused
         authority
north    no certificate                   NotAuthenticated     6   handshake_refused
north    the wrong authority trusted      UntrustedCoordinator 4   handshake_refused, by the worker
south    north's worker_id                NotPermitted         6   access_refused
south    north's task                     NotPermitted         6   access_refused
```
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from share_dist.client import AdminClient, Credentials
from share_dist.commands.processes import Child, share_dist_command
from share_dist.errors import ExitCode, NotAuthenticated, NotPermitted
from share_dist.wire.records import AuditEntry
from tests.commands.conftest import share_dist
from tests.system.support import REPOSITORY, Coordinator, wait_until
from tests.worker import toys
from worker.cluster import ray_cluster

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toys.make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    """A folder with an authority and what it signed, and beside it another authority's."""
    folder = tmp_path_factory.mktemp("certs")
    for place in (folder, folder / "foreign"):
        _made("init", "--folder", place)
        _made("client", "north", "--folder", place)
    _made("server", "127.0.0.1", "--folder", folder)
    _made("client", "south", "--folder", folder)
    _made("client", "boss", "--role", "admin", "--folder", folder)
    return folder


def _made(*arguments: object) -> None:
    ended = share_dist("certs", *arguments)
    assert ended.code == 0, ended.text


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory, certs):
    """A coordinator that asks everybody for a certificate of its authority."""
    environment = {
        "SHARE_DIST_TLS_CERTIFICATE": str(certs / "server.crt"),
        "SHARE_DIST_TLS_KEY": str(certs / "server.key"),
        "SHARE_DIST_TLS_CLIENT_CA": str(certs / "ca.crt"),
    }
    with Coordinator(tmp_path_factory.mktemp("coordinator"), environment=environment) as served:
        served.start()
        yield served


@pytest.fixture(scope="module")
def boss(coordinator, certs):
    """An administrator, who may look at everything."""
    shown = Credentials(certs / "ca.crt", certs / "boss.crt", certs / "boss.key")
    with AdminClient(coordinator.address, credentials=shown) as client:
        yield client


@pytest.fixture(scope="module")
def run(coordinator, model):
    """Runs workers one after the other in one local cluster."""
    with pytest.MonkeyPatch.context() as patch:
        # what Ray starts imports the tests' rows
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        with ray_cluster():
            import ray

            cluster = ray.get_runtime_context().gcs_address
            yield partial(Run, model, coordinator.address, cluster)


class Run:
    """``share-dist worker run`` on one stream, to its end."""

    def __init__(
        self, model: Path, address: str, cluster: str, folder: Path, worker_id: str, *flags: object
    ) -> None:
        stream = folder / f"{worker_id}.toml"
        stream.write_text(toys.stream_text(model, worker_id, ("mood",)))
        command = share_dist_command(
            *("worker", "run", stream, "--coordinator", address),
            *("--workdir", folder / "work", "--ray-address", cluster, "--json", *flags),
        )
        child = Child("the worker", command, folder / "worker.log")
        try:
            assert child.wait(300), child.last_words()
        finally:
            child.stop()
        self.exit_code = child.exit_code
        self.log = (folder / "worker.log").read_text()
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        self.events = [line for line in lines if "event" in line]
        self.error: dict[str, Any] = next((line for line in lines if "error" in line), {})


def shown(ca: Path, identity: Path | None = None) -> list[object]:
    """The flags by which a worker says whom it trusts and who it is."""
    flags: list[object] = ["--ca", ca]
    if identity is not None:
        flags += ["--certificate", f"{identity}.crt", "--key", f"{identity}.key"]
    return flags


def refusal(boss: AdminClient, after: int, action: str, words: str) -> AuditEntry:
    """Wait for the line of the audit log that tells of a refusal."""

    def found() -> list[AuditEntry]:
        return [e for e in boss.audit(after) if e.action == action and words in e.detail]

    wait_until(found, f"a line of the audit log with {words!r}", 30)
    return found()[0]


def newest(boss: AdminClient) -> int:
    return max((each.sequence for each in boss.audit()), default=0)


@pytest.fixture(scope="module")
def learnt(run, certs, tmp_path_factory):
    """What came of north's own run, which the refused ones come after."""
    flags = shown(certs / "ca.crt", certs / "north")
    return run(tmp_path_factory.mktemp("north"), "north", *flags)


def test_a_worker_learns_with_its_certificate(learnt, boss):
    """Its update is merged, the task belongs to the name in its certificate, and the log says who did it."""
    assert learnt.exit_code == ExitCode.OK, learnt.log
    assert [each["event"] for each in learnt.events].count("update_pushed") == 1
    entries = boss.audit()
    assert {each.principal for each in entries if each.action == "update_admitted"} == {"north"}
    (version,) = boss.versions()
    assert version.event.task_ids == ("mood",)


@pytest.mark.parametrize(
    ("worker_id", "identity", "error", "principal", "action", "words"),
    [
        ("north", "foreign/north", NotAuthenticated, "unknown", "handshake_refused", "issuer"),
        ("north", None, NotAuthenticated, "unknown", "handshake_refused", "no client certificate"),
        ("north", "south", NotPermitted, "south", "access_refused", "worker 'north' belongs to"),
        ("south", "south", NotPermitted, "south", "access_refused", "task 'mood' belongs to"),
    ],
    ids=["foreign certificate", "no certificate", "another's worker", "another's task"],
)
def test_a_worker_that_may_not_is_refused_and_written_down(
    learnt, run, certs, boss, tmp_path,
    worker_id, identity, error, principal, action, words,
):  # fmt: skip
    """The run ends with the error's own exit code, the log has a line with who and why, and nothing is merged."""
    before = newest(boss)
    flags = shown(certs / "ca.crt", identity and certs / identity)
    ended = run(tmp_path, worker_id, *flags)
    found = ended.exit_code, ended.error.get("error")
    assert found == (error.exit_code, error.__name__), ended.log
    assert refusal(boss, before, action, words).principal == principal
    assert boss.status().current_version == 1


def test_a_worker_does_not_push_to_whom_it_does_not_trust(learnt, run, certs, boss, tmp_path):
    """With another authority's certificate to compare with, the worker goes no further."""
    flags = shown(certs / "foreign/ca.crt", certs / "north")
    before = newest(boss)
    ended = run(tmp_path, "north", *flags)
    assert (ended.exit_code, ended.error.get("error")) == (
        ExitCode.TRANSPORT,
        "UntrustedCoordinator",
    )
    refusal(boss, before, "handshake_refused", "")
    assert boss.status().current_version == 1

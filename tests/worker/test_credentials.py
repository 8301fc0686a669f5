"""What an actor shows to its coordinator: its own machine's files, and nothing secret on the way there."""

import pickle
from dataclasses import replace

import pytest

import worker.actor
import worker.driver
from coordinator.administration_tokens import new_token
from coordinator.store.memory import MemoryCatalog
from share_dist.cli import app
from share_dist.client import Credentials
from share_dist.commands.console import run
from share_dist.errors import NotAuthenticated, NotPermitted, UntrustedCoordinator
from share_dist.wire.records import TokenRequest
from tests.coordinator.support import NOW, make_config, running, wait_until
from tests.pki import Authority
from worker.actor import WorkerActor, WorkerConfig
from worker.loop import LoopOptions

STREAM = """
[model]
path = "model"

[[task]]
id = "mood"
type = "text-classification"
source = { entry_point = "tests.worker.toys:topic" }
"""


@pytest.fixture
def stream(tmp_path):
    path = tmp_path / "north.toml"
    path.write_text(STREAM)
    return path


@pytest.fixture
def token(tmp_path):
    """A coordinator that asks for a token, and one that it knows."""
    catalog = MemoryCatalog()
    made = new_token(TokenRequest("north", "worker", ("default",)), NOW)
    catalog.add_token(made.record, by="tests")
    config = make_config(tmp_path / "store", require_token=True)
    with running(config, catalog=catalog) as coordinator:
        yield coordinator.address, made.secret


def client_of(config, monkeypatch):
    """The client that an actor gives to its loop."""
    given = []
    monkeypatch.setattr(worker.actor, "load_backbone", lambda stream: None)
    monkeypatch.setattr(worker.actor, "TaskLoop", lambda *parts: given.append(parts[2]))
    _ = WorkerActor(config)._loop
    return given[0]


def test_an_actor_reads_its_token_where_it_runs(stream, token, tmp_path, monkeypatch):
    """From a file there, or from its own environment."""
    address, secret = token
    (tmp_path / "token").write_text(secret)
    common = (str(stream), address, str(tmp_path), LoopOptions(), 1)
    by_file = WorkerConfig(*common, credentials=Credentials(token_file=tmp_path / "token"))
    with client_of(by_file, monkeypatch) as client:
        assert client.status().principal == "north"
    monkeypatch.setenv("SHARE_DIST_TOKEN", secret)
    with client_of(WorkerConfig(*common), monkeypatch) as client:
        assert client.status().principal == "north"


def test_the_driver_sends_paths_and_no_secret(stream, tmp_path, monkeypatch):
    """What is handed to Ray holds whole paths, and not the token of the driver's environment."""
    requests = []
    monkeypatch.setenv("SHARE_DIST_TOKEN", "sd_1_secret-of-the-driver")
    monkeypatch.setattr(
        worker.driver, "Driver", lambda request, as_json: requests.append(request) or _Ended()
    )
    flags = ["--ca", "ca.crt", "--certificate", "n.crt", "--key", "n.key", "--subspace", "cats"]
    with pytest.raises(SystemExit) as ended:
        run(app, ["worker", "run", str(stream), "--coordinator", "127.0.0.1:1", *flags])
    assert ended.value.code == 0
    (request,) = requests
    assert request.subspace == "cats"
    sent = request.credentials.portable()
    assert (sent.ca, sent.key) == (tmp_path.cwd() / "ca.crt", tmp_path.cwd() / "n.key")
    assert b"secret-of-the-driver" not in pickle.dumps(sent)
    assert "secret-of-the-driver" not in repr(request)


class _Ended:
    def run(self) -> int:
        return 0


def test_an_actor_learns_with_its_certificate_and_with_no_other(make_stream, tmp_path):
    """Where everybody must show a certificate, its own lets an actor learn; a foreign one, none, and another's task do not."""
    authority, catalog = Authority(tmp_path / "certs"), MemoryCatalog()
    foreign = Authority(tmp_path / "foreign")
    south = authority.client("south")
    for worker_id in ("north", "south"):
        make_stream("mood", worker_id=worker_id)
    keys = authority.server() | {"tls_client_ca": authority.certificate}
    with running(make_config(tmp_path / "store", **keys), catalog=catalog) as coordinator:

        def learn(worker_id, credentials):
            paths = (str(tmp_path / f"{worker_id}.toml"), coordinator.address, str(tmp_path))
            config = WorkerConfig(*paths, LoopOptions(resume=True), 1, credentials=credentials)
            return WorkerActor(config).run()

        assert learn("north", authority.client("north")).state == "finished"
        store = catalog.store("default")
        wait_until(lambda: store.current_version == 1)
        assert store.owner("mood") == "north"
        for credentials, error in (
            (replace(foreign.client("south"), ca=authority.certificate), NotAuthenticated),
            (Credentials(authority.certificate), NotAuthenticated),
            (replace(south, ca=foreign.certificate), UntrustedCoordinator),
            (south, NotPermitted),
        ):
            with pytest.raises(error):
                learn("south", credentials)
        assert store.current_version == 1
    # who comes no further than the handshake is written down where gRPC's own log is listened to
    (denied,) = [each for each in catalog.audit(0, 1000) if each.action == "access_refused"]
    assert denied.principal == "south"
    assert "task 'mood' belongs to 'north'" in denied.detail

"""What an actor shows to its coordinator: its own machine's files, and nothing secret on the way there."""

import pickle

import pytest

import worker.actor
import worker.backbone
import worker.driver
from coordinator.administration_tokens import new_token
from coordinator.store.memory import MemoryCatalog
from share_dist.cli import app
from share_dist.client import Credentials
from share_dist.commands.console import run
from share_dist.wire.records import TokenRequest
from tests.coordinator.support import NOW, make_config, running
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
    monkeypatch.setattr(worker.backbone, "load_backbone", lambda stream: None)
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

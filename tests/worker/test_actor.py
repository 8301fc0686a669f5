"""Real actors on real local Ray, against a real coordinator, one small cluster for the module."""

import asyncio
import json
import os
import threading
import time

import datasets
import pytest
from typer.testing import CliRunner

from coordinator.app import build
from coordinator.config import CoordinatorConfig
from share_dist.client import ShareClient
from share_dist.errors import StreamError
from tests.worker import toys
from worker.actor import WorkerConfig
from worker.cli import app
from worker.cluster import place_actor, plan_places, ray_cluster
from worker.driver import _result
from worker.loop import LoopOptions


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A coordinator in a thread of its own."""
    config = CoordinatorConfig(
        store=tmp_path_factory.mktemp("coordinator") / "store", listen="127.0.0.1:0"
    )
    started, stop = threading.Event(), threading.Event()
    found = []

    async def serve():
        async with build(config) as served:
            found.append(served.address)
            started.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert started.wait(timeout=60)
    yield found[0]
    stop.set()
    thread.join()


@pytest.fixture(scope="module")
def cluster():
    with ray_cluster(num_cpus=8) as resources:
        yield resources


@pytest.fixture
def write_stream(tmp_path, model_folder):
    """Streams whose rows lie on disk: Ray's processes do not import the tests."""

    def write(worker_id, *topics, training=""):
        text = toys.stream_text(model_folder, worker_id, topics, training)
        for topic in topics:
            rows = toys.sentences(topic, 160, seed=1)
            datasets.Dataset.from_dict(
                {"text": [row[0] for row in rows], "label": [row[1] for row in rows]}
            ).save_to_disk(tmp_path / topic)
            entry = 'entry_point = "tests.worker.toys:topic"'
            text = text.replace(
                f'{entry}, arguments = {{ name = "{topic}" }}', f'dataset = "{topic}"'
            )
        path = tmp_path / f"{worker_id}.toml"
        path.write_text(text)
        return path

    return write


def place(path, address, workdir):
    config = WorkerConfig(str(path), address, str(workdir), LoopOptions(), num_threads=1)
    return place_actor(config, plan_places([{"CPU": 2.0}], 2, 2))


def test_two_actors_learn_into_one_subspace_and_one_is_killed(
    cluster, address, write_stream, tmp_path
):
    """Two actors end with both tasks merged once, though the process of one is killed in between."""
    import ray

    workdir = tmp_path / "work"
    south_stream = write_stream("south", "food")
    south_stream.write_text(south_stream.read_text().replace("epochs = 2", "epochs = 20"))
    north = place(write_stream("north", "mood"), address, workdir)
    south = place(south_stream, address, workdir)
    calls = [north.run.remote(), south.run.remote()]
    wait_for(lambda: list(workdir.glob("south/tasks/food/epoch.safetensors")))
    ray.kill(south, no_restart=False)
    assert [_result(call).state for call in calls] == ["finished", "finished"]
    with ShareClient(address) as client:
        wait_for(lambda: client.status().num_pending == 0)
        tasks = {each.task_id: each for each in client.tasks()}
    assert {name: each.worker_id for name, each in tasks.items()} == {
        "mood": "north",
        "food": "south",
    }
    events = _result(north.drain.remote())
    assert [each["event"] for each in events[:2]] == ["worker_loaded", "worker_started"]
    assert events[1]["num_threads"] == 1
    assert _result(north.drain.remote()) == []
    resumed = [each for each in _result(south.drain.remote()) if "resumed_epochs" in each]
    assert resumed[0]["resumed_epochs"] >= 1
    final = _result(north.rescore.remote()).results["tasks"][0]
    assert final["final_version"] == 2


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_actors_error_arrives_as_itself(cluster, tmp_path):
    """What ends an actor arrives as the project's own error, with its fields."""
    missing = tmp_path / "no-such.toml"
    actor = place(missing, "127.0.0.1:1", tmp_path / "work")
    with pytest.raises(StreamError, match="cannot be read") as caught:
        _result(actor.run.remote())
    assert caught.value.path == str(missing)


def test_the_environment_is_explicit(cluster):
    """Ray's authentication is set for every process, with a token that lies in no file."""
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert os.environ["RAY_AUTH_TOKEN"]


def test_the_command_prints_events_and_rescores(
    cluster, address, write_stream, tmp_path, monkeypatch
):
    """`worker run --json` prints one event a line, and scores under the last version at the end."""
    stream = write_stream("cli", "motion")
    monkeypatch.setattr("worker.driver.ray_cluster", lambda _: _Borrowed(cluster))
    workdir = tmp_path / "work"
    arguments = ["run", str(stream), "--coordinator", address, "--workdir", str(workdir), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    # the coordinator of this process logs to standard output, too
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    names = [each["event"] for each in events]
    assert names[:2] == ["worker_loaded", "worker_started"]
    assert names.count("update_pushed") == 1
    assert all(each["worker_id"] == "cli" for each in events)
    results = json.loads((workdir / "cli" / "results.json").read_text())
    assert all(each["final"] is not None for each in results["tasks"])


class _Borrowed:
    """The module's cluster, left open."""

    def __init__(self, resources):
        self._resources = resources

    def __enter__(self):
        return self._resources

    def __exit__(self, *_):
        pass

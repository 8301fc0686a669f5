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
from share_dist.errors import CoordinatorUnreachable
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


def place(path, address, workdir, timeout_seconds=60.0):
    config = WorkerConfig(
        str(path), address, str(workdir), LoopOptions(), 1, timeout_seconds=timeout_seconds
    )
    return place_actor(config, plan_places({"CPU": 2.0}, 2, 2))


def test_two_actors_learn_into_one_subspace(cluster, address, write_stream, tmp_path):
    """Two actors on local Ray, neither waiting for the other, end with all tasks in one subspace."""
    actors = [
        place(write_stream("north", "mood"), address, tmp_path / "work"),
        place(write_stream("south", "food"), address, tmp_path / "work"),
    ]
    outcomes = [_result(each) for each in [actor.run.remote() for actor in actors]]
    assert [each.state for each in outcomes] == ["finished", "finished"]
    with ShareClient(address) as client:
        tasks = {each.task_id: each for each in client.tasks()}
    assert {"mood", "food"} <= tasks.keys()
    assert tasks["mood"].worker_id == "north"
    events = _result(actors[0].drain.remote())
    assert events[0]["event"] == "worker_started"
    assert events[0]["num_threads"] == 1
    assert _result(actors[0].drain.remote()) == []
    final = _result(actors[0].rescore.remote()).results["tasks"][0]
    assert final["final_version"] == final["history"][-1]["version"]


def test_a_killed_actor_goes_on(cluster, address, write_stream, tmp_path):
    """An actor whose process is killed is started again by Ray and finishes its stream, each task merged once."""
    stream = write_stream("east", "motion")
    stream.write_text(stream.read_text().replace("epochs = 2", "epochs = 20"))
    actor = place(stream, address, tmp_path / "work")
    call = actor.run.remote()
    deadline = time.monotonic() + 60
    while not list((tmp_path / "work").glob("east/tasks/motion/epoch.safetensors")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    import ray

    ray.kill(actor, no_restart=False)
    assert _result(call).state == "finished"
    with ShareClient(address) as client:
        assert sum(each.task_id == "motion" for each in client.tasks()) == 1


def test_an_actors_error_arrives_as_itself(cluster, write_stream, tmp_path):
    """What ends an actor arrives as the project's own error, with its fields."""
    actor = place(write_stream("west", "mood"), "127.0.0.1:1", tmp_path / "work", 0.5)
    with pytest.raises(CoordinatorUnreachable) as caught:
        _result(actor.run.remote())
    assert caught.value.address == "127.0.0.1:1"


def test_the_environment_is_explicit(cluster):
    """Ray's authentication is set for every process, with a token that lies in no file."""
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert os.environ["RAY_AUTH_TOKEN"]


def test_the_command_prints_events_and_rescores(
    cluster, address, write_stream, tmp_path, monkeypatch
):
    """`worker run --json` prints one event a line, and leaves results with all final scores."""
    stream = write_stream("cli", "mood", "food")
    monkeypatch.setattr("worker.driver.ray_cluster", lambda _: _Borrowed(cluster))
    workdir = tmp_path / "work"
    arguments = ["run", str(stream), "--coordinator", address, "--workdir", str(workdir), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    events = [json.loads(line) for line in done.stdout.splitlines()]
    names = [each["event"] for each in events]
    assert names[0] == "worker_started"
    assert names.count("update_pushed") == 2
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

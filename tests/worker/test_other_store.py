"""A worker that goes on before another store than the one it learnt from, over the real wire."""

import json

import pytest

from share_dist.core.values import Subspace
from share_dist.errors import VersionMismatch
from share_dist.wire.records import UpdateState
from tests.coordinator.support import client_of, make_config, make_update, running, wait_until
from worker.checkpoint import TaskCheckpoint, lesson_digest
from worker.loop import LoopOptions, TaskLoop
from worker.progress import WorkerEvent


class Killed(BaseException):
    """Stands for the end of the process: nothing in the loop may catch it."""


@pytest.fixture
def addresses(tmp_path, backbone):
    """Two coordinators whose first versions have the same number and shapes, and other content."""
    fingerprint = backbone.fingerprint()
    base = Subspace.empty(fingerprint.layers)
    stores = [make_config(tmp_path / name) for name in ("one", "two")]
    with running(stores[0]) as one, running(stores[1]) as two:
        for seed, app in enumerate((one, two)):
            with client_of(app.address, "first", fingerprint=fingerprint) as client:
                client.register()
                client.push(make_update("first", base=base, seed=seed), wait="merged")
        yield one.address, two.address


def learn(stream, backbone, address, workdir, **options):
    """Run a loop against a coordinator; return what it told."""
    events = []

    def emit(event, **fields):
        events.append((event, fields))
        if event is options.get("kill_at"):
            raise Killed

    with client_of(address, stream.worker_id, fingerprint=backbone.fingerprint()) as client:
        loop_options = LoopOptions(resume=options.get("resume", False))
        try:
            TaskLoop(stream, backbone, client, workdir, loop_options, emit).run()
        except Killed:
            assert "kill_at" in options
        else:
            assert "kill_at" not in options
    return [fields for event, fields in events if event is WorkerEvent.BASE_REFUSED]


def test_what_was_learnt_on_another_store_is_refused_and_said_anew(
    addresses, backbone, make_stream, tmp_path
):
    """Killed before its push and started before another store, a worker says its version's digest, is refused, and says the same in that store's version."""
    stream, workdir = make_stream("mood"), tmp_path / "work"
    one, two = addresses
    learn(stream, backbone, one, workdir, kill_at=WorkerEvent.TASK_LEARNT)
    digest = lesson_digest(stream, stream.tasks[0])
    learnt = TaskCheckpoint(workdir, "mood", digest).load_update()
    with client_of(two, "south", fingerprint=backbone.fingerprint()) as client:
        client.register()
        assert learnt.base_version == client.status().current_version == 1
        with pytest.raises(VersionMismatch) as caught:
            client.push(learnt)
        assert caught.value.found == learnt.base_digest != caught.value.expected
        (refused,) = learn(stream, backbone, two, workdir, resume=True)
        assert (refused["task_id"], refused["base_version"]) == ("mood", 1)
        assert "came from another store" in refused["reason"]
        assert client.pull(1).digest == caught.value.expected
        wait_until(lambda: client.status().num_pending == 0)
        (mood,) = [task for task in client.tasks() if task.task_id == "mood"]
    assert mood.state is UpdateState.MERGED
    assert mood.update_id != learnt.update_id


def test_the_same_store_takes_what_a_restarted_worker_learnt(
    addresses, backbone, make_stream, tmp_path
):
    """Killed before its push and started before the same store, a worker pushes the very update."""
    stream, workdir = make_stream("mood"), tmp_path / "work"
    learn(stream, backbone, addresses[0], workdir, kill_at=WorkerEvent.TASK_LEARNT)
    kept = json.loads((workdir / "tasks/mood/update.json").read_text())
    assert not learn(stream, backbone, addresses[0], workdir, resume=True)
    with client_of(addresses[0], fingerprint=None) as client:
        (mood,) = [task for task in client.tasks() if task.task_id == "mood"]
        assert kept["base_digest"] == client.pull(1).digest
    assert mood.update_id == kept["update"]["update_id"]

import dataclasses
import itertools
import json
import os
import shutil
import threading

import pytest
import torch

from share_dist.core.metrics import update_bytes
from share_dist.errors import (
    BaseVersionTooOld,
    LeaseExpired,
    StreamError,
    TrainingDiverged,
    WorkerError,
)
from share_dist.wire.records import UpdateState
from tests.coordinator.support import wait_until
from tests.worker.fakes import FakeCoordinator
from worker import learner
from worker.loop import LoopOptions, Stopped, TaskLoop
from worker.progress import WorkerEvent


class Killed(BaseException):
    """Stands for the end of the process: nothing in the loop may catch it."""


class Recorder:
    def __init__(self, kill_at=None):
        self.events = []
        self.kill_at = kill_at

    def __call__(self, event, **fields):
        self.events.append((event, fields))
        if self.kill_at is not None and self.kill_at(event, fields):
            raise Killed

    def named(self, event):
        return [fields for name, fields in self.events if name is event]


@pytest.fixture
def make_loop(tmp_path, backbone, coordinator):
    def make(
        stream,
        emit=None,
        should_stop=lambda: False,
        workdir="work",
        coordinator=coordinator,
        **options,
    ):
        return TaskLoop(
            stream,
            backbone,
            coordinator,
            tmp_path / workdir / stream.worker_id,
            LoopOptions(**options),
            emit or Recorder(),
            should_stop,
        )

    return make


def test_learns_pushes_and_rescores_every_task(make_loop, make_stream, coordinator, tmp_path):
    """A stream of three tasks ends with three merged updates and every old task scored under each version."""
    recorder = Recorder()
    loop = make_loop(make_stream("mood", "food", "motion"), recorder, in_sequence=True)
    loop.run()
    results = loop.rescore()
    assert set(coordinator.merged) == {"mood", "food", "motion"}
    assert [update.base_version for update in coordinator.updates.values()] == [0, 1, 2]
    mood = results.task("mood")
    assert [(each.version, each.after) for each in mood.history] == [(1, 1), (2, 2), (3, 3)]
    assert mood.final_version == 3
    assert mood.learnt > mood.majority
    # nothing was truncated, so what is served is what was learnt
    assert mood.final == pytest.approx(mood.learnt, abs=0.05)
    assert mood.adapter_bytes < mood.lora_bytes
    assert [each.version for each in results.task("motion").history] == [3]
    assert all(not update.head.label_names for update in coordinator.updates.values())
    assert len(recorder.named(WorkerEvent.FINISHED)) == 1
    saved = json.loads((tmp_path / "work/north/results.json").read_text())
    assert [len(row) for row in saved["accuracy_matrix"]] == [3, 3, 3]
    assert saved["scores"]["average_accuracy"] == pytest.approx(
        sum(each.final for each in results.tasks) / 3
    )


def test_rescore_scores_the_last_task_too(make_loop, make_stream):
    """After rescore every task has a score under the newest version."""
    stream = make_stream("mood", "food")
    make_loop(stream).run()
    results = make_loop(stream, resume=True).rescore()
    assert [each.final_version for each in results.tasks] == [2, 2]


def test_an_update_that_is_not_merged_yet_does_not_hold_up_the_stream(
    make_loop, make_stream, coordinator
):
    """A worker goes on to its next task when no version takes its update in."""
    coordinator.is_holding = True
    results = make_loop(make_stream("mood", "food")).run()
    assert [each.base_version for each in results.tasks] == [0, 0]
    coordinator.merge_pending()
    results = make_loop(make_stream("mood", "food"), resume=True).rescore()
    assert {each.state for each in results.tasks} == {"merged"}
    assert all(each.final_version == 1 for each in results.tasks)


def test_a_version_that_comes_while_a_task_is_trained_is_gone_on_in(
    make_loop, make_stream, coordinator
):
    """
    Another worker's task is merged in the middle of an epoch: the next epoch trains on it, and the update is of it.

    What was learnt before is not lost: it scores as it does where nobody else is.
    """
    stream = make_stream("mood")
    alone = make_loop(stream, workdir="alone", coordinator=FakeCoordinator()).run()
    elsewhere = FakeCoordinator()
    make_loop(make_stream("food", worker_id="south"), coordinator=elsewhere).run()
    (other,) = elsewhere.updates.values()
    recorder = Recorder(lambda event, fields: merge_once(event))
    loop = make_loop(stream, recorder)

    def merge_once(event):
        if event is WorkerEvent.TASK_PROGRESSED and not coordinator.updates:
            coordinator.push(dataclasses.replace(other, base_digest=""))
            wait_until(lambda: loop._exchange._prefetch._edition.subspace.version == 1)

    together = loop.run()
    (moved,) = recorder.named(WorkerEvent.MOVED)
    assert (moved["base_version"], moved["version"], moved["epochs_done"]) == (0, 1, 1)
    assert [update.base_version for update in coordinator.updates.values()] == [0, 1]
    assert together.task("mood").learnt == pytest.approx(alone.task("mood").learnt, abs=0.1)
    scored = loop.rescore().task("mood")
    assert scored.final == pytest.approx(scored.learnt, abs=0.05)


def killed_at(event, task_id, occurrence=1):
    seen = []

    def kill(found, fields):
        if found is event and fields.get("task_id") == task_id:
            seen.append(fields)
        return len(seen) == occurrence and found is event

    return kill


@pytest.mark.parametrize(
    "event",
    [
        WorkerEvent.BASELINE_SCORED,
        WorkerEvent.TASK_STARTED,
        WorkerEvent.TASK_PROGRESSED,
        WorkerEvent.TASK_LEARNT,
        WorkerEvent.UPDATE_PUSHED,
    ],
)
def test_goes_on_after_a_kill_at_any_step(event, make_loop, make_stream, coordinator):
    """Killed at any step of its second task, a worker resumes to one merged update per task."""
    stream = make_stream("mood", "food")
    with pytest.raises(Killed):
        make_loop(stream, Recorder(killed_at(event, "food"))).run()
    results = make_loop(stream, resume=True).run()
    assert sorted(update.task_id for update in coordinator.updates.values()) == ["food", "mood"]
    assert set(coordinator.merged_in) == set(coordinator.updates)
    assert all(each.learnt is not None for each in results.tasks)


def test_a_lost_answer_to_a_push_makes_one_update(make_loop, make_stream, coordinator):
    """Killed between the push and its answer, a worker pushes again under the same id, untrained."""
    stream = make_stream("mood")
    coordinator.fail("push", "after", Killed())
    with pytest.raises(Killed):
        make_loop(stream).run()
    (update_id,) = coordinator.updates
    recorder = Recorder()
    make_loop(stream, recorder, resume=True).run()
    assert list(coordinator.updates) == [update_id]
    assert not recorder.named(WorkerEvent.TASK_STARTED)


def test_a_task_killed_in_the_middle_ends_as_if_it_had_not_been(
    make_loop, make_stream, coordinator
):
    """Resumed after its first epoch, training gives the very numbers of an uninterrupted run."""
    stream = make_stream("mood")
    undisturbed = make_loop(dataclasses.replace(stream, worker_id="other"))
    undisturbed.run()
    (expected,) = coordinator.updates.values()
    coordinator.__init__()

    def in_second_epoch(event, fields):
        return event is WorkerEvent.TASK_PROGRESSED and fields["step"] > fields["num_steps"] / 2

    with pytest.raises(Killed):
        make_loop(stream, Recorder(in_second_epoch)).run()
    recorder = Recorder()
    make_loop(stream, recorder, resume=True).run()
    assert recorder.named(WorkerEvent.TASK_STARTED)[0]["resumed_epochs"] == 1
    (found,) = coordinator.updates.values()
    for name, layer in expected.layers.items():
        for side, update in layer:
            assert torch.equal(
                update.temporary_coefficients, found.layers[name][side].temporary_coefficients
            )
    assert torch.equal(expected.head.tensors["weight"], found.head.tensors["weight"])


def test_resumes_in_the_version_of_its_checkpoint(make_loop, make_stream, coordinator):
    """A task that was begun on version 0 goes on there, although a newer version exists by then."""
    stream = make_stream("mood")
    with pytest.raises(Killed):
        make_loop(stream, Recorder(late)).run()
    make_loop(make_stream("food", worker_id="south")).run()
    loop = make_loop(stream, resume=True)
    loop.run()
    mood = loop.rescore().task("mood")
    assert (mood.base_version, mood.lag) == (0, 1)


def late(event, fields):
    return event is WorkerEvent.TASK_PROGRESSED and fields["step"] == fields["num_steps"]


def test_goes_on_in_a_version_that_the_coordinator_no_longer_has(
    make_loop, make_stream, coordinator
):
    """With its base version gone or another one there, a half-trained task goes on, and is said in the newest."""
    stream = make_stream("mood")
    with pytest.raises(Killed):
        make_loop(stream, Recorder(late)).run()
    make_loop(make_stream("food", worker_id="south")).run()
    coordinator.forget(0)
    recorder = Recorder()
    mood = make_loop(stream, recorder, resume=True).run().task("mood")
    assert recorder.named(WorkerEvent.TASK_STARTED)[0]["resumed_epochs"] == 1
    assert recorder.named(WorkerEvent.BASE_REFUSED)[0]["base_version"] == 0
    assert mood.base_version == 1


def test_starts_anew_when_nobody_has_the_version_of_its_checkpoint(
    make_loop, make_stream, coordinator, tmp_path
):
    """With its base version neither on disk nor at the coordinator, a half-trained task begins again on the newest."""
    stream = make_stream("mood")
    with pytest.raises(Killed):
        make_loop(stream, Recorder(late)).run()
    make_loop(make_stream("food", worker_id="south")).run()
    coordinator.forget(0)
    shutil.rmtree(tmp_path / "work/north/versions")
    recorder = Recorder()
    mood = make_loop(stream, recorder, resume=True).run().task("mood")
    assert recorder.named(WorkerEvent.TASK_STARTED)[0]["resumed_epochs"] == 0
    assert mood.base_version == 1


def test_an_update_without_a_digest_is_pushed_unchecked_and_told(
    make_loop, make_stream, coordinator, tmp_path
):
    """What release 0.1 left unpushed is pushed as it is, and an event says that its base was not checked."""
    stream = make_stream("mood")
    coordinator.fail("push", "before", Killed())
    with pytest.raises(Killed):
        make_loop(stream).run()
    (path,) = tmp_path.glob("work/north/tasks/mood/update.json")
    fields = json.loads(path.read_text())
    del fields["base_digest"]
    path.write_text(json.dumps(fields))
    recorder = Recorder()
    make_loop(stream, recorder, resume=True).run()
    assert recorder.named(WorkerEvent.BASE_UNCHECKED) == [{"task_id": "mood", "base_version": 0}]
    assert [each.base_digest for each in coordinator.updates.values()] == [""]
    assert not recorder.named(WorkerEvent.TASK_STARTED)


def test_says_its_task_in_the_newest_version_when_its_own_is_refused(
    make_loop, make_stream, coordinator
):
    """An update whose base version is not there any more is said in the newest, untrained, and pushed under a new id."""
    stream = make_stream("mood")
    coordinator.fail("push", "before", Killed())
    with pytest.raises(Killed):
        make_loop(stream).run()
    coordinator.fail("push", "before", BaseVersionTooOld("too old", current_version=1))
    recorder = Recorder()
    loop = make_loop(stream, recorder, resume=True)
    learnt = loop.run().task("mood").learnt
    (refused,) = recorder.named(WorkerEvent.BASE_REFUSED)
    assert (refused["task_id"], refused["base_version"]) == ("mood", 0)
    assert not recorder.named(WorkerEvent.TASK_STARTED)
    assert list(coordinator.updates) == [loop.results.task("mood").update_id]
    assert loop.rescore().task("mood").final == pytest.approx(learnt, abs=0.05)


def test_what_an_earlier_release_learnt_on_a_lost_version_is_an_error(
    make_loop, make_stream, coordinator, tmp_path
):
    """Without the factors that later releases keep, the error names the task and the folder to delete."""
    stream = make_stream("mood")
    coordinator.fail("push", "before", Killed())
    with pytest.raises(Killed):
        make_loop(stream).run()
    (tmp_path / "work/north/tasks/mood/factors.safetensors").unlink()
    coordinator.fail("push", "before", BaseVersionTooOld("too old", current_version=1))
    with pytest.raises(StreamError, match=r"delete .*tasks/mood to learn it again") as caught:
        make_loop(stream, resume=True).run()
    assert caught.value.task_id == "mood"


def test_registers_again_once_when_its_lease_has_ended(make_loop, make_stream, coordinator):
    """A push that finds the lease ended registers again and is taken; a second loss is raised."""
    coordinator.expire()
    recorder = Recorder()
    make_loop(make_stream("mood"), recorder).run()
    assert recorder.named(WorkerEvent.LEASE_RENEWED) == [{"lease_epoch": 2}]
    coordinator.expire(times=2)
    with pytest.raises(LeaseExpired):
        make_loop(make_stream("food", worker_id="south")).run()


def test_stops_at_the_next_step_when_told(make_loop, make_stream, coordinator):
    """A loop that is told to stop raises Stopped, pushes nothing, and resumes later."""
    loop = make_loop(make_stream("mood"), should_stop=lambda: True)
    with pytest.raises(Stopped):
        loop.run()
    assert not coordinator.updates
    make_loop(make_stream("mood"), resume=True).run()
    assert set(coordinator.merged) == {"mood"}


@pytest.mark.parametrize("training", ["", 'start = "gradient"\nreach = 0.3'])
def test_a_stop_within_an_epoch_loses_no_step(make_loop, make_stream, coordinator, training):
    """Told to stop in the middle of an epoch, a worker keeps its last step, and ends as if it had gone on, also where each layer has as many temporary factors as it needed."""
    stream = make_stream("mood", training=training)
    make_loop(dataclasses.replace(stream, worker_id="other")).run()
    (expected,) = coordinator.updates.values()
    coordinator.__init__()
    # five batches of the first gradient, an epoch of five steps, and two of the next
    asked = itertools.count()
    with pytest.raises(Stopped):
        make_loop(stream, should_stop=lambda: next(asked) >= 5 + 5 + 2).run()
    recorder = Recorder()
    make_loop(stream, recorder, resume=True).run()
    (started,) = recorder.named(WorkerEvent.TASK_STARTED)
    assert (started["resumed_epochs"], started["resumed_batches"]) == (1, 2)
    (found,) = coordinator.updates.values()
    assert torch.equal(expected.head.tensors["weight"], found.head.tensors["weight"])
    for name, layer in expected.layers.items():
        for side, update in layer:
            assert torch.equal(update.temporary, found.layers[name][side].temporary)


REFINED = "refine_epochs = 2"


def test_what_is_merged_is_refined_by_coefficients_alone(make_loop, make_stream, coordinator):
    """After the stream every task is trained on in the version that has all, and pushed once more unless validation rows lose."""
    recorder = Recorder()
    results = make_loop(make_stream("mood", "food", training=REFINED), recorder).run()
    told = recorder.named(WorkerEvent.TASK_REFINED)
    assert [each["task_id"] for each in told] == ["mood", "food"]
    pushed = [each["task_id"] for each in told if each["is_pushed"]]
    assert all(each["is_pushed"] == (each["after"] >= each["before"]) for each in told)
    assert "mood" in pushed
    learnt, refined = list(coordinator.updates.values())[:2], list(coordinator.updates.values())[2:]
    assert [each.task_id for each in refined] == pushed
    for update in refined:
        assert update.base_version == 2
        assert not any(side.num_temporary for layer in update.layers.values() for _, side in layer)
    first = next(each for each in learnt if each.task_id == "mood")
    mood = results.task("mood")
    assert mood.adapter_bytes == update_bytes(first).adapter + update_bytes(refined[0]).adapter
    assert mood.update_id == refined[0].update_id


def test_a_refined_task_is_pushed_once_wherever_the_worker_is_killed(
    make_loop, make_stream, coordinator
):
    """Resumed after its first push, and again when all is done, a task has two updates, of which the refined one stands."""
    stream, recorder = make_stream("mood", training=REFINED), Recorder()
    with pytest.raises(Stopped):
        make_loop(
            stream, recorder, should_stop=lambda: bool(recorder.named(WorkerEvent.UPDATE_PUSHED))
        ).run()
    for _ in range(2):
        make_loop(stream, resume=True).run()
        results = make_loop(stream, resume=True).rescore()
        learnt, refined = coordinator.updates.values()
        assert results.task("mood").update_id == refined.update_id != learnt.update_id
        assert results.task("mood").final_version == 2


def test_a_refined_task_that_is_yet_to_be_merged_is_waited_for(make_loop, make_stream, coordinator):
    """The coordinator serves what it merged before, and knows of the newer one: nothing is lost or sent again."""
    stream, recorder = make_stream("mood", training=REFINED), Recorder()

    def hold_once_refined(event, fields):
        coordinator.is_holding |= event is WorkerEvent.TASK_REFINED
        return False

    recorder.kill_at = hold_once_refined
    make_loop(stream, recorder).run()
    held = coordinator.tasks()[0]
    assert (held.state, held.newer.state) == (UpdateState.MERGED, UpdateState.PENDING)
    loop = make_loop(stream, recorder, resume=True)
    scoring = threading.Thread(target=loop.rescore)
    scoring.start()
    wait_until(lambda: recorder.named(WorkerEvent.MERGE_AWAITED))
    coordinator.merge_pending()
    scoring.join(60)
    mood = loop.results.task("mood")
    assert (mood.state, mood.update_id, mood.final_version) == ("merged", held.newer.update_id, 2)
    assert not recorder.named(WorkerEvent.UPDATE_LOST)
    assert len(recorder.named(WorkerEvent.UPDATE_PUSHED)) == 2


def test_a_refinement_that_diverges_leaves_the_task_as_it_was_merged(
    make_loop, make_stream, coordinator, monkeypatch
):
    """The worker ends well, tells of it, and has pushed the task once."""
    learn, lessons = learner.train, []

    def train(lesson, *arguments, **options):
        lessons.append(lesson)
        if len(lessons) > 1:
            raise TrainingDiverged("loss nan", task_id="mood", step=0)
        return learn(lesson, *arguments, **options)

    monkeypatch.setattr(learner, "train", train)
    recorder = Recorder()
    make_loop(make_stream("mood", training=REFINED), recorder).run()
    (told,) = recorder.named(WorkerEvent.TASK_REFINED)
    assert (told["after"], told["is_pushed"]) == (None, False)
    assert len(coordinator.updates) == 1


class FullDisk:
    """Lets no file be synced while it is full, as a disk without room."""

    def __init__(self, monkeypatch):
        self.is_full = False
        self.refused = 0
        sync = os.fsync

        def limited(descriptor):
            if self.is_full:
                self.refused += 1
                raise OSError(28, "No space left on device")
            sync(descriptor)

        monkeypatch.setattr("os.fsync", limited)


def test_a_full_disk_ends_no_training(make_loop, make_stream, coordinator, tmp_path, monkeypatch):
    """Without room training goes on; the results wait, told once, until there is room, with nothing half written."""
    monkeypatch.setattr("worker.disk.RETRY_SECONDS", 0.01)
    disk, seen = FullDisk(monkeypatch), []

    def emit(event, **fields):
        seen.append((event, fields))
        if event is WorkerEvent.TASK_STARTED:
            disk.is_full = True
        if event is WorkerEvent.DISK_FULL:
            threading.Timer(0.5, setattr, (disk, "is_full", False)).start()

    make_loop(make_stream("mood"), emit).run()
    names = [event for event, _ in seen]
    assert names.count(WorkerEvent.DISK_FULL) == names.count(WorkerEvent.DISK_FREED) == 1
    assert disk.refused > 2
    assert set(coordinator.merged) == {"mood"}
    assert not list(tmp_path.rglob("*.tmp"))
    full = next(fields for event, fields in seen if event is WorkerEvent.DISK_FULL)
    assert full["path"] == str(tmp_path / "work" / "north")


def test_a_stop_while_the_disk_is_full_says_what_is_lost(make_loop, make_stream, monkeypatch):
    """Told to stop while there is no room, a worker ends with an error that says to free some."""
    monkeypatch.setattr("worker.disk.RETRY_SECONDS", 0.01)
    disk = FullDisk(monkeypatch)
    disk.is_full = True
    with pytest.raises(WorkerError, match=r"had no room .*bytes free.*--resume"):
        make_loop(make_stream("mood"), should_stop=lambda: disk.refused > 3).run()


def test_a_folder_that_may_not_be_written_to_is_an_error(make_loop, make_stream, monkeypatch):
    """What is no lack of room is not waited for: the error names the folder and the reason."""

    def refused(_descriptor):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("os.fsync", refused)
    with pytest.raises(WorkerError, match=r"cannot be written to \(Read-only file system\)"):
        make_loop(make_stream("mood")).run()


def test_earlier_work_is_not_overwritten(make_loop, make_stream):
    """Without resume, a folder that holds results is refused."""
    make_loop(make_stream("mood")).run()
    with pytest.raises(StreamError, match=r"--resume"):
        make_loop(make_stream("mood"))


def test_a_changed_stream_file_is_noticed(make_loop, make_stream):
    """Resuming with other training settings is refused, with the task's folder in the message."""
    make_loop(make_stream("mood")).run()
    changed = make_stream("mood", training="learning_rate = 0.5")
    with pytest.raises(StreamError, match="as another stream file described it"):
        make_loop(changed, resume=True).run()


def test_the_model_is_left_as_it_was(make_loop, make_stream, backbone):
    """After a run no weight of the frozen model has changed by a bit, and no hook is left."""
    before = {name: each.clone() for name, each in backbone.model.state_dict().items()}
    make_loop(make_stream("mood")).run()
    after = backbone.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module._forward_hooks for module in backbone.model.modules())


def test_compare_trains_a_lora_of_its_own(make_loop, make_stream):
    """With compare, each task has the accuracy of its own LoRA, and its learning rate."""
    result = make_loop(make_stream("mood"), compare=True).run().task("mood")
    assert result.lora > result.majority
    assert result.lora_learning_rate in {1e-3, 2e-3, 5e-3}

"""What the outbox takes for pushed, where a task is pushed more than once: real checkpoints, a coordinator that only answers."""

import threading
from contextlib import contextmanager

import pytest

from share_dist.core.values import Subspace
from share_dist.wire.records import Receipt, UpdateState
from tests.coordinator.support import make_update, wait_until
from worker.checkpoint import TaskCheckpoint
from worker.contact import Contact
from worker.disk import Disk
from worker.outbox import Outbox
from worker.progress import WorkerEvent, silent


class Answering:
    """Takes updates when let, in the place of a coordinator, its lease and a journal."""

    timeout_seconds = 60.0

    def __init__(self):
        self.pushed_ids = []
        self.may_answer = threading.Event()
        self.told = []

    def register(self):
        pass

    def push(self, update):
        self.may_answer.wait(60)
        self.pushed_ids.append(update.update_id)
        return Receipt(update.update_id, UpdateState.PENDING, 1)

    def amend(self, task_id, **fields):
        pass

    def emit(self, event, **fields):
        self.told.append((event, fields.get("update_id")))


@pytest.fixture
def answering():
    return Answering()


@contextmanager
def outbox_to(answering, tmp_path):
    contact = Contact(silent)
    disk = Disk(tmp_path, silent, lambda: False)
    outbox = Outbox(contact, answering, answering, answering, disk, lambda: Subspace({}))
    thread = threading.Thread(target=outbox.run)
    thread.start()
    try:
        yield outbox
    finally:
        answering.may_answer.set()
        contact.close()
        outbox.close()
        thread.join()


def checkpoint_of(folder, update_id):
    checkpoint = TaskCheckpoint(folder, "mood", "lesson")
    checkpoint.save_update(make_update("mood", update_id))
    return checkpoint


def test_of_two_that_waited_the_last_one_counts(answering, tmp_path):
    """Else the first would be missed in the coordinator's list, and pushed over the last."""
    with outbox_to(answering, tmp_path) as outbox:
        outbox.put(checkpoint_of(tmp_path / "learnt", "learnt"))
        outbox.put(checkpoint_of(tmp_path / "refined", "refined"))
        answering.may_answer.set()
        wait_until(lambda: outbox.is_empty)
        assert answering.pushed_ids == ["learnt", "refined"]
        assert outbox.pushed_ids() == {"refined"}


def test_one_that_is_missed_is_pushed_again(answering, tmp_path):
    answering.may_answer.set()
    with outbox_to(answering, tmp_path) as outbox:
        outbox.put(checkpoint_of(tmp_path, "learnt"))
        wait_until(outbox.pushed_ids)
        outbox.push_again({"learnt"})
        wait_until(lambda: len(answering.pushed_ids) == 2)
        assert (WorkerEvent.UPDATE_LOST, "learnt") in answering.told


def test_one_that_is_missed_after_another_took_its_place_is_let_go(answering, tmp_path):
    answering.may_answer.set()
    with outbox_to(answering, tmp_path) as outbox:
        outbox.put(checkpoint_of(tmp_path / "learnt", "learnt"))
        wait_until(lambda: outbox.pushed_ids() == {"learnt"})
        missed = outbox.pushed_ids()
        outbox.put(checkpoint_of(tmp_path / "refined", "refined"))
        outbox.push_again(missed)
        wait_until(lambda: outbox.pushed_ids() == {"refined"})
        assert answering.pushed_ids == ["learnt", "refined"]

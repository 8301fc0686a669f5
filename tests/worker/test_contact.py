"""Whether the coordinator answers, as all threads of a worker know it together."""

import threading

import pytest

from share_dist.client import RetryPolicy
from share_dist.errors import CoordinatorUnreachable, DeadlineExceeded, NotPermitted
from tests.worker.fakes import FakeCoordinator
from worker.contact import Contact, with_growing_time
from worker.progress import WorkerEvent

GONE = CoordinatorUnreachable("nobody answers")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr("worker.contact.POLICY", RetryPolicy(0.01, 0.02))


class Told:
    def __init__(self):
        self.events = []

    def __call__(self, event, **fields):
        self.events.append((event, fields))

    @property
    def names(self):
        return [event for event, _ in self.events]


def failing(*errors, answer="answer"):
    """A call that raises these, one after another, and then answers."""
    left = list(errors)

    def call():
        if left:
            raise left.pop(0)
        return answer

    return call


def test_an_absence_is_told_once_with_what_waits():
    """However often nobody answers, one event says since when, another that it is over; and more updates are told."""
    told = Told()
    contact = Contact(told)
    assert contact.insist(failing(GONE, GONE, GONE)) == "answer"
    assert told.names == [WorkerEvent.COORDINATOR_AWAY, WorkerEvent.COORDINATOR_BACK]
    assert told.events[0][1] | {"since": ""} == {
        "since": "",
        "num_waiting": 0,
        "reason": "nobody answers",
    }
    with pytest.raises(CoordinatorUnreachable):
        contact.ask(failing(GONE))
    contact.note_waiting(1)
    contact.note_waiting(1)
    contact.note_waiting(2)
    assert [fields["num_waiting"] for _, fields in told.events[2:]] == [0, 1, 2]


def test_a_slow_call_is_no_absence():
    """A call that is not finished in its time says nothing where another one was answered meanwhile."""
    told = Told()
    contact = Contact(told)

    def slow():
        contact.ask(failing())
        raise DeadlineExceeded("too slow")

    with pytest.raises(DeadlineExceeded):
        contact.ask(slow)
    assert told.names == []


def test_a_refusal_is_an_answer():
    """What is refused is raised at once, and ends an absence."""
    told = Told()
    contact = Contact(told)
    with pytest.raises(NotPermitted):
        contact.insist(failing(GONE, NotPermitted("not yours")))
    assert told.names == [WorkerEvent.COORDINATOR_AWAY, WorkerEvent.COORDINATOR_BACK]


def test_whoever_waits_hears_that_it_is_back(monkeypatch):
    """A thread in the middle of a long wait tries at once when another one was answered."""
    monkeypatch.setattr("worker.contact.POLICY", RetryPolicy(600.0, 600.0))
    contact, answers, tried = Contact(Told()), [], threading.Event()

    def first_fails():
        if not tried.is_set():
            tried.set()
            raise GONE
        return "answer"

    waiting = threading.Thread(target=lambda: answers.append(contact.insist(first_fails)))
    waiting.start()
    tried.wait(20)
    while waiting.is_alive():
        # until the other one waits, it is not away yet
        contact.ask(lambda: None)
        waiting.join(0.05)
    assert answers == ["answer"]


def test_the_end_of_a_worker_ends_every_wait(monkeypatch):
    """Once it is closed a call that fails is not tried again, however long it was to wait."""
    monkeypatch.setattr("worker.contact.POLICY", RetryPolicy(600.0, 600.0))
    contact = Contact(Told())
    threading.Timer(0.2, contact.close).start()
    with pytest.raises(CoordinatorUnreachable):
        contact.insist(failing(GONE, GONE))
    assert contact.wait(600.0)


def test_where_time_does_not_suffice_there_is_more_of_it():
    """A transfer that its deadline cut off doubles the next one's, up to an hour; another error does not."""
    coordinator = FakeCoordinator()
    for error, seconds in (
        (DeadlineExceeded("slow"), 20.0),
        (GONE, 20.0),
        (DeadlineExceeded("slow"), 40.0),
    ):
        with pytest.raises(type(error)):
            with_growing_time(coordinator, failing(error))
        assert coordinator.timeout_seconds == seconds
    coordinator.timeout_seconds = 3000.0
    with pytest.raises(DeadlineExceeded):
        with_growing_time(coordinator, failing(DeadlineExceeded("slow")))
    assert coordinator.timeout_seconds == 3600.0

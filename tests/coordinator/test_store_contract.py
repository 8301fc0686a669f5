"""One suite, every store: what `coordinator.store.base` promises."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from coordinator.store import DurableStore, MemoryStore
from share_dist.core.values import LayerShape, MergedTask
from share_dist.errors import FingerprintMismatch, UpdateConflict, VersionInFuture
from share_dist.wire.records import UpdateState
from tests.coordinator.support import EMPTY, FINGERPRINT, NOW, commit_of, make_update
from tests.equality import first_difference


class Opener:
    """Opens one store again and again; a store in memory is its own reopening."""

    def __init__(self, kind, path):
        self.kind, self.path = kind, path
        self.store = self.open()

    def open(self):
        return MemoryStore() if self.kind == "memory" else DurableStore(self.path / "store")

    def reopen(self):
        if self.kind == "durable":
            self.store.close()
            self.store = self.open()
        return self.store


@pytest.fixture(params=["memory", "durable"])
def opener(request, tmp_path):
    opener = Opener(request.param, tmp_path)
    yield opener
    opener.store.close()


@pytest.fixture
def store(opener):
    opener.store.bind(FINGERPRINT)
    return opener.store


def add(store, update, worker_id="w"):
    return store.add_update(update, worker_id=worker_id, pushed_at=NOW).record


def test_the_history_of_the_docstring(opener):
    """Bind, add, repeat, conflict, commit, set aside; and all of it again after a reopening."""
    store = opener.store
    assert store.fingerprint() is None
    assert store.bind(FINGERPRINT)
    add(store, make_update("cats", "u1"))
    add(store, make_update("dogs", "u2"))
    assert [r.update_id for r in store.pending()] == ["u1", "u2"]
    add(store, make_update("cats", "u1"))
    with pytest.raises(UpdateConflict, match="u1 is known, for task 'cats'"):
        add(store, make_update("birds", "u1"))
    assert [r.update_id for r in store.pending()] == ["u1", "u2"]
    store.commit(commit_of(store, ["u1", "u2"]))
    assert (store.current_version, store.pending()) == (1, ())
    add(store, make_update("eels", "u3"))
    store.set_aside("u3", "slippery")

    store = opener.reopen()
    assert store.fingerprint() == FINGERPRINT
    assert (store.current_version, store.first_version, store.pending()) == (1, 0, ())
    assert store.update_record("u2").state is UpdateState.MERGED
    aside = store.update_record("u3")
    assert (aside.state, aside.reason) == (UpdateState.QUARANTINED, "slippery")
    assert store.num_updates(UpdateState.QUARANTINED) == 1


def test_another_fingerprint_is_refused(store):
    """The first fingerprint binds; the same one is welcome; a different one is not."""
    assert not store.bind(FINGERPRINT)
    with pytest.raises(FingerprintMismatch) as caught:
        store.bind(replace(FINGERPRINT, layers={"encoder.query": LayerShape(12, 11)}))
    assert caught.value.field == "layers"
    assert store.fingerprint() == FINGERPRINT


def test_epochs_only_go_up(opener):
    """Every registration of a worker gets a number that it never had, across reopenings."""
    assert [opener.store.next_epoch(w) for w in ("a", "b", "a")] == [1, 1, 2]
    assert opener.reopen().next_epoch("a") == 3
    assert opener.store.epochs() == {"a": 3, "b": 1}


def test_an_update_comes_back_as_it_was(opener, store):
    """Tensors bit by bit, head, scores and all; only the lease epoch is not kept."""
    update = make_update("cats", "u1", lease_epoch=7, weight=2.5)
    record = add(store, update)
    assert record == store.update_record("u1")
    assert (record.worker_id, record.pushed_at, record.num_samples) == ("w", NOW, 640)
    assert record.head_bytes == update.head.tensors["weight"].nbytes
    assert record.update_bytes > record.head_bytes
    reopened = opener.reopen()
    assert first_difference(reopened.load_update("u1"), replace(update, lease_epoch=0)) is None
    assert reopened.update_record("u1") == record


def test_a_repeat_is_what_became_of_the_first(opener, store):
    """The same content under a new lease is the same push: pending, merged, or set aside."""
    update = make_update("cats", "u1", lease_epoch=1)
    again = replace(update, lease_epoch=2)
    assert store.repeat_of(update) is None
    first = add(store, update)
    assert store.repeat_of(again) == first == add(store, again, "another-worker")
    store.commit(commit_of(store, ["u1"]))
    repeated = opener.reopen().repeat_of(again)
    assert (repeated.state, repeated.version) == (UpdateState.MERGED, 1)
    assert repeated.receipt().version == 1
    assert add(opener.store, again) == repeated
    assert opener.store.pending() == ()


@pytest.mark.parametrize(
    "change",
    [
        {"task_id": "dogs"},
        {"weight": 2.0},
        {"num_samples": 1},
        {"scores": {"accuracy": 0.5}},
        {"base_version": 1},
    ],
)
def test_any_other_content_is_a_conflict(store, change):
    """An id stands for one content: the least difference is refused and changes nothing."""
    update = make_update("cats", "u1")
    record = add(store, update)
    other = replace(update, **change)
    with pytest.raises(UpdateConflict):
        store.repeat_of(other)
    with pytest.raises(UpdateConflict):
        add(store, other)
    assert store.pending() == (record,)


def test_other_tensors_are_a_conflict(store):
    """One bit of one tensor makes another content."""
    add(store, make_update("cats", "u1", seed=1))
    with pytest.raises(UpdateConflict):
        store.repeat_of(make_update("cats", "u1", seed=2))


def test_version_zero_is_empty(opener):
    """Before the store is bound version 0 has no layers, afterwards those of the fingerprint."""
    assert opener.store.subspace(0).layers == {}
    opener.store.bind(FINGERPRINT)
    assert first_difference(opener.store.subspace(0), EMPTY) is None
    assert opener.store.merged_tasks() == {}


def test_versions_never_change(opener, store):
    """Each version comes back bit by bit, tail included, whatever came after it."""
    commits = []
    for index, task in enumerate(("cats", "dogs", "eels")):
        update = make_update(task, f"u{index}", base=store.subspace(store.current_version))
        add(store, update)
        version = commit_of(store, [f"u{index}"], num_factors=2, oversample=1)
        commits.append(version.commit)
        store.commit(version)
    store = opener.reopen()
    for commit in commits:
        assert first_difference(store.subspace(commit.version), commit.subspace) is None
        assert store.report(commit.version)["version"] == commit.version
    tail = store.subspace(3).layers["encoder.query"].a
    assert (tail.num_factors, tail.num_columns) == (2, 3)
    tasks = store.merged_tasks()
    assert first_difference(tasks, dict(commits[-1].tasks)) is None
    assert all(isinstance(task, MergedTask) and task.version == 3 for task in tasks.values())
    with pytest.raises(VersionInFuture) as caught:
        store.subspace(4)
    assert (caught.value.version, caught.value.current_version) == (4, 3)


def test_events_are_read_in_order_from_any_version(opener, store):
    """A watcher that held any version hears every later one, a few at a time."""
    for index in range(4):
        add(store, make_update(f"task-{index}", f"u{index}"))
        store.commit(commit_of(store, [f"u{index}"]))
    store = opener.reopen()
    assert [e.version for e in store.events(0, 10)] == [1, 2, 3, 4]
    assert [e.version for e in store.events(1, 2)] == [2, 3]
    assert store.events(4, 10) == ()
    (second,) = store.events(1, 1)
    assert second == commit_event(store, second)
    assert second.update_ids == ("u1",)
    assert second.drift.keys() == {"task-0"}


def commit_event(store, event):
    """The event with the fields that only the report can vouch for."""
    report = store.report(event.version)
    return replace(
        event,
        update_ids=tuple(report["update_ids"]),
        angle=report["angle"],
        drift=report["drift"],
        num_factors=report["num_factors"],
    )


def test_tasks_are_told_by_their_merged_update(opener, store):
    """A merged update speaks for its task, else the newest; who came first stays its worker."""
    add(store, make_update("cats", "u1"), "first")
    store.commit(commit_of(store, ["u1"]))
    add(store, make_update("cats", "u2"), "second")
    add(store, make_update("ants", "u3"), "third")
    add(store, make_update("ants", "u4", num_samples=7), "fourth")
    ants, cats = opener.reopen().task_summaries()
    assert (ants.task_id, ants.update_id, ants.worker_id) == ("ants", "u4", "third")
    assert (ants.state, ants.num_samples) == (UpdateState.PENDING, 7)
    assert (cats.update_id, cats.worker_id, cats.state) == ("u1", "first", UpdateState.MERGED)
    assert cats == opener.store.task_summary("u1")
    assert cats.head.tensors == {}
    assert cats.head.num_labels == 3


def test_a_task_that_is_merged_again_is_replaced(opener, store):
    """The newer update takes the task over, and its drift begins anew."""
    for update_id, task in (("u1", "cats"), ("u2", "dogs")):
        add(store, make_update(task, update_id))
        store.commit(commit_of(store, [update_id], num_factors=2))
    before = {summary.task_id: summary.cumulative_drift for summary in store.task_summaries()}
    assert before["cats"] > 0
    add(store, make_update("cats", "u3"))
    store.commit(commit_of(store, ["u3"], num_factors=2))
    store = opener.reopen()
    cats, dogs = store.task_summaries()
    assert (cats.update_id, cats.merged_version, cats.cumulative_drift) == ("u3", 3, 0.0)
    assert dogs.cumulative_drift == before["dogs"] + store.events(2, 1)[0].drift["dogs"]
    assert store.merged_update_ids() == {"cats": "u3", "dogs": "u2"}


def test_marks_say_how_an_update_went_in(opener, store):
    """Lag, angle and truncation of the merge stay with the update."""
    add(store, make_update("cats", "u1"))
    store.commit(commit_of(store, ["u1"], num_factors=1))
    add(store, make_update("dogs", "u2"))
    version = commit_of(store, ["u2"], num_factors=1)
    store.commit(version)
    record = opener.reopen().update_record("u2")
    assert record.mark == version.commit.marks["u2"]
    assert record.mark.lag == 1
    assert 0 < record.mark.truncation < 1
    assert (record.receipt().version, record.receipt().lag) == (2, 1)


def test_pushes_at_once_are_kept_once(store):
    """Many threads that push the same and different updates leave one record of each."""
    updates = [make_update(f"task-{i % 4}", f"u{i % 4}") for i in range(16)]
    barrier = threading.Barrier(8)

    def push(update):
        barrier.wait(30)
        return add(store, update)

    with ThreadPoolExecutor(8) as threads:
        records = list(threads.map(push, updates))
    assert {record.sequence for record in records} == {r.sequence for r in store.pending()}
    assert sorted(r.update_id for r in store.pending()) == ["u0", "u1", "u2", "u3"]

"""One suite, every catalog: what `coordinator.store.base` promises."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest

from coordinator.store.base import TRANSITIONS, TokenRecord
from share_dist.core.values import LayerShape, MergedTask
from share_dist.errors import (
    FingerprintMismatch,
    NotPermitted,
    UnknownSubspace,
    UnknownTask,
    UnknownToken,
    UnknownUpdate,
    UpdateConflict,
    VersionCompacted,
    VersionInFuture,
    VersionMismatch,
    WrongState,
)
from share_dist.wire.records import AuditEntry, NewerUpdate, Token, UpdateState, VersionKind
from tests.coordinator.store_support import (
    add,
    commit,
    entries_of,
    merged,
    refuse,
    removed,
    rolled_back,
)
from tests.coordinator.support import EMPTY, FINGERPRINT, NOW, make_update
from tests.equality import first_difference


@pytest.fixture
def store(opener):
    store = opener.store
    store.bind(FINGERPRINT, by="w")
    return store


def add_and_merge(store, *tasks, prefix="u"):
    """One version for each task, of an update against the newest version."""
    for task in tasks:
        base = store.subspace(store.current_version)
        add(store, make_update(task, f"{prefix}-{task}", base=base))
        commit(store, merged(store, [f"{prefix}-{task}"], num_factors=3, oversample=1))


def test_the_history_of_the_docstring(opener):
    """Bind, add, repeat, conflict, commit, set aside; and all of it again after a reopening."""
    store = opener.store
    assert store.fingerprint() is None
    assert store.bind(FINGERPRINT, by="w")
    add(store, make_update("cats", "u1"))
    add(store, make_update("dogs", "u2"))
    assert [r.update_id for r in store.pending()] == ["u1", "u2"]
    add(store, make_update("cats", "u1"))
    with pytest.raises(UpdateConflict, match="u1 is known, for task 'cats'"):
        add(store, make_update("birds", "u1"))
    assert [r.update_id for r in store.pending()] == ["u1", "u2"]
    commit(store, merged(store, ["u1", "u2"]))
    assert (store.current_version, store.pending()) == (1, ())
    add(store, make_update("eels", "u3"))
    store.change_state("u3", UpdateState.QUARANTINED, "slippery", by="w")

    store = opener.reopened()
    assert store.fingerprint() == FINGERPRINT
    assert (store.current_version, store.first_version, store.pending()) == (1, 0, ())
    assert store.update_record("u2").state is UpdateState.MERGED
    aside = store.update_record("u3")
    assert (aside.state, aside.reason) == (UpdateState.QUARANTINED, "slippery")
    assert store.num_updates(UpdateState.QUARANTINED) == 1


# --- subspaces ------------------------------------------------------------------------------


def test_subspaces_know_nothing_of_each_other(opener):
    """The same ids, tasks and workers in two subspaces are two of each."""
    catalog = opener.catalog
    one, two = (catalog.create(name, by="root") for name in ("one", "two"))
    for seed, store in enumerate((one, two)):
        store.bind(FINGERPRINT, by="w")
        add(store, make_update("cats", "u1", seed=seed), f"w{seed}")
        assert store.next_epoch("w", by=f"p{seed}") == 1
    commit(one, merged(one, ["u1"]))
    catalog = opener.reopen()
    one, two = catalog.store("one"), catalog.store("two")
    assert (one.current_version, two.current_version) == (1, 0)
    assert (one.pending(), len(two.pending())) == ((), 1)
    assert (one.owner("cats"), two.owner("cats")) == ("w0", "w1")
    assert one.digest(0) != two.digest(0)
    assert catalog.names() == ("one", "two")


def test_names_are_sorted_as_code_points(opener):
    """Whatever language a database sorts by, pages of names follow one order."""
    names = ("a b", "a-a", "B", "a", "é", "Z", "_")
    for name in names:
        opener.catalog.create(name, by="root")
    store = opener.store
    for name in names:
        add(store, make_update(name, f"update of {name}"))
    expected = sorted(names)
    assert opener.catalog.names() == tuple(sorted([*names, "default"]))
    assert [task.task_id for task in store.task_summaries()] == expected
    for index, name in enumerate(expected):
        page = store.task_summaries(name, limit=2)
        assert [task.task_id for task in page] == expected[index + 1 : index + 3]


def test_a_store_is_one_object(opener):
    """Who asks twice for a name gets the same store; who asks for another name hears so."""
    store = opener.catalog.create("one", by="root")
    assert opener.catalog.create("one", by="root") is store
    assert opener.catalog.store("one") is store
    with pytest.raises(UnknownSubspace, match="there is no subspace 'two'") as caught:
        opener.catalog.store("two")
    assert caught.value.subspace == "two"
    assert store.store_id == opener.catalog.store_id


def test_a_catalog_keeps_its_id(opener):
    """It is made at random, once: what a reopened catalog says about versions is of the same one."""
    before = opener.catalog.store_id
    assert len(before) == 32
    assert opener.reopen().store_id == before
    opener.catalog.renew()


def test_another_fingerprint_is_refused(store):
    """The first fingerprint binds; the same one is welcome; a different one is not."""
    assert not store.bind(FINGERPRINT, by="w")
    with pytest.raises(FingerprintMismatch) as caught:
        store.bind(replace(FINGERPRINT, layers={"encoder.query": LayerShape(12, 11)}), by="w")
    assert caught.value.field == "layers"
    assert store.fingerprint() == FINGERPRINT


# --- workers --------------------------------------------------------------------------------


def test_epochs_only_go_up(opener):
    """Every registration of a worker gets a number that it never had, across reopenings."""
    assert [opener.store.next_epoch(w, by="p") for w in ("a", "b", "a")] == [1, 1, 2]
    assert opener.reopened().next_epoch("a", by="p") == 3
    assert opener.store.epochs() == {"a": 3, "b": 1}


def test_a_worker_belongs_to_who_first_registered_it(store):
    """Another principal can neither take its name over nor raise its epoch."""
    store.next_epoch("a", by="p")
    with pytest.raises(NotPermitted) as caught:
        store.next_epoch("a", by="q")
    assert (caught.value.owner, caught.value.principal) == ("p", "q")
    assert store.epochs() == {"a": 1}
    assert [store.worker_owner(worker_id) for worker_id in ("a", "b")] == ["p", None]


# --- updates --------------------------------------------------------------------------------


def test_an_update_comes_back_as_it_was(opener, store):
    """Tensors bit by bit, head, scores and all; only the lease epoch is not kept."""
    update = make_update("cats", "u1", lease_epoch=7, weight=2.5)
    record = add(store, update)
    assert record == store.update_record("u1") == store.find_update("u1")
    assert (record.worker_id, record.pushed_at, record.num_samples) == ("w", NOW, 640)
    assert record.head_bytes == update.head.tensors["weight"].nbytes
    assert record.update_bytes > record.head_bytes
    reopened = opener.reopened()
    assert first_difference(reopened.load_update("u1"), replace(update, lease_epoch=0)) is None
    assert reopened.update_record("u1") == record


def test_a_repeat_is_what_became_of_the_first(opener, store):
    """The same content under a new lease is the same push: pending, merged, or set aside."""
    update = make_update("cats", "u1", lease_epoch=1)
    again = replace(update, lease_epoch=2)
    assert store.find_update("u1") is None
    first = add(store, update)
    assert first == add(store, again, "another-worker")
    commit(store, merged(store, ["u1"]))
    repeated = add(opener.reopened(), again)
    assert (repeated.state, repeated.version) == (UpdateState.MERGED, 1)
    assert repeated.receipt().version == 1
    assert opener.store.pending() == ()


def test_any_other_content_is_a_conflict(store):
    """An id stands for one content: the least difference is refused and changes nothing."""
    update = make_update("cats", "u1")
    record = add(store, update)
    for change in (
        {"task_id": "dogs"},
        {"weight": 2.0},
        {"num_samples": 1},
        {"scores": {"accuracy": 0.5}},
        {"base_version": 1},
    ):
        with pytest.raises(UpdateConflict):
            add(store, replace(update, **change))
    assert store.pending() == (record,)


def test_other_tensors_are_a_conflict(store):
    """One bit of one tensor makes another content."""
    add(store, make_update("cats", "u1", seed=1))
    with pytest.raises(UpdateConflict):
        add(store, make_update("cats", "u1", seed=2))


def test_two_updates_may_have_the_same_tensors(opener, store):
    """Equal payloads are kept once and read by both."""
    for update_id in ("u1", "u2"):
        add(store, make_update("cats", update_id, seed=1))
    store = opener.reopened()
    one, two = (store.load_update(update_id) for update_id in ("u1", "u2"))
    assert first_difference(one.layers, two.layers) is None


def test_a_task_belongs_to_who_first_pushed_it(opener, store):
    """Nobody else can replace it, also not after it was removed; the owner can."""
    add(store, make_update("cats", "u1"), "first")
    with pytest.raises(NotPermitted) as caught:
        add(store, make_update("cats", "u2"), "second")
    assert (caught.value.owner, caught.value.principal) == ("first", "second")
    assert store.find_update("u2") is None
    commit(store, merged(store, ["u1"]))
    commit(store, removed(store, "cats"))
    store = opener.reopened()
    assert (store.owner("cats"), store.owner("dogs")) == ("first", None)
    with pytest.raises(NotPermitted):
        add(store, make_update("cats", "u2"), "second")
    assert add(store, make_update("cats", "u2"), "another", owner="first").owner == "first"


def test_unknown_updates_are_told(store):
    """What was never kept has a name in the error, whatever was asked of it."""
    for ask in (
        store.update_record,
        store.load_update,
        lambda update_id: store.change_state(update_id, UpdateState.DROPPED, "", by="w"),
    ):
        with pytest.raises(UnknownUpdate) as caught:
            ask("u9")
        assert caught.value.update_id == "u9"


def test_an_update_may_arrive_set_aside(opener, store):
    """What admission quarantines or the policy parks is kept so, and is not pending."""
    add(store, make_update("cats", "u1"), state=UpdateState.QUARANTINED, reason="norm")
    add(store, make_update("dogs", "u2"), state=UpdateState.PARKED, reason="drift")
    store = opener.reopened()
    assert store.pending() == ()
    aside = store.updates({UpdateState.QUARANTINED, UpdateState.PARKED})
    assert [(r.update_id, r.reason) for r in aside] == [("u2", "drift"), ("u1", "norm")]
    store.change_state("u1", UpdateState.PENDING, "", by="operator")
    assert [r.update_id for r in store.pending()] == ["u1"]


def test_updates_are_paged_newest_first(store):
    """Each page begins before the last of the page before it."""
    for index in range(5):
        add(store, make_update(f"task-{index}", f"u{index}"))
    first = store.updates(limit=2)
    second = store.updates(before_sequence=first[-1].sequence, limit=2)
    assert [r.update_id for r in (*first, *second)] == ["u4", "u3", "u2", "u1"]
    assert [r.sequence for r in store.updates()] == [5, 4, 3, 2, 1]


KEPT_STATES = sorted({*UpdateState} - {UpdateState.REFUSED}, key=lambda state: state.value)


def test_states_change_as_the_table_says(opener):
    """Every other change is refused and changes nothing."""
    for found in KEPT_STATES:
        allowed = sorted(TRANSITIONS.get(found, ()), key=lambda state: state.value)
        store = opener.catalog.create(f"{found.value}", by="root")
        reach(store, found)
        for state in {*UpdateState} - {*allowed}:
            with pytest.raises(WrongState) as caught:
                store.change_state("u1", state, "why", by="w")
            assert caught.value.state == found.value
            assert store.update_record("u1").state is found
        for state in allowed:
            store = opener.catalog.create(f"{found.value} to {state.value}", by="root")
            reach(store, found)
            record = store.change_state("u1", state, "why", by="w")
            assert (record.state, record.reason) == (state, "why")
            assert store.update_record("u1") == record


def reach(store, state):
    """Bring update ``u1`` into a state."""
    store.bind(FINGERPRINT, by="w")
    add(store, make_update("cats", "u1"))
    if state in {UpdateState.MERGED, UpdateState.ROLLED_BACK}:
        commit(store, merged(store, ["u1"]))
        if state is UpdateState.ROLLED_BACK:
            commit(store, rolled_back(store, 0))
    elif state is not UpdateState.PENDING:
        store.change_state("u1", state, "", by="w")


def test_a_consent_lasts(opener, store):
    """What an operator let through stays so, also when it is parked, and after a restart."""
    add(store, make_update("cats", "u1"), state=UpdateState.QUARANTINED, reason="norm")
    assert not store.update_record("u1").is_consented
    changed = store.change_state("u1", UpdateState.PENDING, "replayed", by="root", consents=True)
    assert changed.is_consented
    store.change_state("u1", UpdateState.PARKED, "drift", by="coordinator")
    store = opener.reopened()
    record = store.change_state("u1", UpdateState.PENDING, "", by="coordinator")
    assert record == store.update_record("u1")
    assert record.is_consented


def test_sizes_are_told_by_state_and_owner(store):
    """Who asks how much is set aside hears numbers and bytes, of all and of one owner."""
    one = add(store, make_update("cats", "u1"), "v", state=UpdateState.QUARANTINED)
    two = add(store, make_update("dogs", "u2"), "w", state=UpdateState.PARKED)
    add(store, make_update("eels", "u3"), "w")
    aside = {UpdateState.QUARANTINED, UpdateState.PARKED}
    assert store.sizes_of(aside) == (2, one.update_bytes + two.update_bytes)
    assert store.sizes_of(aside, "w") == (1, two.update_bytes)
    assert store.sizes_of(aside, "nobody") == (0, 0)


def test_the_last_refused_pushes_are_remembered(opener, store):
    """Newest first, counted together with the updates, never more than were asked for."""
    add(store, make_update("cats", "u1"))
    for index in range(5):
        refuse(store, f"r{index}", limit=3)
    add(store, make_update("dogs", "u2"))
    store = opener.reopened()
    found = store.refused()
    assert [(r.sequence, r.update_id) for r in found] == [(6, "r4"), (5, "r3"), (4, "r2")]
    assert {(r.state, r.reason) for r in found} == {(UpdateState.REFUSED, "zero norm")}
    assert store.update_record("u2").sequence == 7
    assert [r.update_id for r in store.refused(before_sequence=6, limit=1)] == ["r3"]
    assert store.find_update("r4") is None


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


def test_one_bad_push_stops_no_other(store):
    """Of many that are written together, those that are refused take nobody with them."""
    add(store, make_update("cats", "u0"), "first")
    barrier = threading.Barrier(8)

    def push(index):
        barrier.wait(30)
        try:
            add(store, make_update("cats" if index % 2 else f"task-{index}", f"u{index}"))
        except NotPermitted:
            return "refused"
        return "kept"

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(push, range(2, 10)))
    assert found == ["kept", "refused"] * 4
    assert len(store.pending()) == 5


# --- versions -------------------------------------------------------------------------------


def test_version_zero_is_empty(opener):
    """Before the store is bound version 0 has no layers, afterwards those of the fingerprint."""
    store = opener.store
    assert store.subspace(0).layers == {}
    store.bind(FINGERPRINT, by="w")
    assert first_difference(store.subspace(0), EMPTY) is None
    assert (store.tasks(0).tasks, store.tasks(0).entries) == ({}, {})
    assert (store.rotation(0), store.drift(0), store.report(0)) == (b"", {}, {})
    assert store.is_kept(0)


def test_versions_never_change(opener, store):
    """Each version comes back bit by bit, with tail, tasks and entries, whatever came after it."""
    commits = []
    for index, task in enumerate(("cats", "dogs", "eels")):
        add(store, make_update(task, f"u{index}", base=store.subspace(store.current_version)))
        version = commit(store, merged(store, [f"u{index}"], num_factors=2, oversample=1))
        commits.append(version.commit)
    store = opener.reopened()
    for kept in commits:
        number = kept.version
        assert first_difference(store.subspace(number), kept.subspace) is None
        assert first_difference(dict(store.tasks(number).tasks), dict(kept.tasks)) is None
        assert store.tasks(number).entries == kept.entries
        assert store.report(number)["version"] == number
        assert store.drift(number) == kept.drift
        assert store.rotation(number) == kept.rotation
        assert store.digest(number) == kept.event.digest
    tail = store.subspace(3).layers["encoder.query"].a
    assert (tail.num_factors, tail.num_columns) == (2, 3)
    assert all(isinstance(task, MergedTask) for task in store.tasks(3).tasks.values())


def test_a_version_that_is_not_yet_is_told(store):
    """Both numbers are in the error, for a version far ahead as well."""
    add_and_merge(store, "cats")
    for ask in ("subspace", "tasks", "rotation", "drift", "digest", "report", "require_version"):
        for version in (2, 2**62):
            with pytest.raises(VersionInFuture) as caught:
                getattr(store, ask)(version)
            assert (caught.value.version, caught.value.current_version) == (version, 1)


def test_digests_are_a_chain(opener, store):
    """Each version names its parent; two stores with the same history do not agree on any."""
    add_and_merge(store, "cats", "dogs")
    first, second = opener.reopened().events(0, 9)
    assert first.parent_digest == opener.store.digest(0)
    assert second.parent_digest == first.digest == opener.store.digest(1)
    assert second.digest == opener.store.digest(2)
    other = opener.catalog.create("other", by="root")
    other.bind(FINGERPRINT, by="w")
    add_and_merge(other, "cats", "dogs")
    assert {other.digest(v) for v in range(3)}.isdisjoint(opener.store.digest(v) for v in range(3))


def test_what_a_caller_holds_is_compared(store):
    """A wrong digest is another store's version; no digest is not looked at."""
    add_and_merge(store, "cats")
    store.require_digest(1, store.digest(1))
    store.require_digest(1, "")
    with pytest.raises(VersionMismatch) as caught:
        store.require_digest(1, store.digest(0))
    assert (caught.value.version, caught.value.expected) == (1, store.digest(1))


def test_events_are_read_in_order_from_any_version(opener, store):
    """A watcher that held any version hears every later one, a few at a time."""
    events = []
    for index in range(4):
        add(store, make_update(f"task-{index}", f"u{index}"))
        events.append(commit(store, merged(store, [f"u{index}"])).commit.event)
    store = opener.reopened()
    assert store.events(0, 10) == tuple(events)
    assert [e.version for e in store.events(1, 2)] == [2, 3]
    assert store.events(4, 10) == ()


def test_marks_say_how_an_update_went_in(opener, store):
    """Lag, angle and truncation of the merge stay with the update."""
    add(store, make_update("cats", "u1"))
    commit(store, merged(store, ["u1"], num_factors=1))
    add(store, make_update("dogs", "u2"))
    version = commit(store, merged(store, ["u2"], num_factors=1))
    record = opener.reopened().update_record("u2")
    assert record.mark == version.commit.marks["u2"]
    assert record.mark.lag == 1
    assert 0 < record.mark.truncation < 1
    assert (record.receipt().version, record.receipt().lag) == (2, 1)


def test_a_rollback_takes_back_what_came_later(opener, store):
    """The old content is current under a new number, and each update knows what became of it."""
    add_and_merge(store, "cats", "dogs", "eels")
    commit(store, rolled_back(store, 1))
    store = opener.reopened()
    assert store.current_version == 4
    assert first_difference(store.subspace(4).layers, store.subspace(1).layers) is None
    assert entries_of(store).keys() == {"cats"}
    states = {name: store.update_record(f"u-{name}") for name in ("cats", "dogs", "eels")}
    assert {name: record.state.value for name, record in states.items()} == {
        "cats": "merged",
        "dogs": "rolled back",
        "eels": "rolled back",
    }
    assert states["dogs"].reason == "version 4 went back to version 1"
    event = store.events(3, 1)[0]
    assert (event.kind, event.content_version) == (VersionKind.ROLLBACK, 1)


def test_a_rollback_can_be_rolled_back(opener, store):
    """Going back to a version from before a rollback merges again what that version held."""
    add_and_merge(store, "cats", "dogs")
    commit(store, rolled_back(store, 1))
    commit(store, rolled_back(store, 2))
    store = opener.reopened()
    assert entries_of(store).keys() == {"cats", "dogs"}
    dogs = store.update_record("u-dogs")
    assert (dogs.state, dogs.reason, dogs.version) == (UpdateState.MERGED, "", 4)


def test_a_rolled_back_update_can_be_merged_again(opener, store):
    """Replayed it is pending, and the next version holds it."""
    add_and_merge(store, "cats", "dogs")
    commit(store, rolled_back(store, 1))
    store.change_state("u-dogs", UpdateState.PENDING, "replayed", by="operator")
    commit(store, merged(store, ["u-dogs"]))
    record = opener.reopened().update_record("u-dogs")
    assert (record.state, record.version, record.reason) == (UpdateState.MERGED, 4, "")


def test_a_removal_drops_all_of_a_task(opener, store):
    """Merged, waiting or set aside: every update of it is dropped, and no other."""
    add_and_merge(store, "cats", "dogs")
    add(store, make_update("cats", "newer"))
    add(store, make_update("cats", "aside"), state=UpdateState.QUARANTINED)
    commit(store, removed(store, "cats"))
    store = opener.reopened()
    for update_id in ("u-cats", "newer", "aside"):
        record = store.update_record(update_id)
        assert (record.state, record.reason) == (UpdateState.DROPPED, "version 3 removed the task")
    assert store.update_record("u-dogs").state is UpdateState.MERGED
    assert store.pending() == ()
    assert entries_of(store).keys() == {"dogs"}
    assert store.task_summary("cats").state is UpdateState.DROPPED


# --- compaction -----------------------------------------------------------------------------


def test_a_compacted_version_leaves_its_row(opener, store):
    """Tensors go; event, digest, drift and report stay; the current version and 0 are never gone."""
    add_and_merge(store, "cats", "dogs", "eels")
    before = store.versions(0, 9)
    facts = [(store.digest(v), store.drift(v), store.report(v)) for v in range(4)]
    sizes = {version.event.version: version.stored_bytes for version in before}
    assert store.compact([0, 1, 2, 3, 9], by="operator") == sizes[1] + sizes[2]
    store = opener.reopened()
    assert [store.is_kept(v) for v in range(4)] == [True, False, False, True]
    assert store.first_version == 3
    assert [(v.is_kept, v.stored_bytes) for v in store.versions(0, 9)] == [
        (False, 0),
        (False, 0),
        (True, sizes[3]),
    ]
    assert [v.event for v in store.versions(0, 9)] == [v.event for v in before]
    assert [(store.digest(v), store.drift(v), store.report(v)) for v in range(4)] == facts
    for ask in (store.subspace, store.tasks, store.rotation):
        with pytest.raises(VersionCompacted) as caught:
            ask(1)
        assert (caught.value.version, caught.value.first_version) == (1, 3)
    assert store.subspace(3).version == 3
    assert store.compact([1, 2, 3], by="operator") == 0


def test_a_payload_that_is_let_go_of_leaves_its_row(opener, store):
    """What a worker said stays known, its tensors are gone, and what waits is never let go of."""
    add_and_merge(store, "cats", "dogs")
    add(store, make_update("eels", "u9"))
    dropped = add(store, make_update("bats", "u8"))
    store.change_state("u8", UpdateState.DROPPED, "no", by="root")
    assert [update.update_id for update in store.finished_updates()] == [
        "u-cats",
        "u-dogs",
        "u8",
    ]
    assert store.compact([], ["u8", "u9"], by="root") == dropped.update_bytes
    assert store.compact([], ["u8", "u9"], by="root") == 0
    store = opener.reopened()
    assert [update.update_id for update in store.finished_updates()] == ["u-cats", "u-dogs"]
    assert store.update_record("u8").let_go_at == 2
    with pytest.raises(WrongState, match="let go of by a compaction at version 2"):
        store.load_update("u8")
    assert add(store, make_update("bats", "u8")).state is UpdateState.DROPPED
    assert store.load_update("u9").task_id == "eels"
    assert list(opener.catalog.verify()) == []
    lines = [entry for entry in opener.catalog.audit(0, 99) if entry.action == "versions_compacted"]
    assert [(line.subject, line.detail) for line in lines] == [("", "payloads of 1 updates")]


def test_what_was_rolled_back_needs_its_payload_to_be_replayed(store):
    """Without it the update cannot wait again; it can be dropped."""
    add_and_merge(store, "cats", "dogs")
    commit(store, rolled_back(store, 1))
    store.compact([2], ["u-dogs"], by="root")
    with pytest.raises(WrongState, match="push it again under a new update_id"):
        store.change_state("u-dogs", UpdateState.PENDING, "", by="root")
    assert store.change_state("u-dogs", UpdateState.DROPPED, "", by="root").let_go_at == 3


def test_a_version_says_which_updates_it_holds(store):
    """One of each task; version 0 holds none."""
    add_and_merge(store, "cats", "dogs")
    assert [store.held_updates(version) for version in range(3)] == [
        frozenset(),
        {"u-cats"},
        {"u-cats", "u-dogs"},
    ]


def test_what_another_version_shares_stays(opener, store):
    """After a rollback two versions have one content: it goes with the second of them."""
    add_and_merge(store, "cats", "dogs")
    commit(store, rolled_back(store, 1))
    first, *_, last = store.versions(0, 9)
    freed = store.compact([1], by="operator")
    assert 0 < freed < first.stored_bytes
    store = opener.reopened()
    assert store.subspace(3).version == 3
    assert len(store.tasks(3).tasks) == 1
    assert list(opener.catalog.verify()) == []
    add_and_merge(store, "eels")
    assert store.compact([3], by="operator") == last.stored_bytes


def test_a_gap_moves_the_first_version(store):
    """The first version is the oldest from which every later one is kept."""
    add_and_merge(store, "a", "b", "c", "d")
    store.compact([2], by="operator")
    assert (store.first_version, store.is_kept(1)) == (3, True)
    assert store.subspace(1).version == 1


# --- tasks ----------------------------------------------------------------------------------


def test_tasks_are_told_by_their_merged_update(opener, store):
    """A merged update speaks for its task, else the newest."""
    add(store, make_update("cats", "u1"))
    commit(store, merged(store, ["u1"]))
    add(store, make_update("cats", "u2"))
    add(store, make_update("ants", "u3"), "third")
    add(store, make_update("ants", "u4", num_samples=7), "fourth", owner="third")
    ants, cats = opener.reopened().task_summaries()
    assert (ants.task_id, ants.update_id, ants.worker_id, ants.owner) == ("ants", "u4", "fourth", "third")  # fmt: skip
    assert (ants.state, ants.num_samples) == (UpdateState.PENDING, 7)
    assert (cats.update_id, cats.worker_id, cats.state) == ("u1", "w", UpdateState.MERGED)
    assert cats == opener.store.task_summary("cats")
    assert (ants.newer, cats.newer) == (None, NewerUpdate("u2", UpdateState.PENDING))
    assert cats.head.tensors == {}
    assert cats.head.num_labels == 3
    with pytest.raises(UnknownTask) as caught:
        opener.store.task_summary("bats")
    assert caught.value.task_id == "bats"


def test_a_task_that_is_merged_again_is_replaced(opener, store):
    """The newer update takes the task over, and its drift begins anew."""
    for update_id, task in (("u1", "cats"), ("u2", "dogs")):
        add(store, make_update(task, update_id))
        commit(store, merged(store, [update_id], num_factors=2))
    before = {summary.task_id: summary.cumulative_drift for summary in store.task_summaries()}
    assert before["cats"] > 0
    add(store, make_update("cats", "u3"))
    commit(store, merged(store, ["u3"], num_factors=2))
    store = opener.reopened()
    cats, dogs = store.task_summaries()
    assert (cats.update_id, cats.merged_version, cats.cumulative_drift) == ("u3", 3, 0.0)
    assert cats.newer is None
    assert dogs.cumulative_drift == before["dogs"] + store.drift(3)["dogs"]
    assert store.update_record("u1").state is UpdateState.MERGED


# --- tokens and the audit log ---------------------------------------------------------------


def make_token(token_id, **fields):
    values = {
        "principal": "alice",
        "role": "worker",
        "subspaces": ("default", "other"),
        "created_at": NOW,
        "expires_at": NOW + timedelta(days=1),
    }
    return TokenRecord(Token(token_id, **(values | fields)), secret_digest=f"digest of {token_id}")


def test_tokens_come_back_as_they_were(opener):
    """Oldest first, found by the digest of the secret, also once revoked."""
    records = [make_token("z"), make_token("a", expires_at=None, subspaces=())]
    for record in records:
        opener.catalog.add_token(record, by="root")
    catalog = opener.reopen()
    assert catalog.tokens() == tuple(record.token for record in records)
    assert catalog.find_token("digest of z") == records[0].token
    assert catalog.find_token("digest of y") is None
    later = NOW + timedelta(hours=1)
    revoked = catalog.revoke_token("z", at=later, by="root")
    assert revoked == replace(records[0].token, revoked_at=later)
    assert catalog.revoke_token("z", at=later + timedelta(hours=1), by="root") == revoked
    assert opener.reopen().find_token("digest of z") == revoked
    with pytest.raises(UnknownToken) as caught:
        opener.catalog.revoke_token("y", at=NOW, by="root")
    assert caught.value.token_id == "y"


def test_every_change_leaves_a_line(opener):
    """Who, what, where and on what; what changed nothing leaves none."""
    catalog = opener.catalog
    store = catalog.create("default", by="root")
    catalog.create("default", by="root")
    for _ in range(2):
        store.bind(FINGERPRINT, by="alice")
    store.next_epoch("w", by="alice")
    for _ in range(2):
        add(store, make_update("cats", "u1"), by="alice")
    commit(store, merged(store, ["u1"]))
    add(store, make_update("dogs", "u2"), state=UpdateState.QUARANTINED, by="alice")
    store.change_state("u2", UpdateState.DROPPED, "no good", by="root")
    commit(store, rolled_back(store, 0))
    commit(store, removed(store, "cats"))
    for _ in range(2):
        store.compact([1], by="root")
        catalog.revoke_token("t", at=NOW, by="root") if catalog.tokens() else catalog.add_token(
            make_token("t"), by="root"
        )
    found = opener.reopen().audit(0, 100)
    assert [entry.sequence for entry in found] == list(range(1, len(found) + 1))
    digests = [opener.store.digest(version) for version in range(4)]
    assert [(e.principal, e.action, e.subspace, e.subject, e.detail) for e in found] == [
        ("root", "subspace_created", "default", "", ""),
        ("alice", "subspace_bound", "default", "", ""),
        ("alice", "worker_registered", "default", "w", ""),
        ("alice", "update_admitted", "default", "u1", ""),
        ("coordinator", "version_merge", "default", "1", ""),
        ("alice", "update_quarantined", "default", "u2", ""),
        ("root", "update_dropped", "default", "u2", "no good"),
        ("coordinator", "version_rollback", "default", "2", "content of version 0"),
        ("coordinator", "version_removal", "default", "3", "without task 'cats'"),
        ("root", "versions_compacted", "default", "1-1", ""),
        ("root", "token_created", "", "t", ""),
        ("root", "token_revoked", "", "t", ""),
    ]
    assert [e.digest for e in found if e.action.startswith("version_")] == digests[1:]
    assert found[3].digest == opener.store.update_record("u1").content_digest


def test_the_audit_log_takes_lines_of_others(opener):
    """Refusals and the like are noted as they are told, numbered by the catalog, read in pages."""
    entries = [
        AuditEntry(0, NOW, f"p{index}", "access_refused", "default", "s", "d", "why \x7f ü")
        for index in range(3)
    ]
    opener.catalog.note(entries)
    opener.catalog.note([])
    catalog = opener.reopen()
    assert catalog.audit(0, 2) == tuple(
        replace(entry, sequence=index) for index, entry in enumerate(entries[:2], 1)
    )
    assert [entry.principal for entry in catalog.audit(2, 9)] == ["p2"]
    assert catalog.audit(3, 9) == ()


# --- the whole ------------------------------------------------------------------------------


def test_the_newest_lines_of_the_audit_log_are_read_from_its_end(opener):
    """Pages may begin at either end; the lines of each are oldest first."""
    entry = AuditEntry(0, NOW, "alice", "access_refused")
    opener.catalog.note([replace(entry, detail=str(number)) for number in range(1, 8)])

    def told(*asked, **where):
        return [int(line.detail) for line in opener.catalog.audit(*asked, **where)]

    assert told(0, 3) == [1, 2, 3]
    assert told(0, 3, before_sequence=0) == [5, 6, 7]
    assert told(0, 3, before_sequence=5) == [2, 3, 4]
    assert told(2, 3, before_sequence=5) == [3, 4]
    assert told(0, 3, before_sequence=1) == []


def test_the_latest_time_is_remembered(opener):
    """It never goes back, whatever a later owner's clock says."""
    assert opener.catalog.seen_seconds() == 0.0
    opener.catalog.renew(200.5)
    opener.catalog.renew(100.0)
    opener.catalog.renew()
    assert opener.reopen().seen_seconds() == 200.5


def test_a_long_history_verifies(opener, store):
    """After merges, a rollback, a removal, a compaction and a reopening nothing is broken."""
    add_and_merge(store, "cats", "dogs", "eels")
    commit(store, rolled_back(store, 2))
    commit(store, removed(store, "cats"))
    store.compact([1, 3], by="operator")
    add(store, make_update("fish", "waits"))
    assert list(opener.catalog.verify()) == []
    assert list(opener.crash().verify()) == []
    assert opener.store.current_version == 5
    assert [record.update_id for record in opener.store.pending()] == ["waits"]

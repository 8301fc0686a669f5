"""Which versions may go, and that none goes from under someone who was let in with it."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.broadcast import Broadcast
from coordinator.clock import Clock
from coordinator.compaction import (
    CompactionPlan,
    Compactor,
    Holds,
    newest_base_versions,
    plan_compaction,
    plan_letting_go,
)
from coordinator.leases import Leases
from coordinator.store import MemoryCatalog
from coordinator.store.base import FinishedUpdate
from share_dist.errors import ConfigError, StoreCorrupt
from share_dist.wire.records import UpdateState
from tests.coordinator.support import FINGERPRINT, commit_of, describe, make_update

versions = st.integers(0, 20)


@given(
    kept=st.frozensets(versions),
    current=versions,
    keep=st.integers(1, 25),
    needs=st.lists(st.tuples(versions, st.just("why"))),
)
def test_every_version_is_either_new_or_needed_or_gone(kept, current, keep, needs):
    """A plan parts the kept versions: the newest stay, so do needed ones with a reason, others go."""
    plan = plan_compaction(kept, current, keep, needs)
    newest = {version for version in kept if version > current - keep or version == 0}
    assert newest.isdisjoint(plan.versions)
    assert newest.isdisjoint(plan.kept)
    assert newest | {*plan.versions} | plan.kept.keys() == kept
    assert plan.kept.keys() == (kept - newest) & {version for version, _ in needs}


def make_store(num_versions: int = 5):
    store = MemoryCatalog().create("default", by="test")
    store.bind(FINGERPRINT, by="test")
    for number in range(1, num_versions + 1):
        store.add_update(describe(make_update(f"t{number}", f"u{number}")), by="test")
        store.commit(commit_of(store, [f"u{number}"]), by="test")
    return store


async def no_history(_after_version):
    return ()


def compactor_of(store, holds: Holds) -> Compactor:
    return Compactor(
        store, Broadcast(store.current_version, no_history), Leases(1.0), holds, Clock()
    )


def test_a_version_that_a_push_was_let_in_with_stays():
    """Held versions are kept with their reason, and go once they are let go of."""
    store, holds = make_store(), Holds()
    compactor = compactor_of(store, holds)
    with holds.hold(2), holds.hold(2):
        found = compactor.compact(1, by="operator")
    assert found.versions == (1, 3, 4)
    assert found.kept == {2: "a worker's push or pull of it is on its way"}
    assert compactor.compact(1, by="operator").versions == (2,)


def test_what_leaves_is_not_let_in_any_more():
    """While versions are let go of, whoever comes is told so; nothing is said to be there and gone."""
    holds = Holds()
    with holds.leaving(lambda _held: CompactionPlan((1, 3), {})):
        assert holds.is_leaving(1)
        assert not holds.is_leaving(2)
        with holds.hold(3):
            assert holds.held == {3}
    assert not holds.is_leaving(1)


def test_no_push_loses_its_base_version_however_they_interleave():
    """Of a push and a compaction at once, either the version stays or the push is told at the door."""
    for _ in range(8):
        store, holds = make_store(2), Holds()
        compactor, lost = compactor_of(store, holds), []

        def push(store=store, holds=holds, lost=lost):
            with holds.hold(1):
                is_there = not holds.is_leaving(1) and store.is_kept(1)
                time.sleep(0)  # let the other thread go on
                lost.append(is_there and not store.is_kept(1))

        threads = [
            threading.Thread(target=push),
            threading.Thread(target=compactor.compact, args=(1,), kwargs={"by": "x"}),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert lost == [False]


def test_a_dry_run_changes_nothing():
    """What would go is said with its bytes, and stays."""
    store = make_store()
    compactor = compactor_of(store, Holds())
    planned = compactor.compact(2, by="operator", dry_run=True)
    assert planned.versions == (1, 2, 3)
    assert planned.freed_bytes == sum(each.stored_bytes for each in store.versions(0, 3)) > 0
    assert all(store.is_kept(version) for version in range(6))
    done = compactor.compact(2, by="operator")
    assert (done.versions, done.first_version) == ((1, 2, 3), 4)


def test_the_current_version_cannot_be_given_up():
    """Keeping none is a mistake, and told as one."""
    with pytest.raises(ConfigError, match="keep at least 1"):
        compactor_of(make_store(1), Holds()).compact(0, by="operator")


def test_after_a_restart_it_is_known_what_workers_train_on():
    """The newest push of each worker says it, as the lease that said it has gone."""
    store = make_store(2)
    newer = make_update("t9", "u9", base=store.subspace(2).without_tail())
    store.add_update(describe(newer), by="test")
    store.add_update(describe(make_update("t8", "u8"), worker_id="x"), by="test")
    assert newest_base_versions(store) == {"w": 2, "x": 0}


updates = st.builds(
    FinishedUpdate,
    st.sampled_from(["u1", "u2", "u3"]),
    st.sampled_from([UpdateState.MERGED, UpdateState.ROLLED_BACK, UpdateState.DROPPED]),
    st.integers(0, 3),
    st.just(100),
)


@given(
    st.lists(updates, unique_by=lambda update: update.update_id),
    st.sets(st.integers(1, 3)),
    st.sets(st.sampled_from(["u1", "u2", "u3"])),
)
def test_a_payload_goes_exactly_where_nothing_can_need_it(finished, kept, held):
    """What a kept version holds stays, and what can be replayed; of the rest nothing does."""
    gone = plan_letting_go(finished, kept, held)
    assert {update.update_id for update in gone}.isdisjoint(held)
    for update in {*finished} - {*gone}:
        is_replayable = update.state is UpdateState.ROLLED_BACK and update.base_version in {
            0,
            *kept,
        }
        assert update.update_id in held or is_replayable
    for update in gone:
        assert update.state is not UpdateState.ROLLED_BACK or update.base_version not in {0, *kept}


def test_the_payload_of_a_replaced_update_goes_with_the_last_version_that_holds_it():
    """A head is served, and a version gone back to, as long as there is one; then only the row is left."""
    store = make_store(1)
    for number in (2, 3):
        store.add_update(describe(make_update("t1", f"v{number}")), by="test")
        store.commit(commit_of(store, [f"v{number}"]), by="test")
    compactor = compactor_of(store, Holds())
    assert compactor.compact(3, by="test").num_updates == 0
    planned = compactor.compact(2, by="test", dry_run=True)
    assert (planned.versions, planned.num_updates) == ((1,), 1)
    assert store.update_record("u1").let_go_at is None
    done = compactor.compact(2, by="test")
    assert (done.versions, done.num_updates) == (planned.versions, planned.num_updates)
    assert done.freed_bytes == planned.freed_bytes
    assert store.update_record("u1").let_go_at == 3
    assert [store.update_record(f"v{number}").let_go_at for number in (2, 3)] == [None, None]
    assert compactor.compact(2, by="test").num_updates == 0


def test_the_payload_of_a_dropped_update_goes_though_every_version_stays():
    """A compaction that lets go of no version still lets go of what was given up."""
    store = make_store(1)
    store.add_update(describe(make_update("odd", "odd")), by="test")
    store.change_state("odd", UpdateState.DROPPED, "no", by="test")
    found = compactor_of(store, Holds()).compact(1, by="test")
    assert (found.versions, found.num_updates) == ((), 1)
    assert found.freed_bytes == store.update_record("odd").update_bytes


def test_a_damaged_version_keeps_every_payload(monkeypatch):
    """Where it cannot be read what a version holds, nothing is let go of but versions."""
    store = make_store(3)
    store.add_update(describe(make_update("odd", "odd")), by="test")
    store.change_state("odd", UpdateState.DROPPED, "no", by="test")

    def damaged(_version):
        raise StoreCorrupt("damaged", path="x", expected="a", found="b")

    monkeypatch.setattr(store, "held_updates", damaged)
    found = compactor_of(store, Holds()).compact(1, by="test")
    assert (found.versions, found.num_updates) == ((1, 2), 0)

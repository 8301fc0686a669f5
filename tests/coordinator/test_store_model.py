"""The catalog in memory is the model of the durable one, through any history, crash and reopening."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator.store import MemoryCatalog
from share_dist.errors import ShareError
from share_dist.wire.records import UpdateState
from tests.coordinator.store_support import (
    Opener,
    add,
    commit,
    merged,
    refuse,
    removed,
    rolled_back,
)
from tests.coordinator.support import FINGERPRINT, make_update
from tests.equality import first_difference

ids = st.sampled_from(["u1", "u2", "u3", "u4", "u5"])
task_ids = st.sampled_from(["cats", "dogs", "eels"])
workers = st.sampled_from(["v", "w"])


def answer(act, store):
    """What a store says; an error is an answer."""
    try:
        return act(store)
    except ShareError as error:
        return type(error).__name__, error.details


class StoreHistories(RuleBasedStateMachine):
    """Does everything to both catalogs and compares what they say."""

    @initialize(kind=st.sampled_from(["sqlite", "sqlite-files"]))
    def open(self, kind):
        self.path = Path(tempfile.mkdtemp(prefix="share-dist-store-"))
        self.opener = Opener(kind, self.path)
        self.memory = MemoryCatalog()
        # digests begin with the id of the catalog
        self.memory._store_id = self.opener.catalog.store_id
        self.model = self.memory.create("default", by="root")
        self.opener.catalog.create("default", by="root")

    def teardown(self):
        self.opener.catalog.close()
        shutil.rmtree(self.path)

    def both(self, act):
        """Do the same to both."""
        stores = (self.model, self.opener.catalog.store("default"))
        answers = [answer(act, store) for store in stores]
        assert first_difference(*answers) is None
        return answers[0]

    @rule(metric=st.sampled_from(["delta", "delta", "factors"]))
    def bind(self, metric):
        self.both(lambda store: store.bind(replace(FINGERPRINT, metric=metric), by="w"))

    @rule(worker_id=workers, by=st.sampled_from(["p", "p", "q"]))
    def register(self, worker_id, by):
        self.both(lambda store: store.next_epoch(worker_id, by=by))

    @precondition(lambda self: self.model.fingerprint())
    @rule(
        update_id=ids,
        task_id=task_ids,
        seed=st.integers(0, 1),
        epoch=st.integers(0, 2),
        owner=st.sampled_from(["o", "o", "o", "p"]),
        state=st.sampled_from([*[UpdateState.PENDING] * 3, UpdateState.QUARANTINED]),
    )
    def push(self, update_id, task_id, seed, epoch, owner, state):
        update = make_update(task_id, update_id, seed=seed, lease_epoch=epoch)
        self.both(lambda store: add(store, update, f"w{epoch}", owner=owner, state=state))

    @precondition(lambda self: self.model.pending())
    @rule(data=st.data(), num_factors=st.integers(1, 3))
    def merge(self, data, num_factors):
        first = {record.task_id: record.update_id for record in reversed(self.model.pending())}
        chosen = data.draw(st.sets(st.sampled_from(sorted(first.values())), min_size=1))
        version = merged(self.model, sorted(chosen), num_factors=num_factors)
        self.both(lambda store: commit(store, version) and None)

    @precondition(lambda self: self.model.current_version)
    @rule(data=st.data())
    def roll_back(self, data):
        kept = [v for v in range(self.model.current_version) if self.model.is_kept(v)]
        version = rolled_back(self.model, data.draw(st.sampled_from(kept)))
        self.both(lambda store: commit(store, version) and None)

    @precondition(lambda self: self.model.tasks(self.model.current_version).tasks)
    @rule(data=st.data())
    def remove(self, data):
        task_id = data.draw(
            st.sampled_from(sorted(self.model.tasks(self.model.current_version).tasks))
        )
        version = removed(self.model, task_id)
        self.both(lambda store: commit(store, version) and None)

    @rule(versions=st.sets(st.integers(0, 12)), update_ids=st.sets(ids, max_size=2))
    def compact(self, versions, update_ids):
        # what a version that stays holds is needed still: whoever compacts looks after that
        kept = {*range(self.model.current_version + 1)} - versions | {self.model.current_version}
        held = [self.model.held_updates(v) for v in kept if self.model.is_kept(v)]
        gone = update_ids.difference(*held)
        self.both(lambda store: store.compact(versions, gone, by="root"))

    @rule(update_id=ids, limit=st.integers(1, 3))
    def refuse(self, update_id, limit):
        self.both(lambda store: refuse(store, update_id, limit=limit))

    @rule(
        update_id=ids,
        state=st.sampled_from(UpdateState),
        reason=st.sampled_from(["odd", "replayed"]),
        consents=st.booleans(),
    )
    def change_state(self, update_id, state, reason, consents):
        """Set aside, replay, drop, and whatever is not allowed."""
        self.both(
            lambda store: store.change_state(update_id, state, reason, by="root", consents=consents)
        )

    @rule()
    def reopen(self):
        self.opener.reopen()

    @rule()
    def crash(self):
        self.opener.crash()

    @invariant()
    def they_say_the_same(self):
        if not hasattr(self, "opener"):
            return
        self.both(
            lambda store: (
                store.fingerprint(),
                store.epochs(),
                store.pending(),
                store.updates(limit=9),
                store.refused(),
                store.finished_updates(),
                [store.num_updates(state) for state in UpdateState],
                [store.sizes_of([state], owner) for state in UpdateState for owner in ("", "o")],
                [store.owner(task_id) for task_id in ("cats", "dogs", "eels")],
                store.current_version,
                store.first_version,
                store.versions(0, 100),
                store.task_summaries(),
            )
        )

    @rule(data=st.data())
    def read_a_version(self, data):
        version = data.draw(st.integers(0, self.model.current_version + 1))
        for ask in ("subspace", "tasks", "held_updates", "rotation", "drift", "report", "digest"):
            self.both(lambda store, ask=ask: getattr(store, ask)(version))

    @rule(update_id=ids)
    def load_an_update(self, update_id):
        self.both(lambda store: store.load_update(update_id))

    @rule()
    def verify(self):
        assert [f for f in self.opener.catalog.verify() if not f.is_harmless] == []

    @rule()
    def compare_the_audit_logs(self):
        logs = [catalog.audit(0, 10000) for catalog in (self.memory, self.opener.catalog)]
        one, two = ([replace(e, at=logs[0][0].at) for e in log] for log in logs)
        assert one == two


TestStoreHistories = StoreHistories.TestCase
TestStoreHistories.settings = settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

"""The store in memory is the model of the durable one, through any history and any reopening."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coordinator.store import DurableStore, MemoryStore
from share_dist.errors import FingerprintMismatch, UpdateConflict
from share_dist.wire.records import UpdateState
from tests.coordinator.support import FINGERPRINT, NOW, commit_of, make_update
from tests.equality import first_difference

ids = st.sampled_from(["u1", "u2", "u3", "u4"])
task_ids = st.sampled_from(["cats", "dogs"])


def answer(act, store):
    try:
        return act(store)
    except (UpdateConflict, FingerprintMismatch) as error:
        return type(error).__name__, error.details


class StoreHistories(RuleBasedStateMachine):
    """Does everything to both stores and compares what they say."""

    def __init__(self):
        super().__init__()
        self.path = Path(tempfile.mkdtemp(prefix="share-dist-store-"))
        self.model = MemoryStore()
        self.durable = DurableStore(self.path)

    def teardown(self):
        self.durable.close()
        shutil.rmtree(self.path)

    def both(self, act):
        """Do the same to both; an error is an answer."""
        answers = [answer(act, store) for store in (self.model, self.durable)]
        assert first_difference(*answers) is None
        return answers[0]

    @rule(metric=st.sampled_from(["delta", "delta", "factors"]))
    def bind(self, metric):
        self.both(lambda store: store.bind(replace(FINGERPRINT, metric=metric)))

    @rule(worker_id=st.sampled_from(["v", "w"]))
    def register(self, worker_id):
        self.both(lambda store: store.next_epoch(worker_id))

    @precondition(lambda self: self.model.fingerprint())
    @rule(update_id=ids, task_id=task_ids, seed=st.integers(0, 1), epoch=st.integers(0, 2))
    def add(self, update_id, task_id, seed, epoch):
        update = make_update(task_id, update_id, seed=seed, lease_epoch=epoch)
        self.both(lambda store: store.repeat_of(update))
        self.both(lambda store: store.add_update(update, worker_id=f"w{epoch}", pushed_at=NOW))

    @precondition(lambda self: self.model.pending())
    @rule(data=st.data(), num_factors=st.integers(1, 3))
    def merge(self, data, num_factors):
        first = {record.task_id: record.update_id for record in reversed(self.model.pending())}
        chosen = data.draw(st.sets(st.sampled_from(sorted(first.values())), min_size=1))
        commit = commit_of(self.model, sorted(chosen), num_factors=num_factors)
        self.both(lambda store: store.commit(commit))

    @precondition(lambda self: self.model.pending())
    @rule(data=st.data())
    def set_aside(self, data):
        record = data.draw(st.sampled_from(self.model.pending()))
        self.both(lambda store: store.set_aside(record.update_id, "odd"))

    @rule()
    def reopen(self):
        self.durable.close()
        self.durable = DurableStore(self.path)

    @invariant()
    def they_say_the_same(self):
        self.both(
            lambda store: (
                store.fingerprint(),
                store.epochs(),
                store.pending(),
                [store.num_updates(state) for state in UpdateState],
                store.current_version,
                store.first_version,
                store.events(0, 100),
                store.task_summaries(),
                store.merged_update_ids(),
            )
        )

    @precondition(lambda self: self.model.current_version)
    @rule(data=st.data())
    def read_a_version(self, data):
        version = data.draw(st.integers(0, self.model.current_version))
        self.both(lambda store: store.subspace(version))
        self.both(lambda store: store.merged_tasks())


TestStoreHistories = StoreHistories.TestCase
TestStoreHistories.settings = settings(
    max_examples=20,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

"""What an operator can ask of a running coordinator, and what stands afterwards."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.app import LOOKS_AT_ONCE, PULLS_AT_ONCE, RESUMES_AT_ONCE, CoordinatorApp
from coordinator.broadcast import Broadcast
from coordinator.store import MemoryCatalog
from coordinator.versions import Snapshot
from share_dist.client import AdminClient, ShareClient
from share_dist.core.merge import merge
from share_dist.core.removal import remove_tasks
from share_dist.core.values import MergedTask, Subspace
from share_dist.errors import (
    ConfigError,
    LeaseExpired,
    NotPermitted,
    UnknownTask,
    UnknownUpdate,
    UpdateConflict,
    VersionCompacted,
    VersionInFuture,
    WrongState,
)
from share_dist.pb import coordinator_pb2 as pb
from share_dist.pb.coordinator_pb2_grpc import CoordinatorStub
from share_dist.wire.records import UpdateState, VersionKind
from tests.coordinator.support import (
    EMPTY,
    client_of,
    lineage_of,
    make_config,
    make_update,
    running,
    wait_until,
)


class Bench(NamedTuple):
    """A coordinator over a store in memory, a worker and an operator of it."""

    app: CoordinatorApp
    worker: ShareClient
    operator: AdminClient

    def push(self, task_id: str, update_id: str, **options: Any) -> None:
        receipt = self.worker.push(make_update(task_id, update_id, **options), wait="merged")
        assert receipt.state is UpdateState.MERGED, receipt

    @property
    def snapshot(self) -> Snapshot:
        return lineage_of(self.app).writer.snapshot


@contextlib.contextmanager
def bench(**config: Any) -> Iterator[Bench]:
    """Start a coordinator; by default it truncates nothing."""
    options = {"num_factors": None, "oversample": 0} | config
    with (
        running(make_config(Path("unused"), **options), catalog=MemoryCatalog()) as app,
        client_of(app.address) as worker,
        AdminClient(app.address, timeout_seconds=20.0) as operator,
    ):
        worker.register()
        yield Bench(app, worker, operator)


@pytest.fixture
def three() -> Iterator[Bench]:
    """Three versions, one task each."""
    with bench() as made:
        for number, task_id in enumerate(("ants", "bees", "cats"), 1):
            made.push(task_id, f"u{number}")
        yield made


def second_moments(subspace: Subspace) -> list[torch.Tensor]:
    return [
        basis.vectors.double() @ torch.diag(basis.energies) @ basis.vectors.double().mT
        for layer in subspace.layers.values()
        for _, basis in layer
    ]


def assert_same(found: Subspace, wanted: Subspace, tolerance: float = 1e-6) -> None:
    """Two subspaces are the same when everything that was merged in them is."""
    for one, other in zip(second_moments(found), second_moments(wanted), strict=True):
        assert float((one - other).norm()) <= tolerance * max(1.0, float(other.norm()))


# --- rollback -------------------------------------------------------------------------------


def test_a_rollback_is_a_new_version_with_the_old_content(three):
    """The lineage between stays; what came after is rolled back; readers get the old content."""
    old = three.worker.pull(1)
    event = three.operator.rollback(1, "bees sting")
    assert (event.version, event.kind, event.content_version) == (4, VersionKind.ROLLBACK, 1)
    assert event.parent_digest == three.operator.versions(2, 1)[0].event.digest
    assert_same(three.worker.pull(), old)
    states = {update.receipt.update_id: update.receipt.state for update in three.operator.updates()}
    assert states == {
        "u1": UpdateState.MERGED,
        "u2": UpdateState.ROLLED_BACK,
        "u3": UpdateState.ROLLED_BACK,
    }
    assert three.snapshot.tasks.keys() == {"ants"}
    assert lineage_of(three.app).store.report(4)["reason"] == "bees sting"


def test_watchers_hear_of_a_rollback_as_of_any_version(three):
    """A rollback's event comes after those before it, with its kind."""
    with three.worker.watch(after_version=2) as watch:
        three.operator.rollback(2)
        kinds = [next(watch).kind for _ in range(2)]
    assert kinds == [VersionKind.MERGE, VersionKind.ROLLBACK]


def test_merging_goes_on_after_a_rollback(three):
    """What was trained on a version that was rolled back over is merged exactly as trained."""
    late = make_update("dogs", "u4", base=three.worker.pull(3))
    three.operator.rollback(1)
    three.worker.push(late, wait="merged")
    wanted = merge(EMPTY, {}, [make_update("ants", "u1")])
    bases = {3: lineage_of(three.app).store.subspace(3)}
    current = replace(wanted.subspace, version=4)
    tasks = {name: replace(task, version=4) for name, task in wanted.tasks.items()}
    assert_same(three.snapshot.subspace, merge(current, tasks, [late], bases=bases).subspace)


def test_a_rollback_that_is_repeated_is_answered_as_the_first(three):
    """A client that lost the answer and asks again makes no second version."""
    first = three.operator.rollback(1)
    assert three.operator.rollback(1) == first
    assert three.operator.status().current_version == 4
    three.push("dogs", "u4")  # 5
    back = three.operator.rollback(4)  # has the content of 1, as 4 has
    assert three.operator.rollback(4) == three.operator.rollback(1) == back
    assert three.operator.status().current_version == 6


@pytest.mark.parametrize("what", ["rollback", "removal"])
def test_what_is_asked_again_while_it_is_being_done_is_done_once(three, monkeypatch, what):
    """A client that was cut off does not wait for the first answer before it asks again."""
    lineage = lineage_of(three.app)
    commit, is_committing, may_commit = lineage.store.commit, threading.Event(), threading.Event()

    def slow(version, *, by):
        is_committing.set()
        may_commit.wait(60)
        commit(version, by=by)

    def ask():
        if what == "rollback":
            return three.operator.rollback(1)
        return three.operator.remove_task("bees").event

    monkeypatch.setattr(lineage.store, "commit", slow)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(ask)
        is_committing.wait(60)
        second = threads.submit(ask)
        wait_until(lambda: lineage.writer._jobs)
        may_commit.set()
        assert second.result(60) == first.result(60)
    assert three.operator.status().current_version == 4


def test_a_rollback_to_everything_before_empties_the_subspace(three):
    """Version 0 can be gone back to, and merging begins anew from there."""
    three.operator.rollback(0)
    assert three.snapshot.tasks == {}
    assert three.snapshot.subspace.num_factors == 0
    three.push("dogs", "u4")
    assert three.snapshot.tasks.keys() == {"dogs"}


def test_rollbacks_that_cannot_be(three):
    """The current version, and one that is not there yet, are refused in words."""
    with pytest.raises(ConfigError, match="version 3 is the current one"):
        three.operator.rollback(3)
    with pytest.raises(VersionInFuture):
        three.operator.rollback(4)
    assert three.operator.status().current_version == 3


def test_branches_are_told_apart_by_their_updates(three):
    """Going back and forth between branches, an update is MERGED exactly where it is in."""
    three.operator.rollback(1)  # 4: ants
    three.push("dogs", "u4")  # 5: ants dogs
    three.operator.rollback(3)  # 6: ants bees cats
    three.operator.rollback(5)  # 7: ants dogs
    merged = {u.receipt.update_id for u in three.operator.updates({UpdateState.MERGED})}
    assert merged == {"u1", "u4"}
    assert three.snapshot.tasks.keys() == {"ants", "dogs"}


# --- removal --------------------------------------------------------------------------------


def test_a_removed_task_leaves_nothing_where_nothing_was_truncated(three):
    """The subspace is the one that was never fed with it, the bound is 0, others do not move."""
    removal = three.operator.remove_task("bees", "asked for")
    assert (removal.event.kind, removal.event.task_ids) == (VersionKind.REMOVAL, ("bees",))
    assert removal.residue_bound == 0
    wanted = merge(EMPTY, {}, [make_update("ants", "u1"), make_update("cats", "u3")])
    assert_same(three.snapshot.subspace, wanted.subspace)
    for task_id, drift in lineage_of(three.app).store.drift(4).items():
        whole = sum(delta.square().sum() for delta in _dense(three.snapshot, task_id).values())
        assert drift < 1e-3 * float(whole) ** 0.5
    with pytest.raises(UnknownTask):
        three.worker.pull_task("bees")


def test_with_truncation_the_bound_that_is_told_holds():
    """What is left of a removed task is never more than the answer says."""
    with bench(num_factors=3, oversample=1) as made:
        updates = {
            name: make_update(name, f"u-{name}") for name in ("ants", "bees", "cats", "dogs")
        }
        for update in updates.values():
            made.worker.push(update, wait="merged")
        gone = made.snapshot.tasks["bees"]
        removal = made.operator.remove_task("bees")
        exact = merge(EMPTY, {}, [u for name, u in updates.items() if name != "bees"]).subspace
        found = second_moments(made.snapshot.subspace)
        for one, other, energy in zip(found, second_moments(exact), _energies(gone), strict=True):
            left = float(torch.linalg.matrix_norm(other - one, ord="nuc"))
            assert left <= removal.residue_bound * energy * (1 + 1e-6)
    assert removal.residue_bound > 0


def _energies(task: MergedTask) -> list[float]:
    """What a task weighed when it was merged, by side: what is kept of it, and what was cut."""
    return [
        layer.weights[side]
        * float((layer.coefficients[side].double() @ layer.grams[side] @ layer.coefficients[side].double().mT).trace())
        + layer.cut_energy[side]
        for layer in task.layers.values()
        for side in ("a", "b")
    ]  # fmt: skip


def test_a_removal_that_is_repeated_is_answered_as_the_first(three):
    """A client that lost the answer and asks again makes no second version."""
    first = three.operator.remove_task("bees")
    assert three.operator.remove_task("bees") == first
    assert three.operator.status().current_version == 4


def test_a_removed_task_can_be_learnt_again(three):
    """A new push of it is merged as that of any new task."""
    three.operator.remove_task("bees")
    three.push("bees", "u9")
    assert three.snapshot.entries["bees"].update_id == "u9"
    assert three.operator.remove_task("bees").event.version == 6


def test_a_rollback_does_not_bring_a_removed_task_back(three):
    """What was taken out stays out: a version that holds it cannot be gone back to."""
    three.operator.remove_task("bees")
    with pytest.raises(WrongState, match=r"version 3 holds task 'bees' by update u2"):
        three.operator.rollback(3)
    assert three.operator.rollback(1).content_version == 1


def test_tasks_that_cannot_be_removed(three):
    """A task that was never pushed is named with its neighbours; another worker's is not given up."""
    with pytest.raises(UnknownTask, match="did you mean 'bees'"):
        three.operator.remove_task("bee")
    with pytest.raises(NotPermitted, match=r"task 'bees' belongs to 'w'.* and not to 'x'"):
        three.operator.remove_task("bees", worker_id="x")
    assert three.operator.remove_task("bees", worker_id="w").event.version == 4


def test_a_task_that_only_waits_is_dropped_without_moving_anyone():
    """Taking out a task whose update was set aside drops the update; the subspace stays as it is."""
    with bench(quarantine_norm=300.0) as made:
        made.push("ants", "u1")
        kept = made.worker.push(make_update("bees", "u2", scale=10.0))
        assert kept.state is UpdateState.QUARANTINED
        before = made.snapshot.subspace
        made.operator.remove_task("bees")
        assert_same(made.snapshot.subspace, before)
        assert made.operator.updates({UpdateState.DROPPED})[0].receipt.update_id == "u2"
        with pytest.raises(WrongState):
            made.operator.replay_update("u2")


# --- any sequence ---------------------------------------------------------------------------


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("push"), st.sampled_from("abcd")),
            st.tuples(st.just("remove"), st.sampled_from("abcd")),
            st.tuples(st.just("rollback"), st.integers(0, 8)),
        ),
        min_size=3,
        max_size=8,
    ),
    num_factors=st.sampled_from([None, 3]),
)
def test_any_sequence_equals_that_of_the_core_alone(steps, num_factors):
    """Merges, rollbacks and removals in any order: the coordinator holds what core alone computes."""
    options: dict[str, Any] = {"num_factors": num_factors, "oversample": 0}
    lineage: list[tuple[Subspace, dict[str, MergedTask], dict[str, str]]] = [(EMPTY, {}, {})]
    dropped: set[str] = set()
    with bench(**options) as made:
        steps = [("push", "a"), *steps]
        for number, (step, what) in enumerate(steps):
            subspace, tasks, held = lineage[-1]
            if step == "push":
                update = make_update(what, f"u{number}", base=subspace.without_tail())
                made.worker.push(update, wait="merged")
                outcome = merge(subspace, tasks, [update], **options)
                lineage.append((outcome.subspace, outcome.tasks, held | {what: f"u{number}"}))
            elif step == "remove" and what in held:
                made.operator.remove_task(what)
                outcome = remove_tasks(subspace, tasks, [what], **options)
                dropped |= {
                    f"u{n}" for n, each in enumerate(steps[:number]) if each == ("push", what)
                }
                lineage.append((outcome.subspace, outcome.tasks, {t: u for t, u in held.items() if t != what}))  # fmt: skip
            elif step == "rollback" and what < len(lineage) - 1:
                old, old_tasks, old_held = lineage[what]
                if dropped & {*old_held.values()}:
                    with pytest.raises(WrongState):
                        made.operator.rollback(what)
                    continue
                version = len(lineage)
                if made.operator.rollback(what).version < version:
                    continue  # asked for twice in a row: answered as the first time
                moved = {t: replace(task, version=version) for t, task in old_tasks.items()}
                lineage.append((replace(old, version=version), moved, old_held))
        subspace, tasks, held = lineage[-1]
        assert made.snapshot.version == subspace.version
        assert {t: e.update_id for t, e in made.snapshot.entries.items()} == held
        assert_same(made.snapshot.subspace, subspace)
        for task_id, task in tasks.items():
            pulled = made.worker.pull_task(task_id)
            for name, layer in task.served(subspace).layers.items():
                for side, coefficients in layer:
                    torch.testing.assert_close(pulled.coefficients.layers[name][side], coefficients)


@pytest.mark.parametrize(
    ("what", "work", "most"),
    [
        ("diff", "coordinator.administration.compare", LOOKS_AT_ONCE),
        ("pull", "coordinator.pulling._served_subspace", PULLS_AT_ONCE),
        ("resume", "coordinator.uploads.UploadSpool.progress", RESUMES_AT_ONCE),
    ],
)
def test_who_asks_for_much_holds_up_nobody_who_learns(three, monkeypatch, what, work, most):
    """What takes much memory or much reading is done a few at a time; merges have other threads."""
    inside, go_on, peak = set(), threading.Event(), []

    def slow(*_args):
        inside.add(threading.get_ident())
        peak.append(len(inside))
        go_on.wait(60)
        inside.discard(threading.get_ident())
        raise UnknownTask("never mind")

    asking = {
        "diff": lambda stub: three.operator.diff(1, 2),
        "pull": lambda stub: three.worker.pull(1),
        "resume": lambda stub: stub.GetUpload(pb.GetUploadRequest(update_id="u"), timeout=60),
    }

    def ask(_number):
        with contextlib.suppress(UnknownTask, grpc.RpcError):
            asking[what](CoordinatorStub(channel))

    monkeypatch.setattr(work, slow)
    with grpc.insecure_channel(three.app.address) as channel, ThreadPoolExecutor(40) as threads:
        asked = threads.map(ask, range(40))
        wait_until(lambda: len(inside) >= most)
        three.push("dogs", "u4")
        go_on.set()
        assert len(list(asked)) == 40
    assert max(peak) == most


# --- compaction -----------------------------------------------------------------------------


def test_old_versions_are_let_go_of_but_for_those_that_are_needed():
    """The newest stay, and the base of an update that was set aside, with its reason."""
    with bench(quarantine_norm=300.0) as made, client_of(made.app.address) as reader:
        for number in range(1, 7):
            made.push(f"t{number}", f"u{number}", base=made.worker.pull() or EMPTY)
            if number == 2:
                odd = make_update("odd", "odd", base=made.worker.pull(), scale=10.0)
                assert made.worker.push(odd).state is UpdateState.QUARANTINED
        planned = made.operator.compact(2, dry_run=True)
        assert planned.versions == (1, 3, 4)
        assert planned.kept == {2: "quarantined update odd was trained on it"}
        assert reader.pull(1).version == 1
        assert made.operator.compact(2).versions == (1, 3, 4)
        assert made.operator.compact(2).versions == ()
        with pytest.raises(VersionCompacted):
            reader.pull(1)
        kept = [each.event.version for each in made.operator.versions() if each.is_kept]
        assert kept == [2, 5, 6]
        receipt = made.operator.replay_update("odd", "it is fine")
        assert made.worker.push(odd, wait="merged").state is UpdateState.MERGED, receipt


def test_what_a_live_worker_trains_on_stays():
    """The base of a live worker's newest push is not let go of."""
    with bench() as made:
        for number in range(1, 5):
            made.push(f"t{number}", f"u{number}", base=made.worker.pull() or EMPTY)
        made.worker.push(make_update("t5", "u5", base=made.worker.pull(2)), wait="merged")
        assert made.operator.compact(1).kept == {2: "live worker 'w' trains on it"}


def test_what_a_live_worker_pulled_stays_before_its_first_push():
    """Who pulls and says that it is a worker can push on what came, however many versions come after."""
    with (
        bench(keep_versions=1) as made,
        client_of(made.app.address, "late") as late,
        client_of(made.app.address, "reader") as reader,
    ):
        late.register()
        made.push("t1", "u1")
        made.push("t2", "u2")
        base = late.pull()
        assert reader.pull().version == base.version == 2
        for number in range(3, 6):
            made.push(f"t{number}", f"u{number}")
        found = made.operator.compact(1)
        assert found.kept == {2: "live worker 'late' trains on it"}
        held = {"held_version": base.version, "held_digest": base.digest}
        assert late.pull(base.version, **held) is None
        made.push("t6", "u6")
        receipt = late.push(make_update("t7", "u7", base=base, lease_epoch=0), wait="merged")
        assert (receipt.state, receipt.lag) == (UpdateState.MERGED, 4)
        assert late.pull().version == made.operator.status().current_version == 7
        made.push("t8", "u8")
        assert made.operator.compact(1).kept == {7: "live worker 'late' trains on it"}


def test_what_a_worker_trains_on_stays_while_it_pulls_the_next():
    """A version that it pulled and did not push on yet is kept beside the one that it pulled since."""
    with bench(keep_versions=1) as made, client_of(made.app.address, "late") as late:
        late.register()
        made.push("t1", "u1")
        base = late.pull()
        made.push("t2", "u2")
        assert late.pull().version == 2
        made.push("t3", "u3")
        made.push("t4", "u4")
        assert set(made.operator.compact(1).kept) == {1, 2}
        receipt = late.push(make_update("t5", "u5", base=base, lease_epoch=0), wait="merged")
        assert (receipt.state, receipt.lag) == (UpdateState.MERGED, 3)


def test_who_lost_its_lease_may_read_and_holds_nothing():
    """A pull under an epoch that was taken over is answered, and does not move what the newer holder trains on."""
    with (
        bench() as made,
        client_of(made.app.address, "twin") as old,
        client_of(made.app.address, "twin") as new,
    ):
        made.push("t1", "u1")
        made.push("t2", "u2")
        old.register()
        new.register()
        assert new.pull(1).version == 1
        assert old.pull().version == 2
        made.push("t3", "u3")
        assert made.operator.compact(1).kept == {1: "live worker 'twin' trains on it"}


def test_what_a_watcher_has_not_seen_stays(monkeypatch):
    """Versions after the one that a slow watcher holds are kept until it has seen them."""
    with bench() as made:
        for number in range(1, 5):
            made.push(f"t{number}", f"u{number}")
        monkeypatch.setattr(Broadcast, "held_versions", (1,))
        kept = made.operator.compact(1, dry_run=True).kept
        assert kept[2] == kept[3] == "a watcher that holds version 1 has not seen it yet"


def test_versions_are_compacted_by_themselves_where_that_is_asked_for():
    """With keep_versions the newest so many are kept after each merge, and rows stay for all."""
    with bench(keep_versions=2) as made:
        for number in range(1, 6):
            made.push(f"t{number}", f"u{number}", base=made.worker.pull() or EMPTY)
        made.operator.compact(2)  # comes after what the last merge left to be done
        found = made.operator.versions()
        assert [each.event.version for each in found] == [1, 2, 3, 4, 5]
        assert [each.is_kept for each in found] == [False, False, False, True, True]
        assert len(made.operator.task_history("t1")) >= 1


def test_keeping_nothing_is_refused(three):
    """The current version is always kept, so keeping 0 can only be a mistake."""
    with pytest.raises(ConfigError, match="keep at least 1"):
        three.operator.compact(0)


# --- what is there --------------------------------------------------------------------------


def test_a_diff_says_which_tasks_came_and_went_and_how_far_others_moved():
    """Between two versions: tasks, angles by side, and drifts that are those of the served dW."""
    with bench(num_factors=2) as made:
        made.push("ants", "u1")
        made.push("bees", "u2", base=made.worker.pull())
        made.push("cats", "u3", base=made.worker.pull())
        before = made.snapshot
        made.operator.remove_task("bees")
        made.push("dogs", "u4", base=made.worker.pull())
        diff = made.operator.diff(3, 5)
        assert (diff.added_task_ids, diff.removed_task_ids) == (("dogs",), ("bees",))
        assert diff.drift.keys() == {"ants", "cats"}
        for task_id, drift in diff.drift.items():
            assert drift == pytest.approx(_moved(before, made.snapshot, task_id), rel=1e-4)
        assert diff.angle == max(layer.angle for layer in diff.layers) > 0.01
        assert made.operator.diff(5, 5).angle < 1e-5


def _dense(snapshot: Snapshot, task_id: str) -> dict[str, torch.Tensor]:
    served = snapshot.tasks[task_id].served(snapshot.subspace)
    return {
        name: (snapshot.subspace.layers[name].b.leading @ layer.b)
        @ (snapshot.subspace.layers[name].a.leading @ layer.a).mT
        for name, layer in served.layers.items()
    }


def _moved(a: Snapshot, b: Snapshot, task_id: str) -> float:
    before, after = _dense(a, task_id), _dense(b, task_id)
    return float(sum((after[name] - before[name]).square().sum() for name in before)) ** 0.5


def test_a_history_names_the_merge_that_moved_a_task_most():
    """Each version that moved a task is there with its drift, and those that merged it."""
    with bench(num_factors=2) as made:
        for number, name in enumerate(("ants", "bees", "cats", "ants"), 1):
            made.push(name, f"u{number}", base=made.worker.pull() or EMPTY)
        moves = made.operator.task_history("ants")
        assert [move.version for move in moves] == [1, 2, 3, 4]
        assert [move.is_own_merge for move in moves] == [True, False, False, True]
        store = lineage_of(made.app).store
        assert moves[1].drift == store.drift(2)["ants"] > 0
        assert moves[1].update_ids == ("u2",)
        with pytest.raises(UnknownTask):
            made.operator.task_history("dogs")


def test_an_inspection_measures_an_update_and_what_it_would_do_to_others():
    """Norm and spectrum are those of the dense dW; the influence is that of a merge of it alone."""
    with bench(num_factors=2, quarantine_norm=300.0) as made:
        made.push("ants", "u1")
        odd = make_update("odd", "odd", scale=10.0)
        made.worker.push(odd)
        found = made.operator.inspect_update("odd")
        assert found.update.receipt.state is UpdateState.QUARANTINED
        assert "quarantine_norm is 300" in found.update.receipt.reason
        side_a, side_b = (side.temporary @ side.temporary_coefficients for _, side in odd.layers["encoder.query"])  # fmt: skip
        singular = torch.linalg.svdvals(side_b @ side_a.mT)
        measure = found.layers[0]
        assert measure.largest_singular == pytest.approx(float(singular[0]), rel=1e-4)
        assert measure.norm == pytest.approx(float(singular.norm()), rel=1e-4)
        alone = merge(made.snapshot.subspace, made.snapshot.tasks, [odd], 2, bases={0: EMPTY})
        assert found.influence == pytest.approx(alone.report.drift)
        assert made.operator.inspect_update("u1").influence == {}
        with pytest.raises(UnknownUpdate):
            made.operator.inspect_update("nothing")


def test_the_audit_log_says_why_the_lineage_was_changed(three):
    """What an operator asked for, of what, and the reason that was given; none leaves no trace of it."""
    three.operator.rollback(2, "a bad batch")
    three.operator.remove_task("bees", "withdrawn")
    three.operator.remove_task("ants")
    details = [line.detail for line in three.operator.audit() if "version_r" in line.action]
    assert details == [
        "content of version 2: a bad batch",
        "without task 'bees': withdrawn",
        "without task 'ants'",
    ]


def test_updates_are_dropped_for_good(three):
    """A dropped update stays dropped, says why, and asking again changes nothing."""
    three.operator.rollback(2)
    receipt = three.operator.drop_update("u3", "noise")
    assert (receipt.state, receipt.reason) == (UpdateState.DROPPED, "dropped by local: noise")
    assert three.operator.drop_update("u3") == receipt
    with pytest.raises(WrongState):
        three.operator.replay_update("u3")
    with pytest.raises(WrongState, match="is merged and cannot become dropped"):
        three.operator.drop_update("u1")
    assert three.worker.push(make_update("cats", "u3")).state is UpdateState.DROPPED


def test_what_was_rolled_back_cannot_be_replayed_without_its_base_version():
    """Once that was compacted the update can only be pushed again or dropped, and it is said so."""
    with bench() as made:
        made.push("ants", "u1")
        made.push("bees", "u2", base=made.worker.pull())
        made.push("cats", "u3", base=made.worker.pull())
        made.operator.rollback(1)
        made.worker.pull()
        assert made.operator.compact(1).versions == (1, 2, 3)
        with pytest.raises(VersionCompacted, match="Let its worker push it again"):
            made.operator.replay_update("u3")
        found = made.operator.inspect_update("u3")
        assert (found.update.let_go_at, found.layers, found.influence) == (4, (), {})
        assert made.operator.drop_update("u3").state is UpdateState.DROPPED
        kept = {u.receipt.update_id: u.let_go_at for u in made.operator.updates()}
        assert kept == {"u1": None, "u2": 4, "u3": 4}
        assert made.worker.pull_task("ants").head.num_labels == 3


def test_a_rolled_back_update_whose_payload_went_is_told_apart(three):
    """It was replaced and compacted before: going back cannot bring its tensors back."""
    three.push("bees", "u4")
    assert three.operator.compact(1).num_updates == 1
    three.operator.rollback(0)
    with pytest.raises(WrongState, match="let go of by a compaction at version 4"):
        three.operator.replay_update("u2")
    assert three.operator.replay_update("u4").state is UpdateState.PENDING


def test_what_was_rolled_back_can_be_replayed(three):
    """An update that a rollback took out is merged again, once, when it is replayed."""
    three.operator.rollback(1)
    assert three.operator.replay_update("u2", "it was not the bees").state is UpdateState.PENDING
    settled = three.worker.push(make_update("bees", "u2"), wait="merged")
    assert (settled.state, settled.version) == (UpdateState.MERGED, 5)
    assert three.operator.replay_update("u2").state is UpdateState.MERGED
    assert three.snapshot.tasks.keys() == {"ants", "bees"}


def test_lists_are_paged_without_gap_or_double(three):
    """Pages of any size give the same list, whole."""
    for number in range(4, 9):
        three.push(f"t{number}", f"u{number}")
    assert [u.sequence for u in three.operator.updates()] == list(range(8, 0, -1))
    assert [u.sequence for u in three.operator.updates(limit=3)] == [8, 7, 6]
    assert [v.event.version for v in three.operator.versions(2, limit=4)] == [3, 4, 5, 6]
    lines = three.operator.audit()
    assert [line.sequence for line in lines] == list(range(1, len(lines) + 1))
    assert three.operator.audit(limit=2) == lines[:2]
    assert three.operator.newest_audit(limit=3) == lines[-3:]
    assert three.operator.newest_audit(limit=1000) == lines


def test_every_change_leaves_a_line_in_the_audit_log(three):
    """Who, what and of what is written for each act of worker, writer and operator."""
    three.operator.rollback(2, "why")
    three.operator.drop_update("u3")
    three.operator.remove_task("bees")
    three.operator.compact(1)
    told = [(line.principal, line.action, line.subject) for line in three.operator.audit()]
    assert ("local", "version_rollback", "4") in told
    assert ("local", "update_dropped", "u3") in told
    assert ("local", "version_removal", "5") in told
    assert ("local", "versions_compacted") in {line[:2] for line in told}
    assert ("coordinator", "version_merge", "3") in told


def test_named_subspaces_are_listed_with_what_the_caller_may_do(three):
    """Each subspace has its own figures."""
    (found,) = three.operator.subspaces()
    assert (found.name, found.current_version, found.num_tasks, found.role) == (
        "default",
        3,
        3,
        "admin",
    )


# --- late twins -----------------------------------------------------------------------------


def test_a_late_twin_never_merges_twice():
    """A worker that was cut off and replaced is refused, or its push is taken as the same one."""
    with bench() as made, client_of(made.app.address) as twin:
        before = make_update("ants", "u1", lease_epoch=0)
        twin.register()  # the work was restarted elsewhere under the same name
        with pytest.raises(LeaseExpired, match="was taken over by epoch 2"):
            made.worker.push(before)
        assert twin.push(before, wait="merged").state is UpdateState.MERGED
        # the first one did not hear of it, registers again and repeats what it holds
        made.worker.register()
        again = made.worker.push(before, wait="merged")
        assert (again.state, again.version) == (UpdateState.MERGED, 1)
        with pytest.raises(UpdateConflict):
            made.worker.push(make_update("ants", "u1", seed=5, lease_epoch=0))
        with pytest.raises(LeaseExpired):
            twin.push(make_update("bees", "u2", lease_epoch=0))
        assert made.operator.status().current_version == 1
        states = Counter(each.receipt.state for each in made.operator.updates())
        assert states == {UpdateState.MERGED: 1, UpdateState.REFUSED: 3}

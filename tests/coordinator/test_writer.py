"""The one writer: poison stops nobody, what was parked comes back, who waits is let go in time."""

import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from coordinator.app import CoordinatorApp
from coordinator.screening import merge_of
from coordinator.store import MemoryCatalog
from share_dist.client import AdminClient, Mirror, ShareClient
from share_dist.core.budget import task_norms
from share_dist.core.values import SideUpdate, TaskUpdate
from share_dist.errors import (
    BaseVersionTooOld,
    Overloaded,
    ShareError,
    StoreUnavailable,
    VersionInFuture,
)
from share_dist.wire.records import UpdateState, VersionKind
from tests.coordinator.support import (
    EMPTY,
    client_of,
    lineage_of,
    make_config,
    make_update,
    running,
    wait_until,
    with_first_layer,
)


@pytest.fixture
def app() -> Iterator[CoordinatorApp]:
    with running(make_config(Path("unused")), catalog=MemoryCatalog()) as app:
        yield app


@pytest.fixture
def client(app) -> Iterator[ShareClient]:
    with client_of(app.address) as client:
        client.register()
        yield client


# --- poison -----------------------------------------------------------------------------------


def with_number(update: TaskUpdate, number: float) -> TaskUpdate:
    """Put a number into an update behind the back of its own checks."""
    tensor = update.layers["encoder.query"].a.temporary.clone()
    side = replace(update.layers["encoder.query"].a, temporary=tensor)
    changed = with_first_layer(update, a=side)
    tensor[0, 0] = number
    return changed


def constant(value: float) -> SideUpdate:
    return SideUpdate(torch.zeros(0, 2), torch.full((12, 2), value), torch.full((2, 2), value))


POISON = {
    "nan": lambda: with_number(make_update("bad", "bad"), math.nan),
    "infinite": lambda: with_number(make_update("bad", "bad"), math.inf),
    "huge": lambda: with_number(make_update("bad", "bad"), 3e38),
    "zero": lambda: with_first_layer(make_update("bad", "bad"), a=constant(0.0)),
    "tiny": lambda: with_first_layer(make_update("bad", "bad"), a=constant(1e-30)),
    "vast": lambda: with_first_layer(make_update("bad", "bad"), a=constant(1e19)),
    "wrong": lambda: with_first_layer(make_update("bad", "bad"), a=SideUpdate(torch.zeros(5, 2), torch.ones(12, 2), torch.ones(2, 2))),
    "other content": lambda: make_update("task-3", "u3", seed=99),
}  # fmt: skip


@pytest.mark.parametrize("kind", POISON)
def test_one_bad_update_among_twenty_good_ones_stops_none(app, client, kind):
    """The bad one is refused in words; the twenty are merged, and nothing that is no number is kept."""
    good = [make_update(f"task-{number}", f"u{number}") for number in range(20)]
    pushed = [*good[:10], POISON[kind](), *good[10:]]

    def push(update: TaskUpdate) -> str:
        try:
            return client.push(update, wait="merged").state.value
        except ShareError as error:
            return type(error).__name__

    client.push(good[3])  # its id is known when other content comes under it
    with ThreadPoolExecutor(7) as threads:
        became = dict(zip(range(21), threads.map(push, pushed), strict=True))
    bad = became.pop(10)
    assert {*became.values()} == {"merged"}
    assert bad in {"NotFinite", "UpdateRefused", "ShapeMismatch", "UpdateConflict", "MalformedMessage"}  # fmt: skip
    snapshot = lineage_of(app).writer.snapshot
    assert len(snapshot.tasks) == 20
    for layer in snapshot.subspace.layers.values():
        assert all(torch.isfinite(basis.vectors).all() for _, basis in layer)


def test_an_update_that_only_fails_in_the_merge_costs_one_attempt_only(app, client, monkeypatch):
    """What nobody saw at the door is found by the merge, quarantined, and replayed in vain."""

    def refuse_bad(updates, *arguments):
        if any(update.task_id == "bad" for update in updates):
            raise ArithmeticError("no convergence")
        return merge_of(updates, *arguments)

    monkeypatch.setattr("coordinator.screening.merge_of", refuse_bad)
    receipt = client.push(make_update("bad", "bad"), wait="merged")
    assert receipt.state is UpdateState.QUARANTINED
    with AdminClient(app.address) as operator:
        operator.replay_update("bad")
        again = client.push(make_update("bad", "bad"), wait="merged")
        assert (again.state, again.reason) == (UpdateState.QUARANTINED, "ArithmeticError: no convergence")  # fmt: skip
        monkeypatch.undo()
        operator.replay_update("bad")
        assert client.push(make_update("bad", "bad"), wait="merged").state is UpdateState.MERGED


# --- set aside, and back ----------------------------------------------------------------------


def crowded(client: ShareClient) -> None:
    """Two tasks that fill a subspace of two factors."""
    for name in ("ants", "bees"):
        client.push(make_update(name, f"u-{name}", pseudo_rank=1), wait="merged")


STORM = make_update("storm", "u-storm", pseudo_rank=1, weight=10.0, lease_epoch=0)


def test_what_was_parked_merges_by_itself_once_a_removal_makes_room():
    """An update that would move a task too far waits, says why, and is merged when the task has gone."""
    config = make_config(
        Path("unused"), num_factors=2, oversample=0, drift_budget=0.02, max_subspace_bytes=400
    )
    with (
        running(config, catalog=MemoryCatalog()) as app,
        client_of(app.address) as client,
        AdminClient(app.address) as operator,
    ):
        client.register()
        crowded(client)
        receipt = client.push(STORM, wait="merged")
        assert receipt.state is UpdateState.PARKED
        assert "drift_budget is 0.02" in receipt.reason
        assert client.status().num_parked == 1
        assert max(_relative_drifts(app).values(), default=0.0) <= 0.02
        # by hand it is judged again, with the same outcome
        operator.replay_update("u-storm")
        assert client.push(STORM, wait="merged").state is UpdateState.PARKED
        operator.remove_task("ants")
        operator.remove_task("bees")
        assert client.push(STORM, wait="merged").state is UpdateState.MERGED


def _relative_drifts(app: CoordinatorApp) -> dict[str, float]:
    snapshot = lineage_of(app).writer.snapshot
    norms = task_norms(snapshot.subspace, snapshot.tasks)
    return {
        task_id: entry.cumulative_drift / norms[task_id]
        for task_id, entry in snapshot.entries.items()
    }


def test_what_was_parked_is_tried_again_after_a_restart():
    """A coordinator that starts with another budget merges what it had parked under the old one."""
    catalog = MemoryCatalog()
    tight = {"num_factors": 2, "oversample": 0, "drift_budget": 0.02, "max_subspace_bytes": 400}
    with (
        running(make_config(Path("unused"), **tight), catalog=catalog) as app,
        client_of(app.address) as client,
    ):
        client.register()
        crowded(client)
        assert client.push(STORM, wait="merged").state is UpdateState.PARKED
        # a newer push of the same task, merged meanwhile, is not replaced by what waits
        assert client.push(make_update("calm", "u-calm", pseudo_rank=1, weight=1e-4, lease_epoch=0), wait="merged").state is UpdateState.MERGED  # fmt: skip
    roomy = tight | {"drift_budget": 1e6}
    with running(make_config(Path("unused"), **roomy), catalog=catalog) as app:
        wait_until(lambda: "storm" in lineage_of(app).writer.snapshot.tasks)


def test_a_parked_update_never_replaces_a_newer_one():
    """A task that was pushed again and merged keeps what is newer when the parked one comes up."""
    tight = {"num_factors": 2, "oversample": 0, "drift_budget": 0.02, "max_subspace_bytes": 400}
    with (
        running(make_config(Path("unused"), **tight), catalog=MemoryCatalog()) as app,
        client_of(app.address) as client,
        AdminClient(app.address) as operator,
    ):
        client.register()
        crowded(client)
        assert client.push(STORM, wait="merged").state is UpdateState.PARKED
        newer = make_update("storm", "newer", pseudo_rank=1, weight=1e-4, lease_epoch=0)
        assert client.push(newer, wait="merged").state is UpdateState.MERGED
        operator.remove_task("ants")
        operator.remove_task("bees")
        client.push(make_update("cats", "u-cats", pseudo_rank=1, lease_epoch=0), wait="merged")
        assert lineage_of(app).writer.snapshot.entries["storm"].update_id == "newer"
        assert client.status().num_parked == 1


def test_influence_needs_consent_and_replaying_gives_it():
    """What alone moves a task too far is quarantined; an operator's replay lets it merge."""
    config = make_config(Path("unused"), num_factors=2, oversample=0, max_influence=0.02)
    with (
        running(config, catalog=MemoryCatalog()) as app,
        client_of(app.address) as client,
        AdminClient(app.address) as operator,
    ):
        client.register()
        crowded(client)
        receipt = client.push(STORM, wait="merged")
        assert receipt.state is UpdateState.QUARANTINED
        assert "max_influence is 0.02" in receipt.reason
        found = operator.inspect_update("u-storm")
        assert max(found.influence.values()) > 0
        operator.replay_update("u-storm", "we know this one")
        assert client.push(STORM, wait="merged").state is UpdateState.MERGED


def test_a_consent_outlasts_parking_and_a_restart(tmp_path):
    """What an operator let through is parked for its drift only, and merged once there is room."""
    store = tmp_path / "store"
    tight = {"num_factors": 2, "oversample": 0, "max_influence": 0.02, "max_subspace_bytes": 400}
    with (
        running(make_config(store, drift_budget=0.02, **tight)) as app,
        client_of(app.address) as client,
        AdminClient(app.address) as operator,
    ):
        client.register()
        crowded(client)
        assert client.push(STORM, wait="merged").state is UpdateState.QUARANTINED
        operator.replay_update("u-storm", "we know this one")
        assert client.push(STORM, wait="merged").state is UpdateState.PARKED
    with running(make_config(store, drift_budget=1e6, **tight)) as app:
        wait_until(lambda: "storm" in lineage_of(app).writer.snapshot.tasks)


def test_a_late_push_is_asked_to_be_fitted_again():
    """With refit the client is told which versions are fresh enough, and its next push is merged."""
    config = make_config(Path("unused"), staleness="refit", max_lag=1)
    with (
        running(config, catalog=MemoryCatalog()) as app,
        client_of(app.address) as client,
    ):
        client.register()
        for number in range(2):
            base = client.pull() or EMPTY
            client.push(make_update(f"t{number}", f"u{number}", base=base), wait="merged")
        with pytest.raises(BaseVersionTooOld, match="is 2 versions late, 1 are taken") as too_late:
            client.push(make_update("late", "late", lease_epoch=0))
        assert too_late.value.first_version == 1
        again = make_update("late", "late", base=client.pull())
        assert client.push(again, wait="merged").lag == 0


# --- group commit, waiting, order -------------------------------------------------------------


@pytest.mark.parametrize("num_temporary", [1, 2, 9])
@pytest.mark.parametrize("pseudo_rank", [1, 8])
def test_the_first_update_may_be_of_any_size(client, num_temporary, pseudo_rank):
    """One direction is the least that a first version can be made of; the next one follows by a step."""
    mirror = Mirror(client)
    for task_id, base in (("first", EMPTY), ("second", None)):
        update = make_update(
            task_id,
            base=base or client.pull(),
            num_temporary=num_temporary,
            pseudo_rank=pseudo_rank,
        )
        assert client.push(update, wait="merged").state is UpdateState.MERGED
        assert mirror.advance().version == client.pull().version


def test_all_that_is_pending_is_merged_in_one_step():
    """Updates that came while nobody merged become one version."""
    config = make_config(Path("unused"), min_updates=8, max_wait_seconds=1e6)
    with running(config, catalog=MemoryCatalog()) as app, client_of(app.address) as client:
        client.register()
        for number in range(7):
            assert client.push(make_update(f"t{number}", f"u{number}")).state is UpdateState.PENDING
        assert client.push(make_update("t7", "u7"), wait="merged").version == 1
        assert len(lineage_of(app).store.events(0, 9)[0].update_ids) == 8


def test_a_pull_waits_for_the_version_that_a_receipt_names(client):
    """Read-your-writes: who asks for a version to come gets it, or hears that it did not come."""
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(client.pull, min_version=2)
        for name in ("ants", "bees"):
            client.push(make_update(name, f"u-{name}"), wait="merged")
        assert waiting.result(30).version == 2
    with (
        client_of(client.address, timeout_seconds=1.0) as impatient,
        pytest.raises(VersionInFuture, match="99"),
    ):
        impatient.pull(min_version=99)


def test_operations_and_merges_make_one_line_of_versions(app, client):
    """While many push, rollbacks and removals come between: every version follows the one before."""
    numbers = itertools.count()

    def push(_: int) -> None:
        number = next(numbers)
        client.push(make_update(f"t{number % 5}", f"u{number}", pseudo_rank=1), wait="merged")

    def operate(step: int) -> None:
        with AdminClient(app.address) as operator:
            newest = operator.status().current_version
            try:
                if step % 2:
                    operator.rollback(max(0, newest - 2))
                else:
                    operator.remove_task(f"t{step % 5}")
            except ShareError:
                pass

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda step: operate(step) if step % 4 == 3 else push(step), range(32)))
    store = lineage_of(app).store
    events = store.events(0, 1000)
    assert [event.version for event in events] == list(range(1, len(events) + 1))
    for event in events:
        assert event.parent_digest == store.digest(event.version - 1)
    assert {event.kind for event in events} >= {VersionKind.MERGE}
    held = {entry.update_id for entry in lineage_of(app).writer.snapshot.entries.values()}
    assert all(store.update_record(update_id).state is UpdateState.MERGED for update_id in held)
    assert client.status().num_pending == 0


def test_that_merging_fails_is_told_until_it_no_longer_does(app, client, monkeypatch):
    """Who waits can see why; an administrator is told all of it, and others what kind of error it is."""

    def fail(*_args, **_named):
        raise RuntimeError("stride of /var/secret")

    assert client.status().merge_failure == ""
    monkeypatch.setattr("coordinator.preparation.candidate_of_merge", fail)
    client.push(make_update("cats"))
    wait_until(lambda: client.status().merge_failure)
    found = client.status()
    assert found.merge_failure == "RuntimeError: stride of /var/secret"
    assert found.merges_fail_since >= found.started_at
    with monkeypatch.context() as reading:
        reading.setattr(app.coordinator.access, "role", lambda *_: "reader")
        assert client.status().merge_failure == "RuntimeError"

    monkeypatch.undo()
    client.push(make_update("dogs"))
    wait_until(lambda: client.status().num_tasks == 2)
    assert (client.status().merge_failure, client.status().merges_fail_since) == ("", None)


def test_what_is_asked_of_a_coordinator_that_stops_may_be_asked_again(app):
    """An operation that comes too late is told to come again, and did nothing."""
    lineage = lineage_of(app)
    lineage.writer.stop()
    wait_until(lambda: lineage.writer._is_stopped)
    with (
        AdminClient(app.address, timeout_seconds=1.0) as operator,
        pytest.raises(Overloaded, match="the coordinator is stopping"),
    ):
        operator.compact(1)


def test_a_commit_that_seemed_to_fail_is_found_and_told(app, client, monkeypatch):
    """When the answer of the store is lost after it committed, nothing is merged twice and all hear of it."""
    store = lineage_of(app).store
    commit = store.commit

    def commit_and_lose_the_answer(version, *, by):
        commit(version, by=by)
        monkeypatch.undo()
        raise StoreUnavailable("the disk said nothing")

    monkeypatch.setattr("coordinator.writer._RETRY_SECONDS", (0.01,))
    monkeypatch.setattr(store, "commit", commit_and_lose_the_answer)
    with client.watch(after_version=0) as watch:
        assert client.push(make_update("ants", "u1"), wait="merged").version == 1
        assert next(watch).update_ids == ("u1",)
    assert client.push(make_update("bees", "u2"), wait="merged").version == 2


def test_an_operation_after_a_commit_that_seemed_to_fail_begins_with_what_was_committed(
    app, client, monkeypatch
):
    """It neither fails nor hides the version before it from anyone, though no retry is due yet."""
    store = lineage_of(app).store
    commit = store.commit

    def commit_and_lose_the_answer(version, *, by):
        commit(version, by=by)
        raise StoreUnavailable("the disk said nothing")

    monkeypatch.setattr("coordinator.writer._RETRY_SECONDS", (600.0,))
    client.push(make_update("ants", "u1"), wait="merged")
    with client.watch(after_version=0) as watch, AdminClient(app.address) as operator:
        with monkeypatch.context() as broken:
            broken.setattr(store, "commit", commit_and_lose_the_answer)
            client.push(make_update("bees", "u2"))
            wait_until(lambda: lineage_of(app).writer._failures)
        assert operator.remove_task("ants").event.version == 3
        assert [next(watch).version for _ in range(3)] == [1, 2, 3]


def test_merging_goes_on_where_compacting_fails(monkeypatch):
    """A version that cannot be let go of holds up nobody, and is tried again later."""
    config = make_config(Path("unused"), keep_versions=1)
    with running(config, catalog=MemoryCatalog()) as app, client_of(app.address) as client:
        client.register()
        lineage, tried = lineage_of(app), []

        def fail(*_args, **_options):
            tried.append(1)
            raise StoreUnavailable("the disk fails")

        with monkeypatch.context() as broken:
            broken.setattr(lineage.store, "compact", fail)
            for name in ("ants", "bees", "cats"):
                base = client.pull() or EMPTY
                client.push(make_update(name, f"u-{name}", base=base), wait="merged")
            wait_until(lambda: tried)
        client.push(make_update("dogs", "u-dogs", base=client.pull()), wait="merged")
        wait_until(lambda: not lineage.store.is_kept(1))

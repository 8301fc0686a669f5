"""
What a worker does while its coordinator cannot be reached, and when it can be again: real processes, real gRPC.

No test waits for an hour: bounds of waits and calls are shrunk, and nothing in a worker counts how long it was.
"""

import threading

import pytest

from coordinator.store import tools
from coordinator.store.place import Place
from share_dist.client import RetryPolicy, ShareClient
from share_dist.client.admin import AdminClient
from share_dist.errors import CoordinatorUnreachable, FingerprintMismatch, NotPermitted
from share_dist.wire.records import UpdateState
from tests.coordinator.support import client_of, make_update, wait_until
from tests.worker.afield import Coordinator, Worker, check_all_is_merged_once
from tests.worker.proxy import Proxy
from worker.exchange import Exchange
from worker.loop import Stopped
from worker.progress import WorkerEvent


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr("worker.contact.POLICY", RetryPolicy(0.05, 0.2))


@pytest.fixture
def coordinator(tmp_path):
    made = Coordinator(tmp_path)
    yield made
    made.kill()


@pytest.fixture
def worker(make_stream, backbone, coordinator, tmp_path):
    return Worker(
        make_stream("mood", "food", "motion"), backbone, coordinator.address, tmp_path / "work"
    )


def test_a_stream_is_learnt_while_the_coordinator_is_away(coordinator, worker):
    """Killed while the first task trains and started again after the last: nothing waited, all is merged once, and it was told."""
    coordinator.start()
    worker.at[WorkerEvent.TASK_PROGRESSED, "mood"] = coordinator.kill
    running = worker.in_background()
    wait_until(lambda: len(worker.named(WorkerEvent.TASK_LEARNT)) == 3)
    wait_until(lambda: 3 in [x["num_waiting"] for x in worker.named(WorkerEvent.COORDINATOR_AWAY)])
    assert not worker.named(WorkerEvent.UPDATE_PUSHED)
    assert not worker.named(WorkerEvent.FINISHED)
    coordinator.start()
    running.join()
    check_all_is_merged_once(coordinator, worker)
    away, back = (
        worker.named(x) for x in (WorkerEvent.COORDINATOR_AWAY, WorkerEvent.COORDINATOR_BACK)
    )
    assert {each["since"] for each in away} == {away[0]["since"]}
    assert "no coordinator answers" in away[0]["reason"]
    assert (len(back), back[0]["num_waiting"]) == (1, 3)
    assert [each["task_id"] for each in worker.named(WorkerEvent.UPDATE_PUSHED)] == ["mood", "food", "motion"]  # fmt: skip


def test_a_worker_that_starts_while_the_coordinator_is_away_trains_on(coordinator, worker):
    """Stopped and started anew with nobody there, it goes on in the version on its disk; what both runs learnt is merged once."""
    coordinator.start()

    def stop():
        coordinator.kill()
        worker.stopped.set()

    worker.at[WorkerEvent.TASK_PROGRESSED, "food"] = stop
    with pytest.raises(Stopped):
        worker.learn()
    worker.stopped.clear()
    running = worker.in_background(resume=True)
    wait_until(lambda: len(worker.named(WorkerEvent.TASK_LEARNT)) == 3)
    coordinator.start()
    running.join()
    check_all_is_merged_once(coordinator, worker)


def test_a_worker_that_never_met_a_coordinator_says_so(worker, monkeypatch):
    """Nobody ever answered at the address: the error says for how long, and what to do; once told to wait it waits."""
    monkeypatch.setattr("worker.exchange.FIRST_CONTACT_SECONDS", 0.5)
    with pytest.raises(
        CoordinatorUnreachable, match=r"no coordinator has ever answered .*--coordinator"
    ):
        worker.learn()
    running = worker.in_background(resume=True)
    wait_until(lambda: len(worker.named(WorkerEvent.COORDINATOR_AWAY)) == 2)
    running.join(2.0)
    assert running.is_alive()
    worker.stopped.set()
    wait_until(lambda: worker.named(WorkerEvent.STOPPED))


@pytest.fixture(autouse=True)
def _stopping_is_no_news():
    """A loop that ends with Stopped in a thread of a test is as it should be."""
    before, threading.excepthook = (
        threading.excepthook,
        lambda args: None if args.exc_type is Stopped else before(args),
    )
    yield
    threading.excepthook = before


def backup_of_the_first(coordinator, worker):
    """Where a backup will lie, and what makes it as soon as the first update is merged."""
    backup = coordinator.store.with_name("backup")

    def take_backup():
        wait_until(lambda: worker.named(WorkerEvent.UPDATE_PUSHED))
        with coordinator.ask() as client:
            wait_until(lambda: client.status().current_version == 1)
        tools.backup(Place(str(coordinator.store)), backup, lambda *_: None)

    return backup, take_backup


@pytest.mark.parametrize("is_gone_on_without", [False, True])
def test_a_coordinator_that_is_back_with_an_older_backup_loses_nothing(
    coordinator, worker, backbone, is_gone_on_without
):
    """Restored to before the second task was merged, and with another version 2 meanwhile: all is merged once there."""
    coordinator.start()
    backup, take_backup = backup_of_the_first(coordinator, worker)

    def restore():
        with coordinator.ask() as client:
            wait_until(lambda: client.status().current_version == 2)
        coordinator.kill()
        coordinator.store = backup
        coordinator.start()
        if is_gone_on_without:
            fingerprint = backbone.fingerprint()
            with client_of(coordinator.address, "south", fingerprint=fingerprint) as south:
                south.register()
                south.push(make_update("theirs", base=south.pull()), wait="merged")

    worker.at[WorkerEvent.TASK_STARTED, "food"] = take_backup
    worker.at[WorkerEvent.TASK_STARTED, "motion"] = restore
    results = worker.learn()
    (lost,) = worker.named(WorkerEvent.UPDATE_LOST)
    assert lost["task_id"] == "food"
    times, tasks = coordinator.merged()
    assert set(times.values()) == {1}
    assert tasks.pop("theirs", None) is None or is_gone_on_without
    assert {name: results.task(name).update_id for name in tasks} == tasks
    assert sorted(tasks) == ["food", "mood", "motion"]
    assert {each.state for each in results.tasks} == {"merged"}
    for each in results.tasks:
        assert each.final == pytest.approx(each.learnt, abs=0.1)


def test_what_is_pushed_again_while_an_edition_is_pulled_is_waited_for(
    coordinator, worker, monkeypatch
):
    """Restored after all was pushed: what the last edition found missing is merged before final scores are."""
    coordinator.start()
    backup, take_backup = backup_of_the_first(coordinator, worker)

    def restore():
        coordinator.kill()
        coordinator.store = backup
        coordinator.start()

    pull_tasks = Exchange._pull_tasks

    def pull_once_all_is_pushed(exchange, task_ids):
        if worker.named(WorkerEvent.UPDATE_LOST):
            wait_until(lambda: exchange.outbox.is_empty)
        return pull_tasks(exchange, task_ids)

    monkeypatch.setattr(Exchange, "_pull_tasks", pull_once_all_is_pushed)
    worker.at[WorkerEvent.TASK_STARTED, "food"] = take_backup
    worker.at[WorkerEvent.UPDATE_PUSHED, "motion"] = restore
    results = worker.learn()
    lost = {each["task_id"] for each in worker.named(WorkerEvent.UPDATE_LOST)}
    assert "motion" in lost
    assert {each.state for each in results.tasks} == {"merged"}
    assert all(each.final is not None for each in results.tasks)


def test_what_an_operator_took_out_stays_out(coordinator, worker):
    """A task that was removed meanwhile is not pushed again, by this run or one that resumes, and the worker tells of it."""
    coordinator.start()
    taken = []

    def take_out():
        with coordinator.ask() as client, AdminClient(coordinator.address) as operator:
            wait_until(lambda: client.status().current_version >= 1)
            taken.append(operator.remove_task("mood"))

    worker.at[WorkerEvent.TASK_STARTED, "motion"] = take_out
    worker.learn()
    worker.learn(resume=True)
    with coordinator.ask() as client:
        states = {each.task_id: each.state for each in client.tasks()}
    assert len(taken) == 1
    assert states["mood"] is UpdateState.DROPPED
    assert {states["food"], states["motion"]} == {UpdateState.MERGED}
    assert worker.named(WorkerEvent.UPDATE_LOST) == []
    assert worker.named(WorkerEvent.UPDATE_SET_ASIDE)[0]["task_id"] == "mood"


def test_a_cut_that_nobody_is_told_of_costs_no_training(coordinator, worker):
    """With its lease ended and its watch silent meanwhile, a worker that was cut off pushes all once the cut is healed."""
    coordinator.start()
    with Proxy(coordinator.address) as proxy:
        worker.address = proxy.address
        worker.at[WorkerEvent.TASK_PROGRESSED, "mood"] = proxy.cut
        running = worker.in_background()
        wait_until(lambda: len(worker.named(WorkerEvent.TASK_LEARNT)) == 3)
        wait_until(lambda: worker.named(WorkerEvent.COORDINATOR_AWAY))
        with coordinator.ask() as client:
            wait_until(lambda: not any(each.is_live for each in client.status().workers))
            assert client.status().current_version == 0
        proxy.heal()
        running.join()
    assert worker.named(WorkerEvent.LEASE_RENEWED)
    check_all_is_merged_once(coordinator, worker)


def test_what_is_refused_for_good_ends_the_worker_and_loses_nothing(coordinator, worker, backbone):
    """An error that does not pass names the task; its update stays on disk, and goes with --resume once the cause is gone."""
    coordinator.start()
    push, refused = ShareClient.push, []

    def refuse(client, update, *args, **kwargs):
        if not refused:
            refused.append(update.update_id)
            raise NotPermitted("it belongs to 'south'")
        return push(client, update, *args, **kwargs)

    ShareClient.push = refuse
    try:
        with pytest.raises(NotPermitted, match="task 'mood': it belongs to 'south'"):
            worker.learn()
        worker.learn(resume=True)
    finally:
        ShareClient.push = push
    check_all_is_merged_once(coordinator, worker)
    assert refused[0] in coordinator.merged()[0]


def test_another_model_is_an_error_at_once(coordinator, worker):
    """A coordinator of another frozen model is not waited for."""
    coordinator.start()
    with client_of(coordinator.address, "first") as client:
        client.register()
    with pytest.raises(FingerprintMismatch):
        worker.learn()

"""A real coordinator on loopback, asked over real gRPC."""

import asyncio
import errno
import math
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import grpc
import pytest
import sqlalchemy
import torch
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from coordinator.access import LOCAL
from coordinator.clock import Clock
from coordinator.pulling import pull_task
from coordinator.screening import merge_of
from coordinator.state import Call
from coordinator.store import MemoryCatalog
from coordinator.store.durable import open_catalog
from coordinator.store.format import encode_version
from share_dist.core.subspace import reconstruct
from share_dist.core.temporary import factor_of
from share_dist.core.values import Head, LayerShape
from share_dist.errors import (
    ConfigError,
    FingerprintMismatch,
    LeaseExpired,
    MalformedMessage,
    MessageTooLarge,
    Overloaded,
    StoreCorrupt,
    StoreFull,
    UnknownTask,
    UpdateConflict,
    UpdateRefused,
    VersionCompacted,
    VersionInFuture,
)
from share_dist.pb import coordinator_pb2 as pb
from share_dist.pb import tensor_pb2
from share_dist.pb.coordinator_pb2_grpc import CoordinatorStub
from share_dist.wire.records import UpdateState
from share_dist.wire.status import error_from_rpc
from tests.coordinator.support import (
    FINGERPRINT,
    client_of,
    lineage_of,
    make_config,
    make_update,
    running,
    wait_until,
)


@pytest.fixture
def app(tmp_path):
    with running(make_config(tmp_path / "store")) as app:
        yield app


@pytest.fixture
def client(app):
    with client_of(app.address) as client:
        client.register()
        yield client


@pytest.fixture
def stub(app):
    with grpc.insecure_channel(app.address) as channel:
        yield CoordinatorStub(channel)


def deltas(subspace, coefficients):
    factors = reconstruct(subspace, coefficients)
    return {name: layer.delta_weight() for name, layer in factors.items()}


def assert_close(found, update, base):
    for name, layer in update.layers.items():
        a, b = (factor_of(base.layers[name][side].leading, learnt) for side, learnt in layer)
        torch.testing.assert_close(found[name], b @ a.mT, rtol=1e-4, atol=1e-4)


# --- the main path --------------------------------------------------------------------------------


def test_what_was_learnt_comes_back_as_a_task_of_a_version(client):
    """Push, merge, pull: the pulled task computes the dW that was pushed, and keeps its head."""
    empty = client.pull()
    assert (empty.version, empty.num_factors) == (0, 0)
    update = make_update("cats", "u1")
    receipt = client.push(update, wait="merged")
    assert (receipt.state, receipt.version, receipt.lag) == (UpdateState.MERGED, 1, 0)
    task = client.pull_task("cats")
    assert task.subspace.version == task.coefficients.version == 1
    assert_close(deltas(task.subspace, task.coefficients), update, empty)
    torch.testing.assert_close(task.head.tensors, dict(update.head.tensors))
    assert (task.summary.worker_id, task.summary.num_samples) == ("w", 640)


def test_the_tail_never_leaves_the_coordinator(app, client):
    """Workers get the k broadcast factors; the oversampled columns stay where they are."""
    for task in ("cats", "dogs", "eels", "finches"):
        client.push(make_update(task), wait="merged")
    kept = lineage_of(app).store.subspace(4).layers["encoder.query"].a
    assert (kept.num_factors, kept.num_columns) == (6, 8)
    pulled = client.pull()
    assert pulled.layers["encoder.query"].a.num_columns == 6
    assert client.pull_task("cats").coefficients.layers["encoder.query"].a.shape == (6, 2)


def test_an_update_on_an_older_version_is_merged_exactly(client):
    """Being late loses nothing: the update's dW comes out whole, with its lag and angle."""
    empty = client.pull()
    client.push(make_update("cats"), wait="merged")
    first = client.pull()
    client.push(make_update("dogs"), wait="merged")
    client.push(make_update("eels"), wait="merged")
    late = make_update("ants", base=first, num_temporary=0)
    receipt = client.push(late, wait="merged")
    assert (receipt.version, receipt.lag) == (4, 2)
    assert receipt.angle >= 0
    for update, base in ((make_update("cats"), empty), (late, first)):
        task = client.pull_task(update.task_id)
        assert_close(deltas(task.subspace, task.coefficients), update, base)
    lags = {task.task_id: task.lag for task in client.tasks()}
    assert lags == {"ants": 2, "cats": 0, "dogs": 1, "eels": 2}


def test_two_first_pushes_at_once_both_merge(tmp_path):
    """Two workers start a subspace from nothing together: one version holds both tasks."""
    config = make_config(tmp_path / "store", min_updates=2, max_wait_seconds=60)
    with running(config) as app, ThreadPoolExecutor(2) as threads:
        receipts = list(threads.map(lambda w: push_as(app, w), ("cats", "dogs")))
        assert [(r.state, r.version, r.lag) for r in receipts] == [(UpdateState.MERGED, 1, 0)] * 2
        with client_of(app.address) as client:
            assert [task.merged_version for task in client.tasks()] == [1, 1]


def push_as(app, worker_id, *task_ids):
    with client_of(app.address, worker_id) as client:
        client.register()
        for task_id in task_ids or (worker_id,):
            receipt = client.push(make_update(task_id, lease_epoch=0), wait="merged")
        return receipt


def test_eight_workers_push_at_once(app):
    """Every update of every worker is merged once; the versions are a chain without gaps."""
    names = [f"w{i}" for i in range(8)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda w: push_as(app, w, f"{w}-a", f"{w}-b"), names))
    with client_of(app.address) as client:
        tasks = client.tasks()
        assert sorted(task.task_id for task in tasks) == sorted(
            f"{w}-{letter}" for w in names for letter in "ab"
        )
        current = client.status().current_version
        watch = client.watch(after_version=0)
        events = [next(watch) for _ in range(current)]
        watch.close()
    merged = [update_id for event in events for update_id in event.update_ids]
    assert sorted(merged) == sorted(f"update-of-{task.task_id}" for task in tasks)
    assert [event.version for event in events] == list(range(1, current + 1))


def test_two_updates_of_one_task_make_two_versions(tmp_path):
    """The second update of a task waits for the next merge and then replaces the first."""
    with (
        running(make_config(tmp_path / "store", min_updates=2, max_wait_seconds=0.5)) as app,
        client_of(app.address) as client,
    ):
        client.register()
        first = client.push(make_update("cats", "u1"))
        second = client.push(make_update("cats", "u2"), wait="merged")
        assert (first.state, second.version) == (UpdateState.PENDING, 2)
        (task,) = client.tasks()
        assert (task.update_id, task.merged_version) == ("u2", 2)


# --- watching -------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_delays_no_merge(tmp_path):
    """How long an update has waited is told by a clock that nobody can set."""
    ahead = [3600.0]
    clock = Clock(unix_seconds=lambda: time.time() + ahead[0])
    config = make_config(tmp_path / "store", min_updates=2, max_wait_seconds=1.0)
    with running(config, clock=clock) as app, client_of(app.address) as client:
        client.register()
        client.push(make_update("cats"))
        ahead[0] = 0.0
        wait_until(lambda: client.status().current_version == 1)


def test_a_watcher_hears_of_every_version(client):
    """From the version it holds a watcher hears the past, then the present, and can pull it."""
    client.push(make_update("cats"), wait="merged")
    with ExitStack() as stack:
        watches = [client.watch(after_version=after) for after in (0, 1)]
        for watch in watches:
            stack.callback(watch.close)
        first = next(watches[0])
        assert (first.version, first.update_ids, first.task_ids) == (
            1, ("update-of-cats",), ("cats",),
        )  # fmt: skip
        client.push(make_update("dogs"), wait="durable")
        for watch in watches:
            event = next(watch)
            assert event.version == 2
            assert client.pull().version >= event.version
        assert event.drift == {}, "where nothing is cut, no task moves"
        assert 0 < event.lowest_energy_kept <= event.mean_energy_kept <= 1.0 + 1e-9


def test_a_watcher_of_the_future_is_told_so(client):
    """A version that does not exist here means that the caller knows another coordinator."""
    watch = client.watch(after_version=5)
    with pytest.raises(VersionInFuture) as caught:
        next(watch)
    assert (caught.value.version, caught.value.current_version) == (5, 0)


def test_a_stop_ends_watches_and_lets_waiters_go(tmp_path):
    """On a stop a waiting push is told that it is pending, and the next start has it."""
    config = make_config(tmp_path / "store", min_updates=9, max_wait_seconds=1e6)
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(2))
        with running(config) as app:
            channel = stack.enter_context(grpc.insecure_channel(app.address))
            stream = CoordinatorStub(channel).WatchVersions(pb.WatchVersionsRequest())
            watching = threads.submit(list, stream)
            pushing = threads.submit(push_as, app, "cats")
            wait_until(lineage_of(app).store.pending)
            wait_until(lambda: lineage_of(app).broadcast.num_watchers)
        assert pushing.result(30).state is UpdateState.PENDING
        assert watching.result(30) == []
    with running(make_config(tmp_path / "store")) as app, client_of(app.address) as client:
        client.register()
        receipt = client.push(make_update("cats", lease_epoch=0), wait="merged")
        assert (receipt.state, receipt.version) == (UpdateState.MERGED, 1)
        assert len(client.tasks()) == 1


@pytest.fixture
def held_merges(monkeypatch):
    """Merges that begin, and end only when the test lets them."""
    begun, may_end = threading.Event(), threading.Event()

    def held(*args):
        begun.set()
        assert may_end.wait(60)
        return merge_of(*args)

    monkeypatch.setattr("coordinator.screening.merge_of", held)
    yield begun, may_end
    may_end.set()


def test_nobody_waits_while_a_merge_runs(client, held_merges):
    """During a merge the coordinator answers, and takes the updates of the next one."""
    begun, may_end = held_merges
    client.push(make_update("cats", lease_epoch=0))
    assert begun.wait(60)
    assert client.push(make_update("dogs", lease_epoch=0)).state is UpdateState.PENDING
    assert client.heartbeat().current_version == 0
    assert client.status().num_pending == 2
    may_end.set()
    wait_until(lambda: client.status().current_version == 2)
    assert {task.task_id: task.lag for task in client.tasks()} == {"cats": 0, "dogs": 1}


def test_a_stop_finishes_the_merge_in_hand(tmp_path, held_merges):
    """A stop in the middle of a merge commits it and answers who waited for it."""
    begun, may_end = held_merges
    with ThreadPoolExecutor(2) as threads:
        with running(make_config(tmp_path / "store")) as app:
            pushing = threads.submit(push_as, app, "cats")
            assert begun.wait(60)
            stopping = wait_for_stop(app)
            threads.submit(lambda: (stopping.wait(60), may_end.set()))
        receipt = pushing.result(60)
    assert (receipt.state, receipt.version) == (UpdateState.MERGED, 1)


def wait_for_stop(app):
    """An event that is set once the coordinator has told its writer to stop."""
    told, stop = threading.Event(), lineage_of(app).writer.stop

    def tell():
        stop()
        told.set()

    lineage_of(app).writer.stop = tell
    return told


# --- once is once ---------------------------------------------------------------------------------


def test_a_push_twice_is_a_push_once(app, client):
    """The same push gets the receipt of what became of the first, also under a newer lease."""
    update = make_update("cats", "u1", lease_epoch=0)
    merged = client.push(update, wait="merged")
    assert client.push(update) == merged
    with client_of(app.address) as successor:
        assert successor.register().lease_epoch == 2
        assert successor.push(update) == merged
    assert client.push(update) == merged, "a known push needs no lease"
    assert client.status().current_version == 1


def test_an_id_stands_for_one_content(client):
    """A known id with other content is a conflict, and the first content stays."""
    client.push(make_update("cats", "u1"), wait="merged")
    with pytest.raises(UpdateConflict) as caught:
        client.push(make_update("dogs", "u1"))
    assert caught.value.update_id == "u1"
    assert [task.task_id for task in client.tasks()] == ["cats"]


def test_a_worker_that_was_taken_over_cannot_push(app, client):
    """After another process registered under the same name, new pushes of the first are refused."""
    with client_of(app.address) as successor:
        successor.register()
        for call in (lambda: client.push(make_update("cats", lease_epoch=0)), client.heartbeat):
            with pytest.raises(LeaseExpired) as caught:
                call()
            assert (caught.value.lease_epoch, caught.value.current_epoch) == (1, 2)
        successor.push(make_update("cats", lease_epoch=0))


def test_a_silent_worker_loses_its_lease(tmp_path):
    """Heartbeats and pushes keep a lease, silence ends it, registering again starts anew."""
    now = [1000.0]
    clock = Clock(monotonic_seconds=lambda: now[0])
    with (
        running(make_config(tmp_path / "store", lease_seconds=60), clock=clock) as app,
        client_of(app.address) as client,
    ):
        assert client.register().duration_seconds == 60
        now[0] += 59
        client.heartbeat()
        now[0] += 59
        client.push(make_update("cats", lease_epoch=0))
        now[0] += 61
        assert [worker.is_live for worker in client.status().workers] == [False]
        with pytest.raises(LeaseExpired, match="61 s without a heartbeat"):
            client.push(make_update("dogs", lease_epoch=0))
        assert client.register().lease_epoch == 2
        client.push(make_update("dogs", lease_epoch=0), wait="merged")


# --- refusals -------------------------------------------------------------------------------------


def test_the_first_fingerprint_binds(app, client):
    """A worker on another model is refused with the field that differs; readers are welcome."""
    other = replace(FINGERPRINT, base_model="1" * 64)
    with client_of(app.address, "other") as stranger:
        with pytest.raises(FingerprintMismatch) as caught:
            stranger.register(fingerprint=other)
        assert (caught.value.field, caught.value.found) == ("base_model", "1" * 64)
        stranger.fingerprint = None
        assert stranger.register().fingerprint == FINGERPRINT
        with pytest.raises(FingerprintMismatch) as caught:
            stranger.push(make_update())
        assert caught.value.field == "digest"


def test_an_unbound_coordinator_takes_its_own_metric_only(tmp_path):
    """The first worker cannot bind a coordinator to another metric than it was started with."""
    with running(make_config(tmp_path / "store")) as app, client_of(app.address) as client:
        assert client.pull().layers == {}
        with pytest.raises(FingerprintMismatch) as caught:
            client.register(fingerprint=replace(FINGERPRINT, metric="factors"))
        assert (caught.value.field, caught.value.expected) == ("metric", "delta")
        with pytest.raises(ConfigError, match="needs layers with 1 to"):
            client.register(fingerprint=replace(FINGERPRINT, layers={}))
        assert client.status().fingerprint is None
        assert client.register(fingerprint=FINGERPRINT).fingerprint == FINGERPRINT
    with pytest.raises(ConfigError, match="works with metric 'delta', asked was 'factors'"):
        running(make_config(tmp_path / "store", metric="factors")).__enter__()


def test_refusals_reach_the_worker_with_their_fields(client):
    """What admission refuses arrives as the same error, with what a program needs."""
    with pytest.raises(UpdateRefused) as caught:
        client.push(make_update("cats", "u1", scale=0.0))
    assert (caught.value.update_id, caught.value.reason) == ("u1", "norm")
    with pytest.raises(VersionInFuture):
        client.push(replace(make_update(), base_version=3))
    assert client.tasks() == []


def test_too_many_pending_updates(tmp_path):
    """A coordinator that holds as much as it takes says when to come again."""
    config = make_config(tmp_path / "s", max_pending=1, min_updates=9, max_wait_seconds=1e6)
    with running(config) as app, client_of(app.address, timeout_seconds=2.0) as client:
        client.register()
        client.push(make_update("cats"))
        with pytest.raises(Overloaded) as caught:
            client.push(make_update("dogs"))
        assert caught.value.retry_after_seconds == 5.0


def test_pulls_of_versions(client):
    """Nothing is sent twice, older versions are served, others are refused."""
    client.push(make_update("cats"), wait="merged")
    client.push(make_update("dogs"), wait="merged")
    assert client.pull(held_version=2) is None
    assert client.pull(held_version=1).version == 2
    assert client.pull(version=1).num_factors == 2
    with pytest.raises(VersionInFuture):
        client.pull(version=3)


def test_a_task_is_described_by_the_update_that_is_sent(app, client):
    """Also where a newer one was merged after the pull had begun."""
    client.push(make_update("cats", "u1"), wait="merged")
    begun_with = SimpleNamespace(snapshot=lineage_of(app).writer.snapshot)
    head = Head({"weight": torch.zeros(7, 4)}, "text-classification", 7)
    client.push(make_update("cats", "u2", base=client.pull(), head=head), wait="merged")
    lineage = replace(lineage_of(app), writer=begun_with)
    call = Call(app.coordinator, lineage, LOCAL, "somewhere")
    summary = asyncio.run(pull_task(call, "cats", None)).summary
    assert (summary.update_id, summary.head.num_labels) == ("u1", 3)


def test_pulls_of_tasks(client, stub):
    """An unknown task is answered with its neighbours; tasks exist in the newest version only."""
    for task in ("cifar-1", "cifar-2"):
        client.push(make_update(task), wait="merged")
    with pytest.raises(UnknownTask, match="contains no task 'cifar-3'") as caught:
        client.pull_task("cifar-3")
    assert caught.value.nearest == "cifar-2, cifar-1"
    for version, kind in ((1, VersionCompacted), (3, VersionInFuture)):
        with pytest.raises(grpc.RpcError) as raised:
            list(stub.PullTask(pb.PullTaskRequest(task_id="cifar-1", version=version)))
        assert isinstance(error_from_rpc(raised.value, address="x"), kind)


def header_of(update, payload_bytes=10, num_chunks=1):
    payload = tensor_pb2.PayloadHeader(
        wire_version=1, num_bytes=payload_bytes, num_chunks=num_chunks, sha256=b"0" * 32
    )
    return pb.PushUpdateRequest(
        header=pb.UpdateHeader(
            update_id=update,
            task_id="t",
            worker_id="w",
            lease_epoch=1,
            fingerprint_digest=FINGERPRINT.digest,
            payload=payload,
        )
    )


@pytest.mark.parametrize(
    ("requests", "code"),
    [
        ([], "INVALID_ARGUMENT"),
        ([pb.PushUpdateRequest()], "INVALID_ARGUMENT"),
        ([pb.PushUpdateRequest(chunk=tensor_pb2.Chunk(data=b"x"))], "INVALID_ARGUMENT"),
        ([header_of("u"), header_of("u")], "INVALID_ARGUMENT"),
        ([header_of("u")], "DATA_LOSS"),
        (
            [header_of("u"), pb.PushUpdateRequest(chunk=tensor_pb2.Chunk(data=b"0" * 10))],
            "DATA_LOSS",
        ),
        ([header_of("u", payload_bytes=2**40, num_chunks=2**20)], "RESOURCE_EXHAUSTED"),
    ],
)
def test_malformed_pushes(client, stub, requests, code):
    """Whatever a stranger sends is refused with a status and changes nothing."""
    with pytest.raises(grpc.RpcError) as caught:
        stub.PushUpdate(iter(requests), timeout=10)
    assert caught.value.code().name == code
    assert client.status().num_pending == 0


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"worker_id": "stranger"}, LeaseExpired),
        ({"lease_epoch": 9}, LeaseExpired),
        ({"fingerprint_digest": "f" * 64}, FingerprintMismatch),
        ({"base_version": 7}, VersionInFuture),
        ({"worker_id": ""}, MalformedMessage),
        ({"task_id": "t" * 201}, MalformedMessage),
    ],
)
def test_what_the_header_tells_is_refused_before_a_chunk_comes(client, stub, change, kind):
    """A push that cannot be admitted costs no tensor: it is refused while its sender still waits."""
    header = header_of("u", payload_bytes=2**20)
    for field, value in change.items():
        setattr(header.header, field, value)
    refused = threading.Event()

    def send():
        yield header
        assert refused.wait(60), "the coordinator waited for chunks"

    call = stub.PushUpdate.future(send(), timeout=30)
    error = call.exception(30)
    refused.set()
    assert isinstance(error_from_rpc(error, address="x"), kind)


def test_a_full_house_is_told_by_the_header(tmp_path):
    """Too many pending updates are refused before the tensors of another come."""
    config = make_config(tmp_path / "s", max_pending=1, min_updates=9, max_wait_seconds=1e6)
    with running(config) as app, client_of(app.address) as client:
        client.register()
        client.push(make_update("cats"))
        with grpc.insecure_channel(app.address) as channel, pytest.raises(grpc.RpcError) as caught:
            CoordinatorStub(channel).PushUpdate(iter([header_of("u")]), timeout=30)
        assert isinstance(error_from_rpc(caught.value, address="x"), Overloaded)
        assert client.push(make_update("cats")).state is UpdateState.PENDING


@pytest.mark.parametrize("name", ["head", "head.dense"])
def test_layers_that_cannot_be_sent_bind_no_store(tmp_path, name):
    """A fingerprint of which no update could ever be sent is refused, and another may bind."""
    with running(make_config(tmp_path / "store")) as app, client_of(app.address) as client:
        with pytest.raises(MalformedMessage, match="cannot be sent under the name"):
            client.register(fingerprint=replace(FINGERPRINT, layers={name: LayerShape(4, 4)}))
        assert lineage_of(app).store.fingerprint() is None
        client.register(fingerprint=FINGERPRINT)


def test_more_layers_than_a_payload_holds_bind_no_store(tmp_path):
    """The bound of a payload's tensors is the bound of a fingerprint's layers."""
    layers = {f"layer.{i}": LayerShape(4, 4) for i in range(12_000)}
    with running(make_config(tmp_path / "store")) as app, client_of(app.address) as client:
        with pytest.raises((MalformedMessage, MessageTooLarge)):
            client.register(fingerprint=replace(FINGERPRINT, layers=layers))
        assert lineage_of(app).store.fingerprint() is None


def test_a_long_task_id_is_refused(client, stub):
    """No name is compared with every task before its length is checked."""
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.PullTask(pb.PullTaskRequest(task_id="t" * 201)))
    assert isinstance(error_from_rpc(caught.value, address="x"), MalformedMessage)


def test_a_push_on_its_way_twice_is_admitted_once(app, client, monkeypatch):
    """The same push twice at once is counted as admitted once and as repeated once."""
    lineage = lineage_of(app)
    monkeypatch.setattr(lineage.store, "find_update", lambda _update_id: None)
    with ThreadPoolExecutor(2) as threads:
        pushes = [threads.submit(client.push, make_update("cats", lease_epoch=0)) for _ in "ab"]
        assert {push.result(60).update_id for push in pushes} == {"update-of-cats"}
    counts = {
        outcome: lineage.metrics.pushes(outcome)._value.get()
        for outcome in ("admitted", "repeated")
    }
    assert counts == {"admitted": 1, "repeated": 1}


def test_a_version_is_hashed_once(app, client, monkeypatch):
    """The digest of a version is kept beside its bytes: pulls do not compute it again."""
    client.push(make_update("cats"), wait="merged")
    client.pull()
    monkeypatch.setattr("share_dist.wire.chunks.hashlib.sha256", None)
    assert lineage_of(app).versions.served(1).header.num_bytes > 0
    assert lineage_of(app).versions.served(1) is lineage_of(app).versions.served(1)


def test_a_worker_needs_a_name(app):
    """Nobody registers without a worker_id."""
    with grpc.insecure_channel(app.address) as channel, pytest.raises(grpc.RpcError) as caught:
        CoordinatorStub(channel).Register(pb.RegisterRequest())
    assert isinstance(error_from_rpc(caught.value, address="x"), MalformedMessage)


# --- when things go wrong -------------------------------------------------------------------------


def test_a_merge_that_raises_quarantines_its_culprit(app, client, monkeypatch):
    """One update that cannot be merged is set aside with the reason; the others are merged."""

    def merge_but_not_dogs(updates, *args):
        if any(update.task_id == "dogs" for update in updates):
            raise ArithmeticError("SVD did not converge")
        return merge_of(updates, *args)

    monkeypatch.setattr("coordinator.screening.merge_of", merge_but_not_dogs)
    with ThreadPoolExecutor(3) as threads:
        names = ("cats", "dogs", "eels")
        receipts = list(threads.map(lambda name: push_as(app, name), names))
    states = {name: receipt.state for name, receipt in zip(names, receipts, strict=True)}
    assert states == {
        "cats": UpdateState.MERGED,
        "dogs": UpdateState.QUARANTINED,
        "eels": UpdateState.MERGED,
    }
    again = client.push(make_update("dogs", lease_epoch=0))
    assert again.reason == "ArithmeticError: SVD did not converge"
    status = client.status()
    assert (status.num_quarantined, status.num_pending, status.num_tasks) == (1, 0, 2)


def test_a_merge_that_cannot_be_written_is_tried_again(app, client, monkeypatch):
    """A full disk at the commit postpones the merge; nothing is lost and nobody is blamed."""
    commit, refusals = lineage_of(app).store.commit, [1, 2]

    def full_twice(value, *, by):
        if refusals:
            refusals.pop()
            raise StoreFull("no room")
        commit(value, by=by)

    monkeypatch.setattr(lineage_of(app).store, "commit", full_twice)
    monkeypatch.setattr("coordinator.writer._RETRY_SECONDS", (0.01,))
    receipt = client.push(make_update(), wait="merged")
    assert (receipt.state, receipt.version, refusals) == (UpdateState.MERGED, 1, [])


def with_report(outcome, **values):
    return replace(outcome, report=replace(outcome.report, **values))


@pytest.mark.parametrize("truncation", [math.nan, math.inf])
def test_a_merge_that_measures_no_number_quarantines_its_culprit(
    app, client, monkeypatch, truncation
):
    """What a merge returns is looked at before it is committed: no NaN reaches the store."""

    def merge_badly(updates, *args):
        outcome = merge_of(updates, *args)
        odd = {u.update_id: truncation for u in updates if u.task_id == "dogs"}
        return with_report(outcome, truncation={**outcome.report.truncation, **odd})

    monkeypatch.setattr("coordinator.screening.merge_of", merge_badly)
    receipt = client.push(make_update("dogs", lease_epoch=0), wait="merged")
    assert receipt.state is UpdateState.QUARANTINED
    assert receipt.reason.startswith("NotFinite: the merge measured truncation of update")
    assert client.push(make_update("cats", lease_epoch=0), wait="merged").version == 1


def test_an_update_that_cannot_be_encoded_is_quarantined(app, client, monkeypatch):
    """A failure after the merge, while the version is encoded, finds its culprit as well."""

    def encode_but_not_dogs(commit, **options):
        if "dogs" in commit.tasks:
            raise MalformedMessage("these tensors cannot be written")
        return encode_version(commit, **options)

    monkeypatch.setattr("coordinator.candidate.encode_version", encode_but_not_dogs)
    receipt = client.push(make_update("dogs", lease_epoch=0), wait="merged")
    assert receipt.state is UpdateState.QUARANTINED
    assert client.push(make_update("cats", lease_epoch=0), wait="merged").version == 1


def test_a_commit_that_fails_with_one_update_stops_no_other(tmp_path, monkeypatch):
    """An update that the database refuses for a bug of ours stays pending; others are merged."""
    monkeypatch.setattr("coordinator.writer._RETRY_SECONDS", (0.01,))
    config = make_config(tmp_path / "store", min_updates=3, max_wait_seconds=1e6)
    with running(config) as app, client_of(app.address) as client:
        commit = lineage_of(app).store.commit

        def refuse_ants(version, *, by):
            if "ants" in version.commit.tasks:
                raise sqlalchemy.exc.IntegrityError("INSERT", {}, Exception("NOT NULL"))
            commit(version, by=by)

        monkeypatch.setattr(lineage_of(app).store, "commit", refuse_ants)
        client.register()
        for task in ("ants", "bees", "cats"):
            client.push(make_update(task, lease_epoch=0))
        wait_until(lambda: client.status().current_version)
        states = {task.task_id: task.state for task in client.tasks()}
        assert states["ants"] is UpdateState.PENDING
        assert UpdateState.MERGED in states.values()


def test_a_log_that_cannot_be_written_stops_no_merge(app, client, monkeypatch):
    """Merging goes on although every line of the log fails."""

    class Broken:
        def __getattr__(self, _name):
            return self.fail

        def fail(self, *_args, **_fields):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lineage_of(app).writer._chronicle, "_log", Broken())
    for version, task in enumerate(("cats", "dogs"), 1):
        assert client.push(make_update(task, lease_epoch=0), wait="merged").version == version


def test_when_merging_ends_by_a_bug_everything_ends(tmp_path, monkeypatch):
    """A dead writer is seen: health says NOT_SERVING, whoever serves is told, and the store is closed."""
    store = tmp_path / "store"
    with running(make_config(store)) as app, client_of(app.address) as client:
        client.register()

        def broken(_merged):
            raise RuntimeError("a bug of ours")

        monkeypatch.setattr(lineage_of(app).writer, "_publish", broken)
        client.push(make_update("cats", lease_epoch=0))
        loop = app._ended.get_loop()
        serving = asyncio.run_coroutine_threadsafe(serve(app), loop)
        assert serving.result(60) is False
        with grpc.insecure_channel(app.address) as channel:
            ask = health_pb2_grpc.HealthStub(channel).Check
            wait_until(
                lambda: (
                    ask(health_pb2.HealthCheckRequest()).status
                    == health_pb2.HealthCheckResponse.NOT_SERVING
                )
            )
    open_catalog(str(store)).close()


async def serve(app):
    return await app.serve_until(asyncio.Event())


def test_a_damaged_base_version_blames_no_update(tmp_path, monkeypatch):
    """An update whose base version cannot be read waits for an operator; others are merged."""
    monkeypatch.setattr("coordinator.writer._RETRY_SECONDS", (0.01,))
    with running(make_config(tmp_path / "store")) as app, client_of(app.address) as client:
        client.register()
        client.push(make_update("cats", lease_epoch=0), wait="merged")
        subspace = lineage_of(app).versions.subspace
        late, new = make_update("late"), make_update("new", base=client.pull())

        def all_but_the_first(version):
            if version == 0:
                raise StoreCorrupt("version 0 is damaged")
            return subspace(version)

        versions = SimpleNamespace(subspace=all_but_the_first)
        with monkeypatch.context() as patched:
            patched.setattr(lineage_of(app).writer._preparer, "_versions", versions)
            assert client.push(late).state is UpdateState.PENDING
            assert client.push(new, wait="merged").version == 2
            assert client.status().num_pending == 1
        assert client.push(late, wait="merged").state is UpdateState.MERGED


def test_a_pending_update_that_was_damaged_is_quarantined(tmp_path):
    """At a restart a damaged blob costs its own update only."""
    store = tmp_path / "store"
    with (
        running(make_config(store, min_updates=9, max_wait_seconds=1e6, inline_bytes=0)) as app,
        client_of(app.address) as client,
    ):
        client.register()
        client.push(make_update("cats"))
        (blob,) = (path for path in (store / "blobs").rglob("*") if path.is_file())
        client.push(make_update("dogs"))
    blob.write_bytes(b"damaged")
    with running(make_config(store)) as app, client_of(app.address) as client:
        wait_until(lambda: client.status().num_pending == 0)
        states = {task.task_id: task.state for task in client.tasks()}
        assert states == {"cats": UpdateState.QUARANTINED, "dogs": UpdateState.MERGED}


def test_no_room_reaches_the_worker(app, client, monkeypatch):
    """A push that could not be kept is not acknowledged, and the same push succeeds later."""
    with monkeypatch.context() as patched:

        def full(*_args, **_options):
            raise StoreFull("no room", needed_bytes=5)

        patched.setattr(lineage_of(app).store, "add_update", full)
        with pytest.raises(StoreFull) as caught:
            client.push(make_update())
        assert caught.value.needed_bytes == 5
    assert client.push(make_update(), wait="merged").version == 1


@pytest.mark.parametrize("call", ["handlers.get_status", "pulling.watch_versions"])
def test_a_bug_tells_the_peer_nothing_but_its_incident(stub, monkeypatch, call):
    """An error of ours becomes INTERNAL with an id for the log, without a word of its text."""

    def broken(*_args):
        raise RuntimeError("secret")

    monkeypatch.setattr(f"coordinator.{call}", broken)
    ask = {
        "handlers.get_status": lambda: stub.GetStatus(pb.GetStatusRequest()),
        "pulling.watch_versions": lambda: list(stub.WatchVersions(pb.WatchVersionsRequest())),
    }
    with pytest.raises(grpc.RpcError) as caught:
        ask[call]()
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "look for incident" in caught.value.details()
    assert "secret" not in caught.value.details()


# --- around it ------------------------------------------------------------------------------------


def test_health_and_reflection_answer(app):
    """A load balancer and grpcurl find what they look for."""
    with grpc.insecure_channel(app.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "share_dist.pb.Coordinator"):
            response = health.Check(health_pb2.HealthCheckRequest(service=name))
            assert response.status == health_pb2.HealthCheckResponse.SERVING
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "share_dist.pb.Coordinator" in database.get_services()
        service = DescriptorPool(database).FindServiceByName("share_dist.pb.Coordinator")
        assert "PushUpdate" in service.methods_by_name


def test_metrics_answer(tmp_path):
    """Prometheus reads what was pushed, merged and refused."""
    config = make_config(tmp_path / "store", metrics_listen="127.0.0.1:0")
    with running(config) as app, client_of(app.address) as client:
        client.register()
        client.push(make_update("cats"), wait="merged")
        client.push(make_update("cats"))
        with pytest.raises(UpdateRefused):
            client.push(make_update("dogs", scale=0.0))
        with urllib.request.urlopen(f"http://{app.metrics_address}/metrics") as response:
            lines = set(response.read().decode().splitlines())
    own = 'subspace="default"'
    assert {
        f'share_dist_pushes_total{{outcome="admitted",{own}}} 1.0',
        f'share_dist_pushes_total{{outcome="repeated",{own}}} 1.0',
        f'share_dist_pushes_total{{outcome="refused",{own}}} 1.0',
        f"share_dist_merged_updates_total{{{own}}} 1.0",
        f"share_dist_version{{{own}}} 1.0",
        f"share_dist_tasks{{{own}}} 1.0",
        f"share_dist_live_workers{{{own}}} 1.0",
        f"share_dist_merge_seconds_count{{{own}}} 1.0",
        "share_dist_bytes_in_flight 0.0",
    } <= lines
    samples = (line.split() for line in lines if line.startswith("share_dist_store_"))
    values = {name: float(value) for name, value in samples}
    # the subspace, its binding, the worker, the update and its version, if each was written alone
    assert 0 < values["share_dist_store_commits_total"] <= values["share_dist_store_writes_total"]
    assert values["share_dist_store_writes_total"] >= 5
    assert values["share_dist_store_blobs_total"] == 0


def test_status_tells_all(client):
    """One call for an operator: versions, tasks, workers."""
    client.push(make_update(), wait="merged")
    status = client.status()
    assert (status.current_version, status.first_version, status.num_tasks) == (1, 0, 1)
    assert status.fingerprint == FINGERPRINT
    assert [(w.worker_id, w.lease_epoch, w.is_live) for w in status.workers] == [("w", 1, True)]
    assert status.release


def test_a_port_that_is_taken(app, tmp_path):
    """Two coordinators never share a port: the second says which it could not have."""
    with pytest.raises(ConfigError, match=f"cannot listen on {app.address}"):
        running(make_config(tmp_path / "other", listen=app.address)).__enter__()


def test_any_store_will_do(tmp_path):
    """The coordinator needs nothing of its store but the contract."""
    with running(make_config(tmp_path), catalog=MemoryCatalog()) as app:
        assert push_as(app, "cats").version == 1
        with client_of(app.address) as client:
            assert client.pull_task("cats").summary.worker_id == "cats"


def test_files_and_addresses_that_cannot_be_used(tmp_path, app):
    """A port file without a folder and a taken metrics address are said before anything is served."""
    lost = make_config(tmp_path / "a", port_file=tmp_path / "none" / "port")
    with pytest.raises(ConfigError, match="there is no folder"):
        running(lost).__enter__()
    taken = make_config(tmp_path / "b", metrics_listen=app.address)
    with pytest.raises(ConfigError, match="choose another address"):
        running(taken).__enter__()
    with running(make_config(tmp_path / "b")) as free:
        assert free.port

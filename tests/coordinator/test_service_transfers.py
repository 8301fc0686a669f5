"""Payloads to and from a real coordinator: resumed, bounded, by rotations, in pages."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

import grpc
import pytest
import torch

from coordinator import streams
from coordinator.access import LOCAL
from coordinator.state import Call
from coordinator.versions import ServedPayload
from share_dist.client import Mirror
from share_dist.client.stub import coordinator_stub
from share_dist.client.upload import Upload
from share_dist.core.values import Fingerprint, Head, LayerShape, Subspace
from share_dist.errors import (
    MalformedMessage,
    MessageTooLarge,
    Overloaded,
    StreamTruncated,
    UpdateConflict,
    VersionCompacted,
    VersionInFuture,
    VersionMismatch,
)
from share_dist.pb import coordinator_pb2 as pb
from share_dist.pb import tensor_pb2
from share_dist.pb.coordinator_pb2_grpc import CoordinatorStub
from share_dist.wire import codec
from share_dist.wire.chunks import CHUNK_BYTES, cut
from share_dist.wire.records import UpdateState
from share_dist.wire.status import error_from_rpc
from tests.coordinator.support import (
    EMPTY,
    FINGERPRINT,
    CoordinatorProcess,
    client_of,
    lineage_of,
    make_config,
    make_update,
    running,
    wait_until,
)


@pytest.fixture
def app(tmp_path):
    with running(make_config(tmp_path / "store", anchor_every=4)) as app:
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


def large_update(task_id="large", num_mebibytes=4, **fields):
    """An update whose head alone takes some mebibytes."""
    head = Head({"weight": torch.ones(num_mebibytes, 2**18)}, "text-classification", 3)
    return make_update(task_id, head=head, **fields)


def sent_of(update, wait="durable", *, is_late=False, chunk_bytes=CHUNK_BYTES, **fields):
    pieces = cut(codec.update_to_bytes(update), chunk_bytes=chunk_bytes)
    header = codec.update_header(
        update,
        worker_id="w",
        fingerprint_digest=FINGERPRINT.digest,
        payload=pieces.header_without_digest if is_late else pieces.header,
        wait=wait,
    )
    header.MergeFrom(pb.UpdateHeader(**fields))
    return header, pieces


def requests_of(header, pieces, first=0, last=None):
    yield pb.PushUpdateRequest(header=header)
    for chunk in islice(pieces.chunks(first), None if last is None else last - first):
        yield pb.PushUpdateRequest(chunk=chunk)


def progress_of(stub, header):
    request = pb.GetUploadRequest(update_id=header.update_id, sha256=header.payload.sha256)
    return stub.GetUpload(request, timeout=60)


def begin(stub, header, pieces, last):
    """Push some chunks, and wait until they are there; the call, and what ends its sending."""
    done = threading.Event()

    def requests():
        yield from requests_of(header, pieces, 0, last)
        done.wait(60)

    call = stub.PushUpdate.future(requests(), timeout=60)
    wait_until(lambda: progress_of(stub, header).num_chunks == last)
    return call, done


def cut_off_after(stub, header, pieces, last):
    """Push some chunks, wait until they are there, and break the call off."""
    call, done = begin(stub, header, pieces, last)
    call.cancel()
    done.set()


def refused(caught, kind):
    error = error_from_rpc(caught.value, address="x")
    assert isinstance(error, kind), error
    return error


# --- push -----------------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["digest first", "digest last"])
def is_late(request):
    return request.param


def test_a_push_that_was_cut_off_goes_on_where_it_was(app, client, stub, is_late):
    """The chunks that came are not sent again, and the update is merged once."""
    header, pieces = sent_of(large_update(), is_late=is_late)
    cut_off_after(stub, header, pieces, 3)
    with grpc.insecure_channel(app.address) as channel:
        upload = Upload(coordinator_stub(channel), header, pieces)
        receipt = upload.attempt(60.0)

    assert receipt.state == pb.Receipt.PENDING
    assert upload.num_sent_chunks == pieces.num_chunks - 3
    assert progress_of(stub, header).num_chunks == 0
    wait_until(lambda: client.status().num_tasks == 1)
    assert torch.equal(client.pull_task("large").head.tensors["weight"], torch.ones(4, 2**18))


def test_a_push_without_any_digest_is_refused(client, stub):
    """What nobody has hashed may have changed on the way; nothing is kept of it."""
    header, pieces = sent_of(large_update(), is_late=True)

    def requests():
        for request in requests_of(header, pieces):
            if request.chunk.index == pieces.num_chunks - 1:
                request.chunk.ClearField("prefix_sha256")
            yield request

    with pytest.raises(grpc.RpcError, match="neither the header nor the last chunk") as caught:
        stub.PushUpdate(requests(), timeout=60)
    assert refused(caught, MalformedMessage).field == "chunk.prefix_sha256"
    assert client.status().num_pending == 0


def test_a_repeat_is_known_by_its_content_wherever_its_digest_was(client, stub):
    """The digest that is kept is the payload's own; other content under the same id is a conflict."""
    update = large_update()
    for is_late in (False, True, False):
        header, pieces = sent_of(update, is_late=is_late)
        receipt = stub.PushUpdate(requests_of(header, pieces), timeout=60)
        assert receipt.update_id == update.update_id
    wait_until(lambda: client.status().num_tasks == 1)

    other = replace(update, head=Head({"weight": torch.zeros(4, 2**18)}, "text-classification", 3))
    with pytest.raises(grpc.RpcError) as caught:
        stub.PushUpdate(requests_of(*sent_of(other, is_late=True)), timeout=60)
    refused(caught, UpdateConflict)


@pytest.mark.parametrize("num_there", [2, 4])
def test_a_push_goes_on_after_the_coordinator_was_killed(tmp_path, is_late, num_there):
    """
    A ``kill -9`` between two chunks costs neither the chunks nor the update.

    One that came whole sends its last chunk again, which may be what says the digest.
    """
    # in chunks of one length: an end that is shorter than a chunk is never counted on
    num_bytes = len(codec.update_to_bytes(large_update()))
    header, pieces = sent_of(large_update(), is_late=is_late, chunk_bytes=num_bytes // 4)
    assert pieces.num_chunks == 4
    with CoordinatorProcess(tmp_path / "store") as first, client_of(first.address) as client:
        client.register()
        with grpc.insecure_channel(first.address) as channel:
            _, done = begin(CoordinatorStub(channel), header, pieces, num_there)
            first.kill()
            first.wait()
            done.set()
    with (
        CoordinatorProcess(tmp_path / "store") as second,
        client_of(second.address) as client,
        grpc.insecure_channel(second.address) as channel,
    ):
        upload = Upload(coordinator_stub(channel), header, pieces)
        assert upload.attempt(60.0).state == pb.Receipt.PENDING
        assert upload.num_sent_chunks == 4 - min(num_there, 3)
        wait_until(lambda: client.status().num_tasks == 1)


def test_what_another_payload_left_does_not_count(client, stub, is_late):
    """New content under the same update_id begins anew, and is taken whole."""
    header, pieces = sent_of(large_update(), is_late=is_late)
    cut_off_after(stub, header, pieces, 2)

    other = replace(large_update(), head=Head({"weight": torch.zeros(4, 2**18)}))
    assert client.push(other, wait="merged").state is UpdateState.MERGED
    assert not client.pull_task("large").head.tensors["weight"].any()


def test_counting_on_chunks_that_are_not_there_is_refused(client, stub):
    """A first_chunk that the coordinator does not know of names how many there are."""
    header, pieces = sent_of(large_update(), first_chunk=3)

    with pytest.raises(grpc.RpcError) as caught:
        stub.PushUpdate(requests_of(header, pieces, 3), timeout=60)
    assert refused(caught, StreamTruncated).received_chunks == 0
    assert client.status().num_pending == 0


def test_damage_is_told_at_its_chunk_and_what_was_sound_stays(client, stub, is_late):
    """A changed byte ends the push at once; the chunks before it need not come again."""
    header, pieces = sent_of(large_update(), is_late=is_late)

    def requests():
        for index, request in enumerate(requests_of(header, pieces)):
            if index == 3:
                request.chunk.data = bytes(len(request.chunk.data))
            yield request

    with pytest.raises(grpc.RpcError, match="up to the end of chunk 2"):
        stub.PushUpdate(requests(), timeout=60)
    assert progress_of(stub, header).num_chunks == 2


def test_a_base_version_under_a_reused_number_is_noticed(client):
    """Whoever trained on another content of version 1 is told to pull, and nothing is kept."""
    client.push(make_update("cats"), wait="merged")
    base = client.pull()
    assert len(base.digest) == 64
    stale = make_update("dogs", base=base, base_digest="0" * 64)

    with pytest.raises(VersionMismatch, match="pull the current version"):
        client.push(stale)
    assert client.push(replace(stale, base_digest=base.digest), wait="merged").version == 2
    with pytest.raises(VersionMismatch), client.watch(1, after_digest="0" * 64) as watch:
        next(watch)
    assert client.pull(held_version=2, held_digest="0" * 64).version == 2


# --- bounds ---------------------------------------------------------------------------------------


def test_more_than_may_be_in_flight_waits_its_turn(tmp_path):
    """What finds no room is told when to come again, before its chunks are taken, and then succeeds."""
    config = make_config(tmp_path / "store", max_bytes_in_flight=6 * 2**20)
    with (
        running(config) as app,
        client_of(app.address) as client,
        grpc.insecure_channel(app.address) as channel,
    ):
        client.register()
        stub = CoordinatorStub(channel)
        header, pieces = sent_of(large_update("first"))
        more = threading.Event()

        def slowly():
            yield from requests_of(header, pieces, 0, 1)
            assert more.wait(60)
            yield from (pb.PushUpdateRequest(chunk=chunk) for chunk in pieces.chunks(1))

        first = stub.PushUpdate.future(slowly(), timeout=60)
        wait_until(lambda: client.status().bytes_in_flight == pieces.num_bytes)
        with pytest.raises(grpc.RpcError) as caught:
            stub.PushUpdate(requests_of(*sent_of(large_update("second"))), timeout=60)
        assert refused(caught, Overloaded).retry_after_seconds == 1.0

        with ThreadPoolExecutor(1) as threads:
            second = threads.submit(client.push, large_update("second"), "merged")
            more.set()
            assert first.result(60).state == pb.Receipt.PENDING
            assert second.result(60).state is UpdateState.MERGED
        assert client.status().bytes_in_flight == 0


def test_who_waits_for_a_merge_holds_no_bytes(tmp_path):
    """A payload that is kept is no longer in flight, however long its merge takes."""
    config = make_config(tmp_path / "store", min_updates=2, max_wait_seconds=1e6)
    with running(config) as app, client_of(app.address) as client, ThreadPoolExecutor(1) as threads:
        client.register()
        waiting = threads.submit(client.push, make_update("cats"), "merged")
        wait_until(lambda: client.status().num_pending == 1)
        wait_until(lambda: client.status().bytes_in_flight == 0)
        client.push(make_update("dogs"))
        assert waiting.result(60).version == 1


def test_who_neither_sends_nor_takes_is_let_go_of(tmp_path):
    """A push without its next chunk, and one without its header, end after a while."""
    config = make_config(tmp_path / "store", stall_seconds=0.2)
    with (
        running(config) as app,
        client_of(app.address) as client,
        grpc.insecure_channel(app.address) as channel,
    ):
        client.register()
        over, stub = threading.Event(), CoordinatorStub(channel)
        header, pieces = sent_of(large_update())

        def nothing_more(num_chunks):
            if num_chunks is not None:
                yield from requests_of(header, pieces, 0, num_chunks)
            over.wait(60)

        for num_chunks in (None, 0, 2):
            with pytest.raises(grpc.RpcError) as caught:
                stub.PushUpdate(nothing_more(num_chunks), timeout=60)
            refused(caught, StreamTruncated)
        over.set()
        assert client.status().bytes_in_flight == 0


def test_who_sends_too_slowly_is_let_go_of(tmp_path):
    """A push whose chunks trickle in, each soon enough, does not hold its bytes for hours."""
    config = make_config(tmp_path / "store", stall_seconds=3, min_bytes_per_second=2**40)
    with (
        running(config) as app,
        client_of(app.address) as client,
        grpc.insecure_channel(app.address) as channel,
    ):
        client.register()
        over = threading.Event()
        header, pieces = sent_of(large_update())

        def trickle():
            for request in requests_of(header, pieces):
                yield request
                over.wait(1)

        with pytest.raises(grpc.RpcError) as caught:
            CoordinatorStub(channel).PushUpdate(trickle(), timeout=60)
        over.set()
        refused(caught, StreamTruncated)
        assert "are too few" in caught.value.details()
        assert client.status().bytes_in_flight == 0


# --- pull -----------------------------------------------------------------------------------------


def grow(client, num_versions, first=0, base=EMPTY):
    for index in range(first, first + num_versions):
        client.push(make_update(f"task-{index}", base=base), wait="merged")


WIDE = {"q": LayerShape(400, 300), "v": LayerShape(400, 200)}
"""Layers with many more features than factors: what rotations are for."""


@pytest.fixture
def wide_client(app):
    with client_of(app.address, fingerprint=Fingerprint("1" * 64, WIDE)) as client:
        client.register()
        yield client


def test_a_mirror_follows_by_rotations_and_comes_back_to_an_anchor(app, wide_client):
    """Steps where they are smaller, the whole at an anchor; always what the coordinator has."""
    mirror, ways, sizes = Mirror(wide_client), [], []
    for index in range(9):
        grow(wide_client, 1, index, Subspace.empty(WIDE))
        advance = mirror.advance()
        ways.append(advance.num_steps)
        sizes.append(advance.num_bytes)
        kept = lineage_of(app).store.subspace(advance.version)
        assert mirror.subspace.digest == lineage_of(app).store.digest(advance.version)
        assert mirror.subspace.num_factors == kept.num_factors
        for name, layer in kept.layers.items():
            for side, basis in layer:
                held = mirror.subspace.layers[name][side]
                assert torch.allclose(held.vectors, basis.vectors, atol=1e-5)
                assert torch.equal(held.energies, basis.energies)
    assert ways[4:] == [1, 1, 1, 0, 1], "version 8 is an anchor"
    assert sizes[4] < sizes[7] / 2
    again = mirror.advance()
    assert (again.num_bytes, again.num_steps) == (0, 0)


def test_a_mirror_falls_back_where_nothing_fits(app, wide_client):
    """Whoever holds something else than it says gets the whole, and goes on from there."""
    grow(wide_client, 5, base=Subspace.empty(WIDE))
    mirror = Mirror(wide_client)
    mirror.advance()
    mirror.subspace.layers["q"].a.vectors.mul_(1.5)
    grow(wide_client, 1, 5, Subspace.empty(WIDE))
    advance = mirror.advance()
    assert (advance.version, advance.num_steps) == (6, 0)
    kept = lineage_of(app).store.subspace(6).layers["q"].a.vectors
    assert torch.equal(mirror.subspace.layers["q"].a.vectors, kept)
    grow(wide_client, 1, 6, Subspace.empty(WIDE))
    assert mirror.advance().num_steps == 1


def test_a_mirror_that_slept_through_a_compaction_gets_the_whole(app, wide_client):
    """A step that is no longer kept costs its reader the smaller payload, not the version."""
    grow(wide_client, 5, base=Subspace.empty(WIDE))
    mirror = Mirror(wide_client)
    mirror.advance()
    grow(wide_client, 2, 5, Subspace.empty(WIDE))
    lineage_of(app).store.compact([6], by="test")
    advance = mirror.advance()
    assert (advance.version, advance.num_steps) == (7, 0)
    assert mirror.subspace.digest == lineage_of(app).store.digest(7)


def test_a_pull_waits_for_the_version_that_a_receipt_names(client):
    """Whoever is told of a version reads it, also before it is published; a wait has an end."""
    with ThreadPoolExecutor(1) as threads:
        pulling = threads.submit(client.pull, min_version=1)
        client.push(make_update("cats"))
        assert pulling.result(60).version == 1
    with (
        client_of(client.address, timeout_seconds=1.0) as hasty,
        pytest.raises(VersionInFuture, match="version 7 does not exist yet"),
    ):
        hasty.pull(min_version=7)


@pytest.mark.parametrize(("precision", "largest_share"), [("bfloat16", 0.7), ("int8", 0.6)])
def test_bases_and_tasks_travel_in_fewer_bits(tmp_path, precision, largest_share):
    """Smaller payloads, orthonormal bases, and the loss that the header says."""
    with running(make_config(tmp_path / "store")) as app, client_of(app.address) as client:
        client.register()
        grow(client, 3)
        whole, short = client.pull(), client.pull(precision=precision)
        sizes = [
            len(client.fetch_subspace(pb.PullSubspaceRequest(precision=code))[1])
            for code in (tensor_pb2.FLOAT32, codec.precision_to_pb(precision))
        ]
        header, _ = client.fetch_subspace(
            pb.PullSubspaceRequest(precision=codec.precision_to_pb(precision))
        )
        exact, rough = (
            client.pull_task("task-1", precision=p).coefficients for p in ("float32", precision)
        )
    assert sizes[1] < sizes[0]
    assert 0 < header.precision_loss < 0.05
    for name, layer in whole.layers.items():
        for side, basis in layer:
            decoded = short.layers[name][side].vectors
            error = torch.linalg.norm(decoded - basis.vectors) / torch.linalg.norm(basis.vectors)
            assert float(error) <= header.precision_loss * 1.01
            difference = rough.layers[name][side] - exact.layers[name][side]
            assert torch.linalg.norm(difference) < 0.05 * torch.linalg.norm(
                exact.layers[name][side]
            )


def test_an_unknown_precision_is_refused_by_name(client, stub):
    """What a newer client asks for is refused, not guessed."""
    for ask in (
        lambda: list(stub.PullSubspace(pb.PullSubspaceRequest.FromString(b"\x28\x63"), timeout=60)),
        lambda: list(
            stub.PullTask(pb.PullTaskRequest.FromString(b"\x0a\x01t\x18\x63"), timeout=60)
        ),
    ):
        with pytest.raises(grpc.RpcError, match="unknown value 99") as caught:
            ask()
        refused(caught, MalformedMessage)


def test_a_reader_that_is_cut_off_is_no_bug_of_ours(app):
    """What gRPC raises when the connection breaks in the middle of a pull is told as that."""

    class Gone:
        async def write(self, _message):
            raise grpc.aio.InternalError("Failed execute_batch")

    call = Call(app.coordinator, lineage_of(app), LOCAL, "somewhere")
    with pytest.raises(StreamTruncated, match="PullSubspace: the peer is gone"):
        asyncio.run(streams.send(call, Gone(), "PullSubspace", b"", ServedPayload.of(b"bases")))
    assert app.coordinator.budget.bytes_in_flight == 0


# --- lists and watches ----------------------------------------------------------------------------


def test_tasks_are_listed_in_pages(client, stub, monkeypatch):
    """Every task once and by name, whatever the size of a page; the client asks for all of them."""
    grow(client, 7)
    everything = [f"task-{index}" for index in range(7)]
    for page_size in (1, 2, 3, 7, 8):
        found, token = [], ""
        while True:
            request = pb.ListTasksRequest(page_size=page_size, page_token=token)
            page = stub.ListTasks(request, timeout=60)
            assert len(page.tasks) <= page_size
            found += [task.task_id for task in page.tasks]
            token = page.next_page_token
            if not token:
                break
        assert found == everything
    monkeypatch.setattr("share_dist.client.client.TASKS_PER_PAGE", 2)
    assert [task.task_id for task in client.tasks()] == everything


def test_a_list_that_fits_no_message_says_to_page(client, stub, monkeypatch):
    """Nothing is left out in silence: the whole list, or an error; pages are cut to what fits."""
    grow(client, 3)
    page = stub.ListTasks(pb.ListTasksRequest(), timeout=60)
    monkeypatch.setattr("coordinator.service.MAX_PAGE_BYTES", page.ByteSize() // 2)

    with pytest.raises(grpc.RpcError) as caught:
        stub.ListTasks(pb.ListTasksRequest(), timeout=60)
    assert "page_size" in refused(caught, MessageTooLarge).message
    first = stub.ListTasks(pb.ListTasksRequest(page_size=3), timeout=60)
    assert len(first.tasks) == 1
    assert [task.task_id for task in client.tasks()] == ["task-0", "task-1", "task-2"]


def test_a_watcher_that_missed_compacted_versions_is_told(app, client):
    """Whoever holds a version from before those that are kept pulls, and watches from there."""
    grow(client, 4)
    lineage_of(app).store.compact([1, 2], by="test")
    with pytest.raises(VersionCompacted, match="pull version 4") as caught:
        next(client.watch(after_version=0))
    assert caught.value.current_version == 4
    assert next(client.watch(after_version=2)).version == 3


def test_status_counts_watchers_by_state(app, client):
    """Who has heard of everything is synced, and an operator sees it."""
    with client.watch(after_version=0) as watch, ThreadPoolExecutor(1) as threads:
        first = threads.submit(next, watch)
        grow(client, 1)
        assert first.result(60).version == 1
        wait_until(lambda: client.status().num_synced_watchers == 1)
        status = client.status()
        assert (status.num_watchers, status.num_slow_watchers) == (1, 0)
        assert [(w.worker_id, w.num_merged) for w in status.workers] == [("w", 1)]
        assert status.newest_version_at is not None
        assert status.digest == client.pull().digest


def test_bases_of_another_store_are_not_taken_for_those_of_a_task(client):
    """The same number with another digest is pulled anew; with the same one it is not."""
    client.push(make_update("cats"), wait="merged")
    held = client.pull()
    assert client.pull_task("cats", held=held).subspace is held
    others = replace(held, digest="f" * 64)
    assert client.pull_task("cats", held=others).subspace.digest == held.digest

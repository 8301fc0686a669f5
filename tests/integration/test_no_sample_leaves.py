"""
No sample leaves a worker.

A real worker learns a stream in which every field is a canary, through a
recorder, from a real coordinator. Everything that went over the wire is held
against a list of what may; then samples are added on purpose, one way after
another, to show that each would have been found.
"""

import contextlib
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from coordinator.app import CoordinatorApp
from share_dist.client import ShareClient
from share_dist.core.metrics import update_bytes
from share_dist.pb import coordinator_pb2 as pb
from share_dist.wire.codec import update_from_wire
from tests.coordinator.support import make_config, running
from tests.integration import canaries
from tests.integration.allowed import ALLOWED_FIELDS, Setup
from tests.integration.inspection import (
    MAX_BYTES_AROUND_CHUNK,
    MAX_UPDATE_HEADER_BYTES,
    SERVICE,
    Finding,
    entry_bytes,
    inspect,
    push_costs,
    pushed_headers,
    reachable_fields,
    safetensors_header,
)
from tests.integration.leaks import LEAKS, Push
from tests.integration.recorder import Recorder, Recording
from worker.actor import WorkerActor, WorkerConfig
from worker.backbone import load_backbone
from worker.evaluate import Scores
from worker.loop import LoopOptions
from worker.sources import load_rows
from worker.stream import read_stream

PUSH = f"/{SERVICE.full_name}/PushUpdate"
TASKS = ("first", "second")


@dataclass
class Run:
    """One worker's whole run, as it was seen from outside."""

    recording: Recording
    setup: Setup
    events: list[dict[str, Any]]
    connections: list[Any]
    store: Path
    recorder: Recorder


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def all_canaries():
    return canaries.all_canaries()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A worker that was told nothing about sharing."""
    with _learnt(tmp_path_factory.mktemp("silent"), "north", TASKS) as found:
        yield found


@pytest.fixture(scope="module")
def sharing_run(tmp_path_factory):
    """A worker that was told to share the names of its classes."""
    folder = tmp_path_factory.mktemp("sharing")
    training = "share_label_names = true"
    with _learnt(folder, "south", TASKS[:1], training, canaries.LABELS) as found:
        yield found


@contextmanager
def _learnt(
    folder: Path,
    worker_id: str,
    task_ids: tuple[str, ...],
    training: str = "",
    label_names: tuple[str, ...] = (),
) -> Iterator[Run]:
    stream = canaries.make_stream(folder, worker_id, task_ids, training)
    workdir = folder / f"{canaries.WORD}-work"
    with running(make_config(folder / "store")) as app, Recorder(app.address) as recorder:
        connections: list[Any] = []
        with _sockets_listed(connections):
            config = WorkerConfig(
                str(stream), recorder.address, str(workdir), LoopOptions(in_sequence=True), 1
            )
            actor = WorkerActor(config)
            actor.run()
            actor.rescore()
            client = actor._loop.coordinator
            # too quick a run for a heartbeat of its own
            client.heartbeat()
            client.status()
            _ask_for_an_upload(recorder)
        yield Run(
            recorder.take(),
            _setup(actor, app, label_names),
            actor.drain(),
            connections,
            folder / "store",
            recorder,
        )
        client.close()


def _ask_for_an_upload(recorder: Recorder) -> None:
    """Ask as a worker does whose push was cut off: here nothing was."""
    request = pb.GetUploadRequest(
        update_id="0" * 32, sha256=bytes(32), subspace="default"
    ).SerializeToString()
    with grpc.insecure_channel(recorder.address) as channel:
        channel.unary_unary(f"/{SERVICE.full_name}/GetUpload")(request, timeout=60)


def _setup(actor: WorkerActor, app: CoordinatorApp, label_names: tuple[str, ...]) -> Setup:
    backbone, stream = actor._loop.backbone, actor._loop.stream
    fingerprint = backbone.fingerprint()
    store = app.coordinator.lineages.get("").store
    with ShareClient(app.address) as client:
        current = client.status().current_version
        versions = {version: client.pull(version) for version in range(current + 1)}
    return Setup(
        worker_id=stream.worker_id,
        num_labels={task.id: len(canaries.LABELS) for task in stream.tasks},
        layers=fingerprint.layers,
        hidden=backbone.model.config.hidden_size,
        pseudo_rank=stream.training.pseudo_rank,
        num_temporary=stream.training.num_temporary,
        versions=versions,
        base_model=fingerprint.base_model,
        fingerprint_digest=fingerprint.digest,
        digests=tuple(store.digest(version) for version in versions),
        store_id=store.store_id,
        label_names=label_names,
    )


@contextmanager
def _sockets_listed(connections: list[Any]) -> Iterator[None]:
    """List whom Python's own sockets call; gRPC's are not Python's, and are recorded elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, lambda *called: connections.append(called))
        patch.setattr(socket, "getaddrinfo", lambda *called, **_: connections.append(called))
        yield


def test_every_field_of_the_protocol_is_on_the_list():
    """A field that is added to the protocol fails here until somebody has said what it may hold."""
    assert reachable_fields() == set(ALLOWED_FIELDS)


def test_a_run_sends_only_what_is_on_the_list(run, all_canaries):
    """Every message, header and tensor of a whole run is on the list, and holds no canary."""
    assert inspect(run.recording, run.setup, all_canaries) == []


def test_the_recording_is_of_a_whole_run(run):
    """What was inspected is every call that a worker makes, with both tasks pushed, the second on a version that has the first."""
    called = {message.method.rpartition("/")[2] for message in run.recording.messages}
    assert called == {method.name for method in SERVICE.methods}
    headers = pushed_headers(run.recording)
    assert [(header.task_id, header.base_version) for header in headers] == [
        ("first", 0),
        ("second", 1),
    ]
    assert {"task_learnt", "task_rescored", "worker_finished"} <= {
        each["event"] for each in run.events
    }


def test_the_canaries_are_what_the_worker_learnt_from(run):
    """The texts that were learnt hold the canary word, and their token ids the canary ids."""
    stream = next(run.store.parent.glob("*/*.toml"))
    read = read_stream(stream)
    backbone = load_backbone(read, torch.device("cpu"))
    for task in read.tasks:
        rows = load_rows(task, read.folder)
        assert rows.label_names == canaries.LABELS
        encoded = backbone.modality.encode(rows.train.inputs)
        for text, ids in zip(rows.train.inputs, encoded, strict=True):
            assert canaries.WORD in text
            windows = [tuple(window) for window in ids.unfold(0, 5, 1).tolist()]
            assert canaries.TOKEN_IDS in windows


def test_a_push_costs_what_the_formula_says(run):
    """A push is its tensors' entries, one safetensors header, at most 1 KiB of header, 16 bytes a chunk."""
    costs = push_costs(run.recording)
    calls = run.recording.calls(PUSH)
    for call, header, cost in zip(calls, pushed_headers(run.recording), costs, strict=True):
        sent = [message.data for message in call if message.direction == "to coordinator"]
        shapes = run.setup.update_shapes(header.task_id, header.base_version)
        update = update_from_wire(header, _payload(sent))
        assert sum(map(len, sent)) == cost.total
        assert cost.entries == entry_bytes(shapes) == update_bytes(update).total
        assert cost.safetensors_header == len(safetensors_header(shapes))
        assert cost.update_header <= MAX_UPDATE_HEADER_BYTES
        assert cost.around_chunks <= MAX_BYTES_AROUND_CHUNK * cost.num_chunks
    assert len(costs) == len(TASKS)


def test_label_names_travel_only_when_the_worker_was_told(run, sharing_run, all_canaries):
    """By default a head has no names of classes; with share_label_names it has them, and nothing else is new."""
    assert [list(each.head.label_names) for each in pushed_headers(run.recording)] == [[], []]
    (header,) = pushed_headers(sharing_run.recording)
    assert tuple(header.head.label_names) == canaries.LABELS
    findings = inspect(sharing_run.recording, sharing_run.setup, all_canaries)
    # the names are canaries themselves, and the inspection sees them wherever a head is told
    assert {(each.kind, each.what) for each in findings} == {("canary", "the word, utf-8")}
    assert {each.where.rpartition("/")[2] for each in findings} == {
        "PushUpdate",
        "PullTask",
        "ListTasks",
    }


def test_the_coordinators_disk_holds_no_canary(run, all_canaries):
    """No file of the store, the database and its journal included, holds a sample."""
    files = [path for path in run.store.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) > 10_000
    for path in files:
        held = path.name.encode() + path.read_bytes()
        assert [canary.what for canary in all_canaries if canary.data in held] == []


def test_events_hold_no_canary(run, all_canaries):
    """What a worker tells whoever watches its progress is figures and ids."""
    told = json.dumps(run.events).encode()
    assert [canary.what for canary in all_canaries if canary.data in told] == []


def test_nobody_else_is_called(run):
    """While it learns, a worker opens no connection but that to its coordinator."""
    assert run.connections == []


@pytest.mark.parametrize("name", LEAKS)
def test_a_sample_that_is_added_is_found(name, run, all_canaries):
    """Whatever way a sample is put into a push, the inspection says so, and says what kind of thing it is."""
    leak, kinds = LEAKS[name]
    findings = _inspect_push(run, leak(_clean_push(run)), all_canaries)
    assert {finding.kind for finding in findings} == kinds, findings


def test_a_worker_that_leaks_is_found(tmp_path, monkeypatch, all_canaries):
    """A whole run of a worker with a bug, which names a score after the end of a text, is found out."""
    words, _ = canaries.texts("mood")[0]
    monkeypatch.setattr(Scores, "to_dict", lambda scores: {words[-80:]: scores.main})
    with _learnt(tmp_path, "west", TASKS[:1]) as leaky:
        findings = inspect(leaky.recording, leaky.setup, all_canaries)
    # on its way to the coordinator, and wherever the coordinator tells of the task
    assert {each.where for each in findings if each.kind == "value"} == {
        "UpdateHeader.scores",
        "TaskSummary.scores",
    }
    assert Finding("canary", PUSH, "the word, utf-8") in findings


def test_a_push_to_which_nothing_is_added_is_clean(run, all_canaries):
    """The same path without a leak finds nothing, so what the others find is the leak."""
    assert _inspect_push(run, _clean_push(run), all_canaries) == []


def test_a_call_of_another_name_is_found(run, all_canaries):
    """A method that is none of the protocol's is reported by its name."""
    with grpc.insecure_channel(run.recorder.address) as channel:
        call = channel.unary_unary("/share_dist.pb.Coordinator/PushSamples")
        with pytest.raises(grpc.RpcError):
            call(canaries.WORD.encode(), timeout=60)
    findings = inspect(run.recorder.take(), run.setup, all_canaries)
    assert {"method", "canary"} <= {finding.kind for finding in findings}


def test_a_connection_to_somebody_else_is_found():
    """The list of connections has whom Python's sockets call."""
    connections: list[Any] = []
    with _sockets_listed(connections), socket.socket() as caller:
        caller.connect(("127.0.0.1", 9))
    assert [called[1:] for called in connections] == [(("127.0.0.1", 9),)]


def _clean_push(run: Run) -> Push:
    """The run's last push, as it was recorded."""
    sent = [
        each.data for each in run.recording.calls(PUSH)[-1] if each.direction == "to coordinator"
    ]
    header = pushed_headers(run.recording)[-1]
    push = Push(header, _payload(sent))
    # decoded: protobuf writes the pairs of a map in no particular order
    assert _decoded(push.requests()) == _decoded(sent)
    return push


def _payload(sent: list[bytes]) -> bytes:
    return b"".join(request.chunk.data for request in _decoded(sent))


def _decoded(sent: list[bytes]) -> list[pb.PushUpdateRequest]:
    return [pb.PushUpdateRequest.FromString(data) for data in sent]


def _inspect_push(run: Run, push: Push, all_canaries: list[canaries.Canary]) -> list[Any]:
    """Really send a push to the coordinator through the recorder; whether it is taken is its own affair."""
    run.recorder.take()
    with grpc.insecure_channel(run.recorder.address) as channel:
        call = channel.stream_unary(PUSH)
        with contextlib.suppress(grpc.RpcError):
            call(iter(push.requests()), timeout=60, metadata=push.metadata)
    recording = run.recorder.take()
    recording.metadata = [each for each in recording.metadata if each.direction == "to coordinator"]
    recording.messages = [each for each in recording.messages if each.direction == "to coordinator"]
    return inspect(recording, run.setup, all_canaries)

"""
A coordinator that follows a script, on a real gRPC server.

It keeps what it is told to keep, merges nothing, and fails when it is told to:
enough to see what a client does about it.
"""

# ruff: noqa: N802 - gRPC names a servicer's methods as the RPCs are named

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, final

import grpc

from share_dist.core.values import Coefficients, Fingerprint, Head, Subspace, TaskUpdate
from share_dist.errors import (
    LeaseExpired,
    ShareError,
    UnknownTask,
    VersionCompacted,
    VersionInFuture,
)
from share_dist.pb import coordinator_pb2 as pb
from share_dist.pb import coordinator_pb2_grpc
from share_dist.wire.chunks import ChunkJoiner, split_into_chunks
from share_dist.wire.codec import (
    fingerprint_from_pb,
    fingerprint_to_pb,
    heartbeat_to_pb,
    lease_to_pb,
    receipt_to_pb,
    status_to_pb,
    subspace_to_bytes,
    task_summary_to_pb,
    task_to_bytes,
    update_from_wire,
    version_event_to_pb,
)
from share_dist.wire.options import SERVER_OPTIONS
from share_dist.wire.records import (
    CoordinatorStatus,
    Lease,
    Receipt,
    TaskSummary,
    UpdateState,
    VersionEvent,
)
from share_dist.wire.status import error_to_trailers

MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Fail:
    """Answer with this error, before anything is done."""

    error: ShareError | grpc.StatusCode


@dataclass(frozen=True)
class LoseReply:
    """Do what is asked, then be unavailable instead of answering."""


@dataclass(frozen=True)
class Hang:
    """Answer only when the caller has gone."""


Fault = Fail | LoseReply | Hang


def summary_of(update: TaskUpdate) -> TaskSummary:
    """A summary of a task whose update is merged."""
    return TaskSummary(
        task_id=update.task_id,
        worker_id="w0",
        update_id=update.update_id,
        state=UpdateState.MERGED,
        base_version=update.base_version,
        merged_version=update.base_version + 1,
        lag=0,
        angle=0.0,
        truncation=0.0,
        cumulative_drift=0.0,
        num_samples=update.num_samples,
        scores=update.scores,
        head=Head({}, update.head.task_type, update.head.num_labels, update.head.label_names),
        pushed_at=MOMENT,
        update_bytes=1,
        head_bytes=0,
    )


def event_of(version: int) -> VersionEvent:
    """What a watcher is told of a version."""
    return VersionEvent(version, MOMENT, (f"u{version}",), ("t",), 1.0, 1.0, 0.0, 2, 10)


class ScriptedCoordinator(coordinator_pb2_grpc.CoordinatorServicer):
    """
    The servicer, and what a test sees and sets of it.

    Attributes:
        subspaces: Version -> subspace, as ``PullSubspace`` sends it.
        tasks: Task id -> summary, coefficients and head, as ``PullTask`` sends them.
        updates: What was pushed, by update id: a second push of an id adds nothing.
        calls: How often each RPC was called.
        payloads: Payload of every push that arrived whole.
        events: What watchers are told, one per version from ``first_event`` on.
        change_chunks: What to do to the chunks of a pull before they are sent.
    """

    def __init__(self, fingerprint: Fingerprint | None = None) -> None:
        self.fingerprint = fingerprint
        self.subspaces: dict[int, Subspace] = {}
        self.tasks: dict[str, tuple[TaskSummary, Coefficients, Head]] = {}
        self.updates: dict[str, TaskUpdate] = {}
        self.calls: Counter[str] = Counter()
        self.payloads: list[bytes] = []
        self.events: list[VersionEvent] = []
        self.lease_epoch = 0
        self.takes_late_digest = True
        self.digests: list[bytes] = []
        self.change_chunks: Callable[[list[pb.Chunk]], Iterable[pb.Chunk]] = lambda chunks: chunks
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._news = threading.Condition()
        self._num_cuts = 0

    @property
    def current_version(self) -> int:
        newest_event = self.events[-1].version if self.events else 0
        return max([newest_event, *self.subspaces])

    def fail_next(self, rpc: str, *faults: Fault) -> None:
        """Let the next calls of an RPC fail, one fault each."""
        self._faults[rpc].extend(faults)

    def tell(self, *events: VersionEvent) -> None:
        """Let watchers know of versions."""
        with self._news:
            self.events.extend(events)
            self._news.notify_all()

    def cut_watchers(self) -> None:
        """End every open watch with UNAVAILABLE, as a connection that breaks does."""
        with self._news:
            self._num_cuts += 1
            self._news.notify_all()

    def Register(self, request: pb.RegisterRequest, context: Any) -> pb.RegisterResponse:
        with self._call("Register", context):
            if request.HasField("fingerprint"):
                theirs = fingerprint_from_pb(request.fingerprint)
                self.fingerprint = self.fingerprint or theirs
                self.fingerprint.require(theirs)
            self.lease_epoch += 1
            return lease_to_pb(self._lease(request.worker_id))

    def Heartbeat(self, request: pb.HeartbeatRequest, context: Any) -> pb.HeartbeatResponse:
        with self._call("Heartbeat", context):
            if request.lease_epoch != self.lease_epoch:
                raise LeaseExpired("taken over", current_epoch=self.lease_epoch)
            return heartbeat_to_pb(self._lease(request.worker_id))

    def PushUpdate(self, requests: Iterator[pb.PushUpdateRequest], context: Any) -> pb.Receipt:
        with self._call("PushUpdate", context):
            header = next(requests).header
            self.digests.append(header.payload.sha256)
            joiner = ChunkJoiner(header.payload, takes_late_digest=self.takes_late_digest)
            for request in requests:
                joiner.add(request.chunk)
            payload = joiner.finish()
            self.payloads.append(payload)
            update = update_from_wire(header, payload)
            self.updates.setdefault(update.update_id, update)
            state = UpdateState.MERGED if header.wait == pb.WAIT_MERGED else UpdateState.PENDING
            return receipt_to_pb(Receipt(update.update_id, state))

    def PullSubspace(
        self, request: pb.PullSubspaceRequest, context: Any
    ) -> Iterator[pb.PullSubspaceResponse]:
        with self._call("PullSubspace", context):
            version = request.version if request.HasField("version") else max(self.subspaces)
            if version > max(self.subspaces):
                raise VersionInFuture("not yet", version=version)
            if version not in self.subspaces:
                raise VersionCompacted("no longer", version=version)
            header = pb.SubspaceHeader(version=version, fingerprint=self._fingerprint_to_pb())
            if request.HasField("held_version") and request.held_version == version:
                header.not_modified = True
                yield pb.PullSubspaceResponse(header=header)
                return
            payload = subspace_to_bytes(self.subspaces[version])
            payload_header, chunks = split_into_chunks(payload)
            header.payload.CopyFrom(payload_header)
            yield pb.PullSubspaceResponse(header=header)
            for chunk in self.change_chunks(list(chunks)):
                yield pb.PullSubspaceResponse(chunk=chunk)

    def PullTask(self, request: pb.PullTaskRequest, context: Any) -> Iterator[pb.PullTaskResponse]:
        with self._call("PullTask", context):
            if request.task_id not in self.tasks:
                raise UnknownTask("no such task", task_id=request.task_id)
            summary, coefficients, head = self.tasks[request.task_id]
            payload_header, chunks = split_into_chunks(task_to_bytes(coefficients, head))
            header = pb.TaskHeader(
                task=task_summary_to_pb(summary),
                version=coefficients.version,
                payload=payload_header,
            )
            yield pb.PullTaskResponse(header=header)
            for chunk in self.change_chunks(list(chunks)):
                yield pb.PullTaskResponse(chunk=chunk)

    def ListTasks(self, request: pb.ListTasksRequest, context: Any) -> pb.ListTasksResponse:
        with self._call("ListTasks", context):
            summaries = [task_summary_to_pb(summary) for summary, _, _ in self.tasks.values()]
            return pb.ListTasksResponse(tasks=summaries, current_version=self.current_version)

    def WatchVersions(
        self, request: pb.WatchVersionsRequest, context: Any
    ) -> Iterator[pb.VersionEvent]:
        with self._call("WatchVersions", context):
            context.add_callback(self._wake)
            num_cuts, seen = self._num_cuts, request.after_version
            if self.events and seen + 1 < self.events[0].version:
                raise VersionCompacted("no longer", first_version=self.events[0].version)
            while context.is_active():
                with self._news:
                    if self._num_cuts != num_cuts:
                        context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
                    events = [event for event in self.events if event.version > seen]
                    if not events:
                        self._news.wait()
                for event in events:
                    seen = event.version
                    yield version_event_to_pb(event)

    def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        with self._call("GetStatus", context):
            status = CoordinatorStatus(
                current_version=self.current_version,
                first_version=0,
                fingerprint=self.fingerprint,
                num_tasks=len(self.tasks),
                num_pending=0,
                num_quarantined=0,
                workers=(),
                num_watchers=0,
                started_at=MOMENT,
                release="fake",
            )
            return status_to_pb(status)

    def _call(self, rpc: str, context: Any) -> "_Call":
        self.calls[rpc] += 1
        faults = self._faults[rpc]
        return _Call(faults.popleft() if faults else None, context)

    def _lease(self, worker_id: str) -> Lease:
        return Lease(
            worker_id,
            self.lease_epoch,
            30.0,
            self.current_version,
            self.fingerprint,
            takes_late_digest=self.takes_late_digest,
        )

    def _fingerprint_to_pb(self) -> pb.Fingerprint | None:
        return None if self.fingerprint is None else fingerprint_to_pb(self.fingerprint)

    def _wake(self) -> None:
        with self._news:
            self._news.notify_all()


class _Call:
    """One call: fails as scripted, and says errors of ours as gRPC says them."""

    def __init__(self, fault: Fault | None, context: Any) -> None:
        self._fault = fault
        self._context = context

    def __enter__(self) -> None:
        match self._fault:
            case Fail(grpc.StatusCode() as code):
                self._context.abort(code, "scripted")
            case Fail(ShareError() as error):
                self._abort(error)
            case Hang():
                while self._context.is_active():
                    time.sleep(0.01)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ShareError):
            self._abort(error)
        if error is None and isinstance(self._fault, LoseReply):
            self._context.abort(grpc.StatusCode.UNAVAILABLE, "the reply is lost")

    def _abort(self, error: ShareError) -> None:
        code, details, metadata = error_to_trailers(error)
        self._context.set_trailing_metadata(metadata)
        self._context.abort(code, details)


@final
class FakeServer:
    """A ``ScriptedCoordinator`` on loopback, which can go down and come back at the same address."""

    def __init__(self, servicer: ScriptedCoordinator | None = None) -> None:
        self.servicer = servicer or ScriptedCoordinator()
        self._port = 0
        self._server: Any = None
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen, at the address of before if there was one."""
        self._server = grpc.server(ThreadPoolExecutor(8), options=SERVER_OPTIONS)
        coordinator_pb2_grpc.add_CoordinatorServicer_to_server(self.servicer, self._server)
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        self._server.start()

    def stop(self) -> None:
        """Go down at once, cutting what is in the air."""
        self._server.stop(grace=None).wait()

    def __enter__(self) -> "FakeServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

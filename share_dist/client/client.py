"""What a worker, a command or a script asks of a coordinator, blocking until it is answered."""

import uuid
import weakref
from collections.abc import Iterator
from dataclasses import replace
from threading import Event
from typing import Any, final

import tenacity
from typing_extensions import override

from share_dist.client.caller import Caller
from share_dist.client.credentials import Credentials
from share_dist.client.download import download
from share_dist.client.older import require_min_version, require_named
from share_dist.client.retry import RetryPolicy
from share_dist.client.stub import coordinator_stub
from share_dist.client.upload import Upload
from share_dist.client.watch import Watch
from share_dist.core.values import Coefficients, Fingerprint, Subspace, TaskUpdate
from share_dist.errors import ConfigError, MalformedMessage, ShapeMismatch, VersionCompacted
from share_dist.pb import coordinator_pb2 as pb
from share_dist.wire.chunks import MAX_PAYLOAD_BYTES, CutPayload, cut
from share_dist.wire.codec import (
    fingerprint_from_pb,
    fingerprint_to_pb,
    heartbeat_from_pb,
    lease_from_pb,
    optional_fingerprint_from_pb,
    precision_from_pb,
    precision_to_pb,
    receipt_from_pb,
    require_count,
    require_id,
    require_subspace,
    status_from_pb,
    subspace_from_precision,
    task_from_precision,
    task_summary_from_pb,
    update_header,
    update_to_parts,
)
from share_dist.wire.records import (
    DEFAULT_SUBSPACE,
    CoordinatorStatus,
    Lease,
    Precision,
    PulledTask,
    Receipt,
    TaskSummary,
    Wait,
)
from share_dist.wire.tensors import Buffer

WATCH_STREAM_SECONDS = 600.0
"""A watching call is opened anew this often, in case a cut went unnoticed."""

TASKS_PER_PAGE = 1000
"""Tasks that are listed at once, at most."""

_PULL_TASK_ATTEMPTS = 3


def new_update_id() -> str:
    """Make the id of an update. Pushing the same id twice is pushing once."""
    return uuid.uuid4().hex


@final
class ShareClient(Caller):
    """
    A connection to one coordinator. It connects when it is first used.

    Every call has a deadline for all its attempts; what may pass by itself
    (no coordinator for the moment, too much work) is tried again until then.
    Calls may come from several threads.

    Args:
        address: ``host:port`` of the coordinator.
        worker_id: Who this is; needed to push.
        fingerprint: Of the model that this worker holds. What is pulled must
            agree with it; without one, anything may be pulled.
        timeout_seconds: Deadline of a call, unless the call is given another.
        retry: Waits between attempts.
        max_payload_bytes: Refuse to pull more than this at once.
        credentials: Who this is to the coordinator, and which one it trusts; without any,
            it speaks unencrypted and shows nothing.
        subspace: Which of its named subspaces.

    Examples:
        It connects only when something is asked.

        >>> with ShareClient("127.0.0.1:7077") as client:
        ...     client.address
        '127.0.0.1:7077'
    """

    def __init__(
        self,
        address: str,
        *,
        worker_id: str = "",
        fingerprint: Fingerprint | None = None,
        timeout_seconds: float = 60.0,
        retry: RetryPolicy | None = None,
        max_payload_bytes: int = MAX_PAYLOAD_BYTES,
        credentials: Credentials | None = None,
        subspace: str = DEFAULT_SUBSPACE,
    ) -> None:
        super().__init__(address, timeout_seconds, retry, credentials)
        self.worker_id = worker_id
        self.fingerprint = fingerprint
        self.subspace = require_subspace(subspace)
        self.lease: Lease | None = None
        self._max_payload_bytes = max_payload_bytes
        self._stub = coordinator_stub(self._channel)
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()

    @override
    def close(self) -> None:
        """End all watches and the connection."""
        self._is_closed = True
        for watch in list(self._watches):
            watch.close()
        super().close()

    def register(
        self, worker_id: str | None = None, fingerprint: Fingerprint | None = None
    ) -> Lease:
        """
        Say who this is and on which frozen model it works; keep the lease for pushes.

        Args:
            worker_id: Replaces the client's own.
            fingerprint: Replaces the client's own.

        Raises:
            FingerprintMismatch: The coordinator works on another model.
            UnknownSubspace: It serves no subspace of the client's name.
        """
        self.worker_id = require_id(self.worker_id if worker_id is None else worker_id, "worker_id")
        self.fingerprint = fingerprint or self.fingerprint
        request = pb.RegisterRequest(
            worker_id=self.worker_id,
            fingerprint=None if self.fingerprint is None else fingerprint_to_pb(self.fingerprint),
            subspace=self.subspace,
        )
        response = self._call(lambda seconds: self._stub.Register(request, timeout=seconds))
        require_named(self.subspace, response.store_id, address=self.address)
        self.lease = lease_from_pb(response, worker_id=self.worker_id)
        return self.lease

    def heartbeat(self) -> Lease:
        """
        Keep the lease.

        Raises:
            LeaseExpired: It has ended or was taken over: register again.
            ConfigError: There is none: register first.
        """
        lease = self.lease
        if lease is None:
            raise ConfigError("there is no lease to keep: register first", key="lease")
        request = pb.HeartbeatRequest(
            worker_id=lease.worker_id, lease_epoch=lease.lease_epoch, subspace=self.subspace
        )
        response = self._call(
            lambda seconds: self._stub.Heartbeat(request, timeout=seconds),
            min(self.timeout_seconds, lease.duration_seconds),
        )
        self.lease = heartbeat_from_pb(response, lease=lease)
        return self.lease

    def push(
        self,
        update: TaskUpdate,
        wait: Wait = "durable",
        timeout_seconds: float | None = None,
        *,
        pieces: CutPayload | None = None,
    ) -> Receipt:
        """
        Send what one task has learnt.

        The same bytes are sent again when the answer is lost; the coordinator
        knows the update by its id and takes it once. A push that was cut off goes on
        where it was, also when the coordinator was started anew meanwhile.

        Args:
            update: A lease epoch of 0 is replaced by that of the client's own lease.
            wait: Return when the update is ``"durable"``, or when it is ``"merged"``.
            timeout_seconds: Replaces the client's own.
            pieces: The update's tensors, where they are encoded and cut already.

        Raises:
            BaseVersionTooOld: Pull, rebase and push again.
            VersionMismatch: The base version is known there with another content: it came
                from another store, or from before a restore.
            LeaseExpired: Register and push again.
            UpdateRefused: It is well formed, yet may not be merged.
        """
        pieces = cut(*update_to_parts(update)) if pieces is None else pieces
        is_hashed_later = self.lease and self.lease.takes_late_digest and pieces.num_chunks > 1
        header = update_header(
            update,
            worker_id=self.worker_id,
            fingerprint_digest="" if self.fingerprint is None else self.fingerprint.digest,
            payload=pieces.header_without_digest if is_hashed_later else pieces.header,
            wait=wait,
            base_digest=update.base_digest,
            subspace=self.subspace,
        )
        if header.lease_epoch == 0 and self.lease is not None:
            header.lease_epoch = self.lease.lease_epoch
        upload = Upload(self._stub, header, pieces)
        return receipt_from_pb(self._call(upload.attempt, timeout_seconds))

    def pull(
        self,
        version: int | None = None,
        held_version: int | None = None,
        *,
        held_digest: str = "",
        min_version: int | None = None,
        precision: Precision = "float32",
    ) -> Subspace | None:
        """
        Get all bases at one version.

        Args:
            version: None for the newest.
            held_version: What the caller holds already.
            held_digest: Of that version, so that another one under its number is sent again.
            min_version: Wait a while for this version, such as the one that a receipt names.
            precision: How the bases travel; less than float32 is smaller, and not exact.

        Returns:
            The subspace; None when it is the one that the caller holds.

        Raises:
            VersionCompacted: ``version`` is no longer kept.
            VersionInFuture: ``version`` does not exist yet, or ``min_version`` did not come.
            MalformedMessage: It can be no version.
            FingerprintMismatch: The coordinator works on another model.
        """
        request = pb.PullSubspaceRequest(
            version=_optional_version(version, "version"),
            held_version=_optional_version(held_version, "held_version"),
            held_digest=held_digest,
            min_version=_optional_version(min_version, "min_version"),
            precision=precision_to_pb(precision),
        )
        header, payload = self.fetch_subspace(request)
        if header.not_modified:
            return None
        if version is not None and header.version != version:
            raise MalformedMessage(
                f"version {version} was asked for, {header.version} came", field="version"
            )
        return subspace_of(header, payload)

    def fetch_subspace(
        self, request: pb.PullSubspaceRequest
    ) -> tuple[pb.SubspaceHeader, memoryview]:
        """Ask for a version in any form; see ``pull`` and ``Mirror``, which read the answer."""
        request.subspace = self.subspace
        if self.lease is not None:
            # so that the coordinator keeps what this worker is about to train on
            request.worker_id = self.lease.worker_id
            request.lease_epoch = self.lease.lease_epoch

        def check(header: pb.SubspaceHeader) -> None:
            require_named(self.subspace, header.store_id, address=self.address)
            require_min_version(header.version, request.min_version, address=self.address)
            self._require_own_fingerprint(header)

        return self._call(
            lambda seconds: download(
                self._stub.PullSubspace(request, timeout=seconds),
                limit_bytes=self._max_payload_bytes,
                check_header=check,
            )
        )

    def watch(
        self,
        after_version: int | None = None,
        patience_seconds: float | None = None,
        *,
        after_digest: str = "",
    ) -> Watch:
        """
        Follow the versions as they come to be; see ``Watch``.

        Args:
            after_version: None for the version that is current at this call.
            patience_seconds: How long the coordinator may be gone, or have no room
                for this watch; None for the client's timeout.
            after_digest: Of that version, so that another one under its number is noticed.

        Raises:
            MalformedMessage: ``after_version`` can be no version.
        """
        patience = self.timeout_seconds if patience_seconds is None else patience_seconds
        if after_version is None:
            status = self.status()
            after_version, after_digest = status.current_version, status.digest
        require_count(after_version, "after_version")

        def open_stream(seen_version: int, seen_digest: str) -> Any:
            request = pb.WatchVersionsRequest(
                after_version=seen_version, after_digest=seen_digest, subspace=self.subspace
            )
            return self._stub.WatchVersions(request, timeout=WATCH_STREAM_SECONDS)

        def probe(cancelled: Event) -> object:
            return self._call(self._get_status, patience, cancelled)

        watch = Watch(
            open_stream,
            probe,
            after_version=after_version,
            after_digest=after_digest,
            address=self.address,
            policy=self._retry,
            patience_seconds=patience,
        )
        self._watches.add(watch)
        return watch

    def tasks(self) -> list[TaskSummary]:
        """List every task that has been merged or waits to be."""
        return [task_summary_from_pb(task) for page in self._task_pages() for task in page.tasks]

    def pull_task(
        self, task_id: str, held: Subspace | None = None, precision: Precision = "float32"
    ) -> PulledTask:
        """
        Get one task, and the subspace of exactly the version that it is told in.

        Args:
            task_id: Which.
            held: A subspace that the caller has: not pulled again when it is the one.
            precision: How the task travels; less than float32 is smaller, and not exact.

        Raises:
            UnknownTask: Names the nearest known ids.
        """
        # A merge may come between the two pulls, and the version be compacted with it.
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(VersionCompacted),
            stop=tenacity.stop_after_attempt(_PULL_TASK_ATTEMPTS),
            reraise=True,
        )
        return retrying(self._pull_task_once, task_id, held, precision)

    def status(self) -> CoordinatorStatus:
        """Ask how the coordinator is."""
        return status_from_pb(self._call(self._get_status))

    def _get_status(self, seconds: float) -> pb.GetStatusResponse:
        response: pb.GetStatusResponse = self._stub.GetStatus(
            pb.GetStatusRequest(subspace=self.subspace), timeout=seconds
        )
        return response

    def _task_pages(self) -> Iterator[pb.ListTasksResponse]:
        request = pb.ListTasksRequest(page_size=TASKS_PER_PAGE, subspace=self.subspace)
        while True:
            page: pb.ListTasksResponse = self._call(
                lambda seconds: self._stub.ListTasks(request, timeout=seconds)
            )
            yield page
            if not page.next_page_token:
                return
            if page.next_page_token <= request.page_token:
                raise MalformedMessage(
                    f"{self.address} lists tasks in circles: {page.next_page_token[:100]!r} came "
                    f"after {request.page_token[:100]!r}",
                    field="next_page_token",
                )
            request.page_token = page.next_page_token

    def _pull_task_once(
        self, task_id: str, held: Subspace | None, precision: Precision
    ) -> PulledTask:
        request = pb.PullTaskRequest(
            task_id=task_id, precision=precision_to_pb(precision), subspace=self.subspace
        )
        header: pb.TaskHeader
        header, payload = self._call(
            lambda seconds: download(
                self._stub.PullTask(request, timeout=seconds), limit_bytes=self._max_payload_bytes
            )
        )
        summary = task_summary_from_pb(header.task)
        coefficients, head = task_from_precision(
            payload,
            precision=precision_from_pb(header.precision),
            version=header.version,
            head_info=summary.head,
        )
        subspace = held
        if held is None or not _is_version(held, header):
            subspace = self.pull(coefficients.version, precision=precision)
        assert subspace is not None, "a pull that names no held version always brings one"
        _require_fit(coefficients, subspace)
        return PulledTask(summary, coefficients, head, subspace)

    def _require_own_fingerprint(self, header: pb.SubspaceHeader) -> None:
        if self.fingerprint is not None and header.HasField("fingerprint"):
            fingerprint_from_pb(header.fingerprint).require(self.fingerprint)


def _is_version(held: Subspace, header: pb.TaskHeader) -> bool:
    """Whether a subspace is the version of a task; by its number alone where a digest is not known."""
    is_other = "" not in {held.digest, header.digest} and held.digest != header.digest
    return held.version == header.version and not is_other


def _optional_version(version: int | None, field: str) -> int | None:
    return None if version is None else require_count(version, field)


def subspace_of(header: pb.SubspaceHeader, payload: Buffer) -> Subspace:
    """
    Read a version that came whole.

    Raises:
        WireError: It is not what its header says.
    """
    fingerprint = optional_fingerprint_from_pb(header)
    subspace = subspace_from_precision(
        payload,
        precision=precision_from_pb(header.precision),
        version=header.version,
        metric=fingerprint.metric if fingerprint else "delta",
    )
    if fingerprint and subspace.shapes != fingerprint.layers:
        raise MalformedMessage(
            f"the bases of version {header.version} are not those of the layers that the "
            "fingerprint names: pull again",
            field="fingerprint.layers",
        )
    return replace(subspace, digest=header.digest)


def _require_fit(coefficients: Coefficients, subspace: Subspace) -> None:
    for name, layer in coefficients.layers.items():
        if name not in subspace.layers:
            raise ShapeMismatch(
                f"{name}: coefficients of version {subspace.version}, which has no such layer",
                layer=name,
            )
        for side, tensor in layer:
            k = subspace.layers[name][side].num_factors
            if tensor.shape[0] != k:
                raise ShapeMismatch(
                    f"{name}, side {side}: {tensor.shape[0]} rows of coefficients for {k} "
                    f"principal factors of version {subspace.version}",
                    layer=name,
                    side=side,
                )

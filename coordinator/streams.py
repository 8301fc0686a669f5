"""Payloads off a stream and onto one: within the byte budget, and with a peer that goes on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, ParamSpec, TypeVar

import grpc
from typing_extensions import Self

from coordinator import handlers
from coordinator.config import CoordinatorConfig
from coordinator.state import Call
from coordinator.uploads import Piece, Upload, WholeFile, upload_key
from coordinator.versions import ServedPayload
from share_dist.errors import MalformedMessage, StreamTruncated
from share_dist.pb import coordinator_pb2 as pb
from share_dist.wire import codec, frames
from share_dist.wire.chunks import require_sound

_PIECES_AT_ONCE = 8
"""How many chunks of a push are written at once; twice as many may wait for it."""

_COMPANY_SECONDS = 0.02
"""How long a chunk waits for others to be written with."""

ResultT = TypeVar("ResultT")
_P = ParamSpec("_P")


class Patience:
    """
    Ends the task that has entered it when nothing is renewed for a while, or too little comes.

    Args:
        config: How long a while is, and how many bytes a second are enough, on average.
        what: What did not happen, for the message.

    Raises:
        StreamTruncated: On leaving, if patience ended.
    """

    # one timer for a whole stream: a timeout for each of its chunks costs a task each

    def __init__(self, config: CoordinatorConfig, what: str) -> None:
        self._seconds = config.stall_seconds
        self._least_rate = config.min_bytes_per_second
        self._what = what
        self._is_over = False
        self._began_at = 0.0
        self._renewed_at = 0.0
        self._num_bytes = 0
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def renew(self, num_bytes: int = 0) -> None:
        """Say that something happened, and how many bytes it brought."""
        self._renewed_at = asyncio.get_running_loop().time()
        self._num_bytes += num_bytes

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self.renew()
        self._began_at = self._renewed_at
        self._look()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: object
    ) -> None:
        if self._timer:
            self._timer.cancel()
        if self._is_over and isinstance(error, asyncio.CancelledError):
            took = self._renewed_at - self._began_at
            raise StreamTruncated(
                f"{self._what} for {self._seconds:g} s, or {self._num_bytes} bytes in {took:.0f} s "
                f"are too few, {self._least_rate} a second are expected: call again"
            ) from None

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        left_seconds = self._ends_at() - loop.time()
        if left_seconds > 0:
            self._timer = loop.call_later(left_seconds, self._look)
        elif self._task:
            self._is_over = True
            self._task.cancel()

    def _ends_at(self) -> float:
        enough_until = self._began_at + self._num_bytes / self._least_rate
        return min(self._renewed_at, enough_until) + self._seconds


async def send(
    call: Call, context: Any, rpc: str, header: bytes, served: ServedPayload | None
) -> None:
    """
    Send a header, and the chunks of a payload if there is one.

    Args:
        call: For whom.
        context: Of the gRPC call.
        rpc: Its name, for messages.
        header: Serialised.
        served: What follows.

    Raises:
        Overloaded: Too much is on its way already.
        StreamTruncated: The peer takes nothing any more, or is gone.
    """
    messages = (header, *(served.messages if served else ()))
    config = call.coordinator.config
    with _reserved(call, served), Patience(config, f"{rpc}: no chunk was taken") as patience:
        for message in messages:
            try:
                await context.write(message)
            except grpc.aio.InternalError as error:
                # so gRPC says it where the connection broke while it wrote
                raise StreamTruncated(f"{rpc}: the peer is gone: call again") from error
            patience.renew(len(message))


async def header_of(requests: AsyncIterator[Any], config: CoordinatorConfig) -> pb.UpdateHeader:
    """
    Take the first message of a push.

    Raises:
        MalformedMessage: It is no header.
        StreamTruncated: It does not come.
    """
    with Patience(config, "PushUpdate: no header came"):
        header: pb.UpdateHeader | None = frames.header_of(await anext(requests, None))
    if header is None:
        raise MalformedMessage("a push begins with its header: send it first", field="header")
    return header


@contextlib.asynccontextmanager
async def receiving(
    call: Call, header: pb.UpdateHeader, requests: AsyncIterator[Any]
) -> AsyncIterator[handlers.Push]:
    """
    Receive a push; its bytes are reserved, and what has come of it is kept, until this is left.

    Raises:
        WireError: Header or chunks are not what a push is made of.
        Overloaded: Too much is on its way already.
        ShareError: As ``handlers.announce_push``.
    """
    limit_bytes = call.lineage.config.max_update_bytes
    announced = _announced(header)
    key = upload_key(
        call.lineage.name, call.principal.name, announced.update_id, header.payload.sha256
    )
    require_sound(header.payload, limit_bytes, takes_late_digest=True)
    # held before it is looked for: until the update is kept, its base version stays
    async with contextlib.AsyncExitStack() as held:
        held.enter_context(call.lineage.holds.hold(announced.base_version))
        await handlers.announce_push(call, announced)
        held.enter_context(call.coordinator.budget.reserve(call.account, header.payload.num_bytes))
        upload = await _unless_small(
            header,
            call.coordinator.uploads.open,
            key,
            header.payload,
            header.first_chunk,
            limit_bytes,
        )
        is_done = False
        try:
            config = call.coordinator.config
            with Patience(config, "PushUpdate: no chunk came") as patience:
                payload = await _receive(header, upload, requests, patience)
            # before it is read: the disk takes longer than all else that is left
            file = await held.enter_async_context(_handed_over(upload))
            # in a thread: reading the tensors of a large update would stop all other calls
            update = await asyncio.to_thread(codec.update_from_wire, header, payload)
            is_done = True
            yield handlers.Push(
                update=update,
                payload=payload,
                payload_digest=upload.sha256.hex(),
                base_digest=header.base_digest,
                worker_id=header.worker_id,
                fingerprint_digest=header.fingerprint_digest,
                wait=codec.wait_from_pb(header.wait),
                file=file,
            )
        finally:
            # whoever is cancelled once more must not take it back while it waits for a thread
            await asyncio.shield(_unless_small(header, upload.close, is_done=is_done))


async def _unless_small(
    header: pb.UpdateHeader, work: Callable[_P, ResultT], *arguments: _P.args, **named: _P.kwargs
) -> ResultT:
    """Work in a thread where a push has files; where it has none, a thread costs more than the work."""
    if header.payload.num_chunks < 2:
        return work(*arguments, **named)
    return await asyncio.to_thread(work, *arguments, **named)


async def _receive(
    header: pb.UpdateHeader,
    upload: Upload,
    requests: AsyncIterator[Any],
    patience: Patience,
) -> memoryview:
    is_small = header.payload.num_chunks < 2
    chunk_bytes = header.payload.num_bytes // max(header.payload.num_chunks, 1)
    keeping = _Keeping(upload)
    try:
        async for request in requests:
            chunk = frames.chunk_of(request)
            if chunk is None:
                raise MalformedMessage("after its header a push has chunks only", field="chunk")
            # hashed here, half a millisecond, as to change threads would cost as much
            if is_small:
                upload.add(chunk)
            else:
                await keeping.add(upload.check(chunk))
            patience.renew(chunk_bytes)
    finally:
        # also of a push that is cut off: it may go on from there
        await keeping.finish()
    return upload.finish()


class _Keeping:
    """
    Joins and writes what was checked, in a thread, as a disk may keep one waiting.

    Several chunks at a time, as to change threads costs as much as to write one; none waits for
    others longer than a moment.
    """

    def __init__(self, upload: Upload) -> None:
        self._upload = upload
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Piece] = []
        self._writing: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def add(self, piece: Piece) -> None:
        """Have a chunk kept; waits while too many do."""
        self._waiting.append(piece)
        if len(self._waiting) >= 2 * _PIECES_AT_ONCE:
            await _done(self._writing)
        if len(self._waiting) >= _PIECES_AT_ONCE:
            self._begin()
        elif self._timer is None:
            self._timer = self._loop.call_later(_COMPANY_SECONDS, self._begin)

    async def finish(self) -> None:
        """Keep what waits, and wait for it."""
        self._stop()
        await _done(self._writing)
        self._begin()
        await _done(self._writing)

    def _begin(self) -> None:
        self._stop()
        if self._writing is not None and not self._writing.done():
            self._timer = self._loop.call_later(_COMPANY_SECONDS, self._begin)
        elif self._waiting:
            pieces, self._waiting = self._waiting, []
            self._writing = self._loop.run_in_executor(None, self._upload.keep, pieces)

    def _stop(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = None


async def _done(work: "asyncio.Future[None] | None") -> None:
    """Wait for work that goes on where the waiting is cancelled."""
    if work:
        if not work.done():
            await asyncio.wait([work])
        work.result()


@contextlib.asynccontextmanager
async def _handed_over(upload: Upload) -> AsyncIterator[WholeFile | None]:
    """Have the file of what has come whole, if there is one, and put it on disk meanwhile."""
    file = upload.hand_over()
    if file is None:
        yield None
        return
    syncing = asyncio.ensure_future(asyncio.to_thread(file.sync))
    try:
        yield file
    finally:
        await asyncio.shield(_discarded(file, syncing))


async def _discarded(file: WholeFile, syncing: "asyncio.Future[bool]") -> None:
    await asyncio.wait([syncing])
    file.discard()


def _reserved(call: Call, served: ServedPayload | None) -> contextlib.AbstractContextManager[None]:
    if served is None:
        return contextlib.nullcontext()
    # every reader of a payload reads the same bytes
    return call.coordinator.budget.reserve(call.account, served.num_bytes, served.header.sha256)


def _announced(header: pb.UpdateHeader) -> handlers.AnnouncedPush:
    return handlers.AnnouncedPush(
        update_id=codec.require_id(header.update_id, "update_id"),
        task_id=codec.require_id(header.task_id, "task_id"),
        worker_id=codec.require_id(header.worker_id, "worker_id"),
        lease_epoch=header.lease_epoch,
        base_version=header.base_version,
        fingerprint_digest=header.fingerprint_digest,
        base_digest=codec.require_hex_digest(header.base_digest, "base_digest"),
        payload_digest=header.payload.sha256.hex(),
        update_bytes=header.payload.num_bytes,
    )

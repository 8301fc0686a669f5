"""
Unfinished uploads: what has come of a push stays when the push is cut off, so that it goes on from there.

Only whole chunks whose digest the sender said are kept, in one file for each upload. The file's
name is a digest of who pushes what, and the length of its chunks, so that nobody can reach
another's, and no word of a peer is ever part of a path::

    push u1: header, chunks 0 1 2 of 5     uploads/<digest>.1048576.part has chunks 0 1 2
    the connection is cut, or the coordinator is killed
    GetUpload u1                           3 chunks, their SHA-256
    push u1: header (first_chunk 3), 3 4   joined with 0 1 2; the file is done with

Nothing here is needed to be right: a file that is lost, damaged or evicted costs the
time to send it again. So nothing is synced, and a disk that fails ends the keeping, not the push.
What has come whole is a file already, a large one past the page cache, and may be handed over: it is synced while
the update is looked at, and a store on the same disk renames it instead of writing the same bytes again.
"""

import contextlib
import hashlib
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from coordinator.direct import DirectFile
from share_dist.errors import ChecksumMismatch, StreamTruncated
from share_dist.wire.chunks import ChunkJoiner, PayloadHeader
from share_dist.wire.frames import PayloadChunk
from share_dist.wire.records import UploadProgress
from share_dist.wire.tensors import Buffer

_SUFFIX = ".part"
_WHOLE = ".whole"

MAX_UPLOADS = 1000
"""Files at once, however short: each takes a block of the disk."""

_DIRECT_FROM_BYTES = 2**24
"""Below it a payload is on disk so soon that nothing is gained by writing it past the page cache."""

_NAME = re.compile(r"([0-9a-f]{64})\.([1-9][0-9]{0,9})" + re.escape(_SUFFIX))

NOTHING = UploadProgress(0, 0, hashlib.sha256().digest())


def upload_key(subspace: str, principal: str, update_id: str, sha256: bytes) -> str:
    """
    Name an upload: the same only for the same payload of the same update by the same principal.

    Payloads that are hashed while they are sent have no digest yet: their sender tells by the chunks' own whether what
    is here is of the same.

    Examples:
        >>> len(upload_key("default", "local", "u1", bytes(32)))
        64
    """
    running = hashlib.sha256()
    for text in (subspace, principal, update_id):
        data = text.encode()
        running.update(len(data).to_bytes(8, "big") + data)
    running.update(sha256)
    return running.hexdigest()


@dataclass
class _Kept:
    """A file of the spool. Its lock is held by whoever reads or writes it."""

    folder: Path
    key: str
    chunk_bytes: int = 0
    num_bytes: int = 0
    touched_at: float = 0.0
    writer: "Upload | None" = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.folder / f"{self.key}.{self.chunk_bytes}{_SUFFIX}"

    @property
    def num_chunks(self) -> int:
        """How many whole chunks it has; none where there is no file."""
        try:
            return self.path.stat().st_size // self.chunk_bytes if self.chunk_bytes else 0
        except OSError:
            return 0

    def pieces(self, num_chunks: int) -> Iterator[bytes]:
        """Read the first chunks, one at a time."""
        if num_chunks:
            with self.path.open("rb") as file:
                for _ in range(num_chunks):
                    yield file.read(self.chunk_bytes)


class WholeFile:
    """
    A file with all of a payload, on its way from the spool into a store.

    Args:
        path: Where it lies; the holder's own.
        file: Open on it.
    """

    def __init__(self, path: Path, file: DirectFile) -> None:
        self.path = path
        self._file = file
        self._lock = threading.Lock()
        self._is_synced: bool | None = None

    def sync(self) -> bool:
        """Put it on disk, once, whoever asks first; whether that worked."""
        with self._lock:
            if self._is_synced is None:
                try:
                    os.fsync(self._file.fileno())
                except OSError:
                    self._is_synced = False
                else:
                    self._is_synced = True
            return self._is_synced

    def discard(self) -> None:
        """Remove it, unless it was taken from its place."""
        with self._lock, contextlib.suppress(OSError):
            if self._is_synced is None:
                self._is_synced = False
            self._file.close()
            self.path.unlink(missing_ok=True)


class UploadSpool:
    """
    The folder of unfinished uploads.

    Methods may be called from any thread; they read and write files.

    Args:
        folder: Made if it is not there; belongs to this object alone.
        max_bytes: Of all files together; the oldest are removed, also of more than ``MAX_UPLOADS``.
        max_age_seconds: How long a file may lie untouched.
        hands_over: What has come whole is wanted as a file.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        max_age_seconds: float = 86400.0,
        *,
        hands_over: bool = False,
    ) -> None:
        self.hands_over = hands_over
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_age_seconds = max_age_seconds
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in folder.iterdir():
            self._adopt(path)
        self._evict()

    @property
    def num_bytes(self) -> int:
        """Length of all files together."""
        with self._lock:
            return sum(kept.num_bytes for kept in self._kept.values())

    def progress(self, key: str) -> UploadProgress:
        """Tell how much of an upload is here."""
        with self._lock:
            kept = self._kept.get(key)
        if kept is None:
            return NOTHING
        with kept.lock:
            return _progress(kept)

    def open(self, key: str, header: PayloadHeader, first_chunk: int, limit_bytes: int) -> "Upload":
        """
        Begin an upload, or go on with one; who went on with it before keeps no more of it.

        Raises:
            WireError: The header is not one that ``ChunkJoiner`` takes.
            StreamTruncated: Less is here than the sender counts on.
        """
        if header.num_chunks < 2:
            return Upload(ChunkJoiner(header, limit_bytes, takes_late_digest=True))
        while True:
            with self._lock:
                kept = self._kept.setdefault(key, _Kept(self._folder, key))
            with kept.lock:
                # one that was removed meanwhile is no longer anybody's
                if self._kept.get(key) is kept:
                    try:
                        return self._begin(kept, header, first_chunk, limit_bytes)
                    finally:
                        self._forget_unused(kept)

    def forget(self, kept: _Kept, first: Callable[[], object]) -> bool:
        """
        Know of an upload no longer, unless it is another's by now.

        Args:
            kept: Which.
            first: What becomes of its file, before another upload of its name can begin and write into it.

        Returns:
            Whether it was this one's.
        """
        with self._lock:
            if self._kept.get(kept.key) is not kept:
                return False
            first()
            del self._kept[kept.key]
            return True

    def remove(self, kept: _Kept) -> None:
        """Forget an upload and its file, unless they are another's by now."""

        def unlink() -> None:
            with contextlib.suppress(OSError):
                kept.path.unlink(missing_ok=True)

        with kept.lock:
            if self.forget(kept, unlink):
                kept.writer = None

    def note(self, kept: _Kept, num_bytes: int) -> None:
        """Count what a file has grown to, and make room."""
        with self._lock:
            kept.num_bytes, kept.touched_at = num_bytes, time.time()
        self._evict()

    def _begin(
        self, kept: _Kept, header: PayloadHeader, first_chunk: int, limit_bytes: int
    ) -> "Upload":
        num_held = kept.num_chunks if first_chunk else 0
        if num_held < first_chunk:
            raise StreamTruncated(
                f"chunk {first_chunk} was to come first, of those before it {num_held} are "
                "here: send all of them again",
                expected_chunks=header.num_chunks,
                received_chunks=num_held,
            )
        held = b"".join(kept.pieces(first_chunk))
        joiner = ChunkJoiner(
            header, limit_bytes, held=held, num_held_chunks=first_chunk, takes_late_digest=True
        )
        kept.writer, kept.touched_at = Upload(joiner, self, kept, header.num_bytes), time.time()
        return kept.writer

    def _forget_unused(self, kept: _Kept) -> None:
        with self._lock:
            is_unused = kept.writer is None and not kept.num_bytes
            if is_unused and self._kept.get(kept.key) is kept:
                del self._kept[kept.key]

    def _adopt(self, path: Path) -> None:
        """Take over a file of a process before; remove what is none of ours to keep."""
        with contextlib.suppress(OSError):
            found, named = path.stat(), _NAME.fullmatch(path.name)
            if named and path.is_file() and not path.is_symlink():
                key, chunk_bytes = named[1], int(named[2])
                self._kept[key] = _Kept(
                    self._folder, key, chunk_bytes, found.st_size, found.st_mtime
                )
            elif not path.is_dir():
                path.unlink()

    def _evict(self) -> None:
        for kept in self._too_many():
            self.remove(kept)

    def _too_many(self) -> Iterator[_Kept]:
        """Choose what must go: the old, and the oldest until the rest fits."""
        now = time.time()
        with self._lock:
            oldest_first = sorted(self._kept.values(), key=lambda kept: kept.touched_at)
        excess = sum(kept.num_bytes for kept in oldest_first) - self._max_bytes
        surplus = len(oldest_first) - MAX_UPLOADS
        for place, kept in enumerate(oldest_first):
            is_old = kept.writer is None and now - kept.touched_at > self._max_age_seconds
            if excess > 0 or place < surplus or is_old:
                excess -= kept.num_bytes
                yield kept


class Piece(NamedTuple):
    """A chunk that was checked: its place, where it begins, its bytes, and whether its sender said their digest."""

    place: int
    start: int
    data: Buffer
    is_sure: bool


class Upload:
    """
    One push on its way: joins its chunks, and keeps them in case it is cut off.

    Made by ``UploadSpool.open``. Leave it with ``close``, which waits for a chunk that is in hand.
    """

    def __init__(
        self,
        joiner: ChunkJoiner,
        spool: UploadSpool | None = None,
        kept: _Kept | None = None,
        num_bytes: int = 0,
    ) -> None:
        self._joiner = joiner
        self._spool = spool
        self._kept = kept
        self._num_bytes = num_bytes
        self._is_keeping = kept is not None
        self._file: DirectFile | None = None

    @property
    def sha256(self) -> bytes:
        """SHA-256 of the payload, once it is whole."""
        return self._joiner.sha256

    def add(self, chunk: PayloadChunk) -> None:
        """Take the next chunk, join it and keep it; raises what ``ChunkJoiner.check`` raises."""
        self.keep([self.check(chunk)])

    def check(self, chunk: PayloadChunk) -> Piece:
        """Take the next chunk, which is yet to be kept; raises what ``ChunkJoiner.check`` raises."""
        place, start, is_sure = chunk.index, self._joiner.num_bytes, bool(chunk.prefix_sha256)
        return Piece(place, start, self._joiner.check(chunk), is_sure)

    def keep(self, pieces: Sequence[Piece]) -> None:
        """Join and write what was checked, in order; a disk that fails ends the writing, and not the push."""
        for piece in pieces:
            self._joiner.put(piece.start, piece.data)
        if pieces and self._is_keeping and self._kept and self._spool:
            try:
                self._keep(self._spool, self._kept, pieces)
            except OSError:
                self._give_up()

    def finish(self) -> memoryview:
        """Take the payload; raises what ``ChunkJoiner.finish`` raises."""
        try:
            return self._joiner.finish()
        except ChecksumMismatch:
            self._give_up()
            raise

    def hand_over(self) -> WholeFile | None:
        """Take the file of a payload that is finished out of the spool; None if it is not all there."""
        spool, kept, file = self._spool, self._kept, self._file
        if not (spool and spool.hands_over and kept and file and self._is_keeping):
            return None
        with kept.lock, contextlib.suppress(OSError):
            is_all = os.fstat(file.fileno()).st_size == self._num_bytes
            whole = kept.folder / f"{uuid.uuid4().hex}{_WHOLE}"
            move = partial(kept.path.rename, whole)
            if is_all and kept.writer is self and spool.forget(kept, move):
                self._file = None
                return WholeFile(whole, file)
        return None

    def close(self, *, is_done: bool) -> None:
        """Let go of the file; what is done is removed, the rest waits to be gone on with."""
        if self._kept is None or self._spool is None:
            return
        # a push that is cut off may leave a thread in the middle of a chunk: it must not write into
        # what was closed, whose descriptor may be another file's by then
        with self._kept.lock:
            is_own = self._kept.writer is self
            if is_own:
                self._kept.writer = None
            if self._file:
                with contextlib.suppress(OSError):
                    self._file.close()
        if is_own and (is_done or not self._kept.num_bytes):
            self._spool.remove(self._kept)

    def _keep(self, spool: UploadSpool, kept: _Kept, pieces: Sequence[Piece]) -> None:
        start = end = pieces[0].start
        with kept.lock:
            if kept.writer is self:
                if start == 0:
                    self._begin_anew(kept, len(pieces[0].data))
                end = self._end_of_run(kept.chunk_bytes, pieces)
            self._is_keeping = end == pieces[-1].start + len(pieces[-1].data)
            if end > start:
                self._write(kept.path, self._joiner.window(start, end), start)
        if end > start:
            spool.note(kept, end)

    def _end_of_run(self, chunk_bytes: int, pieces: Sequence[Piece]) -> int:
        """Tell where those end that can be gone on from: of one length, their digests said."""
        end = pieces[0].start
        for place, start, data, is_sure in pieces:
            is_next = len(data) == chunk_bytes or start + len(data) == self._num_bytes
            if not (is_sure and is_next and start == place * chunk_bytes):
                break
            end = start + len(data)
        return end

    def _begin_anew(self, kept: _Kept, chunk_bytes: int) -> None:
        if kept.chunk_bytes != chunk_bytes:
            kept.path.unlink(missing_ok=True)
            kept.chunk_bytes = chunk_bytes

    def _write(self, path: Path, data: memoryview, start: int) -> None:
        if self._file is None:
            is_direct = self._num_bytes >= _DIRECT_FROM_BYTES
            self._file = DirectFile(path, start, is_direct=is_direct)
        self._file.write(data)

    def _give_up(self) -> None:
        """Keep no more, and forget what was kept, if it is still this upload's to forget."""
        if self._spool and self._kept and self._kept.writer is self:
            self._spool.remove(self._kept)
        self._is_keeping = False


def _progress(kept: _Kept) -> UploadProgress:
    running, num_bytes, num_chunks = hashlib.sha256(), 0, kept.num_chunks
    for piece in kept.pieces(num_chunks):
        running.update(piece)
        num_bytes += len(piece)
    return UploadProgress(num_chunks, num_bytes, running.digest())

"""
A payload cut into chunks of about 1 MiB, and chunks joined to the payload again.

The header comes first and says how much will follow and in how many pieces, so that
a receiver refuses too much before it keeps anything. Memory is taken as the pieces arrive,
whatever was announced. Each piece says the digest of all up to its end: what was damaged is
known at once, and what came before it need not be sent again. So the last one says the digest of the whole, and a
sender whose header need not have it hashes while it sends.
"""

import hashlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from share_dist.core.values import WIRE_VERSION
from share_dist.errors import (
    ChecksumMismatch,
    MalformedMessage,
    MessageTooLarge,
    StreamTruncated,
    UnsupportedWireVersion,
)
from share_dist.pb import tensor_pb2 as pb
from share_dist.wire.buffers import copy_into, room_for
from share_dist.wire.frames import PayloadChunk, chunk_message
from share_dist.wire.tensors import Buffer

PayloadHeader: TypeAlias = pb.PayloadHeader
"""What comes before the chunks, by a name for those who do not see generated code."""

CHUNK_BYTES = 2**20
"""Bytes of payload in every chunk but the last: the size at which gRPC streams fastest."""

MIN_CHUNK_BYTES = 64 * 2**10
"""A payload may come in one chunk for each of these that it begins: many tiny chunks cost more
work than the payload is worth."""

MAX_CHUNK_BYTES = 4 * 2**20
"""Largest chunk that is taken from a peer."""

MAX_PAYLOAD_BYTES = 2**31
"""Largest payload that is taken, unless the receiver says otherwise."""


class CutPayload:
    """
    A payload in chunks, with the digest up to the end of each; made by ``cut``.

    Its bytes stay in the memory that they came in, which must not be written to before it is sent.
    Every byte is hashed once: before, or when its chunk is sent. It may be used from any thread.

    Args:
        parts: The payload, in as many pieces as it lies in.
        chunk_bytes: Length of every chunk but the last.

    Attributes:
        num_bytes: Length of the whole.
        num_chunks: In so many chunks.
    """

    def __init__(self, parts: Sequence[Buffer], chunk_bytes: int) -> None:
        self.num_bytes = sum(map(len, parts))
        self.chunk_bytes = chunk_bytes
        self._pieces = tuple(_windows(parts, chunk_bytes))
        self.num_chunks = len(self._pieces)
        self._running = hashlib.sha256()
        self._prefixes: list[bytes] = []
        self._lock = threading.Lock()

    @property
    def header(self) -> pb.PayloadHeader:
        """What announces it: its length, its number of chunks, its digest."""
        header = self.header_without_digest
        header.sha256 = self.prefix_sha256(self.num_chunks)
        return header

    @property
    def header_without_digest(self) -> pb.PayloadHeader:
        """What announces it where its last chunk says the digest."""
        return pb.PayloadHeader(
            wire_version=WIRE_VERSION, num_bytes=self.num_bytes, num_chunks=self.num_chunks
        )

    def prefix_sha256(self, num_chunks: int) -> bytes:
        """Tell the SHA-256 of the first chunks; that of all is the digest of the whole."""
        with self._lock:
            for pieces in self._pieces[len(self._prefixes) : num_chunks]:
                for piece in pieces:
                    self._running.update(piece)
                self._prefixes.append(self._running.digest())
            return self._prefixes[num_chunks - 1] if num_chunks else hashlib.sha256().digest()

    def chunks(self, first_chunk: int = 0) -> Iterator[pb.Chunk]:
        """Cut it; the pieces are made one at a time."""
        for index in range(first_chunk, self.num_chunks):
            yield pb.Chunk(
                index=index,
                data=b"".join(self._pieces[index]),
                prefix_sha256=self.prefix_sha256(index + 1),
            )

    def messages(self, first_chunk: int = 0) -> Iterator[bytes]:
        """Write every chunk as the message that streams it, one at a time."""
        for index in range(first_chunk, self.num_chunks):
            yield chunk_message(index, self._pieces[index], self.prefix_sha256(index + 1))


def cut(*parts: Buffer, chunk_bytes: int = CHUNK_BYTES) -> CutPayload:
    """
    Make a payload ready to be announced and sent in chunks; it is not copied.

    Args:
        parts: The payload, in as many pieces as it lies in.
        chunk_bytes: Length of every chunk but the last.

    Examples:
        >>> [chunk.data for chunk in cut(b"abc", b"de", chunk_bytes=2).chunks()]
        [b'ab', b'cd', b'e']
    """
    return CutPayload(parts, chunk_bytes)


def _windows(parts: Iterable[Buffer], num_bytes: int) -> Iterator[tuple[memoryview, ...]]:
    """Look at bytes that lie in several places so many at a time."""
    window: list[memoryview] = []
    left = num_bytes
    for part in parts:
        view = memoryview(part)
        while view:
            window.append(view[:left])
            view, left = view[left:], left - len(window[-1])
            if not left:
                yield tuple(window)
                window, left = [], num_bytes
    if window:
        yield tuple(window)


def split_into_chunks(
    payload: bytes, chunk_bytes: int = CHUNK_BYTES
) -> tuple[pb.PayloadHeader, Iterator[pb.Chunk]]:
    """Announce a payload and cut it; ``join_chunks`` is the way back."""
    pieces = cut(payload, chunk_bytes=chunk_bytes)
    return pieces.header, pieces.chunks()


def join_chunks(
    header: pb.PayloadHeader,
    chunks: Iterable[pb.Chunk],
    limit_bytes: int = MAX_PAYLOAD_BYTES,
) -> memoryview:
    """Join what ``split_into_chunks`` made; see ``ChunkJoiner`` for what is refused."""
    joiner = ChunkJoiner(header, limit_bytes)
    for chunk in chunks:
        joiner.add(chunk)
    return joiner.finish()


class ChunkJoiner:
    """
    Joins chunks as they arrive.

    Args:
        header: What the sender announced.
        limit_bytes: Refuse a longer payload.
        held: What came of the same payload before.
        num_held_chunks: In so many chunks; the next one is due now.
        takes_late_digest: Whether the header may leave the digest to the last chunk.

    Raises:
        UnsupportedWireVersion: The header is of another wire version.
        MessageTooLarge: The announced payload is longer than ``limit_bytes``.
        MalformedMessage: The header contradicts itself.
        StreamTruncated: More is held than was announced.

    Examples:
        >>> header, chunks = split_into_chunks(b"abcdef" * 20_000, chunk_bytes=100_000)
        >>> joiner = ChunkJoiner(header)
        >>> for chunk in chunks:
        ...     joiner.add(chunk)
        >>> joiner.finish() == b"abcdef" * 20_000
        True
    """

    def __init__(
        self,
        header: pb.PayloadHeader,
        limit_bytes: int = MAX_PAYLOAD_BYTES,
        *,
        held: bytes = b"",
        num_held_chunks: int = 0,
        takes_late_digest: bool = False,
    ) -> None:
        require_sound(header, limit_bytes, takes_late_digest=takes_late_digest)
        self._expected_digest = header.sha256
        self._expected_bytes = header.num_bytes
        self._expected_chunks = header.num_chunks
        if num_held_chunks > header.num_chunks or len(held) > header.num_bytes:
            raise self._wrong_length(num_held_chunks, len(held))
        self._digest = hashlib.sha256(held)
        self._room = room_for(header.num_bytes)
        self._room[: len(held)] = held
        self.num_bytes = len(held)
        self._num_chunks = num_held_chunks
        self._is_last_sure = False

    @property
    def sha256(self) -> bytes:
        """SHA-256 of what has come so far: of the whole, once it has ``finish``-ed."""
        return self._digest.digest()

    def add(self, chunk: PayloadChunk) -> None:
        """Take the next chunk and put it in its place; raises what ``check`` raises."""
        self.put(self.num_bytes, self.check(chunk))

    def put(self, start: int, data: Buffer) -> None:
        """Put what was checked in its place, from any thread; ``finish`` waits for nobody."""
        copy_into(self._room, start, data)

    def window(self, start: int, end: int) -> memoryview:
        """Look at what was put between two places."""
        return self._room[start:end]

    def check(self, chunk: PayloadChunk) -> bytes | memoryview:
        """
        Take the next chunk, which is yet to be put in its place.

        Returns:
            Its bytes.

        Raises:
            ChecksumMismatch: It, or one before it, was damaged on the way.
            MalformedMessage: It is empty, or not the next one in order.
            MessageTooLarge: It is larger than a chunk may be.
            StreamTruncated: It goes on after the announced end.
        """
        data = chunk.data  # read once: each access copies
        received, num_bytes = self._num_chunks, self.num_bytes + len(data)
        if received == self._expected_chunks or num_bytes > self._expected_bytes:
            raise self._wrong_length(received + 1, num_bytes)
        if chunk.index != received:
            raise MalformedMessage(
                f"chunk {chunk.index} came where chunk {received} was due: send chunks in order",
                field="chunk.index",
            )
        if not data:
            raise MalformedMessage(f"chunk {received} is empty", field="chunk.data")
        if len(data) > MAX_CHUNK_BYTES:
            raise MessageTooLarge(
                f"chunk {received} has {len(data)} bytes, at most {MAX_CHUNK_BYTES} are taken: "
                f"send chunks of {CHUNK_BYTES} bytes",
                size_bytes=len(data),
                limit_bytes=MAX_CHUNK_BYTES,
            )
        self._digest.update(data)
        self._is_last_sure = bool(chunk.prefix_sha256)
        if self._is_last_sure:
            self._require_digest(chunk.prefix_sha256, f"up to the end of chunk {received}")
        self.num_bytes = num_bytes
        self._num_chunks += 1
        return data

    def finish(self) -> memoryview:
        """
        Say that the stream has ended, and take the payload.

        Returns:
            The buffer that it was gathered in: what is read from it need not be copied.

        Raises:
            StreamTruncated: Chunks or bytes are missing.
            ChecksumMismatch: The payload is not the one that was announced.
            MalformedMessage: Nobody has said its digest.
        """
        announced = (self._expected_chunks, self._expected_bytes)
        if (self._num_chunks, self.num_bytes) != announced:
            raise self._wrong_length(self._num_chunks, self.num_bytes)
        if self._expected_digest:
            self._require_digest(self._expected_digest, "as a whole")
        elif not self._is_last_sure:
            raise MalformedMessage(
                "neither the header nor the last chunk says the payload's SHA-256: send it with one "
                "of them, and the last chunk always",
                field="chunk.prefix_sha256",
            )
        return self._room

    def _require_digest(self, expected: bytes, what: str) -> None:
        found = self._digest.digest()
        if found != expected:
            raise ChecksumMismatch(
                f"the payload's SHA-256 {what} is {found.hex()}, announced was {expected.hex()}: "
                "send it again",
                expected=expected.hex(),
                found=found.hex(),
            )

    def _wrong_length(self, received: int, num_bytes: int) -> StreamTruncated:
        return StreamTruncated(
            f"{self._expected_chunks} chunks with {self._expected_bytes} bytes were announced, "
            f"{received} with {num_bytes} came: send the payload again",
            expected_chunks=self._expected_chunks,
            received_chunks=received,
        )


def require_sound(
    header: pb.PayloadHeader,
    limit_bytes: int = MAX_PAYLOAD_BYTES,
    *,
    takes_late_digest: bool = False,
) -> None:
    """
    Refuse by the header alone what will not be taken.

    Raises:
        UnsupportedWireVersion: It is of another wire version.
        MessageTooLarge: The announced payload is longer than ``limit_bytes``.
        MalformedMessage: It contradicts itself.
    """
    if header.wire_version != WIRE_VERSION:
        raise UnsupportedWireVersion(
            f"the peer speaks wire version {header.wire_version}, this side {WIRE_VERSION}: "
            "use releases of share-dist that match",
            found=header.wire_version,
            supported=WIRE_VERSION,
        )
    if header.num_bytes > limit_bytes:
        raise MessageTooLarge(
            f"a payload of {header.num_bytes} bytes was announced, at most {limit_bytes} are taken: "
            "adapt fewer layers, keep fewer factors, or raise the receiver's limit",
            size_bytes=header.num_bytes,
            limit_bytes=limit_bytes,
        )
    fewest = -(-header.num_bytes // MAX_CHUNK_BYTES)
    most = -(-header.num_bytes // MIN_CHUNK_BYTES)
    if not fewest <= header.num_chunks <= most:
        raise MalformedMessage(
            f"{header.num_bytes} bytes were announced in {header.num_chunks} chunks, taken are "
            f"{fewest} to {most}: send chunks of {CHUNK_BYTES} bytes",
            field="payload.num_chunks",
        )
    is_late = takes_late_digest and not header.sha256
    if not is_late and len(header.sha256) != hashlib.sha256().digest_size:
        raise MalformedMessage(
            f"a SHA-256 has 32 bytes, {len(header.sha256)} were announced", field="payload.sha256"
        )

"""
A payload cut into chunks of about 1 MiB, and chunks joined to the payload again.

The header comes first and says how much will follow and in how many pieces, so that
a receiver refuses too much before it keeps anything. It never holds more than an
eighth above what has arrived, however small the pieces.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator
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


def payload_header(payload: bytes, chunk_bytes: int = CHUNK_BYTES) -> pb.PayloadHeader:
    """Announce a payload: its length, its number of chunks, its digest."""
    return pb.PayloadHeader(
        wire_version=WIRE_VERSION,
        num_bytes=len(payload),
        num_chunks=-(-len(payload) // chunk_bytes),
        sha256=hashlib.sha256(payload).digest(),
    )


def chunks_of(payload: bytes, chunk_bytes: int = CHUNK_BYTES) -> Iterator[pb.Chunk]:
    """Cut a payload; the pieces are made one at a time."""
    for index, start in enumerate(range(0, len(payload), chunk_bytes)):
        yield pb.Chunk(index=index, data=payload[start : start + chunk_bytes])


def split_into_chunks(
    payload: bytes, chunk_bytes: int = CHUNK_BYTES
) -> tuple[pb.PayloadHeader, Iterator[pb.Chunk]]:
    """Announce a payload and cut it; ``join_chunks`` is the way back."""
    return payload_header(payload, chunk_bytes), chunks_of(payload, chunk_bytes)


def join_chunks(
    header: pb.PayloadHeader,
    chunks: Iterable[pb.Chunk],
    limit_bytes: int = MAX_PAYLOAD_BYTES,
) -> bytes:
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

    Raises:
        UnsupportedWireVersion: The header is of another wire version.
        MessageTooLarge: The announced payload is longer than ``limit_bytes``.
        MalformedMessage: The header contradicts itself.

    Examples:
        >>> header, chunks = split_into_chunks(b"abcdef" * 20_000, chunk_bytes=100_000)
        >>> joiner = ChunkJoiner(header)
        >>> for chunk in chunks:
        ...     joiner.add(chunk)
        >>> joiner.finish() == b"abcdef" * 20_000
        True
    """

    def __init__(self, header: pb.PayloadHeader, limit_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        _require_sound(header, limit_bytes)
        self._expected_digest = header.sha256
        self._expected_bytes = header.num_bytes
        self._expected_chunks = header.num_chunks
        self._digest = hashlib.sha256()
        # BytesIO and not bytearray: getvalue hands its bytes over without a second copy
        self._received = io.BytesIO()
        self._num_chunks = 0

    def add(self, chunk: pb.Chunk) -> None:
        """
        Take the next chunk.

        Raises:
            MalformedMessage: It is empty, or not the next one in order.
            MessageTooLarge: It is larger than a chunk may be.
            StreamTruncated: It goes on after the announced end.
        """
        data = chunk.data  # read once: each access copies
        received, num_bytes = self._num_chunks, self._received.tell() + len(data)
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
        self._received.write(data)
        self._num_chunks += 1

    def finish(self) -> bytes:
        """
        Say that the stream has ended, and take the payload.

        Raises:
            StreamTruncated: Chunks or bytes are missing.
            ChecksumMismatch: The payload is not the one that was announced.
        """
        announced = (self._expected_chunks, self._expected_bytes)
        if (self._num_chunks, self._received.tell()) != announced:
            raise self._wrong_length(self._num_chunks, self._received.tell())
        if self._digest.digest() != self._expected_digest:
            raise ChecksumMismatch(
                f"the payload's SHA-256 is {self._digest.hexdigest()}, announced was "
                f"{self._expected_digest.hex()}: send it again",
                expected=self._expected_digest.hex(),
                found=self._digest.hexdigest(),
            )
        return self._received.getvalue()

    def _wrong_length(self, received: int, num_bytes: int) -> StreamTruncated:
        return StreamTruncated(
            f"{self._expected_chunks} chunks with {self._expected_bytes} bytes were announced, "
            f"{received} with {num_bytes} came: send the payload again",
            expected_chunks=self._expected_chunks,
            received_chunks=received,
        )


def _require_sound(header: pb.PayloadHeader, limit_bytes: int) -> None:
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
    if len(header.sha256) != hashlib.sha256().digest_size:
        raise MalformedMessage(
            f"a SHA-256 has 32 bytes, {len(header.sha256)} were announced", field="payload.sha256"
        )

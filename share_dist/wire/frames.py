"""
Messages of a stream, read and written without copying what is large in them more than must be.

A stream of the protocol is a header in field 1 of its first message, and a chunk in field 2 of
every other one. Protocol buffers copy the bytes of a chunk twice on their way out of a
message, which for a large payload costs as much as to hash it. So a chunk that is written as
everybody writes it, its fields once and in order, is read here, and lends its bytes; whatever
is written otherwise is left to protocol buffers, as is every header. On their way in they would copy it three
times; written here, it is copied once.

Source: the encoding of protocol buffers, https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from share_dist.pb import tensor_pb2
from share_dist.wire.tensors import Buffer

_CHUNK_TAG, _INDEX_TAG, _DATA_TAG, _PREFIX_TAG = b"\x12", b"\x08", b"\x12", b"\x1a"
_LONGEST_NUMBER = 5
"""Bytes of a number below ``2**35``: longer ones are none that a chunk has."""


@dataclass(frozen=True, slots=True)
class LentChunk:
    """What a ``Chunk`` says; its data are part of the message that brought it."""

    index: int
    data: memoryview
    prefix_sha256: bytes


PayloadChunk: TypeAlias = tensor_pb2.Chunk | LentChunk
"""One piece of a payload, however it was read."""


def reader(message_type: Any) -> Callable[[bytes], Any]:
    """
    Make what reads the messages of a stream.

    Args:
        message_type: The stream's generated message.

    Returns:
        A deserializer: a ``LentChunk`` for a chunk, the message itself for all else.
    """

    def read(data: bytes) -> Any:
        return _lent(data) or message_type.FromString(data)

    return read


def chunk_message(index: int, data: Sequence[Buffer], prefix_sha256: bytes) -> bytes:
    """
    Write the message that brings a chunk.

    All streams of the protocol carry a chunk as field 2 of their message, so that these bytes
    are a ``PullSubspaceResponse``, a ``PullTaskResponse`` and a ``PushUpdateRequest`` alike.

    Args:
        index: Of the chunk.
        data: Its bytes, in as many pieces as they lie in.
        prefix_sha256: SHA-256 of the payload up to its end; empty for none.
    """
    num_bytes = sum(map(len, data))
    parts = (
        _INDEX_TAG + _varint(index) if index else b"",
        _DATA_TAG + _varint(num_bytes) if num_bytes else b"",
        *data,
        _PREFIX_TAG + _varint(len(prefix_sha256)) + prefix_sha256 if prefix_sha256 else b"",
    )
    return b"".join((_CHUNK_TAG, _varint(sum(map(len, parts))), *parts))


def chunk_of(message: Any) -> PayloadChunk | None:
    """Tell the chunk that a message brings; None where it brings something else."""
    if isinstance(message, LentChunk):
        return message
    chunk: PayloadChunk | None = message.chunk if message.WhichOneof("part") == "chunk" else None
    return chunk


def header_of(message: Any) -> Any | None:
    """Tell the header that a message brings; None where it brings something else, or is None itself."""
    if message is None or isinstance(message, LentChunk):
        return None
    return message.header if message.WhichOneof("part") == "header" else None


def _lent(message: bytes) -> LentChunk | None:
    """Read a message that has a chunk and nothing else; None where it is written in another way."""
    end = len(message)
    at, length = _field(message, 0, _CHUNK_TAG)
    if not at or at + length != end:
        return None
    index = 0
    if message[at : at + 1] == _INDEX_TAG:
        at, index = _number(message, at + 1)
    start, num_bytes = _field(message, at, _DATA_TAG) if at else (0, 0)
    at, length = start + num_bytes, 0
    if start and at < end:
        at, length = _field(message, at, _PREFIX_TAG)
    if not (start and at and at + length == end):
        return None
    return LentChunk(index, memoryview(message)[start : start + num_bytes], message[at:end])


def _field(message: bytes, at: int, tag: bytes) -> tuple[int, int]:
    """Find where the bytes of a field begin, and how many it has; (0, 0) where another one comes."""
    return _number(message, at + 1) if message[at : at + 1] == tag else (0, 0)


def _number(message: bytes, at: int) -> tuple[int, int]:
    """Read a number: the place after it, and what it is; (0, 0) where it is too long, or cut off."""
    value = 0
    for place, byte in enumerate(message[at : at + _LONGEST_NUMBER]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return at + place + 1, value
    return 0, 0


def _varint(value: int) -> bytes:
    """Write a number, as ``_number`` reads it."""
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)

"""A header and its chunks, off a stream of responses."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from share_dist.errors import MalformedMessage, StreamTruncated
from share_dist.wire.chunks import ChunkJoiner
from share_dist.wire.frames import chunk_of, header_of

HeaderT = TypeVar("HeaderT")


def download(
    call: Any,
    *,
    limit_bytes: int,
    check_header: Callable[[HeaderT], None] = lambda _: None,
) -> tuple[HeaderT, memoryview]:
    """
    Read a streaming call to its end.

    Args:
        call: The running call; it is cancelled when something is wrong with it.
        limit_bytes: Refuse a longer payload.
        check_header: Raises when the payload is not wanted, before it is read.

    Returns:
        The header, and the payload: empty when the header announces none.

    Raises:
        WireError: What comes is no header with the chunks that it announces.
    """
    try:
        header: Any = _take_header(call)
        check_header(header)
        if not header.HasField("payload"):
            return header, memoryview(b"")
        return header, _join(call, ChunkJoiner(header.payload, limit_bytes))
    finally:
        call.cancel()


def _join(messages: Iterator[Any], joiner: ChunkJoiner) -> memoryview:
    """Join chunks in a thread of their own: while one is hashed, the next one comes."""
    with ThreadPoolExecutor(1) as joining:
        joined: Future[None] | None = None
        for message in messages:
            chunk = chunk_of(message)
            if chunk is None:
                raise MalformedMessage("something else came where a chunk was due", field="chunk")
            if joined:
                joined.result()
            joined = joining.submit(joiner.add, chunk)
        if joined:
            joined.result()
    return joiner.finish()


def _take_header(messages: Iterator[Any]) -> Any:
    first = next(messages, None)
    if first is None:
        raise StreamTruncated("the stream ended before its header: ask again")
    header = header_of(first)
    if header is None:
        raise MalformedMessage("a stream must begin with its header", field="header")
    return header

"""A payload cut into chunks, and chunks joined to the payload again."""

import hashlib
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from share_dist.errors import (
    ChecksumMismatch,
    MalformedMessage,
    MessageTooLarge,
    StreamTruncated,
    UnsupportedWireVersion,
    WireError,
)
from share_dist.pb import tensor_pb2 as pb
from share_dist.wire.chunks import (
    CHUNK_BYTES,
    MAX_CHUNK_BYTES,
    MIN_CHUNK_BYTES,
    ChunkJoiner,
    cut,
    join_chunks,
    split_into_chunks,
)

PAYLOAD = b"0123456789" * (MIN_CHUNK_BYTES // 4)
"""Two and a half of the smallest chunks: 163840 bytes."""


def pieces_of(payload: bytes = PAYLOAD) -> tuple[pb.PayloadHeader, list[pb.Chunk]]:
    header, chunks = split_into_chunks(payload, MIN_CHUNK_BYTES)
    return header, list(chunks)


@given(
    st.binary(max_size=100).map(lambda data: data * 5000),
    st.integers(MIN_CHUNK_BYTES, 8 * MIN_CHUNK_BYTES),
)
@settings(deadline=None)
def test_joining_after_splitting_is_the_identity(payload, chunk_bytes):
    """Any payload, cut into chunks of any size that is taken, comes back."""
    header, chunks = split_into_chunks(payload, chunk_bytes)

    assert join_chunks(header, chunks) == payload


def test_an_empty_payload_has_no_chunks():
    """Nothing is sent for nothing."""
    header, chunks = pieces_of(b"")

    assert (header.num_chunks, chunks) == (0, [])
    assert join_chunks(header, chunks) == b""


def test_chunks_are_of_one_mebibyte():
    """All chunks but the last are full, and none is empty."""
    _, chunks = split_into_chunks(bytes(2 * CHUNK_BYTES + 1))

    assert [len(chunk.data) for chunk in chunks] == [CHUNK_BYTES, CHUNK_BYTES, 1]


@pytest.mark.parametrize(
    ("order", "error", "message"),
    [
        ([0, 2, 1], MalformedMessage, "chunk 2 came where chunk 1 was due"),
        ([0, 0, 1], MalformedMessage, "chunk 0 came where chunk 1 was due"),
        ([1, 2], MalformedMessage, "chunk 1 came where chunk 0 was due"),
        ([0, 1], StreamTruncated, "3 chunks with 163840 bytes were announced, 2 with 131072 came"),
        ([], StreamTruncated, "3 chunks with 163840 bytes were announced, 0 with 0 came"),
        (
            [0, 1, 2, 2],
            StreamTruncated,
            "3 chunks with 163840 bytes were announced, 4 with 196608 came",
        ),
    ],
    ids=["wrong order", "repeated", "missing first", "missing last", "missing all", "extra"],
)
def test_chunks_that_are_not_the_announced_ones_are_refused(order, error, message):
    """Order and number of chunks must be as announced."""
    header, chunks = pieces_of()

    with pytest.raises(error, match=message):
        join_chunks(header, [chunks[index] for index in order])


def test_truncation_tells_how_many_chunks_came():
    """The error carries both numbers."""
    header, chunks = pieces_of()

    with pytest.raises(StreamTruncated) as caught:
        join_chunks(header, chunks[:1])
    assert (caught.value.expected_chunks, caught.value.received_chunks) == (3, 1)


def test_one_changed_bit_is_noticed():
    """The digest is that of the whole payload."""
    header, chunks = pieces_of()
    for chunk in chunks:
        chunk.ClearField("prefix_sha256")
    damage(chunks[1])

    with pytest.raises(ChecksumMismatch, match=r"as a whole is .* send it again") as caught:
        join_chunks(header, chunks)
    assert caught.value.expected == hashlib.sha256(PAYLOAD).hexdigest()


def damage(chunk: pb.Chunk) -> None:
    changed = bytearray(chunk.data)
    changed[-1] ^= 1
    chunk.data = bytes(changed)


def test_damage_is_known_at_the_chunk_that_has_it():
    """A sender that says the digest of each prefix is told at once, before the rest is sent."""
    header, chunks = pieces_of()
    damage(chunks[1])
    joiner = ChunkJoiner(header)
    joiner.add(chunks[0])

    with pytest.raises(ChecksumMismatch, match="up to the end of chunk 1") as caught:
        joiner.add(chunks[1])
    assert caught.value.expected == hashlib.sha256(PAYLOAD[: 2 * MIN_CHUNK_BYTES]).hexdigest()


@pytest.mark.parametrize("num_held", [0, 1, 2, 3])
def test_joining_goes_on_where_it_was_cut_off(num_held):
    """What came before need not come again, and is part of what is checked at the end."""
    pieces = cut(PAYLOAD, chunk_bytes=MIN_CHUNK_BYTES)
    held = PAYLOAD[: num_held * MIN_CHUNK_BYTES]
    assert hashlib.sha256(held).digest() == pieces.prefix_sha256(num_held)

    joiner = ChunkJoiner(pieces.header, held=held, num_held_chunks=num_held)
    for chunk in pieces.chunks(num_held):
        joiner.add(chunk)
    assert joiner.finish() == PAYLOAD


@given(
    st.lists(st.binary(max_size=40), max_size=8),
    st.integers(1, 50),
    st.integers(0, 10),
)
def test_bytes_in_many_places_are_cut_as_those_in_one(parts, chunk_bytes, first_chunk):
    """Wherever a part ends, in the middle of a chunk or at its end, or has nothing in it."""
    whole, apart = (
        cut(b"".join(parts), chunk_bytes=chunk_bytes),
        cut(*parts, chunk_bytes=chunk_bytes),
    )
    assert apart.header == whole.header
    places = range(whole.num_chunks + 1)
    assert [*map(apart.prefix_sha256, places)] == [*map(whole.prefix_sha256, places)]
    assert [*apart.chunks(first_chunk)] == [*whole.chunks(first_chunk)]
    assert [*apart.messages(first_chunk)] == [*whole.messages(first_chunk)]
    assert all(len(chunk.data) == chunk_bytes for chunk in [*apart.chunks()][:-1])


def late(pieces, **fields):
    return ChunkJoiner(pieces.header_without_digest, takes_late_digest=True, **fields)


@pytest.mark.parametrize("num_held", [0, 1, 2])
def test_the_last_chunk_may_say_the_digest(num_held):
    """Then nothing is hashed before it is sent; what came before counts all the same."""
    pieces = cut(PAYLOAD, chunk_bytes=MIN_CHUNK_BYTES)
    joiner = late(pieces, held=PAYLOAD[: num_held * MIN_CHUNK_BYTES], num_held_chunks=num_held)
    for chunk in pieces.chunks(num_held):
        joiner.add(chunk)

    assert joiner.finish() == PAYLOAD
    assert joiner.sha256 == hashlib.sha256(PAYLOAD).digest() == pieces.header.sha256


def test_a_digest_that_nobody_says_is_missed():
    """Neither a last chunk without one nor a stream without its last chunk proves anything."""
    pieces = cut(PAYLOAD, chunk_bytes=MIN_CHUNK_BYTES)
    joiner = late(pieces)
    for chunk in pieces.chunks():
        if chunk.index == 2:
            chunk.ClearField("prefix_sha256")
        joiner.add(chunk)

    with pytest.raises(MalformedMessage, match="neither the header nor the last chunk"):
        joiner.finish()
    with pytest.raises(MalformedMessage, match="neither the header nor the last chunk"):
        late(pieces, held=PAYLOAD, num_held_chunks=3).finish()


def test_a_late_digest_is_compared():
    """Damage to the last chunk is noticed where it is the only one that says a digest."""
    pieces = cut(PAYLOAD, chunk_bytes=MIN_CHUNK_BYTES)
    joiner, chunks = late(pieces), [*pieces.chunks()]
    damage(chunks[1])
    chunks[0].ClearField("prefix_sha256")
    chunks[1].ClearField("prefix_sha256")
    joiner.add(chunks[0])
    joiner.add(chunks[1])

    with pytest.raises(ChecksumMismatch, match="up to the end of chunk 2"):
        joiner.add(chunks[2])


def test_a_late_digest_is_taken_only_where_it_is_asked_for():
    """A pull says its digest first."""
    with pytest.raises(MalformedMessage, match="32 bytes, 0 were announced"):
        ChunkJoiner(cut(PAYLOAD).header_without_digest)


@given(st.lists(st.integers(0, 3), max_size=6), st.integers(0, 2))
def test_a_payload_is_hashed_once_in_whatever_order_it_is_asked_for(asked, first_chunk):
    """Digests before the chunks, after them, and of some twice are the same."""
    pieces = cut(PAYLOAD, chunk_bytes=MIN_CHUNK_BYTES)
    ends = [hashlib.sha256(PAYLOAD[: i * MIN_CHUNK_BYTES]).digest() for i in range(4)]

    assert [pieces.prefix_sha256(num_chunks) for num_chunks in asked] == [ends[i] for i in asked]
    found = [chunk.prefix_sha256 for chunk in pieces.chunks(first_chunk)]
    assert found == ends[first_chunk + 1 :]
    assert pieces.header.sha256 == ends[3]


def test_many_threads_may_send_the_same_payload():
    """An attempt that broke off may still be sending when the next one begins."""
    pieces = cut(PAYLOAD * 8, chunk_bytes=MIN_CHUNK_BYTES)
    with ThreadPoolExecutor(4) as threads:
        found = [*threads.map(lambda _: [*pieces.messages()], range(8))]

    assert all(each == found[0] for each in found)
    assert pieces.header.sha256 == hashlib.sha256(PAYLOAD * 8).digest()


def test_what_is_held_must_be_of_the_same_payload():
    """Other bytes under the same number of chunks are noticed at the first chunk that follows."""
    pieces = cut(PAYLOAD, chunk_bytes=MIN_CHUNK_BYTES)
    joiner = ChunkJoiner(pieces.header, held=bytes(MIN_CHUNK_BYTES), num_held_chunks=1)

    with pytest.raises(ChecksumMismatch, match="up to the end of chunk 1"):
        joiner.add(next(pieces.chunks(1)))
    with pytest.raises(StreamTruncated, match="4 with 163840 came"):
        ChunkJoiner(pieces.header, held=PAYLOAD, num_held_chunks=4)
    with pytest.raises(StreamTruncated, match="1 with 163841 came"):
        ChunkJoiner(pieces.header, held=PAYLOAD + b"x", num_held_chunks=1)


def test_a_payload_over_the_limit_is_refused_before_its_first_chunk():
    """The header alone is enough to refuse."""
    header, _ = pieces_of()

    with pytest.raises(
        MessageTooLarge, match="163840 bytes was announced, at most 163839"
    ) as caught:
        ChunkJoiner(header, limit_bytes=163_839)
    assert (caught.value.size_bytes, caught.value.limit_bytes) == (163_840, 163_839)


def test_more_bytes_than_announced_are_not_kept():
    """A chunk that passes the announced length is refused as it arrives."""
    header, chunks = pieces_of()
    chunks[2].data += b"x"
    joiner = ChunkJoiner(header)
    joiner.add(chunks[0])
    joiner.add(chunks[1])

    with pytest.raises(StreamTruncated, match="3 with 163841 came"):
        joiner.add(chunks[2])


def test_fewer_bytes_than_announced_are_noticed():
    """The right number of chunks with too few bytes is truncated, too."""
    header, chunks = pieces_of()
    chunks[2].data = chunks[2].data[:-1]
    chunks[2].ClearField("prefix_sha256")

    with pytest.raises(StreamTruncated, match="3 with 163839 came"):
        join_chunks(header, chunks)


def test_tiny_chunks_are_refused_by_the_header():
    """A payload in more chunks than its length needs is not begun."""
    header, _ = split_into_chunks(PAYLOAD, chunk_bytes=2)

    with pytest.raises(MalformedMessage, match="in 81920 chunks, taken are 1 to 3"):
        ChunkJoiner(header)


def test_a_receiver_holds_little_more_than_what_has_arrived():
    """Chunks of the smallest size are held once, also while they are handed over."""
    payload = bytes(16 * 2**20)
    header, chunks = split_into_chunks(payload, MIN_CHUNK_BYTES)
    joiner = ChunkJoiner(header)
    tracemalloc.start()
    try:
        for arrived, chunk in enumerate(chunks, start=1):
            joiner.add(chunk)
            del chunk
            assert (
                tracemalloc.get_traced_memory()[0]
                <= (arrived * 9 / 8 + 1) * MIN_CHUNK_BYTES + 2**16
            )
        tracemalloc.reset_peak()
        joined = joiner.finish()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert joined == payload
    assert peak < 1.2 * len(payload)


def test_a_giant_chunk_is_refused():
    """No chunk may be larger than four mebibytes."""
    payload = bytes(MAX_CHUNK_BYTES + 1)
    header, chunks = split_into_chunks(payload, len(payload))
    header.num_chunks = 2

    with pytest.raises(MessageTooLarge, match="send chunks of 1048576 bytes"):
        join_chunks(header, chunks)


def test_an_empty_chunk_is_refused():
    """Chunks that bring nothing cannot keep a stream alive."""
    header, chunks = pieces_of()

    with pytest.raises(MalformedMessage, match="chunk 1 is empty"):
        join_chunks(header, [chunks[0], pb.Chunk(index=1)])


def test_another_wire_version_is_named():
    """A payload of another release is refused with both versions."""
    header, _ = pieces_of()
    header.wire_version = 2

    with pytest.raises(UnsupportedWireVersion, match="wire version 2, this side 1") as caught:
        ChunkJoiner(header)
    assert (caught.value.found, caught.value.supported) == (2, 1)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"num_chunks": 0}, MalformedMessage),
        ({"num_chunks": 4}, MalformedMessage),
        ({"num_bytes": 2**31}, MalformedMessage),
        ({"num_bytes": 2**31 + 1}, MessageTooLarge),
        ({"sha256": b"short"}, MalformedMessage),
    ],
)
def test_headers_that_contradict_themselves_are_refused(changes, error):
    """A header is checked before a chunk is taken."""
    header, _ = pieces_of()
    for name, value in changes.items():
        setattr(header, name, value)

    with pytest.raises(error):
        ChunkJoiner(header)


@given(
    st.builds(
        pb.PayloadHeader,
        wire_version=st.integers(0, 2),
        num_bytes=st.integers(0, 12) | st.integers(len(PAYLOAD) - 1, len(PAYLOAD) + 1),
        num_chunks=st.integers(0, 4),
        sha256=st.binary(max_size=33) | st.just(hashlib.sha256(PAYLOAD).digest()),
    ),
    st.lists(
        st.builds(
            pb.Chunk,
            index=st.integers(0, 4),
            data=st.binary(max_size=5) | st.just(PAYLOAD[:MIN_CHUNK_BYTES]),
            prefix_sha256=st.binary(max_size=33),
        ),
        max_size=5,
    ),
)
@settings(deadline=None)
def test_any_stream_joins_or_raises_a_wire_error(header, chunks):
    """Whatever is announced and whatever comes, nothing but a WireError is raised."""
    try:
        payload = join_chunks(header, chunks)
    except WireError:
        return
    assert hashlib.sha256(payload).digest() == header.sha256

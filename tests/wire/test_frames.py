"""Chunks that are read in place say what protocol buffers say of them, or are left to these."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from share_dist.pb import coordinator_pb2 as pb
from share_dist.pb import tensor_pb2
from share_dist.wire.frames import LentChunk, chunk_message, chunk_of, header_of, reader

READ = reader(pb.PushUpdateRequest)
CHUNKS = st.builds(
    tensor_pb2.Chunk,
    index=st.integers(0, 2**32 - 1),
    data=st.binary(max_size=300),
    prefix_sha256=st.sampled_from([b"", bytes(range(32)), b"x" * 200]),
)


def meant(message):
    chunk = chunk_of(message)
    return None if chunk is None else (chunk.index, bytes(chunk.data), chunk.prefix_sha256)


@given(CHUNKS)
def test_a_chunk_is_read_as_protocol_buffers_read_it(chunk):
    """With any index, any bytes, with and without a digest; what has data is not copied."""
    written = pb.PushUpdateRequest(chunk=chunk).SerializeToString()
    found = READ(written)
    assert isinstance(found, LentChunk) == bool(chunk.data)
    assert meant(found) == (chunk.index, chunk.data, chunk.prefix_sha256)
    assert header_of(found) is None


@given(CHUNKS, st.integers(0, 9))
def test_a_chunk_is_written_as_protocol_buffers_write_it(chunk, first_bytes):
    """To the byte, for each stream that carries chunks; from bytes that lie in several places too."""
    data = memoryview(chunk.data)
    apart = data[:first_bytes], data[first_bytes:]
    for kind in (pb.PushUpdateRequest, pb.PullSubspaceResponse, pb.PullTaskResponse):
        expected = kind(chunk=chunk).SerializeToString(deterministic=True)
        assert chunk_message(chunk.index, [data], chunk.prefix_sha256) == expected
        assert chunk_message(chunk.index, apart, chunk.prefix_sha256) == expected


@settings(max_examples=1000)
@given(
    CHUNKS,
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3),
    st.integers(0, 40),
    st.binary(max_size=9),
)
@example(tensor_pb2.Chunk(index=1, data=b"x"), [(2, 0xFF), (3, 0xFF)], 0, b"")
def test_whatever_is_written_means_what_protocol_buffers_say(chunk, changes, num_cut, added):
    """Changed, cut off or gone on with: the same meaning, or left to them to refuse."""
    data = bytearray(pb.PushUpdateRequest(chunk=chunk).SerializeToString())
    for place, value in changes:
        if place < len(data):
            data[place] = value
    message = bytes(data[: len(data) - num_cut]) + added
    try:
        expected = pb.PushUpdateRequest.FromString(message)
    except DecodeError:
        with pytest.raises(DecodeError):
            READ(message)
        return
    found = READ(message)
    if isinstance(found, LentChunk) and found.index >= 2**32:
        return  # protocol buffers cut such a number down: no chunk has it, cut down or not
    assert meant(found) == meant(expected)


def test_a_header_is_left_to_protocol_buffers():
    """It is read whole, and is no chunk."""
    header = pb.UpdateHeader(update_id="u1")
    found = READ(pb.PushUpdateRequest(header=header).SerializeToString())
    assert (header_of(found), chunk_of(found)) == (header, None)
    assert header_of(None) is None


def test_the_bytes_of_a_chunk_are_those_of_its_message():
    """Nothing that is large is copied."""
    message = pb.PushUpdateRequest(chunk=tensor_pb2.Chunk(data=b"x" * 2**20)).SerializeToString()
    assert READ(message).data.obj is message

"""Named tensors to safetensors bytes and back."""

import json
from contextlib import suppress
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from share_dist.errors import MalformedMessage, MessageTooLarge, WireError
from share_dist.wire.tensors import payload_sizes, tensors_from_bytes, tensors_to_bytes
from tests.equality import same
from tests.strategies import matrix, texts

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

tensors = st.builds(
    matrix,
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 2**32 - 1),
    st.sampled_from(DTYPES),
)
VALID = tensors_to_bytes({"x": torch.ones(2, 2), "empty": torch.zeros(3, 0)})


def file_of(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@given(st.dictionaries(texts, tensors, max_size=4))
@settings(deadline=None)
def test_tensors_come_back_as_they_were(named):
    """Reading what was written gives the same names, shapes, dtypes and bits."""
    assert same(tensors_from_bytes(tensors_to_bytes(named)), named)


@given(st.dictionaries(texts, tensors, max_size=4))
@settings(deadline=None)
def test_the_order_of_a_mapping_does_not_change_the_bytes(named):
    """Equal tensors give equal bytes, in whichever order they are held."""
    assert tensors_to_bytes(dict(reversed(named.items()))) == tensors_to_bytes(named)


def test_views_of_one_memory_are_written_apart():
    """Strided, transposed and shared tensors are written as what they show."""
    whole = torch.arange(6.0).reshape(2, 3)
    named = {"t": whole.mT, "column": whole[:, 1], "whole": whole, "again": whole}

    assert same(tensors_from_bytes(tensors_to_bytes(named)), named)


@given(
    st.tuples(*[st.integers(0, 4)] * 2),
    st.tuples(*[st.integers(1, 4)] * 2),
    st.booleans(),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_whatever_is_cut_out_of_a_tensor_is_written(start, step, is_transposed, dtype):
    """Also one entry of many, which counts as contiguous whatever lies between it and the next."""
    whole = torch.arange(40.0).reshape(5, 8).to(dtype)
    part = whole[start[0] :: step[0], start[1] : start[1] + 1 + step[1] : step[1]]
    named = {"part": part.mT if is_transposed else part, "entry": part[:1, :1], "none": part[:0]}

    assert same(tensors_from_bytes(tensors_to_bytes(named)), named)


def test_other_readers_read_what_we_write():
    """The bytes are a plain safetensors file."""
    assert same(safetensors.torch.load(VALID), tensors_from_bytes(VALID))


@given(st.dictionaries(texts, tensors, max_size=6), st.none() | texts)
@settings(deadline=None)
def test_the_bytes_are_those_of_the_reference(named, note):
    """The safetensors library writes the same tensors and the same note as the same bytes."""
    metadata = None if note is None else {"note": note}
    copies = {name: tensor.clone() for name, tensor in named.items()}
    assert tensors_to_bytes(named, note) == safetensors.torch.save(copies, metadata)


def test_what_was_received_is_viewed_and_what_is_kept_is_copied():
    """Tensors of a buffer that can be written to share its memory; those of bytes have their own."""
    buffer = bytearray(VALID)
    found = tensors_from_bytes(buffer)
    buffer[-16:] = bytes(16)
    assert same(found["x"], torch.zeros(2, 2))
    assert same(tensors_from_bytes(VALID)["x"], torch.ones(2, 2))


def test_tensors_across_the_words_of_memory_are_read():
    """A sender may lay a narrow tensor before a wide one: the wide one is copied to where it fits."""
    header = {"a": entry("F16", [1], [0, 2]), "b": entry("F64", [1], [2, 10])}
    content = torch.tensor([1.5], dtype=torch.float16), torch.tensor([2.5], dtype=torch.float64)
    data = b"".join(tensor.numpy().tobytes() for tensor in content)
    found = tensors_from_bytes(bytearray(file_of(header, data)))
    assert same(found, {"a": content[0], "b": content[1]})


def test_the_size_is_header_and_entries():
    """A payload is its header and every tensor's entries, and nothing else."""
    sizes = payload_sizes(VALID)

    assert sizes.data_bytes == 2 * 2 * 4
    assert sizes.header_bytes + sizes.data_bytes == len(VALID)
    assert sizes.header_bytes % 8 == 0


def test_only_floating_point_is_written():
    """A tensor of another dtype is refused by its name."""
    with pytest.raises(MalformedMessage, match=r"'ids' has dtype torch\.int64") as caught:
        tensors_to_bytes({"ids": torch.arange(3)})
    assert caught.value.field == "ids"


MALFORMED = {
    "empty": b"",
    "shorter than its length": b"\x00\x00",
    "header longer than the file": (99).to_bytes(8, "little") + b"{}",
    "no JSON": file_of(b"{'x'"),
    "not UTF-8": file_of(b'{"\xff": 1}'),
    "no object": file_of([1]),
    "deeply nested": file_of(b"[" * 100_000),
    "a giant number": file_of(b'{"x": ' + b"9" * 10_000 + b"}"),
    "a name twice": file_of(b'{"x": 1, "x": 2}'),
    "metadata": file_of({"__metadata__": {"note": "a secret"}}),
    "a tensor that is no object": file_of({"x": 1}),
    "a field too many": file_of({"x": entry() | {"note": 1}}, bytes(4)),
    "a dtype of integers": file_of({"x": entry("I32")}, bytes(4)),
    "a dtype that is no text": file_of({"x": entry(["F32"])}, bytes(4)),
    "a negative size": file_of({"x": entry(shape=[-1, -1])}, bytes(4)),
    "a size that is no integer": file_of({"x": entry(shape=[1.0])}, bytes(4)),
    "a size that is a truth value": file_of({"x": entry(shape=[True])}, bytes(4)),
    "too many dimensions": file_of({"x": entry(shape=[1] * 9)}, bytes(4)),
    "an empty tensor of giant strides": file_of(
        {"x": entry(shape=[0, 2**62, 2**62], offsets=[0, 0])}
    ),
    "one offset": file_of({"x": entry(offsets=[0])}, bytes(4)),
    "offsets that are too near": file_of({"x": entry(offsets=[0, 3])}, bytes(3)),
    "a gap": file_of({"x": entry(offsets=[4, 8])}, bytes(8)),
    "an overlap": file_of({"x": entry(), "y": entry()}, bytes(4)),
    "bytes that are nobody's": file_of({"x": entry()}, bytes(5)),
    "bytes that are missing": file_of({"x": entry()}, bytes(3)),
    "a lone surrogate": file_of(b'{"\\ud800": ' + json.dumps(entry()).encode() + b"}", bytes(4)),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_files_are_refused(data):
    """A file that contradicts itself is a MalformedMessage, whatever is wrong with it."""
    with pytest.raises(MalformedMessage):
        tensors_from_bytes(data)


def test_an_announced_giant_is_refused_before_it_is_read():
    """A header's length, a tensor's size and a count of tensors cost nothing by being announced."""
    with pytest.raises(MessageTooLarge, match="at most 16 are taken") as caught:
        tensors_from_bytes(VALID, max_header_bytes=16)
    assert caught.value.limit_bytes == 16
    with pytest.raises(MessageTooLarge, match="2 tensors in one payload, at most 1"):
        tensors_from_bytes(VALID, max_tensors=1)
    with pytest.raises(MalformedMessage, match="cannot fill the bytes"):
        tensors_from_bytes(file_of({"x": entry(shape=[2**36])}, bytes(4)))


@st.composite
def damaged(draw: Any) -> bytes:
    """A valid file with bytes changed, taken out and put in."""
    data = bytearray(VALID)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


@given(st.one_of(damaged(), st.binary(max_size=60), st.binary(max_size=60).map(file_of)))
@example(VALID[:-1])
@settings(deadline=None, max_examples=500)
def test_damaged_files_raise_wire_errors_only(data):
    """Whatever arrives is either tensors or a WireError."""
    with suppress(WireError):
        tensors_from_bytes(data)


def test_int8_comes_only_to_who_asks_for_it():
    """Without being asked for, int8 is neither written nor read; with it, it comes back to the bit."""
    named = {"x": torch.tensor([[-127, 0], [5, 127]], dtype=torch.int8)}
    data = tensors_to_bytes(named, may_have_int8=True)
    assert same(tensors_from_bytes(data, may_have_int8=True), named)
    with pytest.raises(MalformedMessage, match=r"'x' has dtype torch\.int8"):
        tensors_to_bytes(named)
    with pytest.raises(MalformedMessage, match="'x' has dtype 'I8'"):
        tensors_from_bytes(data)

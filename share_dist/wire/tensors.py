"""
Named tensors to safetensors bytes and back, strict about what may come in.

A safetensors file is eight bytes of header length (little endian), a JSON header
``{name: {dtype, shape, data_offsets}}`` padded with spaces to a multiple of eight,
and the data. The header is checked in full before a tensor is made, so that a
hostile one costs no more memory than the bytes that it came in.
"""

import ctypes
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from share_dist.errors import MalformedMessage, MessageTooLarge

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""The only dtypes that are sent or stored, with the bytes of one entry."""

ITEM_BYTES_WITH_INT8 = ITEM_BYTES | {"I8": 1}
"""The same in a payload that was asked for in the precision int8."""

MAX_TENSORS = 65_536
"""Most tensors in one payload on the wire."""

MAX_HEADER_BYTES = 16 * 2**20
"""Longest JSON header on the wire."""

_DTYPES_BY_NAME = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES_BY_NAME.items()}
Buffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes, wherever they lie."""

_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_NOTE = "note"
_MAX_DIMENSIONS = 8
_MAX_ENTRIES = 2**40


class PayloadSizes(NamedTuple):
    """What the bytes of one payload are spent on."""

    header_bytes: int
    """Length field, JSON header and its padding: names, dtypes and shapes."""
    data_bytes: int
    """Entries of all tensors."""


def tensors_to_bytes(
    tensors: Mapping[str, Tensor], note: str | None = None, *, may_have_int8: bool = False
) -> bytes:
    """
    Write tensors as a safetensors file; equal input gives equal bytes.

    Args:
        tensors: Name -> tensor, of any device and layout.
        note: Text to keep beside them; for files that stay on disk, as a peer refuses it.
        may_have_int8: Write int8 as well; for who asked for it.

    Raises:
        MalformedMessage: A tensor has a dtype that is not sent.
    """
    return b"".join(tensors_to_parts(tensors, note, may_have_int8=may_have_int8))


def tensors_to_parts(
    tensors: Mapping[str, Tensor], note: str | None = None, *, may_have_int8: bool = False
) -> list[Buffer]:
    """
    Write what ``tensors_to_bytes`` does as pieces to be sent one after another: a tensor's is the memory that it has.

    Raises:
        MalformedMessage: A tensor has a dtype that is not sent.

    Examples:
        >>> named = {"x": torch.zeros(3), "y": torch.ones(2)}
        >>> b"".join(tensors_to_parts(named)) == tensors_to_bytes(named)
        True
    """
    for name, tensor in tensors.items():
        if _DTYPE_NAMES.get(tensor.dtype) not in (
            ITEM_BYTES_WITH_INT8 if may_have_int8 else ITEM_BYTES
        ):
            raise MalformedMessage(
                f"tensor {name!r} has dtype {tensor.dtype}, sent are {', '.join(ITEM_BYTES)}: "
                "convert it to a floating point type of at most 64 bits",
                field=name,
            )
    views = [(name, _DTYPE_NAMES[t.dtype], t.shape, _bytes_of(t)) for name, t in tensors.items()]
    # the order of the safetensors library: widest entries first, then by name
    views.sort(key=lambda view: (-ITEM_BYTES_WITH_INT8[view[1]], view[1], view[0]))
    return [_header(views, note), *(data for *_, data in views)]


def tensors_from_bytes(
    data: Buffer,
    *,
    max_tensors: int = MAX_TENSORS,
    max_header_bytes: int = MAX_HEADER_BYTES,
    may_have_note: bool = False,
    may_have_int8: bool = False,
) -> dict[str, Tensor]:
    """
    Read a safetensors file from a peer that is not trusted.

    Args:
        data: The whole file. The tensors are views of it where it can be written to, as a buffer
            that was received into can, and copies otherwise.
        max_tensors: Refuse more tensors than this.
        max_header_bytes: Refuse a longer JSON header.
        may_have_note: Pass over a note, which ``note_of`` reads.
        may_have_int8: Take int8 as well; for who asked for it.

    Raises:
        MessageTooLarge: A limit is passed.
        MalformedMessage: The bytes are no safetensors file, hold a dtype that is not
            sent, or their sizes contradict each other.
    """
    header_end = _header_end(data, max_header_bytes)
    entries = _parse_header(data[_LENGTH_BYTES:header_end])
    if may_have_note:
        entries.pop(_METADATA, None)
    if len(entries) > max_tensors:
        raise MessageTooLarge(
            f"{len(entries)} tensors in one payload, at most {max_tensors} are taken: "
            "adapt fewer layers",
            size_bytes=len(data),
            limit_bytes=max_header_bytes,
        )
    item_bytes = ITEM_BYTES_WITH_INT8 if may_have_int8 else ITEM_BYTES
    spans = [_checked_span(name, entry, item_bytes) for name, entry in entries.items()]
    _require_gapless(spans, len(data) - header_end)
    content = memoryview(data)[header_end:]
    return {
        name: _tensor_at(content[begin:end], entry)
        for (name, entry), (begin, end) in zip(entries.items(), spans, strict=True)
    }


def note_of(data: Buffer, *, max_header_bytes: int = MAX_HEADER_BYTES) -> str:
    """
    Read the note beside a file's tensors.

    Raises:
        MessageTooLarge: The header is longer than allowed.
        MalformedMessage: There is no note.

    Examples:
        >>> note_of(tensors_to_bytes({"x": torch.zeros(3)}, note="three zeros"))
        'three zeros'
    """
    header_end = _header_end(data, max_header_bytes)
    metadata = _parse_header(data[_LENGTH_BYTES:header_end]).get(_METADATA)
    note = metadata.get(_NOTE) if isinstance(metadata, dict) else None
    if not isinstance(note, str):
        raise MalformedMessage("the file has no note beside its tensors", field=_METADATA)
    return note


def payload_sizes(data: Buffer) -> PayloadSizes:
    """
    Tell how many bytes of a payload are header and how many are entries of tensors.

    Examples:
        >>> payload_sizes(tensors_to_bytes({"x": torch.zeros(3)}))
        PayloadSizes(header_bytes=64, data_bytes=12)
    """
    header_end = _header_end(data, max_header_bytes=len(data))
    return PayloadSizes(header_end, len(data) - header_end)


def _header_end(data: Buffer, max_header_bytes: int) -> int:
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if length > max_header_bytes:
        raise MessageTooLarge(
            f"the payload announces a header of {length} bytes, at most {max_header_bytes} are taken",
            size_bytes=length,
            limit_bytes=max_header_bytes,
        )
    if len(data) < _LENGTH_BYTES + length:
        raise MalformedMessage(
            f"the payload has {len(data)} bytes, its header alone needs {_LENGTH_BYTES + length}",
            field="payload",
        )
    return _LENGTH_BYTES + length


def _header(views: Iterable[tuple[str, str, Sequence[int], Any]], note: str | None) -> bytes:
    """Write the header's length and the header: every tensor's data begins where the last one ends."""
    entries: dict[str, Any] = {} if note is None else {_METADATA: {_NOTE: note}}
    end = 0
    for name, dtype, shape, data in views:
        begin, end = end, end + data.nbytes
        entries[name] = {"dtype": dtype, "shape": [*shape], "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % _LENGTH_BYTES)
    return len(header).to_bytes(_LENGTH_BYTES, "little") + header


def _bytes_of(tensor: Tensor) -> Any:
    """View the entries of a tensor as they lie in memory, row by row."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.stride(0) != 1:
        # one entry cut out of many is contiguous, and cannot be viewed as bytes for all that
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().data


def _tensor_at(data: memoryview, entry: Mapping[str, Any]) -> Tensor:
    dtype = _DTYPES_BY_NAME[entry["dtype"]]
    if not data:
        return torch.empty(entry["shape"], dtype=dtype)
    address = 0 if data.readonly else ctypes.addressof(ctypes.c_char.from_buffer(data))
    # torch takes no view of what cannot be written to, nor of what lies across its words
    is_usable = not data.readonly and address % dtype.itemsize == 0
    buffer = data if is_usable else bytearray(data)
    return torch.frombuffer(buffer, dtype=dtype).reshape(entry["shape"])


def _parse_header(header: Buffer) -> dict[str, Any]:
    try:
        entries = json.loads(bytes(header).decode(), object_pairs_hook=_without_repeats)
        if isinstance(entries, dict):
            # half a character can be said in JSON, and by nobody who must repeat the name
            "".join(entries).encode()
    except (ValueError, RecursionError) as exc:
        raise MalformedMessage(f"the payload's header is no JSON: {exc}", field="payload") from exc
    if not isinstance(entries, dict):
        raise MalformedMessage("the payload's header is no JSON object", field="payload")
    return entries


def _without_repeats(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise MalformedMessage(f"{name!r} comes twice in the payload's header", field=name)
        result[name] = value
    return result


def _checked_span(name: str, entry: Any, item_bytes: Mapping[str, int]) -> tuple[int, int]:
    """First byte and end of a tensor's data, once its entry is known to make sense."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise MalformedMessage(
            f"{name!r} needs exactly dtype, shape and data_offsets in the payload's header",
            field=name,
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in item_bytes:
        raise MalformedMessage(
            f"tensor {name!r} has dtype {dtype!r}, taken are {', '.join(item_bytes)}", field=name
        )
    if not _are_counts(shape) or len(shape) > _MAX_DIMENSIONS:
        raise MalformedMessage(f"tensor {name!r} has the shape {shape!r}", field=name)
    # With empty dimensions counted as 1: strides of an empty tensor must not overflow either.
    if math.prod(max(size, 1) for size in shape) > _MAX_ENTRIES:
        raise MalformedMessage(f"tensor {name!r} has the shape {shape!r}", field=name)
    if not _are_counts(offsets) or len(offsets) != 2:
        raise MalformedMessage(f"tensor {name!r} has the data_offsets {offsets!r}", field=name)
    begin, end = offsets
    if end - begin != math.prod(shape) * item_bytes[dtype]:
        raise MalformedMessage(
            f"tensor {name!r}, {dtype} of shape {shape}, cannot fill the bytes {begin} to {end}",
            field=name,
        )
    return begin, end


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _require_gapless(spans: Iterable[tuple[int, int]], num_bytes: int) -> None:
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise MalformedMessage(
                f"the payload's tensors overlap or leave a gap at byte {min(begin, position)}",
                field="payload",
            )
        position = end
    if position != num_bytes:
        raise MalformedMessage(
            f"the payload's tensors need {position} bytes, {num_bytes} are there", field="payload"
        )

"""Bytes, messages and payloads, made wrong in the ways that a decoder could mishandle."""

import json
import math
import random
import struct
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

NUMBERS = (0, 1, -1, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
FLOATS = (0.0, -0.0, 1.0, -1.0, 5e-324, 1e308, math.inf, -math.inf, math.nan)
TEXTS = (
    *("", "a", "b.a", "x.a.vectors", "head.", "__metadata__", "\0", "\ud7ff", "../../etc/passwd"),
    *("é" * 300, "x" * 70_000, "%s%n", "default", "movies", "a" * 64),
)
DTYPES = ("F64", "F32", "F16", "BF16", "I8", "I64", "BOOL", "F8_E4M3", "", None, 5)
_LIMITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change a few bytes, or take some out, or put some in twice."""
    changed = bytearray(data or b"\0")
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        end = min(len(changed), at + rng.choice((1, 2, 4, 8, 64)))
        number = struct.pack("<Q", rng.choice(NUMBERS) % 2**64)[: rng.choice((1, 2, 4, 8))]
        match rng.randrange(6):
            case 0:
                changed[at:end] = rng.randbytes(end - at)
            case 1:
                del changed[at:end]
            case 2:
                changed[at:at] = changed[at:end]
            case 3:
                changed[at : at + len(number)] = number
            case 4:
                changed[at:at] = rng.randbytes(rng.randint(1, 16))
            case _:
                del changed[at:]
    return bytes(changed)


def mutate_message(data: bytes, kind: type[Message], rng: random.Random) -> bytes:
    """Set a field somewhere in a message to something odd; now and then spoil its bytes instead."""
    try:
        message = kind.FromString(data)
    except DecodeError:
        return mutate_bytes(data, rng)
    for _ in range(rng.randint(1, 3)):
        _spoil(message, rng)
    data = message.SerializeToString()
    return mutate_bytes(data, rng) if rng.random() < 0.2 else data


def populated(kind: type[Message], rng: random.Random, depth: int = 3) -> bytes:
    """Write a message with something plausible in every field."""
    message = kind()
    for field in message.DESCRIPTOR.fields:
        if field.message_type is None or depth:
            _set(message, field, lambda each: _plausible(each, rng), rng, depth)
    return message.SerializeToString()


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Change the header of a safetensors file, or its entries, so that both may still agree."""
    header, body = _split(data)
    if header is None or rng.random() < 0.15:
        return mutate_bytes(data, rng)
    body = _spoil_file(header, body, rng)
    return _joined(header, body)


def _spoil(message: Message, rng: random.Random) -> None:
    fields = message.DESCRIPTOR.fields
    if not fields:
        return
    field = rng.choice(fields)
    inside = field.message_type is not None and not _is_repeated(field)
    if inside and rng.random() < 0.8:
        _spoil(getattr(message, field.name), rng)
    elif rng.random() < 0.15:
        message.ClearField(field.name)
    else:
        _set(message, field, lambda each: _odd(each, rng), rng, depth=1)


def _is_repeated(field: FieldDescriptor) -> bool:
    return field.is_repeated


def _set(
    message: Message, field: FieldDescriptor, value: Any, rng: random.Random, depth: int
) -> None:
    """Give a field, of any kind, values that ``value`` makes for a scalar field."""
    target = getattr(message, field.name)
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        key, inner = entry.fields_by_name["key"], entry.fields_by_name["value"]
        for _ in range(rng.choice((1, 2, 100))):
            if inner.message_type is None:
                target[value(key)] = value(inner)
            else:
                _fill(target[value(key)], value, rng, depth - 1)
    elif entry is not None:
        for _ in range(rng.choice((1, 2, 3)) if _is_repeated(field) else 1):
            inner_message = target.add() if _is_repeated(field) else target
            inner_message.SetInParent()
            _fill(inner_message, value, rng, depth - 1)
    elif _is_repeated(field):
        target.extend(value(field) for _ in range(rng.choice((1, 2, 100))))
    else:
        setattr(message, field.name, value(field))


def _fill(message: Message, value: Any, rng: random.Random, depth: int) -> None:
    for field in message.DESCRIPTOR.fields:
        if field.message_type is None or depth > 0:
            _set(message, field, value, rng, depth)


def _plausible(field: FieldDescriptor, rng: random.Random) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return rng.random()
        case FieldDescriptor.CPPTYPE_STRING:
            is_bytes = field.type == FieldDescriptor.TYPE_BYTES
            word = rng.choice(("movies", "cats", "delta", "a", "b", "reader", "0" * 64))
            return rng.randbytes(32) if is_bytes else word
        case FieldDescriptor.CPPTYPE_ENUM:
            return rng.choice(field.enum_type.values).number
        case _:
            return rng.randint(1, 100)


def _odd(field: FieldDescriptor, rng: random.Random) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return rng.choice(FLOATS)
        case FieldDescriptor.CPPTYPE_STRING:
            is_bytes = field.type == FieldDescriptor.TYPE_BYTES
            return rng.randbytes(rng.choice((0, 1, 31, 32, 33))) if is_bytes else rng.choice(TEXTS)
        case cpp_type:
            low, high = _LIMITS[cpp_type]
            return min(max(rng.choice(NUMBERS), low), high)


def _split(data: bytes) -> tuple[dict[str, Any] | None, bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8:end])
    except (ValueError, RecursionError, OverflowError, MemoryError):
        return None, b""
    return (header if isinstance(header, dict) and header else None), data[end:]


def _joined(header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def _spoil_file(header: dict[str, Any], body: bytes, rng: random.Random) -> bytes:
    name = rng.choice(list(header))
    entry = header[name]
    if not isinstance(entry, dict) or rng.random() < 0.15:
        header[rng.choice(TEXTS)] = header.pop(name)
        return body
    match rng.randrange(7):
        case 0:
            del header[name]
        case 1:
            entry["dtype"] = rng.choice(DTYPES)
        case 2:
            entry["shape"] = [rng.choice(NUMBERS) for _ in range(rng.randint(0, 9))]
        case 3:
            entry["data_offsets"] = [rng.choice(NUMBERS) for _ in range(rng.randint(0, 3))]
        case 4:
            shape = entry.get("shape")
            if isinstance(shape, list):
                rng.shuffle(shape)
        case 5:
            return _laid_out_anew(header, rng)
        case _:
            number = struct.pack("<d", rng.choice(FLOATS))
            at = 8 * rng.randrange(len(body) // 8 + 1)
            return body[:at] + number[: len(body) - at] + body[at + 8 :]
    return body


def _laid_out_anew(header: dict[str, Any], rng: random.Random) -> bytes:
    """Give every tensor a small shape of its own, with data that fits: the odd part is the shapes."""
    sizes = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1}
    position = 0
    for name, entry in header.items():
        if name == "__metadata__" or not isinstance(entry, dict):
            continue
        shape = [rng.randint(0, 4) for _ in range(rng.choice((0, 1, 2, 2, 2, 3)))]
        dtype = entry.get("dtype")
        item = sizes.get(dtype, 4) if isinstance(dtype, str) else 4
        end = position + item * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    return (
        rng.choice((b"\0", b"\x01", b"\x3f"))[:1] * position
        if rng.random() < 0.5
        else rng.randbytes(position)
    )

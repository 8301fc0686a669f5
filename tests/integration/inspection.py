"""
The inspection of a recording: what of it may not have been sent.

It reads messages by their descriptors and payloads by hand, not by the
project's own codecs, and knows the project only through ``allowed``.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet

from share_dist.pb import coordinator_pb2 as pb
from share_dist.pb import tensor_pb2
from tests.integration.allowed import ALLOWED_FIELDS, ALLOWED_METADATA, Setup, TensorShapes
from tests.integration.canaries import Canary
from tests.integration.recorder import Recording

Kind: TypeAlias = Literal["method", "metadata", "field", "value", "framing", "tensor", "canary"]

SERVICE = pb.DESCRIPTOR.services_by_name["Coordinator"]

MAX_UPDATE_HEADER_BYTES = 1024
"""Of the message that opens a push: three ids, a digest, scores, sizes."""

MAX_BYTES_AROUND_CHUNK = 16 + 34
"""Index, lengths and tags of one chunk, and the digest up to its end."""

_ITEM_BYTES = {"F32": 4, "F64": 8}


@dataclass(frozen=True)
class Finding:
    """Something that may not have been sent."""

    kind: Kind
    where: str
    what: str


@dataclass(frozen=True)
class PushCost:
    """What the bytes of one push were spent on."""

    entries: int
    safetensors_header: int
    update_header: int
    around_chunks: int
    num_chunks: int

    @property
    def total(self) -> int:
        """All bytes of all messages."""
        return self.entries + self.safetensors_header + self.update_header + self.around_chunks


def reachable_fields() -> set[str]:
    """Name every field of every message that any call can carry."""
    found: set[str] = set()
    waiting = [
        descriptor
        for method in SERVICE.methods
        for descriptor in (method.input_type, method.output_type)
    ]
    seen: set[str] = set()
    while waiting:
        descriptor = waiting.pop()
        if descriptor.full_name in seen:
            continue
        seen.add(descriptor.full_name)
        for field in descriptor.fields:
            found.add(f"{descriptor.name}.{field.name}")
            if field.message_type and not field.message_type.GetOptions().map_entry:
                waiting.append(field.message_type)
    return found


def inspect(recording: Recording, setup: Setup, canaries: Sequence[Canary]) -> list[Finding]:
    """Find everything in a recording that may not have been sent."""
    return [
        *_inspect_metadata(recording),
        *_inspect_messages(recording, setup),
        *_inspect_payloads(recording, setup),
        *_search(recording, canaries),
    ]


def _inspect_metadata(recording: Recording) -> Iterator[Finding]:
    for each in recording.metadata:
        pattern = ALLOWED_METADATA.get((each.direction, each.key))
        if pattern is None or re.fullmatch(pattern, each.value.decode(errors="replace")) is None:
            yield Finding("metadata", each.method, f"{each.key}: {each.value!r}")


def _inspect_messages(recording: Recording, setup: Setup) -> Iterator[Finding]:
    for each in recording.messages:
        method = _method(each.method)
        if method is None:
            yield Finding("method", each.method, "is none of the coordinator's")
            continue
        is_request = each.direction == "to coordinator"
        try:
            message = _decode(method.input_type if is_request else method.output_type, each.data)
        except DecodeError as error:
            yield Finding("framing", each.method, str(error))
            continue
        if message.ByteSize() != len(each.data):
            yield Finding("framing", each.method, "bytes that decoding throws away")
        yield from _inspect_fields(message, setup)


def _inspect_fields(message: Message, setup: Setup) -> Iterator[Finding]:
    name = message.DESCRIPTOR.name
    for unknown in UnknownFieldSet(message):
        yield Finding("field", name, f"unknown field {unknown.field_number}")
    for field, value in message.ListFields():
        path = f"{name}.{field.name}"
        rule = ALLOWED_FIELDS.get(path)
        if rule is None:
            yield Finding("field", path, "is not on the list")
        elif not rule(value, setup):
            yield Finding("value", path, f"may not hold {str(value)[:200]}")
        if isinstance(value, Message):
            yield from _inspect_fields(value, setup)
        elif field.message_type and not field.message_type.GetOptions().map_entry:
            for member in value:
                yield from _inspect_fields(member, setup)


def _inspect_payloads(recording: Recording, setup: Setup) -> Iterator[Finding]:
    for method in ("PushUpdate", "PullSubspace", "PullTask"):
        for header, chunks in _transfers(recording, method):
            payload = b"".join(chunk.data for chunk in chunks)
            where = f"{method} payload"
            if len(chunks) != header.payload.num_chunks or len(payload) != header.payload.num_bytes:
                yield Finding("framing", where, "more or less came than was announced")
            yield from _inspect_digests(where, header, chunks)
            if payload:
                yield from _inspect_tensors(where, payload, _expected_shapes(header, setup))


def _inspect_digests(
    where: str, header: Any, chunks: Sequence[tensor_pb2.Chunk]
) -> Iterator[Finding]:
    """Hold every digest against what it is said to be of: 32 bytes of anything else could be a sample."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk.data)
        if chunk.prefix_sha256 not in {b"", digest.digest()}:
            yield Finding("framing", where, f"chunk {chunk.index} has the digest of something else")
    said = header.payload.sha256 or (chunks[-1].prefix_sha256 if chunks else b"")
    if header.payload.num_bytes and said != digest.digest():
        yield Finding("framing", where, "the digest is of something else, or not said")


def _expected_shapes(header: Any, setup: Setup) -> TensorShapes:
    try:
        if isinstance(header, pb.UpdateHeader):
            return setup.update_shapes(header.task_id, header.base_version)
        if isinstance(header, pb.TaskHeader):
            return setup.task_shapes(header.task.task_id, header.version)
        return setup.subspace_shapes(header.version)
    except KeyError:
        # a task or a version that does not exist has no tensors
        return {}


def _inspect_tensors(where: str, payload: bytes, expected: TensorShapes) -> Iterator[Finding]:
    """Hold a safetensors file against the one way in which these tensors can be written."""
    length = int.from_bytes(payload[:8], "little")
    try:
        entries: dict[str, Any] = json.loads(payload[8 : 8 + length])
    except ValueError as error:
        yield Finding("tensor", where, f"its header is no JSON: {error}")
        return
    for name in sorted(entries.keys() ^ expected.keys()):
        yield Finding("tensor", where, f"{name!r} is {'extra' if name in entries else 'missing'}")
    for name in entries.keys() & expected.keys():
        dtype, shape = entries[name]["dtype"], tuple(entries[name]["shape"])
        if (dtype, shape) != expected[name]:
            yield Finding("tensor", where, f"{name!r} is {dtype} {shape}, not {expected[name]}")
    header = safetensors_header(expected)
    if payload[: len(header)] != header:
        yield Finding("tensor", where, "its header is not what these tensors need")
    if len(payload) != len(header) + entry_bytes(expected):
        yield Finding("tensor", where, "its length is not what these tensors need")


def entry_bytes(shapes: TensorShapes) -> int:
    """Count the bytes of the entries of all tensors."""
    return sum(_ITEM_BYTES[dtype] * math.prod(shape) for dtype, shape in shapes.values())


def safetensors_header(shapes: TensorShapes) -> bytes:
    """Write the one header that a safetensors file of these tensors has: widest dtype first, then by name."""
    described, begin = {}, 0
    order = sorted(shapes, key=lambda name: (-_ITEM_BYTES[shapes[name][0]], name))
    for name in order:
        dtype, shape = shapes[name]
        end = begin + _ITEM_BYTES[dtype] * math.prod(shape)
        described[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(described, separators=(",", ":")).encode()
    padded = text.ljust(-(-len(text) // 8) * 8)
    return len(padded).to_bytes(8, "little") + padded


def _search(recording: Recording, canaries: Sequence[Canary]) -> Iterator[Finding]:
    pieces = [(each.method, each.data) for each in recording.messages]
    pieces += [(each.method, each.key.encode() + each.value) for each in recording.metadata]
    for method in ("PushUpdate", "PullSubspace", "PullTask"):
        # joined as well: a chunk may end in the middle of a canary
        joined = [
            b"".join(chunk.data for chunk in chunks) for _, chunks in _transfers(recording, method)
        ]
        pieces += [(method, payload) for payload in joined]
    for method, data in pieces:
        for canary in canaries:
            if canary.data in data:
                yield Finding("canary", method, canary.what)


def push_costs(recording: Recording) -> list[PushCost]:
    """What each push of a recording cost."""
    costs = []
    for call in recording.calls(_full_name("PushUpdate")):
        sent = [each.data for each in call if each.direction == "to coordinator"]
        requests = [pb.PushUpdateRequest.FromString(data) for data in sent]
        payload = b"".join(request.chunk.data for request in requests)
        header = 8 + int.from_bytes(payload[:8], "little")
        costs.append(
            PushCost(
                entries=len(payload) - header,
                safetensors_header=header,
                update_header=len(sent[0]),
                around_chunks=sum(map(len, sent[1:])) - len(payload),
                num_chunks=len(sent) - 1,
            )
        )
    return costs


def pushed_headers(recording: Recording) -> list[pb.UpdateHeader]:
    """The headers of all pushes of a recording."""
    return [header for header, _ in _transfers(recording, "PushUpdate")]


def _transfers(recording: Recording, method: str) -> Iterator[tuple[Any, list[tensor_pb2.Chunk]]]:
    """A header with the chunks that came after it, for each call that has one."""
    direction = "to coordinator" if method == "PushUpdate" else "to worker"
    descriptor = SERVICE.methods_by_name[method]
    kind = descriptor.input_type if method == "PushUpdate" else descriptor.output_type
    for call in recording.calls(_full_name(method)):
        parts = [_decode(kind, each.data) for each in call if each.direction == direction]
        headers = [part.header for part in parts if part.HasField("header")]
        if headers:
            yield headers[0], [part.chunk for part in parts if part.HasField("chunk")]


def _decode(descriptor: Descriptor, data: bytes) -> Any:
    return GetMessageClass(descriptor).FromString(data)


def _full_name(method: str) -> str:
    return f"/{SERVICE.full_name}/{method}"


def _method(path: str) -> MethodDescriptor | None:
    service, _, name = path.removeprefix("/").rpartition("/")
    return SERVICE.methods_by_name.get(name) if service == SERVICE.full_name else None

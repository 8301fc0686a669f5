"""Ways in which a push could carry a sample: each changes one thing of a push that carries none."""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

from share_dist.pb import coordinator_pb2 as pb
from share_dist.wire.chunks import split_into_chunks
from tests.integration.canaries import LABELS, TOKEN_IDS, WORD, varint
from tests.integration.inspection import Kind

TEXT = f"a private text with {WORD} in it"
IDS_AS_FLOATS = struct.pack(f"<{len(TOKEN_IDS)}f", *TOKEN_IDS)
IDS_AS_INTEGERS = struct.pack(f"<{len(TOKEN_IDS)}q", *TOKEN_IDS)


@dataclass(frozen=True)
class Push:
    """
    One push as a peer could make it.

    Args:
        header: As it will be announced, but for the payload's own header.
        payload: A safetensors file, or what claims to be one.
        extra: Messages, already serialized, that go after the last chunk.
        metadata: Headers of the call.
        raw_suffix: Appended to the serialized header.
        raw_prefix: Put before it.
    """

    header: pb.UpdateHeader
    payload: bytes
    extra: tuple[bytes, ...] = ()
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    raw_prefix: bytes = b""
    raw_suffix: bytes = b""

    def requests(self) -> list[bytes]:
        """The serialized messages."""
        announced, chunks = split_into_chunks(self.payload)
        header = pb.UpdateHeader()
        header.CopyFrom(self.header)
        header.payload.CopyFrom(announced)
        # field 1, length-delimited: written by hand, so that what protobuf would not write can be
        body = self.raw_prefix + header.SerializeToString() + self.raw_suffix
        first = b"\x0a" + varint(len(body)) + body
        rest = [pb.PushUpdateRequest(chunk=chunk).SerializeToString() for chunk in chunks]
        return [first, *rest, *self.extra]


Leak = Callable[[Push], Push]


def _with_header(change: Callable[[pb.UpdateHeader], object]) -> Leak:
    def leak(push: Push) -> Push:
        header = pb.UpdateHeader()
        header.CopyFrom(push.header)
        change(header)
        return replace(push, header=header)

    return leak


def _with_tensors(change: Callable[[dict[str, dict[str, object]], bytes], bytes]) -> Leak:
    """Change the JSON header and the entries of the payload, and write them again."""

    def leak(push: Push) -> Push:
        length = int.from_bytes(push.payload[:8], "little")
        described = json.loads(push.payload[8 : 8 + length])
        entries = change(described, push.payload[8 + length :])
        text = json.dumps(described, separators=(",", ":")).encode()
        text = text.ljust(-(-len(text) // 8) * 8)
        return replace(push, payload=len(text).to_bytes(8, "little") + text + entries)

    return leak


def _add_tensor(name: str) -> Callable[[dict[str, dict[str, object]], bytes], bytes]:
    def change(described: dict[str, dict[str, object]], entries: bytes) -> bytes:
        end = len(entries)
        described[name] = {
            "dtype": "F32",
            "shape": [len(TOKEN_IDS)],
            "data_offsets": [end, end + len(IDS_AS_FLOATS)],
        }
        return entries + IDS_AS_FLOATS

    return change


def _rename_tensor(described: dict[str, dict[str, object]], entries: bytes) -> bytes:
    name = next(iter(described))
    described[f"{TEXT}.{name}"] = described.pop(name)
    return entries


def _grow_tensor(described: dict[str, dict[str, object]], entries: bytes) -> bytes:
    """Give the last tensor more rows than a task of its kind has."""
    name = max(described, key=lambda each: described[each]["data_offsets"][1])  # type: ignore[index]
    begin, end = described[name]["data_offsets"]  # type: ignore[misc]
    described[name] |= {
        "shape": [(end - begin) // 4 + len(TOKEN_IDS)],
        "data_offsets": [begin, end + len(IDS_AS_FLOATS)],
    }
    return entries + IDS_AS_FLOATS


def _replace_entries(described: dict[str, dict[str, object]], entries: bytes) -> bytes:
    """Say the ids where weights belong: every name, shape and length is as it should be."""
    return IDS_AS_FLOATS + entries[len(IDS_AS_FLOATS) :]


def _add_metadata(described: dict[str, dict[str, object]], entries: bytes) -> bytes:
    described["__metadata__"] = {"note": TEXT}
    return entries


def _append(described: dict[str, dict[str, object]], entries: bytes) -> bytes:
    return entries + IDS_AS_INTEGERS


def _pad(push: Push) -> Push:
    """Put a text where the header of a safetensors file is padded with spaces."""
    length = int.from_bytes(push.payload[:8], "little")
    text = push.payload[8 : 8 + length] + b" " + TEXT.encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return replace(
        push, payload=len(text).to_bytes(8, "little") + text + push.payload[8 + length :]
    )


def _extra_chunk(push: Push) -> Push:
    _, chunks = split_into_chunks(push.payload)
    chunk = pb.PushUpdateRequest(chunk=next(chunks))
    chunk.chunk.index = 1
    chunk.chunk.data = IDS_AS_INTEGERS
    return replace(push, extra=(chunk.SerializeToString(),))


def _second_header(push: Push) -> Push:
    header = pb.PushUpdateRequest(header=pb.UpdateHeader(task_id=TEXT))
    return replace(push, extra=(header.SerializeToString(),))


def _field(number: int, data: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(data)) + data


LEAKS: dict[str, tuple[Leak, set[Kind]]] = {
    "text as the name of a score": (
        _with_header(lambda header: header.scores.update({TEXT: 1.0})),
        {"value", "canary"},
    ),
    "text as the id of the update": (
        _with_header(lambda header: setattr(header, "update_id", TEXT)),
        {"value", "canary"},
    ),
    "text as the id of a task": (
        _with_header(lambda header: setattr(header, "task_id", TEXT)),
        {"value", "canary", "tensor"},
    ),
    "text as the type of a head": (
        _with_header(lambda header: setattr(header.head, "task_type", TEXT)),
        {"value", "canary"},
    ),
    "label names in the head": (
        _with_header(lambda header: header.head.label_names.extend(LABELS)),
        {"value", "canary"},
    ),
    "a token id as the weight": (
        _with_header(lambda header: setattr(header, "weight", float(TOKEN_IDS[0]))),
        {"value"},
    ),
    "text in the name of a tensor": (_with_tensors(_rename_tensor), {"tensor", "canary"}),
    "token ids in one tensor more": (
        _with_tensors(_add_tensor("encoder.layer.9.a.temporary")),
        {"tensor", "canary"},
    ),
    "token ids in one tensor of the head more": (
        _with_tensors(_add_tensor("head.running_mean")),
        {"tensor", "canary"},
    ),
    "token ids in more rows of a tensor": (_with_tensors(_grow_tensor), {"tensor", "canary"}),
    "token ids instead of weights": (_with_tensors(_replace_entries), {"canary"}),
    "token ids after the last tensor": (_with_tensors(_append), {"tensor", "canary"}),
    "text in the metadata of the payload": (_with_tensors(_add_metadata), {"tensor", "canary"}),
    "text in the padding of the payload": (_pad, {"tensor", "canary"}),
    "token ids in one chunk more": (_extra_chunk, {"framing", "tensor", "canary"}),
    "text in a second header": (_second_header, {"value", "canary"}),
    "text in a header of the call": (
        lambda push: replace(push, metadata=(("x-note", TEXT),)),
        {"metadata", "canary"},
    ),
    "token ids in a binary header of the call": (
        lambda push: replace(push, metadata=(("x-note-bin", IDS_AS_INTEGERS),)),
        {"metadata", "canary"},
    ),
    "text in a field that nobody knows": (
        lambda push: replace(push, raw_suffix=_field(99, TEXT.encode())),
        {"field", "canary"},
    ),
    "text in a field that is then overwritten": (
        lambda push: replace(push, raw_prefix=_field(2, TEXT.encode())),
        {"framing", "canary"},
    ),
}
"""What is done to a push -> the kinds of findings that must come of it."""

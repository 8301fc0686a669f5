"""
Every function of the library that reads bytes or messages of a peer, found by its name.

A decoder is a public function called ``*_from_pb``, ``*_from_bytes`` or ``*_from_wire`` of the wire
modules, and a few that are named by hand. What an argument beside the bytes is filled with stands in ``ARGUMENTS``, by its
name; a new decoder with another argument fails until it is there.
"""

import functools
import importlib
import inspect
import pkgutil
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import torch
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import DecodeError, Message

import share_dist.wire
from share_dist.core.merge import merge
from share_dist.core.steps import advance
from share_dist.core.subspace import update_from_factors
from share_dist.core.values import Head, LayerFactors, LayerShape, Subspace
from share_dist.errors import ShareError
from share_dist.pb import admin_pb2
from share_dist.pb import coordinator_pb2 as pb
from share_dist.wire import frames, tensors
from share_dist.wire.chunks import MIN_CHUNK_BYTES, ChunkJoiner, split_into_chunks
from share_dist.wire.codec import update_from_wire
from share_dist.wire.records import Lease
from share_dist.wire.rotations import (
    rotation_from_bytes,
    rotation_to_bytes,
    steps_from_bytes,
    steps_to_bytes,
)
from share_dist.wire.status import DETAIL_KEY, error_from_rpc
from tests.fuzz.mutation import mutate_bytes, mutate_message, mutate_safetensors, populated

GOLDEN = Path(__file__).parents[1] / "wire" / "golden"
LIMIT_BYTES = 2**20
"""What a receiver is set to take, in these tests."""

ARGUMENTS: dict[str, Any] = {
    "version": 5,
    "metric": "delta",
    "head_info": Head(),
    "worker_id": "w",
    "lease": Lease("w", 1, 30.0, 5, None),
    "field": "field",
}

PARTS: dict[str, tuple[type[Message], Callable[[Callable[..., Any], Any], object]]] = {
    "optional_fingerprint_from_pb": (pb.GetStatusResponse, lambda read, message: read(message)),
    "optional_time_from_pb": (
        admin_pb2.Token,
        lambda read, message: (read(message, "expires_at"), read(message, "revoked_at")),
    ),
    "update_states_from_pb": (
        admin_pb2.ListUpdatesRequest,
        lambda read, message: read(message.states),
    ),
}
"""Decoders that read a part of a message: the message, and how they are called with it."""


@dataclass(frozen=True)
class Decoder:
    """
    One function under attack.

    Args:
        name: Module and function.
        decode: Reads bytes; whatever they are, only a ``ShareError`` may come out.
        seeds: Bytes that it takes, or nearly.
        mutate: Makes others of them.
    """

    name: str
    decode: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    mutate: Callable[[bytes, random.Random], bytes]

    def attack(self, data: bytes) -> bool:
        """
        Decode; say whether the bytes were taken.

        Raises:
            Exception: A bug: anything but a ShareError.
        """
        try:
            self.decode(data)
        except ShareError:
            return False
        return True


def find_decoders() -> list[Decoder]:
    """Return all decoders of the library."""
    return [*_by_name(), *_by_hand()]


def mutate_payload(data: bytes, rng: random.Random) -> bytes:
    """Spoil a safetensors file, or one of the several that a payload of steps has."""
    if data[8:9] == b"{":
        return mutate_safetensors(data, rng)
    try:
        steps = steps_from_bytes(data)
    except ShareError:
        return mutate_bytes(data, rng)
    at = rng.randrange(len(steps) + 1)
    if at == len(steps):
        return mutate_bytes(data, rng)
    return steps_to_bytes([*steps[:at], mutate_safetensors(steps[at], rng), *steps[at + 1 :]])


def _payloads() -> tuple[bytes, ...]:
    """One payload of each kind, as a release wrote it or as this one does."""
    golden = tuple(path.read_bytes() for path in sorted(GOLDEN.glob("*.safetensors")))
    steps = [payload for _, payload in _lineage()]
    return (*golden, *steps, steps_to_bytes(steps))


@functools.cache
def _lineage() -> tuple[tuple[Subspace, bytes], ...]:
    """Two versions: what each follows, and the payload of the step to it."""
    generator = torch.Generator().manual_seed(0)
    subspace, tasks, steps = Subspace.empty({"q": LayerShape(6, 5)}), {}, []
    for index in range(2):
        a, b = (torch.randn(features, 2, generator=generator) for features in (6, 5))
        update = update_from_factors(subspace, {"q": LayerFactors(a, b)}, f"t{index}")
        outcome = merge(subspace, tasks, [update], 2, oversample=1)
        payload = rotation_to_bytes(outcome.rotation, subspace, outcome.subspace)
        steps.append((subspace, payload))
        subspace, tasks = outcome.subspace, outcome.tasks
    return tuple(steps)


def _follow(data: bytes) -> object:
    """What a client does with a step: read it, and go from the version that it holds."""
    held, _ = _lineage()[-1]
    return advance(held, [rotation_from_bytes(data, version=held.version + 1)])


def _by_name() -> Iterator[Decoder]:
    for module in _wire_modules():
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ != module.__name__ or name.startswith("_"):
                continue
            label = f"{module.__name__.rpartition('.')[2]}.{name}"
            if name.endswith("_from_pb"):
                yield _message_decoder(label, function)
            elif name.endswith("_from_bytes"):
                arguments = _arguments(function)
                decode = functools.partial(function, **arguments)
                yield Decoder(label, decode, _payloads(), mutate_payload)


def _wire_modules() -> Iterator[ModuleType]:
    for info in pkgutil.iter_modules(share_dist.wire.__path__):
        yield importlib.import_module(f"share_dist.wire.{info.name}")


def _arguments(function: Callable[..., Any]) -> dict[str, Any]:
    _, *others = inspect.signature(function).parameters.values()
    missing = [each.name for each in others if each.default is each.empty]
    return {name: ARGUMENTS[name] for name in missing}


def _message_decoder(label: str, function: Callable[..., Any]) -> Decoder:
    first = next(iter(inspect.signature(function).parameters.values()))
    arguments, annotation = _arguments(function), first.annotation
    if isinstance(annotation, EnumTypeWrapper):
        return Decoder(label, lambda data: function(_number(data)), (b"\x01",), mutate_bytes)
    whole = (annotation, lambda read, message: read(message, **arguments))
    kind, call = PARTS.get(function.__name__, whole)

    def decode(data: bytes) -> object:
        message = _parsed(kind, data)
        return None if message is None else call(function, message)

    return _decoder_of(label, kind, decode)


def _decoder_of(label: str, kind: type[Message], decode: Callable[[bytes], object]) -> Decoder:
    rng = random.Random(label)
    seeds = tuple(populated(kind, rng) for _ in range(8))
    return Decoder(label, decode, seeds, lambda data, each: mutate_message(data, kind, each))


def _number(data: bytes) -> int:
    return int.from_bytes(data[:4], "little", signed=True)


def _parsed(kind: type[Message], data: bytes) -> Any:
    """The message; None for bytes that gRPC itself refuses."""
    try:
        return kind.FromString(data)
    except DecodeError:
        return None


def _by_hand() -> Iterator[Decoder]:
    payloads = _payloads()
    yield Decoder("tensors.note_of", tensors.note_of, payloads, mutate_payload)
    yield Decoder("tensors.payload_sizes", tensors.payload_sizes, payloads, mutate_payload)
    yield Decoder(
        "chunks.ChunkJoiner, then update_from_wire", _decode_push, _push_seeds(), _mutate_frames
    )
    messages = tuple(part for seed in _push_seeds() for part in frames_of(seed))
    yield Decoder(
        "frames.reader, against protocol buffers",
        _read_frame,
        messages,
        lambda data, rng: mutate_message(data, pb.PushUpdateRequest, rng),
    )
    steps = tuple(payload for _, payload in _lineage())
    yield Decoder("steps.advance", _follow, steps, mutate_safetensors)
    error_seeds = ((GOLDEN / "error.v1.pb").read_bytes(),)
    yield Decoder("status.error_from_rpc", _decode_error, error_seeds, mutate_bytes)


def _push_seeds() -> tuple[bytes, ...]:
    """Pushes as they cross the wire, their messages behind their lengths."""
    header = pb.UpdateHeader.FromString((GOLDEN / "update_header.v1.pb").read_bytes())
    payload = (GOLDEN / "update.v1.safetensors").read_bytes()
    return (_push_of(header, payload), _push_of(header, payload * 400))


def _push_of(header: pb.UpdateHeader, payload: bytes) -> bytes:
    announced, chunks = split_into_chunks(payload, MIN_CHUNK_BYTES)
    header.payload.CopyFrom(announced)
    pieces = [pb.PushUpdateRequest(chunk=chunk) for chunk in chunks]
    return _framed([pb.PushUpdateRequest(header=header), *pieces])


def _framed(messages: list[pb.PushUpdateRequest]) -> bytes:
    parts = [message.SerializeToString() for message in messages]
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


def frames_of(data: bytes) -> list[bytes]:
    """Part what ``_framed`` joined; a length that is too long takes what is there."""
    found: list[bytes] = []
    while data and len(found) < 100:
        end = 4 + int.from_bytes(data[:4], "little") % 2**24
        found.append(data[4:end])
        data = data[end:]
    return found


def _mutate_frames(data: bytes, rng: random.Random) -> bytes:
    parts = frames_of(data) or [b""]
    at = rng.randrange(len(parts))
    match rng.randrange(5):
        case 0:
            rng.shuffle(parts)
        case 1:
            parts.append(parts[at])
        case 2:
            del parts[at]
        case 3:
            parts[at] = mutate_bytes(parts[at], rng)
        case _:
            parts[at] = mutate_message(parts[at], pb.PushUpdateRequest, rng)
    return b"".join(len(frame).to_bytes(4, "little") + frame for frame in parts)


def _decode_push(data: bytes) -> object:
    """What a coordinator does with a push: the header, its chunks, the update."""
    messages = [_read(frame) for frame in frames_of(data)]
    header = frames.header_of(messages[0]) if messages else None
    chunks = [frames.chunk_of(message) for message in messages[1:] if message is not None]
    if header is None or None in chunks:
        return None
    joiner = ChunkJoiner(header.payload, LIMIT_BYTES, takes_late_digest=True)
    for chunk in chunks:
        joiner.add(chunk)
    return update_from_wire(header, joiner.finish())


def _read(frame: bytes) -> Any:
    """A message of a push as a coordinator reads it; None for bytes that gRPC itself refuses."""
    try:
        return frames.reader(pb.PushUpdateRequest)(frame)
    except DecodeError:
        return None


def _read_frame(data: bytes) -> object:
    """Read a message in place; whatever chunk is found is the one that it means."""
    found, meant = _read(data), _parsed(pb.PushUpdateRequest, data)
    if not isinstance(found, frames.LentChunk):
        assert found == meant
    elif found.index < 2**32:  # protocol buffers cut a larger number down: no chunk has it
        chunk = meant.chunk
        assert found.index == chunk.index
        assert found.data == chunk.data
        assert found.prefix_sha256 == chunk.prefix_sha256
    return found


class _Refusal(grpc.RpcError):
    """A failed call with what a peer put into its trailing metadata."""

    def __init__(self, detail: bytes) -> None:
        super().__init__()
        self._detail = detail

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return ((DETAIL_KEY, self._detail),)

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.INTERNAL

    def details(self) -> str:
        return ""


def _decode_error(data: bytes) -> object:
    error = error_from_rpc(_Refusal(data), address="a:1")
    return (str(error), error.details)

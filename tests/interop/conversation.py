"""
A conversation between a client and a coordinator, as bytes, with the schema that it was held in.

One file per release, of JSON lines (``zcat`` shows them). The first line is about the whole: the schema as a
``FileDescriptorSet`` and what the release's own client made of the answers. Every other line
is one call: method, requests, responses, status and the error that came with it. Messages are
base64, because they must stay as they were whatever becomes of today's generated code.
"""

import base64
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from google.protobuf import message_factory
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message

FOLDER = Path(__file__).parent / "conversations"
ERROR_KEY = "share-dist-error-bin"
PACKAGE = "share_dist.pb"


@dataclass(frozen=True)
class Call:
    """One call. ``error`` is what the trailing metadata held under ``ERROR_KEY``."""

    method: str
    requests: tuple[bytes, ...]
    responses: tuple[bytes, ...]
    status: str = "OK"
    details: str = ""
    error: bytes = b""

    @property
    def rpc(self) -> str:
        return self.method.rpartition("/")[2]


@final
class Schema:
    """The messages and calls of one release, beside those of today."""

    def __init__(self, files: FileDescriptorSet) -> None:
        self.files = files
        self._pool = DescriptorPool()
        for file in files.file:
            self._pool.Add(file)

    @classmethod
    def of(cls, descriptors: Iterable[FileDescriptor]) -> "Schema":
        """Take the files of generated code, and those that they import, in order."""
        files = FileDescriptorSet()
        seen: set[str] = set()

        def add(descriptor: FileDescriptor) -> None:
            if descriptor.name in seen:
                return
            seen.add(descriptor.name)
            for dependency in descriptor.dependencies:
                add(dependency)
            descriptor.CopyToProto(files.file.add())

        for descriptor in descriptors:
            add(descriptor)
        return cls(files)

    def message(self, name: str) -> type[Message]:
        """Find a message's class by its name in our package."""
        found = self._pool.FindMessageTypeByName(f"{PACKAGE}.{name}")
        return message_factory.GetMessageClass(found)

    def methods(self) -> dict[str, tuple[type[Message], type[Message]]]:
        """Every call that the schema knows: request and response by the call's path."""
        return {
            f"/{PACKAGE}.{service.name}/{method.name}": (
                message_factory.GetMessageClass(method.input_type),
                message_factory.GetMessageClass(method.output_type),
            )
            for service in self._services()
            for method in service.methods
        }

    def requests(self, method: str, data: Sequence[bytes]) -> list[Message]:
        """Read a call's requests; what the schema does not know is dropped."""
        return _parse(self.methods()[method][0], data)

    def responses(self, method: str, data: Sequence[bytes]) -> list[Message]:
        """Read a call's responses; what the schema does not know is dropped."""
        return _parse(self.methods()[method][1], data)

    def error(self, data: bytes) -> Any:
        """Read an ``ErrorDetail``."""
        return _parse(self.message("ErrorDetail"), [data])[0]

    def _services(self) -> Iterator[Any]:
        for file in self.files.file:
            for service in file.service:
                yield self._pool.FindServiceByName(f"{file.package}.{service.name}")


@dataclass(frozen=True)
class Conversation:
    """All calls of one release's scenario, and the results that its own client made of them."""

    release: str
    schema: Schema
    results: Mapping[str, Any]
    calls: tuple[Call, ...]

    @classmethod
    def load(cls, path: Path) -> "Conversation":
        """Read a file that ``save`` wrote."""
        first, *rest = gzip.decompress(path.read_bytes()).decode().splitlines()
        about = json.loads(first)
        files = FileDescriptorSet.FromString(base64.b64decode(about["schema"]))
        calls = tuple(_call_from_json(json.loads(line)) for line in rest)
        return cls(about["release"], Schema(files), about["results"], calls)

    def save(self, path: Path) -> None:
        """Write the file; it is written once, and never changed."""
        about = {
            "release": self.release,
            "results": self.results,
            "schema": _to_text(self.schema.files.SerializeToString(deterministic=True)),
        }
        lines = [about, *(_call_to_json(call) for call in self.calls)]
        text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
        path.write_bytes(gzip.compress(text.encode(), mtime=0))


def _parse(kind: type[Message], data: Sequence[bytes]) -> list[Message]:
    messages = [kind.FromString(each) for each in data]
    for message in messages:
        message.DiscardUnknownFields()
    return messages


def _to_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _call_to_json(call: Call) -> dict[str, Any]:
    return {
        "method": call.method,
        "requests": [_to_text(data) for data in call.requests],
        "responses": [_to_text(data) for data in call.responses],
        "status": call.status,
        "details": call.details,
        "error": _to_text(call.error),
    }


def _call_from_json(line: Mapping[str, Any]) -> Call:
    return Call(
        method=line["method"],
        requests=tuple(base64.b64decode(text) for text in line["requests"]),
        responses=tuple(base64.b64decode(text) for text in line["responses"]),
        status=line["status"],
        details=line["details"],
        error=base64.b64decode(line["error"]),
    )

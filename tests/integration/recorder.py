"""A recorder between workers and a coordinator: keeps every byte of every call, in both directions."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import grpc
from typing_extensions import Self

from share_dist.wire.options import CHANNEL_OPTIONS, SERVER_OPTIONS

Direction = Literal["to coordinator", "to worker"]

STATUS_MESSAGE = "grpc-message"
"""The header in which gRPC sends the sentence of a status."""


@dataclass(frozen=True)
class Message:
    """One serialized message, as it went over the wire."""

    call: int
    method: str
    direction: Direction
    data: bytes


@dataclass(frozen=True)
class Metadata:
    """One header of a call."""

    call: int
    method: str
    direction: Direction
    key: str
    value: bytes


@dataclass
class Recording:
    """What went over the wire, in the order in which it was seen."""

    messages: list[Message]
    metadata: list[Metadata]

    def calls(self, method: str) -> list[list[Message]]:
        """The messages of each call of a method."""
        found: dict[int, list[Message]] = {}
        for message in self.messages:
            if message.method == method:
                found.setdefault(message.call, []).append(message)
        return list(found.values())


class Recorder:
    """
    Listens where workers think the coordinator is, and hands everything on to the real one.

    It knows neither messages nor codecs: bytes come in, are kept and go out, so
    that nothing a worker sends can escape by not being understood.

    Args:
        target: ``host:port`` of the real coordinator.
    """

    def __init__(self, target: str) -> None:
        self._recording = Recording([], [])
        self._lock = threading.Lock()
        self._num_calls = 0
        self._channel = grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._server = grpc.server(ThreadPoolExecutor(16), options=SERVER_OPTIONS)
        self._server.add_generic_rpc_handlers((_Everything(self),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()
        self._channel.close()

    def take(self) -> Recording:
        """What was recorded since the last time."""
        with self._lock:
            taken, self._recording = self._recording, Recording([], [])
        return taken

    def forward(self, method: str, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        """Hand one call on, and its answers back."""
        with self._lock:
            self._num_calls += 1
            call_id = self._num_calls
        given = [(key, value) for key, value in context.invocation_metadata()]
        self._keep_metadata(call_id, method, "to coordinator", given)
        # all of it before anything is handed on: a refusal must not end the recording early
        kept = [self._keep(call_id, method, "to coordinator", data) for data in requests]
        call = self._channel.stream_stream(method)(
            iter(kept),
            timeout=context.time_remaining(),
            metadata=[pair for pair in given if pair[0] != "user-agent"],
        )
        context.add_callback(call.cancel)
        try:
            self._keep_metadata(call_id, method, "to worker", call.initial_metadata())
            for data in call:
                yield self._keep(call_id, method, "to worker", data)
            self._keep_metadata(call_id, method, "to worker", call.trailing_metadata())
        except grpc.RpcError as error:
            self._refuse(call_id, method, error, context)

    def _refuse(self, call_id: int, method: str, error: Any, context: Any) -> None:
        if not context.is_active():
            return  # the worker has hung up, as it does at the end of a watch
        trailing = error.trailing_metadata() or ()
        said = [*trailing, (STATUS_MESSAGE, error.details() or "")]
        self._keep_metadata(call_id, method, "to worker", said)
        context.set_trailing_metadata(trailing)
        context.abort(error.code(), error.details())

    def _keep(self, call: int, method: str, direction: Direction, data: bytes) -> bytes:
        with self._lock:
            self._recording.messages.append(Message(call, method, direction, data))
        return data

    def _keep_metadata(self, call: int, method: str, direction: Direction, pairs: Any) -> None:
        with self._lock:
            self._recording.metadata.extend(
                Metadata(
                    call,
                    method,
                    direction,
                    key,
                    value.encode() if isinstance(value, str) else value,
                )
                for key, value in pairs or ()
            )


class _Everything(grpc.GenericRpcHandler):
    """Takes calls of any name and any arity: to the wire they all are streams."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def service(self, details: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(
            lambda requests, context: self._recorder.forward(details.method, requests, context)
        )

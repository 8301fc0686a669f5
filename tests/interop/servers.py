"""gRPC servers that know bytes only: one that passes calls on and writes them down, one that repeats what was written."""

import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, final

import grpc
from google.protobuf.message import Message
from typing_extensions import Self

from tests.interop.conversation import ERROR_KEY, Call, Conversation

Answer: TypeAlias = Callable[[str, Iterator[bytes], Any], Iterator[bytes]]
"""From a call's path, its requests and its context to its responses."""


@final
class BytesServer(grpc.GenericRpcHandler):
    """
    Hands every call on loopback to one function.

    Args:
        answer: That function.
        methods: Paths of the calls that it knows; None for all. Others are UNIMPLEMENTED.
    """

    def __init__(self, answer: Answer, methods: Collection[str] | None = None) -> None:
        self._answer = answer
        self._methods = methods
        self._server = grpc.server(ThreadPoolExecutor(16), handlers=(self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method
        if self._methods is not None and method not in self._methods:
            return None

        def behave(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            return self._answer(method, requests, context)

        return grpc.stream_stream_rpc_method_handler(behave)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()


@final
class Recorder:
    """Passes calls on to a coordinator, and keeps what both sides said in the order in which the calls began."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._slots: list[Call | None] = []
        self._lock = threading.Lock()

    @property
    def calls(self) -> tuple[Call, ...]:
        return tuple(call for call in self._slots if call is not None)

    def __call__(self, method: str, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        slot = self._slot()
        # all of them first: no client waits for an answer in the middle of its requests
        said = tuple(requests)
        call = self._channel.stream_stream(method)(iter(said), timeout=context.time_remaining())
        context.add_callback(call.cancel)
        heard: list[bytes] = []
        try:
            for response in call:
                heard.append(response)
                yield response
        except grpc.RpcError:
            context.set_trailing_metadata(call.trailing_metadata())
            context.set_code(call.code())
            context.set_details(call.details())
        finally:
            call.cancel()
            error = dict(call.trailing_metadata() or ()).get(ERROR_KEY, b"")
            ended = (call.code().name, call.details() or "", error)
            self._slots[slot] = Call(method, said, tuple(heard), *ended)

    def _slot(self) -> int:
        with self._lock:
            self._slots.append(None)
            return len(self._slots) - 1


@final
class Echo:
    """
    Answers as the coordinator of a conversation did.

    A call is known by what its requests say in the schema of that time, so that an old
    coordinator's view of a new client's request decides. Equal requests get their answers in
    the order in which they were recorded, and the last one from then on.

    Attributes:
        surprises: Requests that were never recorded.
    """

    def __init__(self, conversation: Conversation) -> None:
        self._schema = conversation.schema
        self._left = list(conversation.calls)
        self._lock = threading.Lock()
        self.surprises: list[str] = []

    def __call__(self, method: str, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        said = self._schema.requests(method, list(requests))
        call = self._take(method, said)
        if call is None:
            self.surprises.append(f"{method}: {said[:1]}")
            context.abort(grpc.StatusCode.UNKNOWN, "this was never asked of that release")
            return
        yield from call.responses
        if call.status == "CANCELLED":
            gone = threading.Event()
            if context.add_callback(gone.set):
                gone.wait()
        elif call.status != "OK":
            context.set_trailing_metadata(((ERROR_KEY, call.error),) if call.error else ())
            context.abort(grpc.StatusCode[call.status], call.details)

    def _take(self, method: str, said: list[Message]) -> Call | None:
        with self._lock:
            alike = [
                call
                for call in self._left
                if call.method == method and self._schema.requests(method, call.requests) == said
            ]
            if len(alike) > 1:
                self._left.remove(alike[0])
            return alike[0] if alike else None

"""
The versions of a subspace as they come to be, through cuts and restarts.

```
seen 4   stream open after 4        event 5 -> yielded, seen 5
seen 5   the connection is cut      wait, ask for the status until it answers
seen 5   stream open after 5        events 6 and 7, made meanwhile -> yielded, seen 7
seen 7   close()                    the loop ends

seen 7   Overloaded at the door     wait as long as it says, try again ...
seen 7   ... until patience ends    Overloaded is raised
```
"""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, final

import grpc

from share_dist.client.retry import RETRIED, RetryPolicy
from share_dist.errors import (
    DeadlineExceeded,
    MalformedMessage,
    ShareError,
    TransportError,
    VersionMismatch,
)
from share_dist.wire.codec import version_event_from_pb
from share_dist.wire.records import VersionEvent
from share_dist.wire.status import error_from_rpc


@final
class Watch(Iterator[VersionEvent]):
    """
    Yields every version after the last one seen, in order, each once.

    One thread iterates; any thread may ``close``. Made by ``ShareClient.watch``.

    Args:
        open_stream: Starts the call that tells versions after the given one, which is
            named by its number and its digest.
        probe: Returns once the coordinator answers; raises when it does not, or
            when the event is set.
        after_version: The last version that needs no telling.
        after_digest: Its digest; empty where it is not known.
        address: Whom it watches, for messages.
        policy: Waits between a cut and the next try.
        patience_seconds: How long it may be turned away before a stream opens.
    """

    def __init__(
        self,
        open_stream: Callable[[int, str], Any],
        probe: Callable[[threading.Event], object],
        *,
        after_version: int,
        after_digest: str = "",
        address: str,
        policy: RetryPolicy,
        patience_seconds: float,
    ) -> None:
        self.seen_version = after_version
        self.seen_digest = after_digest
        self._open_stream = open_stream
        self._probe = probe
        self._address = address
        self._policy = policy
        self._patience_seconds = patience_seconds
        self._turned_away_at: float | None = None
        self._call: Any = None
        self._num_cuts = 0
        self._closed = threading.Event()
        self._lock = threading.Lock()

    def __next__(self) -> VersionEvent:
        """
        Wait for the next version.

        Raises:
            VersionCompacted: A version that was not seen is no longer kept: pull the
                current one, and watch from there.
            VersionMismatch: A version that was seen is known there with another content: pull
                the current one, and watch from there.
            CoordinatorUnreachable: The coordinator was gone for longer than the
                watch's patience; watch again from ``seen_version``.
            Overloaded: It had no room for this watch for as long.
        """
        while not self._closed.is_set():
            event = self._next_event()
            if event is not None:
                return event
        raise StopIteration

    def close(self) -> None:
        """End the iteration, also one that waits in another thread."""
        with self._lock:
            self._closed.set()
            call = self._call
        if call is not None:
            call.cancel()

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next_event(self) -> VersionEvent | None:
        """Take the next event; None after coming back from a cut instead."""
        try:
            message = next(self._opened(), None)
        except grpc.RpcError as exc:
            self._recover(exc)
            return None
        if message is None:
            self._recover(None)
            return None
        return self._accept(version_event_from_pb(message))

    def _opened(self) -> Iterator[Any]:
        with self._lock:
            if self._closed.is_set():
                return iter(())
            if self._call is None:
                self._call = self._open_stream(self.seen_version, self.seen_digest)
            call: Iterator[Any] = self._call
            return call

    def _accept(self, event: VersionEvent) -> VersionEvent:
        if event.version != self.seen_version + 1:
            raise MalformedMessage(
                f"version {event.version} was told after version {self.seen_version}: "
                f"{self._address} does not tell every version in order",
                field="version",
            )
        if self.seen_digest and event.parent_digest not in {"", self.seen_digest}:
            raise VersionMismatch(
                f"version {event.version} of {self._address} follows version {self.seen_version} "
                f"{event.parent_digest[:12]}, seen was {self.seen_digest[:12]}: its store was "
                "restored or is another one; pull the current version, and watch from there",
                version=self.seen_version,
                expected=event.parent_digest,
                found=self.seen_digest,
            )
        self.seen_version, self.seen_digest = event.version, event.digest
        self._num_cuts = 0
        self._turned_away_at = None
        return event

    def _recover(self, cause: grpc.RpcError | None) -> None:
        """Come back from a cut, or raise what cannot be come back from."""
        with self._lock:
            self._call = None
        if self._closed.is_set():
            return
        error = None if cause is None else error_from_rpc(cause, address=self._address)
        if not isinstance(error, (*RETRIED, DeadlineExceeded, type(None))):
            raise error from cause
        wait_seconds = self._policy.wait_seconds(self._num_cuts, error)
        self._require_patience(error, wait_seconds)
        if self._closed.wait(wait_seconds):
            return
        self._num_cuts += 1
        try:
            self._probe(self._closed)
        except ShareError:
            if not self._closed.is_set():
                raise

    def _require_patience(self, error: ShareError | None, wait_seconds: float) -> None:
        """
        Raise when the stream was turned away and patience ends before the next try.

        A probe says nothing of this: a coordinator without room for one more
        watcher answers every other call. Any other cut is one of a stream that
        was open, or of a coordinator that is away, which the probe waits for.
        """
        if error is None or isinstance(error, TransportError):
            self._turned_away_at = None
            return
        now_seconds = time.monotonic()
        if self._turned_away_at is None:
            self._turned_away_at = now_seconds
        turned_away_seconds = now_seconds - self._turned_away_at
        if turned_away_seconds + wait_seconds > self._patience_seconds:
            raise type(error)(
                f"{self._address} has turned this watch away for {turned_away_seconds:.0f} s, the next "
                f"try is in {wait_seconds:.0f} s, and its patience is {self._patience_seconds:.0f} s: "
                f"watch again later from version {self.seen_version}. It said: {error.message}",
                **error.details,
            ) from error

"""
The contact: whether the coordinator answers, told once when it stops and once when it does again.

```
14:02:07  a call is not answered, and none that began later either: away since 14:02:07
...       the worker trains; every thread that needs an answer tries again now and then
15:05:31  one is answered: back, and all the others try at once
```
"""

import itertools
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Final, TypeVar

from share_dist.client.retry import RetryPolicy
from share_dist.errors import (
    ChecksumMismatch,
    CoordinatorUnreachable,
    DeadlineExceeded,
    Overloaded,
    ShareError,
    StoreFenced,
    StoreFull,
    StoreUnavailable,
    StreamTruncated,
    TooManySetAside,
    UnexpectedStatus,
)
from worker.ports import Coordinator
from worker.progress import Emit, WorkerEvent

ResultT = TypeVar("ResultT")

AWAY: Final = (CoordinatorUnreachable, DeadlineExceeded, UnexpectedStatus)
"""Nobody of ours has answered."""

PASSING: Final = (
    *AWAY,
    *(Overloaded, StoreFull, StoreUnavailable, StoreFenced, TooManySetAside),
    *(ChecksumMismatch, StreamTruncated),
)
"""What a worker outlasts: it passes by itself, or a person at the coordinator sees to it."""

POLICY: Final = RetryPolicy(first_wait_seconds=0.5, longest_wait_seconds=30.0)
"""Waits between calls, each of which tries for as long as its client does."""

LONGEST_CALL_SECONDS: Final = 3600.0


class Contact:
    """
    What all threads of a worker know of its coordinator together.

    Args:
        emit: Told when the coordinator is away, and when it is back.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._changed = threading.Condition()
        self._reached_at = float("-inf")
        self._since: datetime | None = None
        self._reason = ""
        self._num_waiting = 0
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether the worker has ended, and nobody shall try on."""
        return self._is_closed

    def close(self) -> None:
        """Let every wait end."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def note_waiting(self, num_waiting: int) -> None:
        """Note how many updates wait to be pushed; told again while the coordinator is away."""
        with self._changed:
            has_changed = num_waiting != self._num_waiting
            self._num_waiting = num_waiting
            if has_changed and self._since is not None:
                self._tell_away()

    def ask(self, call: Callable[[], ResultT]) -> ResultT:
        """
        Make a call, and note whether it was answered.

        Raises:
            ShareError: What the call raised.
        """
        began = time.monotonic()
        try:
            answer = call()
        except AWAY as error:
            self._missed(began, error)
            raise
        except ShareError:
            self._reached()
            raise
        self._reached()
        return answer

    def insist(
        self, call: Callable[[], ResultT], also: tuple[type[ShareError], ...] = ()
    ) -> ResultT:
        """
        Make a call until it is answered, with growing and jittered waits.

        Args:
            call: What to do.
            also: Errors that another try may answer as well.

        Raises:
            ShareError: What does not pass; or what might, once the worker has ended.
        """
        passing: tuple[type[ShareError], ...] = (*PASSING, *also)
        for attempt in itertools.count():
            try:
                return self.ask(call)
            except passing as error:  # noqa: PERF203  # once a call that may take minutes
                self.pause(attempt, error)
                if self._is_closed:
                    raise
        raise AssertionError("counting ends never")

    def pause(self, attempt: int, error: ShareError | None = None) -> None:
        """Wait before the next try: until it is time, the coordinator is back, or the worker ends."""
        seconds = POLICY.wait_seconds(attempt, error)
        with self._changed:
            was_away = self._since is not None
            self._changed.wait_for(
                lambda: self._is_closed or (was_away and self._since is None), seconds
            )

    def wait(self, seconds: float) -> bool:
        """Wait for so long; whether the worker has ended meanwhile."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_closed, seconds)

    def _missed(self, began: float, error: ShareError) -> None:
        with self._changed:
            # one slow call says nothing where another was answered meanwhile
            if self._since is not None or self._reached_at > began:
                return
            ago = timedelta(seconds=time.monotonic() - began)
            self._since, self._reason = datetime.now(timezone.utc) - ago, error.message
            self._tell_away()

    def _tell_away(self) -> None:
        assert self._since is not None
        self._emit(
            WorkerEvent.COORDINATOR_AWAY,
            since=self._since.isoformat(timespec="seconds"),
            num_waiting=self._num_waiting,
            reason=self._reason,
        )

    def _reached(self) -> None:
        with self._changed:
            self._reached_at = time.monotonic()
            if self._since is None:
                return
            away = datetime.now(timezone.utc) - self._since
            self._since = None
            self._emit(
                WorkerEvent.COORDINATOR_BACK,
                away_seconds=round(away.total_seconds(), 1),
                num_waiting=self._num_waiting,
            )
            self._changed.notify_all()


def with_growing_time(coordinator: Coordinator, call: Callable[[], ResultT]) -> ResultT:
    """
    Make a call that moves many bytes; where its time does not suffice, the next one has twice as much.

    Raises:
        ShareError: What the call raised.
    """
    try:
        return call()
    except DeadlineExceeded:
        longer = 2 * coordinator.timeout_seconds
        coordinator.timeout_seconds = min(longer, LONGEST_CALL_SECONDS)
        raise

"""Calls that are tried again, with growing and jittered waits, until one deadline for all attempts."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc
import tenacity

from share_dist.errors import CoordinatorUnreachable, Overloaded, ShareError, StoreUnavailable
from share_dist.wire.status import error_from_rpc

ResultT = TypeVar("ResultT")

RETRIED = (CoordinatorUnreachable, Overloaded, StoreUnavailable)
"""Only what may pass by itself; every RPC is safe to repeat."""

EXPLAINED_ATTEMPTS = 2
"""Attempts after which it is looked why nobody answers; what is wrong then stays wrong."""

_LAST_START = 0.8
"""Share of the time after which no attempt begins: one that begins at the very end only
turns "nobody answers" into "out of time"."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """
    How long to wait between attempts.

    Args:
        first_wait_seconds: Upper bound of the first wait; it doubles each time.
        longest_wait_seconds: Upper bound of every wait.
    """

    first_wait_seconds: float = 0.2
    longest_wait_seconds: float = 5.0

    def wait_seconds(self, attempt: int, error: BaseException | None = None) -> float:
        """
        Choose the wait after an attempt.

        Half of it is chance, so that workers who lost the same coordinator do not
        all come back at once. An overloaded coordinator says itself how long.
        """
        bound = min(self.longest_wait_seconds, self.first_wait_seconds * 2.0 ** min(attempt, 32))
        jittered = random.uniform(bound / 2, bound)  # noqa: S311 - jitter is no secret
        if isinstance(error, Overloaded):
            return max(jittered, float(error.retry_after_seconds))
        return jittered


def call_with_retries(
    call: Callable[[float], ResultT],
    *,
    address: str,
    timeout_seconds: float,
    policy: RetryPolicy,
    cancelled: threading.Event | None = None,
    explain: Callable[[], ShareError | None] | None = None,
) -> ResultT:
    """
    Call until it succeeds, fails for good, or the time is up.

    Args:
        call: Makes one attempt; is given the seconds that remain, for gRPC's own deadline.
        address: Whom it calls, for messages.
        timeout_seconds: For all attempts and the waits between them.
        policy: The waits.
        cancelled: Ends the waiting early when set.
        explain: Looks why nobody answered; what it finds is raised at once.

    Raises:
        CoordinatorUnreachable: No attempt got an answer; says how many there were.
        DeadlineExceeded: The last attempt was cut off by the deadline.
        ShareError: What the coordinator answered.
    """
    started = time.monotonic()
    attempts = 0

    def attempt() -> ResultT:
        nonlocal attempts
        attempts += 1
        remaining = timeout_seconds - (time.monotonic() - started)
        try:
            return call(max(remaining, 0.0))
        except grpc.RpcError as exc:
            seconds = time.monotonic() - started
            error = error_from_rpc(exc, address=address, attempts=attempts, seconds=seconds)
            if explain and attempts <= EXPLAINED_ATTEMPTS:
                error = (isinstance(error, CoordinatorUnreachable) and explain()) or error
            raise error from exc

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return policy.wait_seconds(state.attempt_number - 1, error)

    gone = cancelled or threading.Event()
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(RETRIED),
        wait=wait,
        stop=tenacity.stop_before_delay(timeout_seconds * _LAST_START)
        | tenacity.stop_when_event_set(gone),
        sleep=tenacity.sleep_using_event(gone),
        reraise=True,
    )
    return retrying(attempt)

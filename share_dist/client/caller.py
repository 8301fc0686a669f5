"""A connection over which calls are made, each with one deadline for all its attempts."""

from collections.abc import Callable
from threading import Event
from typing import TypeVar

from typing_extensions import Self

from share_dist.client import handshake
from share_dist.client.credentials import Credentials
from share_dist.client.retry import RetryPolicy, call_with_retries
from share_dist.errors import ConfigError

ResultT = TypeVar("ResultT")


class Caller:
    """
    A connection to one coordinator. It connects when it is first used.

    Every call has a deadline for all its attempts; what may pass by itself
    (no coordinator for the moment, too much work) is tried again until then.
    Calls may come from several threads.

    Args:
        address: ``host:port`` of the coordinator.
        timeout_seconds: Deadline of a call, unless the call is given another.
        retry: Waits between attempts.
        credentials: Who this is to the coordinator, and which one it trusts; without any,
            it speaks unencrypted and shows nothing.
    """

    def __init__(
        self,
        address: str,
        timeout_seconds: float,
        retry: RetryPolicy | None,
        credentials: Credentials | None,
    ) -> None:
        self.address = address
        self.timeout_seconds = timeout_seconds
        self.credentials = credentials or Credentials()
        self._retry = retry or RetryPolicy()
        self._channel = self.credentials.channel(address)
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._is_closed = True
        self._channel.close()

    def _call(
        self,
        attempt: Callable[[float], ResultT],
        timeout_seconds: float | None = None,
        cancelled: Event | None = None,
    ) -> ResultT:
        """Make a call; ``attempt`` is given the seconds that are left for it."""
        if self._is_closed:
            raise ConfigError(
                f"this client of {self.address} is closed: make another", key="client"
            )
        return call_with_retries(
            attempt,
            address=self.address,
            timeout_seconds=self.timeout_seconds if timeout_seconds is None else timeout_seconds,
            policy=self._retry,
            cancelled=cancelled,
            explain=lambda: handshake.explain(self.address, self.credentials),
        )

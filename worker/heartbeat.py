"""The heartbeat: a thread that keeps the lease while its worker trains."""

import contextlib
import threading
from collections.abc import Callable
from types import TracebackType

from typing_extensions import Self

from share_dist.errors import LeaseExpired, TransportError
from share_dist.wire.records import Lease
from worker.ports import Coordinator

BEATS_PER_LEASE = 3
"""A lease survives all but one of its heartbeats being lost."""


class Heartbeat:
    """
    Keeps a lease from when it is entered until it is left.

    ```
    lease 1 ends (the machine slept)      registers again once: lease 2
    lease 2 ends too                      somebody else registers under this worker's name:
                                          gives up, and ``check`` raises
    ```

    A heartbeat that succeeds clears the count. Transport errors are waited out:
    the coordinator may be restarting, and the push will tell.


    Args:
        coordinator: Whose lease; registered already.
        lease: What it answered.
        on_renewed: Told of a lease that was taken anew.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        lease: Lease,
        on_renewed: Callable[[Lease], None] = lambda _: None,
    ) -> None:
        self._coordinator = coordinator
        self._seconds = lease.duration_seconds / BEATS_PER_LEASE
        self._on_renewed = on_renewed
        self._has_just_renewed = False
        self._error: LeaseExpired | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def check(self) -> None:
        """
        Raise what made the heartbeat give up, if anything did.

        Raises:
            LeaseExpired: Another worker of the same name keeps taking the lease.
        """
        if self._error is not None:
            raise self._error

    def beat(self) -> None:
        """
        Keep the lease now; register again when it has ended.

        Raises:
            LeaseExpired: It has, twice in a row.
            TransportError: The coordinator does not answer.
        """
        try:
            self._coordinator.heartbeat()
        except LeaseExpired:
            if self._has_just_renewed:
                raise
            self._has_just_renewed = True
            self._on_renewed(self._coordinator.register())
        else:
            self._has_just_renewed = False

    def _run(self) -> None:
        while self._error is None and not self._stopped.wait(self._seconds):
            self._try_beat()

    def _try_beat(self) -> None:
        with contextlib.suppress(TransportError):
            try:
                self.beat()
            except LeaseExpired as error:
                self._error = error

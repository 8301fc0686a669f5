"""The heartbeat: takes the lease and keeps it while its worker trains."""

import threading
from collections.abc import Callable

from share_dist.core.values import Fingerprint
from share_dist.errors import LeaseExpired
from share_dist.wire.records import Lease
from worker.contact import Contact
from worker.ports import Coordinator
from worker.progress import Emit, WorkerEvent

BEATS_PER_LEASE = 3
"""A lease survives all but one of its heartbeats being lost."""


class Heartbeat:
    """
    Registers, and keeps the lease for as long as the contact is open.

    ```
    nobody answers                    tries again now and then; meanwhile there may be no lease
    a lease ran out (the machine      registers again, however often
    slept), or is not known
    lease 1 was taken over            registers again once: lease 2
    lease 2 was taken over too        somebody else registers under this worker's name:
                                      ends, and so does the worker
    ```

    A heartbeat that succeeds, or a lease that ran out, clears the count.

    Args:
        contact: Through which is asked.
        coordinator: Whose lease.
        worker_id: Who registers.
        fingerprint: On which model.
        emit: Told of a lease that was taken anew.
        on_version: Told the newest version with every answer.
    """

    def __init__(
        self,
        contact: Contact,
        coordinator: Coordinator,
        worker_id: str,
        fingerprint: Fingerprint,
        emit: Emit,
        on_version: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._contact = contact
        self._coordinator = coordinator
        self._who = worker_id, fingerprint
        self._emit = emit
        self._on_version = on_version
        self._lock = threading.Lock()
        self._lease: Lease | None = None
        self._was_taken_over = False

    def register(self) -> None:
        """Take the lease, unless there is one."""
        with self._lock:
            if self._lease is None:
                self._lease = self._coordinator.register(*self._who)

    def renew(self, lost: LeaseExpired) -> None:
        """
        Register again, unless another thread has done so since.

        Args:
            lost: What a call was refused with.
        """
        with self._lock:
            assert self._lease is not None
            if 0 < int(lost.lease_epoch) < self._lease.lease_epoch:
                return
            self._lease = self._coordinator.register(*self._who)
            self._emit(WorkerEvent.LEASE_RENEWED, lease_epoch=self._lease.lease_epoch)

    def beat(self) -> None:
        """
        Keep the lease now; register where there is none, and again when it has ended.

        Raises:
            LeaseExpired: It was taken over, twice in a row.
            TransportError: The coordinator does not answer.
        """
        self.register()
        try:
            self._on_version(self._coordinator.heartbeat().current_version)
        except LeaseExpired as error:
            is_taken_over = int(error.current_epoch) > int(error.lease_epoch)
            if is_taken_over and self._was_taken_over:
                raise
            self._was_taken_over = is_taken_over
            self.renew(error)
        else:
            self._was_taken_over = False

    def run(self) -> None:
        """Beat until the contact is closed."""
        while not self._contact.wait(self._lease_seconds / BEATS_PER_LEASE):
            self._contact.insist(self.beat)

    @property
    def _lease_seconds(self) -> float:
        return 0.0 if self._lease is None else self._lease.duration_seconds

"""
Live workers and their right to push; time is an argument.

A registration takes the worker's lease over from whoever held it: its epoch goes
up by one, and pushes that carry an older epoch are refused. So two processes
that believe to be the same worker, on both sides of a network cut, cannot
both write. Epochs live in the store and survive a restart; the times do not,
so a restarted coordinator gives every known worker one lease's time to be heard.

::

    time  call                       leases (worker: epoch, until)
    0     grant("w", epoch=1)        w: 1, 60
    50    renew("w", 1)              w: 1, 110
    60    grant("w", epoch=2)        w: 2, 120     a second process registers as w
    61    require("w", 1)            LeaseExpired  the first one was taken over
    130   require("w", 2)            LeaseExpired  nothing was heard since 60
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

from share_dist.errors import LeaseExpired, Overloaded

_HOUR_SECONDS = 3600.0

FORGET_AFTER_LEASES = 100
"""After so many times a lease's duration a silent worker is no longer told of; its epoch stays known."""


@dataclass(frozen=True, slots=True)
class WorkerLease:
    """
    One worker's lease, as of its newest registration or heartbeat.

    Args:
        worker_id: Whose.
        lease_epoch: Its fencing number.
        heard_at_seconds: When the worker was last heard.
        base_version: What it trains on, as far as is known: the version that it pulled or pushed on
            last, or the one that was current when it registered; None where that is not known.
        is_in_training: Whether it was pulled, and not pushed on since.
        other_version: One that was in training before that, and may still be: a worker pulls a version
            while it trains on another.
    """

    worker_id: str
    lease_epoch: int
    heard_at_seconds: float
    base_version: int | None = None
    is_in_training: bool = False
    other_version: int | None = None

    def on(self, base_version: int | None, now_seconds: float, *, is_push: bool) -> "WorkerLease":
        """The lease of a worker that was heard, and of what it then pulled or pushed on, if that is known."""
        if base_version is None:
            return replace(self, heard_at_seconds=now_seconds)
        is_other = base_version != self.base_version
        other = self.base_version if is_other and self.is_in_training else None
        return replace(
            self,
            heard_at_seconds=now_seconds,
            base_version=base_version,
            is_in_training=not is_push,
            other_version=other if is_other else self.other_version,
        )


class Registrations:
    """
    Counts the registrations of each principal; time is an argument.

    Args:
        most: Within an hour, at most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._times: dict[str, deque[float]] = {}

    def take(self, principal: str, now_seconds: float) -> None:
        """
        Count one more.

        Raises:
            Overloaded: There were as many as may be; says when there is room again.
        """
        self._forget(now_seconds - _HOUR_SECONDS)
        times = self._times.setdefault(principal, deque())
        if len(times) >= self._most:
            retry_after_seconds = times[0] + _HOUR_SECONDS - now_seconds
            raise Overloaded(
                f"{principal} has registered {len(times)} times within an hour, as often as "
                f"max_registrations_per_hour allows: register again in {retry_after_seconds:.0f} s, "
                "and let a worker that starts anew keep its worker_id",
                retry_after_seconds=retry_after_seconds,
            )
        times.append(now_seconds)

    def _forget(self, oldest_seconds: float) -> None:
        for principal, times in [*self._times.items()]:
            while times and times[0] <= oldest_seconds:
                times.popleft()
            if not times:
                del self._times[principal]


class Leases:
    """
    All leases of one coordinator.

    Args:
        duration_seconds: How long a lease lasts after the worker was last heard.
        epochs: The epochs that the store knows, at a restart.
        now_seconds: The time of the restart.
        base_versions: What each worker pushed last was trained on, as far as the store knows.
    """

    def __init__(
        self,
        duration_seconds: float,
        epochs: Mapping[str, int] | None = None,
        now_seconds: float = 0.0,
        base_versions: Mapping[str, int] | None = None,
    ) -> None:
        self.duration_seconds = duration_seconds
        known = base_versions or {}
        self._leases = {
            worker_id: WorkerLease(worker_id, lease_epoch, now_seconds, known.get(worker_id))
            for worker_id, lease_epoch in (epochs or {}).items()
        }

    def grant(
        self,
        worker_id: str,
        lease_epoch: int,
        now_seconds: float,
        base_version: int | None = None,
    ) -> None:
        """Give a worker a new lease; one with an older epoch ends."""
        self._forget_silent(now_seconds)
        held = self._leases.get(worker_id)
        if held is None or held.lease_epoch < lease_epoch:
            lease = WorkerLease(worker_id, lease_epoch, now_seconds, base_version)
            self._leases[worker_id] = lease

    def require(self, worker_id: str, lease_epoch: int, now_seconds: float) -> WorkerLease:
        """
        Return the worker's lease if it holds.

        Raises:
            LeaseExpired: It was never granted, was taken over, or has run out.
        """
        lease = self._leases.get(worker_id)
        if lease is not None and lease.lease_epoch == lease_epoch:
            if self.is_live(lease, now_seconds):
                return lease
            silent = now_seconds - lease.heard_at_seconds
            what = f"ran out: {silent:.0f} s without a heartbeat, {self.duration_seconds:g} s are allowed"
        elif lease is None:
            what = "is not known here"
        else:
            what = f"was taken over by epoch {lease.lease_epoch}"
        raise LeaseExpired(
            f"the lease of worker {worker_id!r} with epoch {lease_epoch} {what}: register again",
            worker_id=worker_id,
            lease_epoch=lease_epoch,
            current_epoch=lease.lease_epoch if lease else 0,
        )

    def renew(
        self,
        worker_id: str,
        lease_epoch: int,
        now_seconds: float,
        base_version: int | None = None,
        *,
        is_push: bool = False,
    ) -> None:
        """
        Note that the worker was heard, and which version it pulls or pushes on.

        Raises:
            LeaseExpired: As ``require`` does.
        """
        lease = self.require(worker_id, lease_epoch, now_seconds)
        self._leases[worker_id] = lease.on(base_version, now_seconds, is_push=is_push)

    def is_live(self, lease: WorkerLease, now_seconds: float) -> bool:
        """Whether a lease holds at this time."""
        return now_seconds - lease.heard_at_seconds <= self.duration_seconds

    def all(self, now_seconds: float) -> tuple[WorkerLease, ...]:
        """Every lease that holds, or did not long ago, by worker; may be asked from any thread."""
        oldest = self._oldest_told(now_seconds)
        leases = sorted(self._leases.values(), key=lambda lease: lease.worker_id)
        return tuple(lease for lease in leases if lease.heard_at_seconds >= oldest)

    def num_live(self, now_seconds: float) -> int:
        """How many leases hold at this time."""
        return sum(self.is_live(lease, now_seconds) for lease in tuple(self._leases.values()))

    def _oldest_told(self, now_seconds: float) -> float:
        return now_seconds - FORGET_AFTER_LEASES * self.duration_seconds

    def _forget_silent(self, now_seconds: float) -> None:
        oldest = self._oldest_told(now_seconds)
        self._leases = {
            worker_id: lease
            for worker_id, lease in self._leases.items()
            if lease.heard_at_seconds >= oldest
        }

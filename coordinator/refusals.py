"""
Lines of the audit log about who was not let in: never more than a disk can bear.

::

    time  refused                                      written
    0     2 times from 10.0.0.7, for one reason        2 lines
    1     5000 times from 10.0.0.7, for that reason    nothing
    2     once from 10.0.0.7, for another reason       1 line
    60                                                 "5000 more were refused"
"""

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from structlog.typing import FilteringBoundLogger

from coordinator.clock import Clock
from coordinator.handshakes import FailedHandshake
from share_dist.errors import ShareError
from share_dist.telemetry import Event
from share_dist.wire.records import AuditEntry

WINDOW_SECONDS = 60.0
MAX_ALIKE = 2
MAX_PER_HOST = 20
MAX_IN_ALL = 200
MAX_HOSTS = 1000
"""Lines that say the same of one host, lines of one host, lines of all, hosts that are counted
apart: each within a window."""

UNKNOWN = "unknown"
"""The principal of whom nothing is proven."""

_MAX_DETAIL_CHARACTERS = 500
_OTHERS = "other hosts"


class Window:
    """Decides which refusals are written; time is an argument."""

    def __init__(self) -> None:
        self._began_at = 0.0
        self._written: list[tuple[str, str]] = []
        self._num_omitted: dict[str, int] = {}

    def take(self, host: str, reason: str, now_seconds: float) -> bool:
        """Tell whether a refusal of this host is written; count it if it is not."""
        if not self._written:
            self._began_at = now_seconds
        num_alike = self._written.count((host, reason))
        num_of_host = sum(host == other for other, _ in self._written)
        if num_alike < MAX_ALIKE and num_of_host < MAX_PER_HOST and len(self._written) < MAX_IN_ALL:
            self._written.append((host, reason))
            return True
        if host not in self._num_omitted and len(self._num_omitted) >= MAX_HOSTS:
            host = _OTHERS
        self._num_omitted[host] = self._num_omitted.get(host, 0) + 1
        return False

    def remaining_seconds(self, now_seconds: float) -> float | None:
        """Tell how long this window lasts; None while nothing is in it."""
        if not self._written:
            return None
        return max(0.0, self._began_at + WINDOW_SECONDS - now_seconds)

    def close(self) -> dict[str, int]:
        """Begin anew; host -> how many of its refusals were not written."""
        omitted, self._written, self._num_omitted = self._num_omitted, [], {}
        return omitted


class Refusals:
    """
    Writes refusals in a thread of its own: whoever is refused is not waited for.

    Args:
        note: Writes lines into the audit log.
        log: Told of each line as well.
        clock: The time.
    """

    def __init__(
        self,
        note: Callable[[Sequence[AuditEntry]], None],
        log: FilteringBoundLogger,
        clock: Clock,
    ) -> None:
        self._note = note
        self._log = log
        self._clock = clock
        self._window = Window()
        self._num_refused = {"access_refused": 0, "handshake_refused": 0}
        self._lock = threading.Lock()
        self._waiting: queue.SimpleQueue[AuditEntry | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="refusals", daemon=True)
        self._thread.start()

    @property
    def num_refused(self) -> dict[str, int]:
        """Action -> how many were refused since this process started, written or not."""
        with self._lock:
            return dict(self._num_refused)

    def add(
        self, action: str, *, peer: str, detail: str, principal: str = UNKNOWN, subspace: str = "", subject: str = ""
    ) -> None:  # fmt: skip
        """
        Have a caller's refusal written; from any thread, without waiting.

        Args:
            action: ``"access_refused"`` or ``"handshake_refused"``.
            peer: Where it came from, as gRPC says it.
            detail: Why.
            principal: Who it was, as far as that is proven.
            subspace: What it was about.
            subject: Which call.
        """
        with self._lock:
            self._num_refused[action] = self._num_refused.get(action, 0) + 1
        entry = AuditEntry(
            0, self._clock.now(), principal, action, subspace, subject, detail=detail
        )
        said = self._put(entry, peer)
        if said:
            self._log.warning(
                Event.ACCESS_REFUSED.value, action=action, principal=principal, rpc=subject, reason=said
            )  # fmt: skip

    def add_push(
        self, *, peer: str, detail: str, principal: str, subspace: str, update_id: str, digest: str
    ) -> None:
        """
        Have the refusal of a push written, as ``update_refused``; from any thread, without waiting.

        Args:
            peer: Where it came from, as gRPC says it.
            detail: Why.
            principal: Who pushed.
            subspace: Where.
            update_id: What.
            digest: SHA-256 (hex) of its payload.
        """
        now = self._clock.now()
        entry = AuditEntry(0, now, principal, "update_refused", subspace, update_id, digest, detail)
        self._put(entry, peer)

    def _put(self, entry: AuditEntry, peer: str) -> str:
        """Have a line written, unless there are too many; return what it says."""
        host = host_of(peer)
        reason = f"{entry.action} {entry.principal} {entry.subject} {entry.detail}"
        with self._lock:
            if not self._window.take(host, reason, self._clock.monotonic_seconds()):
                return ""
        # what a peer says must not look like another line of the log
        said = " ".join(f"from {peer}: {entry.detail}".split())[:_MAX_DETAIL_CHARACTERS]
        self._waiting.put(replace(entry, detail=said))
        return said

    def add_handshake(self, failed: FailedHandshake) -> None:
        """Have a handshake written that failed."""
        self.add("handshake_refused", peer=failed.peer, detail=failed.reason)

    def close(self) -> None:
        """Write what waits, and end."""
        self._waiting.put(None)
        self._thread.join()

    def _write_all(self) -> None:
        is_open = True
        while is_open:
            entries, is_open = self._next()
            if not is_open or self._is_over():
                entries += self._omitted()
            if entries:
                self._write(entries)

    def _next(self) -> tuple[list[AuditEntry], bool]:
        """Wait for refusals, or for the end of the window; False when told to end."""
        entries: list[AuditEntry] = []
        try:
            entry = self._waiting.get(timeout=self._remaining_seconds())
            while entry is not None:
                entries.append(entry)
                entry = self._waiting.get_nowait()
        except queue.Empty:
            return entries, True
        return entries, False

    def _remaining_seconds(self) -> float | None:
        with self._lock:
            return self._window.remaining_seconds(self._clock.monotonic_seconds())

    def _is_over(self) -> bool:
        return self._remaining_seconds() == 0.0

    def _omitted(self) -> list[AuditEntry]:
        with self._lock:
            omitted = self._window.close()
        return [
            AuditEntry(0, self._clock.now(), UNKNOWN, "access_refused", detail=_more(host, number))
            for host, number in omitted.items()
        ]

    def _write(self, entries: list[AuditEntry]) -> None:
        try:
            self._note(entries)
        except ShareError as error:
            self._log.error(
                Event.AUDIT_FAILED.value, num_entries=len(entries), reason=error.message
            )


def host_of(peer: str) -> str:
    """
    Return where a peer is, without its port.

    Examples:
        >>> host_of("ipv4:10.0.0.7:40312"), host_of("ipv6:%5B::1%5D:7"), host_of("127.0.0.1:80")
        ('10.0.0.7', '::1', '127.0.0.1')
    """
    peer = peer.replace("%5B", "[").replace("%5D", "]")
    for scheme in ("ipv4:", "ipv6:"):
        peer = peer.removeprefix(scheme)
    host, _, port = peer.rpartition(":")
    return (host if port.isdecimal() and host else peer).strip("[]")


def _more(host: str, number: int) -> str:
    return f"from {host}: {number} more were refused within {WINDOW_SECONDS:.0f} s"

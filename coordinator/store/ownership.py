"""
Who may write: one process at a time, by a lease with a fence.

A short history of the lease, which lasts 30 seconds here::

    take         by p1          fence 1, until 30
    renew        by p1 at 10    fence 1, until 40
    take         by p2 at 20    StoreLocked: p1 has it for 20 more seconds
    (p1 hangs)
    take         by p2 at 41    fence 2, until 71
    (p1 wakes up)
    require      by p1          StoreFenced: nothing is written

A process that is provably dead (same machine, same boot, and no such process any more)
holds nothing: a restart need not wait. A process that hangs is not dead.
"""

import contextlib
import os
import socket
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from coordinator import faults
from coordinator.store.database import Database
from coordinator.store.tables import owner
from share_dist.errors import StoreFenced, StoreLocked

_DEAD_STATES = frozenset("ZX")
"""Process states of Linux: a zombie, and one that is being taken down."""


@dataclass(frozen=True, slots=True)
class Process:
    """
    A process, as another one on the same machine can find it again.

    Args:
        host: Its machine, for people.
        boot_id: Of the machine's running kernel; empty where the system does not say.
        pid: Its number.
        started: When it started, in ticks since the boot: numbers are used again.
        pid_namespace: The namespace in which the number counts.
    """

    host: str
    boot_id: str
    pid: int
    started: str
    pid_namespace: str

    @classmethod
    def current(cls) -> "Process":
        """Return this process."""
        pid = os.getpid()
        return cls(socket.gethostname(), _boot_id(), pid, _started(pid), _pid_namespace())

    def is_provably_dead(self) -> bool:
        """Whether no such process is left; False where that cannot be known from here."""
        is_local = (
            bool(self.boot_id and self.started)
            and self.boot_id == _boot_id()
            and self.pid_namespace == _pid_namespace()
        )
        return is_local and not _is_there(self.pid, self.started)


@dataclass(frozen=True, slots=True)
class Owner:
    """Who may write, as others see it; ``seconds_left`` is of its lease."""

    pid: int
    host: str
    fence: int
    seconds_left: float
    is_provably_dead: bool


class Ownership:
    """
    The lease of one catalog, as one opening of it holds it.

    Args:
        database: Where the row of the owner is.
        lease_seconds: How long it lasts without being renewed.
    """

    def __init__(self, database: Database, lease_seconds: float) -> None:
        self._database = database
        self._lease_seconds = lease_seconds
        self._holder = uuid.uuid4().hex
        self._process = Process.current()
        self.fence = 0

    def take(self, rows: sa.Connection) -> StoreLocked | None:
        """
        Become the owner, unless another process is.

        Returns:
            Why not. It is returned, not raised: what was written about the other's lease must
            be committed.
        """
        held = rows.execute(sa.select(owner).with_for_update()).one_or_none()
        if held is not None:
            left = self._seconds_left(rows, held)
            if left > 0 and not _process_of(held).is_provably_dead():
                return _locked(self._database.name, held, left)
            rows.execute(sa.delete(owner))
        self.fence = (held.fence if held else 0) + 1
        faults.reach("before-owner-row")
        rows.execute(
            sa.insert(owner).values(
                id=1,
                fence=self.fence,
                holder=self._holder,
                lease_seconds=self._lease_seconds,
                **asdict(self._process),
                **self._expiry(rows, self._lease_seconds),
            )
        )
        return None

    def require(self, rows: sa.Connection) -> None:
        """
        Raise unless this is the owner still; nobody else becomes it during this transaction.

        Raises:
            StoreFenced: Another process is.
        """
        found = rows.execute(
            sa.select(owner.c.fence, owner.c.holder).with_for_update(read=True)
        ).one_or_none()
        if found is not None and (found.fence, found.holder) == (self.fence, self._holder):
            return
        current = found.fence if found else 0
        raise StoreFenced(
            f"{self._database.name} was taken over under fence {current} while this process, with "
            f"fence {self.fence}, hung: nothing was written; let the other one go on, and end this one",
            path=self._database.name,
            fence=self.fence,
            current_fence=current,
        )

    def renew(self, rows: sa.Connection) -> None:
        """Let the lease last from now on."""
        rows.execute(sa.update(owner).values(self._expiry(rows, self._lease_seconds)))

    def give_up(self, rows: sa.Connection) -> None:
        """Let others have the catalog at once; the fence stays known."""
        rows.execute(sa.update(owner).values(expires_at=0.0, expires_since_boot=0.0))

    def _expiry(self, rows: sa.Connection, seconds: float) -> dict[str, float]:
        return {
            "expires_at": self._database.now(rows) + seconds,
            "expires_since_boot": _seconds_since_boot() + seconds,
        }

    def _seconds_left(self, rows: sa.Connection, held: sa.Row[Any]) -> float:
        """Tell how long a lease lasts; a clock that was set back must not make it longer."""
        left = _seconds_left(self._database, rows, held)
        if left > held.lease_seconds:
            # an owner that lives renews it soon; a dead one's lease now ends by today's clock
            left = float(held.lease_seconds)
            rows.execute(sa.update(owner).values(self._expiry(rows, left)))
        return left


def owner_of(database: Database, rows: sa.Connection) -> Owner | None:
    """Return who owns a catalog; None if nobody's lease lasts."""
    held = rows.execute(sa.select(owner)).one_or_none()
    left = _seconds_left(database, rows, held) if held else 0.0
    if held is None or left <= 0:
        return None
    return Owner(held.pid, held.host, held.fence, left, _process_of(held).is_provably_dead())


def _seconds_left(database: Database, rows: sa.Connection, held: sa.Row[Any]) -> float:
    # within one boot of one machine no clock can be set back
    if database.is_sqlite and held.boot_id and held.boot_id == _boot_id():
        return float(held.expires_since_boot - _seconds_since_boot())
    return float(held.expires_at - database.now(rows))


def _process_of(held: sa.Row[Any]) -> Process:
    return Process(held.host, held.boot_id, held.pid, held.started, held.pid_namespace)


def _locked(name: str, held: sa.Row[Any], left: float) -> StoreLocked:
    return StoreLocked(
        f"store {name} is owned by process {held.pid} on {held.host}, for {left:.0f} more seconds "
        "unless it renews its lease: stop that coordinator, or use another store",
        path=name,
        pid=held.pid,
        host=held.host,
        seconds_left=left,
    )


def _is_there(pid: int, started: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    found = _stat(pid)
    # another user's process may be hidden: then it is taken to be there
    return not found or (found[0] not in _DEAD_STATES and found[19] == started)


def _started(pid: int) -> str:
    found = _stat(pid)
    return found[19] if found else ""


def _stat(pid: int) -> list[str]:
    """Fields of a process from its state on, as proc(5) counts them from 3; empty if unknown."""
    # the name before them is in parentheses and may itself hold any character
    return _text(f"/proc/{pid}/stat").rpartition(")")[2].split()


def _boot_id() -> str:
    return _text("/proc/sys/kernel/random/boot_id").strip()


def _text(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace")
    return ""


def _pid_namespace() -> str:
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


def _seconds_since_boot() -> float:
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

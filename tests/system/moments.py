"""
Every moment at which a coordinator can be killed while it does something.

A moment is the n-th time that a point of ``coordinator.faults`` is passed. An act is done once in
a process that writes down each point that it passes; then once for each of these moments, in a process that is killed there,
and again by the next one, as a client does that got no answer.
"""

import contextlib
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from coordinator import faults
from coordinator.store import tools
from coordinator.store.place import Place
from share_dist.client.admin import AdminClient
from share_dist.client.retry import RetryPolicy
from share_dist.core.values import TaskUpdate
from share_dist.errors import CoordinatorUnreachable
from share_dist.wire.records import TokenRequest, UpdateState
from tests.coordinator.support import CoordinatorProcess, client_of, make_update

TASKS = ("cats", "dogs", "birds", "fish")
SECONDS = 60.0
ENVIRONMENT = {
    "SHARE_DIST_OWNER_LEASE_SECONDS": "3600",
    "SHARE_DIST_MAX_WAIT_SECONDS": "0",
    "SHARE_DIST_LOG_LEVEL": "ERROR",
}
"""The store's lease is not renewed meanwhile, so that a process passes the same points each time."""


class Moment(NamedTuple):
    """The ``count``-th time that a point is passed."""

    point: str
    count: int


@dataclass(frozen=True)
class Layout:
    """How a store keeps payloads: inside the database, or in files."""

    name: str
    inline_bytes: int


LAYOUTS = (Layout("inside", 2**18), Layout("files", 0))


@dataclass(frozen=True)
class Outcome:
    """
    What a store holds at the end, so far as it must not depend on where a process was killed.

    Args:
        version: The current one.
        digest: Its digest: over its content to the bit, and over all versions before it.
        updates: Update -> its state.
        kept: Versions whose tensors are kept.
        principals: Whom tokens were made for.
    """

    version: int
    digest: str
    updates: Mapping[str, UpdateState]
    kept: tuple[int, ...]
    principals: frozenset[str]


class Act(Protocol):
    """Something that a client does to the coordinator at an address; it may be done twice."""

    def __call__(self, address: str, retry: RetryPolicy | None = None) -> None: ...


@dataclass(frozen=True)
class UntilItDies(RetryPolicy):
    """Tries again at once while the coordinator's process lives, and not once it is dead."""

    is_alive: Callable[[], bool] = lambda: True

    def wait_seconds(self, attempt: int, error: BaseException | None = None) -> float:
        if not self.is_alive():
            raise CoordinatorUnreachable("the process was killed")
        return 0.02


def start(
    store: Path, layout: Layout, hook: Callable[[], None] | None = None
) -> CoordinatorProcess:
    """Start a coordinator on a store; ``hook`` is called in its process, before it begins."""
    return CoordinatorProcess(store, prepare=partial(set_up, layout, hook))


def make_template(folder: Path, layout: Layout) -> Path:
    """Make a store with some versions; one update in each."""
    store = folder / layout.name
    with start(store, layout) as process:
        with client_of(process.address) as client:
            client.register()
            for task_id in TASKS:
                base = client.pull()
                client.push(make_update(task_id, base=base, lease_epoch=0), wait="merged")
        assert process.stop() == 0
    return store


def acts(template: Path, layout: Layout) -> dict[str, Act]:
    """Everything that changes a store; updates are made in the bases of its current version."""
    with start(template, layout) as process, client_of(process.address) as client:
        base = client.pull()
        process.stop()
    update = make_update("frogs", "late", base=base, lease_epoch=0)
    again = make_update("cats", "better-cats", base=base, lease_epoch=0)
    return {
        "push": partial(push, update),
        "replacing push": partial(push, again),
        "rollback": partial(ask, AdminClient.rollback, (2, "it was better then")),
        "removal": partial(ask, AdminClient.remove_task, ("dogs", "no longer ours")),
        "compaction": partial(ask, AdminClient.compact, (1,)),
        "token": partial(ask, AdminClient.create_token, (TokenRequest("eve", "reader", ("*",)),)),
    }


def push(update: TaskUpdate, address: str, retry: RetryPolicy | None = None) -> None:
    """Register, push and wait for the merge."""
    with client_of(address, timeout_seconds=SECONDS, retry=retry) as client:
        client.register()
        client.push(update, wait="merged")


def ask(
    method: Callable[..., Any],
    arguments: tuple[object, ...],
    address: str,
    retry: RetryPolicy | None = None,
) -> None:
    """Call a method of an operator's client."""
    with AdminClient(address, timeout_seconds=SECONDS, retry=retry) as admin:
        method(admin, *arguments)


def trace(store: Path, layout: Layout, act: Act) -> tuple[list[Moment], Outcome]:
    """Do an act undisturbed; return every moment that was passed, and what came of it."""
    passed = store.parent / f"{store.name}.passed"
    with start(store, layout, partial(_note_points, passed)) as process:
        act(process.address)
        outcome = look(process.address)
        assert process.stop() == 0
    counts: Counter[str] = Counter()
    moments = []
    for point in passed.read_text().split():
        counts[point] += 1
        moments.append(Moment(point, counts[point]))
    return moments, outcome


def kill_and_repeat(store: Path, layout: Layout, act: Act, moment: Moment) -> Outcome:
    """Do an act in a process that is killed at a moment; do it again in the next one."""
    with start(store, layout, partial(_die_at, moment)) as doomed:
        if doomed.ready:
            with contextlib.suppress(CoordinatorUnreachable):
                act(doomed.address, UntilItDies(is_alive=lambda: doomed.is_alive))
            # some moments come after the answer, or only when it stops
            doomed.stop()
        assert doomed.wait() == -signal.SIGKILL, f"{moment} was not passed: {doomed.stderr[-2000:]}"
    require_sound(store)
    with start(store, layout) as process:
        act(process.address)
        outcome = look(process.address)
        assert process.stop() == 0
    require_sound(store)
    return outcome


def look(address: str) -> Outcome:
    """Tell what a coordinator's store holds."""
    with AdminClient(address) as admin:
        status = admin.status()
        return Outcome(
            version=status.current_version,
            digest=status.digest,
            updates={u.receipt.update_id: u.receipt.state for u in admin.updates()},
            kept=tuple(v.event.version for v in admin.versions() if v.is_kept),
            principals=frozenset(token.principal for token in admin.tokens()),
        )


def require_sound(store: Path) -> None:
    """Raise unless a store is as it should be; files that no row names yet are harmless."""
    broken = [each for each in tools.verify(Place(str(store), None)) if not each.is_harmless]
    assert broken == []


def copies(template: Path, folder: Path) -> Iterator[Path]:
    """Yield a fresh copy of a store again and again; the one before is removed."""
    for number in range(10**6):
        copy = folder / f"copy-{number}"
        shutil.copytree(template, copy)
        yield copy
        shutil.rmtree(copy)


def set_up(layout: Layout, hook: Callable[[], None] | None) -> None:
    """In the coordinator's process, before it begins."""
    os.environ.update(ENVIRONMENT, SHARE_DIST_INLINE_BYTES=str(layout.inline_bytes))
    if hook is not None:
        hook()


def _note_points(passed: Path) -> None:
    """In the coordinator's process: write down each point that is passed."""
    descriptor = os.open(passed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def reach(point: str) -> None:
        assert point in faults.POINTS, point
        os.write(descriptor, f"{point}\n".encode())

    faults.reach = reach


def _die_at(moment: Moment) -> None:
    """In the coordinator's process: die at a moment."""
    counts: Counter[str] = Counter()

    def reach(point: str) -> None:
        counts[point] += 1
        if (point, counts[point]) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    faults.reach = reach

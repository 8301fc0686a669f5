"""What is read of a subspace: versions in the form that the caller asks for, tasks, versions to come."""

import asyncio
import contextlib
import difflib
import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from coordinator.handlers import require_own_worker
from coordinator.state import Call, Lineage
from coordinator.store.base import summarise
from coordinator.versions import AS_KEPT, WHOLE, Form, ServedPayload, Snapshot
from share_dist.core.values import Fingerprint
from share_dist.errors import LeaseExpired, UnknownTask, VersionCompacted, WrongState
from share_dist.wire import codec
from share_dist.wire.records import Precision, TaskSummary, VersionEvent

MAX_WAIT_SECONDS = 30.0
"""How long a pull waits for a version to come, at most."""

_MAX_COMPARED_TASKS = 1000
"""How many names an unknown one is compared with: each takes up to a millisecond."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """
    Which version a caller wants, in which form, and what it holds already.

    Args:
        version: None for the newest.
        held_version: Not sent again when it is the one.
        held_digest: Of the held version; empty: not checked.
        min_version: Wait a while for this one.
        form: How it shall be sent.
        held_chain: Of what is held, for one who takes rotations; empty for one who does not.
        patience_seconds: How long to wait, at most.
        worker_id: Who will train on it; empty for one who only reads.
        lease_epoch: Of that worker's lease.
    """

    version: int | None = None
    held_version: int | None = None
    held_digest: str = ""
    min_version: int | None = None
    form: Form = AS_KEPT
    held_chain: bytes = b""
    patience_seconds: float = MAX_WAIT_SECONDS
    worker_id: str = ""
    lease_epoch: int = 0


@dataclass(frozen=True, slots=True)
class ServedSubspace:
    """
    A version as it is sent.

    Args:
        version: Its number.
        digest: Of the version.
        fingerprint: What the subspace works on, once it is known.
        served: None when the caller has it already.
        form: How it is written.
        rotated_from: The version that the steps begin at; None for a whole subspace.
        chain: Digest of the payloads that lead to what the caller holds then.
    """

    version: int
    digest: str
    fingerprint: Fingerprint | None
    served: ServedPayload | None
    form: Form
    rotated_from: int | None = None
    chain: bytes = b""


@dataclass(frozen=True, slots=True)
class ServedTask:
    """One task in the bases of a version, as it is sent."""

    summary: TaskSummary
    version: int
    digest: str
    served: ServedPayload


async def pull_subspace(call: Call, wanted: Wanted) -> ServedSubspace:
    """
    Return the newest version or a given one, unless the caller has it.

    Raises:
        VersionInFuture: There is no such version yet, nor came it in time.
        VersionCompacted: It is no longer kept.
        NotPermitted: Who pulls names another principal's worker.
    """
    lineage = call.lineage
    if wanted.worker_id:
        await require_own_worker(call, wanted.worker_id)
    await _wait_for(lineage, wanted)
    version = lineage.writer.snapshot.version if wanted.version is None else wanted.version
    with _held_for_worker(call, wanted, version):
        return await call.pull(lambda: _served_subspace(lineage, version, wanted))


async def pull_task(
    call: Call, task_id: str, version: int | None, precision: Precision = "float32"
) -> ServedTask:
    """
    Return one task in the bases of the current version.

    Raises:
        UnknownTask: The current version does not contain it.
        VersionInFuture: There is no such version yet.
        VersionCompacted: The version is not the current one.
    """
    snapshot = call.lineage.writer.snapshot
    if version is not None and version != snapshot.version:
        await asyncio.to_thread(_require_newest, call.lineage, version, snapshot.version)
    if task_id not in snapshot.tasks:
        raise await asyncio.to_thread(_unknown_task, snapshot, task_id)
    return await call.pull(lambda: _served_task(call.lineage, snapshot, task_id, precision))


async def list_tasks(
    call: Call, after_task_id: str, limit: int
) -> tuple[tuple[TaskSummary, ...], int]:
    """Return tasks, merged or waiting, by name, at most ``limit``, 0 for all; and the current version."""
    summaries = await asyncio.to_thread(call.lineage.store.task_summaries, after_task_id, limit)
    return summaries, call.lineage.writer.snapshot.version


async def watch_versions(
    call: Call, after_version: int | None, after_digest: str = ""
) -> AsyncIterator[VersionEvent]:
    """
    Yield every version after the one that the caller holds, until the coordinator stops.

    Raises:
        VersionInFuture: The caller holds a version that does not exist here.
        VersionCompacted: A version that came after it is no longer kept.
        VersionMismatch: The caller holds a version of another store.
        Overloaded: There are too many watchers.
    """
    lineage = call.lineage
    current = lineage.broadcast.current_version
    after_version = current if after_version is None else after_version
    await asyncio.to_thread(_require_all_after, lineage, after_version)
    await asyncio.to_thread(lineage.store.require_digest, after_version, after_digest)
    async for event in lineage.broadcast.watch(after_version, call.account):
        yield event


async def _wait_for(lineage: Lineage, wanted: Wanted) -> None:
    """Wait until the least version that is wanted has come."""
    least = wanted.min_version or 0
    if least <= lineage.writer.snapshot.version:
        return
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(lineage.writer.reached(least), wanted.patience_seconds)
    await asyncio.to_thread(lineage.store.require_exists, least)


@contextlib.contextmanager
def _held_for_worker(call: Call, wanted: Wanted, version: int) -> Iterator[None]:
    """Keep the version that a worker pulls, and note it with the worker's lease; readers hold nothing."""
    if not wanted.worker_id:
        yield
        return
    with call.lineage.holds.hold(version):
        yield
        # a lease that has ended keeps nobody from reading: the next push will say so
        with contextlib.suppress(LeaseExpired):
            call.lineage.leases.renew(
                wanted.worker_id, wanted.lease_epoch, call.clock.monotonic_seconds(), version
            )


def _served_subspace(lineage: Lineage, version: int, wanted: Wanted) -> ServedSubspace:
    lineage.store.require_version(version)
    digest, fingerprint = lineage.store.digest(version), lineage.store.fingerprint()
    if version == wanted.held_version and wanted.held_digest in {"", digest}:
        return ServedSubspace(
            version, digest, fingerprint, None, wanted.form, chain=wanted.held_chain
        )
    whole = lineage.versions.served(version, wanted.form)
    if _can_be_rotated(lineage, version, wanted):
        held_version = wanted.held_version or 0
        steps = lineage.versions.steps(held_version, version, whole.num_bytes)
        if steps is not None:
            chain = steps.chain_after(wanted.held_chain)
            return ServedSubspace(
                version, digest, fingerprint, steps.served, wanted.form, held_version, chain
            )
    chain = whole.header.sha256 if wanted.form == WHOLE else b""
    return ServedSubspace(version, digest, fingerprint, whole, wanted.form, chain=chain)


def _can_be_rotated(lineage: Lineage, version: int, wanted: Wanted) -> bool:
    """Whether the caller holds what steps to a version can begin at, with no anchor between."""
    held_version = wanted.held_version
    return (
        held_version is not None
        and wanted.held_chain != b""
        and wanted.form == WHOLE
        and held_version < version
        and held_version // lineage.config.anchor_every == version // lineage.config.anchor_every
        and wanted.held_digest == lineage.store.digest(held_version)
    )


def _require_all_after(lineage: Lineage, version: int) -> None:
    """Raise unless every version after one is kept: who missed one cannot be told of it."""
    store = lineage.store
    store.require_exists(version)
    first, current = store.first_version, store.current_version
    if version + 1 >= first:
        return
    raise VersionCompacted(
        f"versions between {version} and {first} are no longer kept: pull version {current}, and "
        "watch from there",
        version=version,
        first_version=first,
        current_version=current,
    )


def _require_newest(lineage: Lineage, version: int, current_version: int) -> None:
    lineage.store.require_version(version)
    raise VersionCompacted(
        f"tasks are served in the current version {current_version} only, asked was {version}: "
        "pull the task without a version, or rebase what you hold",
        version=version,
        first_version=current_version,
        current_version=current_version,
    )


def _served_task(
    lineage: Lineage, snapshot: Snapshot, task_id: str, precision: Precision
) -> ServedTask:
    entry = snapshot.entries[task_id]
    try:
        head = lineage.store.load_update(entry.update_id).head
    except WrongState:
        # another version came while this waited for its turn, and this one was compacted since
        _require_newest(lineage, snapshot.version, lineage.writer.snapshot.version)
        raise
    coefficients = snapshot.tasks[task_id].served(snapshot.subspace)
    short = codec.task_to_precision(coefficients, head, precision)
    # of the update that is sent: a newer version may hold another one by now
    summary = summarise(lineage.store.update_record(entry.update_id), entry.cumulative_drift)
    return ServedTask(
        summary, snapshot.version, snapshot.digest, ServedPayload.of(short.payload, short.loss)
    )


def _unknown_task(snapshot: Snapshot, task_id: str) -> UnknownTask:
    compared = itertools.islice(snapshot.tasks, _MAX_COMPARED_TASKS)
    nearest = difflib.get_close_matches(task_id, compared, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(map(repr, nearest))}?" if nearest else "see the list of tasks"
    return UnknownTask(
        f"version {snapshot.version} contains no task {task_id!r}: {hint}",
        task_id=task_id,
        nearest=", ".join(nearest),
    )

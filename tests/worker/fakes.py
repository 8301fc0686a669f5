"""A coordinator in this process: the worker's port over the real merge, without wire and disk."""

import hashlib
import threading
from collections import defaultdict
from dataclasses import replace
from datetime import datetime, timezone

from share_dist.core.merge import merge
from share_dist.core.metrics import update_bytes
from share_dist.core.values import MergedTask, Subspace
from share_dist.errors import (
    BaseVersionTooOld,
    LeaseExpired,
    UnknownTask,
    VersionCompacted,
    VersionMismatch,
)
from share_dist.wire.records import (
    Lease,
    NewerUpdate,
    PulledTask,
    Receipt,
    TaskSummary,
    UpdateState,
    VersionEvent,
)

EPOCH = datetime(2026, 1, 1, tzinfo=timezone.utc)


class FakeWatch:
    def __init__(self, coordinator, after_version):
        self._coordinator = coordinator
        self._seen = after_version
        self._closed = False

    def __iter__(self):
        return self

    def __next__(self):
        with self._coordinator.changed:
            while not self._closed:
                event = self._coordinator.events.get(self._seen + 1)
                if event is not None:
                    self._seen += 1
                    return event
                self._coordinator.changed.wait()
        raise StopIteration

    def close(self):
        with self._coordinator.changed:
            self._closed = True
            self._coordinator.changed.notify_all()


class FakeCoordinator:
    """
    Merges every update when it comes; takes a known ``update_id`` once.

    Tests may ``hold`` merges back, ``expire`` leases, ``forget`` versions, and make a
    call ``fail`` before or after it has done its work.
    """

    def __init__(self):
        self.timeout_seconds = 10.0
        self.fingerprint = None
        self.versions = {}
        self.merged: dict[str, MergedTask] = {}
        self.updates = {}
        self.merged_in = {}
        self.events = {}
        self.calls = defaultdict(int)
        self.changed = threading.Condition()
        self.lease_epoch = 0
        self.expired = 0
        self.is_holding = False
        self.fails = {}

    @property
    def current(self) -> Subspace:
        return self.versions[max(self.versions)]

    def _keep(self, subspace: Subspace) -> None:
        said = f"version {subspace.version} of {id(self)}"
        digest = hashlib.sha256(said.encode()).hexdigest()
        self.versions[subspace.version] = replace(subspace, digest=digest)

    def fail(self, call: str, when: str, error: BaseException) -> None:
        """Raise from the next such call, ``"before"`` or ``"after"`` it has worked."""
        self.fails[call, when] = error

    def expire(self, times: int = 1) -> None:
        self.expired = times

    def forget(self, version: int) -> None:
        self.versions.pop(version)

    def _reach(self, call, when):
        if when == "before":
            self.calls[call] += 1
        error = self.fails.pop((call, when), None)
        if error is not None:
            raise error

    def _require_lease(self):
        if self.expired:
            self.expired -= 1
            raise LeaseExpired("the lease has ended: register again", lease_epoch=self.lease_epoch)

    def register(self, worker_id=None, fingerprint=None):
        self._reach("register", "before")
        if self.fingerprint is None:
            self.fingerprint = fingerprint
            self._keep(Subspace.empty(fingerprint.layers))
        if fingerprint is not None:
            self.fingerprint.require(fingerprint)
        self.lease_epoch += 1
        return Lease(
            worker_id or "", self.lease_epoch, 30.0, self.current.version, self.fingerprint
        )

    def heartbeat(self):
        self._reach("heartbeat", "before")
        self._require_lease()
        return Lease("", self.lease_epoch, 30.0, self.current.version, None)

    def pull(self, version=None, held_version=None):
        self._reach("pull", "before")
        if version is None:
            return None if held_version == self.current.version else self.current.without_tail()
        if version not in self.versions:
            raise VersionCompacted("no longer kept: take the current one")
        return self.versions[version].without_tail()

    def push(self, update, wait="durable", timeout_seconds=None):
        self._reach("push", "before")
        if update.update_id not in self.updates:
            self._require_lease()
            self._require_base(update)
            with self.changed:
                self.updates[update.update_id] = update
                if not self.is_holding:
                    self.merge_pending()
        self._reach("push", "after")
        state = UpdateState.MERGED if update.update_id in self.merged_in else UpdateState.PENDING
        return Receipt(update.update_id, state)

    def _require_base(self, update):
        base = self.versions.get(update.base_version)
        if base is None:
            raise BaseVersionTooOld("no longer kept: pull, rebase, push again")
        if update.base_digest not in {"", base.digest}:
            raise VersionMismatch("this version is another one here")

    def merge_pending(self) -> None:
        pending = [each for key, each in self.updates.items() if key not in self.merged_in]
        outcome = merge(self.current, self.merged, pending, bases=self.versions)
        version = outcome.subspace.version
        self._keep(outcome.subspace)
        self.merged = dict(outcome.tasks)
        self.merged_in |= dict.fromkeys(outcome.report.update_ids, version)
        with self.changed:
            self.events[version] = VersionEvent(
                version,
                EPOCH,
                outcome.report.update_ids,
                outcome.report.task_ids,
                outcome.report.lowest_energy_kept,
                outcome.report.mean_energy_kept,
                outcome.report.angle,
                outcome.subspace.num_factors,
                0,
            )
            self.changed.notify_all()

    def watch(self, after_version=None, *, after_digest=""):
        return FakeWatch(self, self.current.version if after_version is None else after_version)

    def tasks(self):
        self._reach("tasks", "before")
        newest = {update.task_id: update for update in self.updates.values()}
        merged = {
            update.task_id: update for key, update in self.updates.items() if key in self.merged_in
        }
        return [
            self._summary(merged.get(task_id, update), update) for task_id, update in newest.items()
        ]

    def pull_task(self, task_id, held=None):
        self._reach("pull_task", "before")
        for summary in self.tasks():
            if summary.task_id == task_id and task_id in self.merged:
                return PulledTask(
                    summary,
                    self.merged[task_id].served(self.current),
                    self.updates[summary.update_id].head,
                    self.current.without_tail(),
                )
        raise UnknownTask(f"no task {task_id!r}", task_id=task_id)

    def _summary(self, update, newest):
        version = self.merged_in.get(update.update_id, 0)
        size = update_bytes(update)
        return TaskSummary(
            task_id=update.task_id,
            worker_id="",
            update_id=update.update_id,
            state=UpdateState.MERGED if version else UpdateState.PENDING,
            base_version=update.base_version,
            merged_version=version,
            lag=max(0, version - 1 - update.base_version),
            angle=0.0,
            truncation=0.0,
            cumulative_drift=0.0,
            num_samples=update.num_samples,
            scores=update.scores,
            head=replace(update.head, tensors={}),
            pushed_at=EPOCH,
            update_bytes=size.total,
            head_bytes=size.head,
            newer=None if newest is update else NewerUpdate(newest.update_id, UpdateState.PENDING),
        )

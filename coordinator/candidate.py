"""The next version before it is committed: made, measured and encoded, so that only the disk can still fail."""

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from coordinator.clock import Clock
from coordinator.comparison import drift_between
from coordinator.store.base import (
    EncodedVersion,
    MergeMark,
    TaskEntry,
    VersionCommit,
    entries_after,
)
from coordinator.store.format import encode_version
from coordinator.versions import ServedPayload, Snapshot, encode_served
from share_dist.core.outcome import MergeOutcome, MergeReport
from share_dist.core.prepared import angle_between
from share_dist.core.values import MergedTask, Subspace
from share_dist.errors import NotFinite
from share_dist.wire import codec
from share_dist.wire.records import MAX_TOLD_DRIFTS, VersionEvent, VersionKind


@dataclass(frozen=True)
class Candidate:
    """
    A version that can be committed.

    Args:
        version: What the store keeps.
        served: What workers are sent.
        snapshot: What this process answers from, once the version is committed.
    """

    version: EncodedVersion
    served: ServedPayload
    snapshot: Snapshot

    @property
    def commit(self) -> VersionCommit:
        """The version as values."""
        return self.version.commit


class Stopwatch:
    """Says how long a version took to make, and when it was made; starts when it is made itself."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._started = clock.monotonic_seconds()

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return self.clock.monotonic_seconds() - self._started


def candidate_of_merge(outcome: MergeOutcome, current: Snapshot, stopwatch: Stopwatch) -> Candidate:
    """
    Make what a merge brings about ready to be committed.

    Args:
        outcome: What the merge returned.
        current: The version that it began with.
        stopwatch: Started before it.

    Raises:
        NotFinite: A number that the merge measured is none.
        ShareError: As an encoder does.
    """
    report = outcome.report
    _require_finite(report)
    merged = dict(zip(report.task_ids, report.update_ids, strict=True))
    marks = {
        update_id: MergeMark(
            report.lag[update_id], report.base_angle[update_id], report.truncation[update_id]
        )
        for update_id in report.update_ids
    }
    return _Made(
        kind=VersionKind.MERGE,
        subspace=outcome.subspace,
        tasks=outcome.tasks,
        entries=entries_after(current.entries, report.drift, merged),
        drift=report.drift,
        report=report.to_dict(),
        lowest_energy_kept=report.lowest_energy_kept,
        mean_energy_kept=report.mean_energy_kept,
        angle=report.angle,
        marks=marks,
        update_ids=report.update_ids,
        task_ids=report.task_ids,
        rotation=rotation_of(outcome, current),
    ).candidate(current, stopwatch)


def candidate_of_removal(
    outcome: MergeOutcome, task_id: str, reason: str, current: Snapshot, stopwatch: Stopwatch
) -> Candidate:
    """
    Make what is left after a task was taken out ready to be committed.

    Args:
        outcome: What ``remove_tasks`` returned.
        task_id: The task.
        reason: Why; kept with the report.
        current: The version that it began with.
        stopwatch: Started before it.

    Raises:
        NotFinite: A number that was measured is none.
    """
    report = outcome.report
    _require_finite(report)
    stay = {name: entry for name, entry in current.entries.items() if name != task_id}
    return _Made(
        kind=VersionKind.REMOVAL,
        subspace=outcome.subspace,
        tasks=outcome.tasks,
        entries=entries_after(stay, report.drift, {}),
        drift=report.drift,
        report=report.to_dict() | {"reason": reason},
        lowest_energy_kept=report.lowest_energy_kept,
        mean_energy_kept=report.mean_energy_kept,
        angle=report.angle,
        task_ids=(task_id,),
        rotation=rotation_of(outcome, current),
    ).candidate(current, stopwatch)


def candidate_of_rollback(
    target: Snapshot,
    target_event: VersionEvent | None,
    reason: str,
    current: Snapshot,
    stopwatch: Stopwatch,
) -> Candidate:
    """
    Make the content of an old version ready to be committed as the next one.

    Args:
        target: The old version.
        target_event: Its event; None for version 0, which has none.
        reason: Why; kept with the report.
        current: The version before the new one.
        stopwatch: Started before the old version was read.
    """
    version = current.version + 1
    return _Made(
        kind=VersionKind.ROLLBACK,
        subspace=replace(target.subspace, version=version),
        tasks={name: replace(task, version=version) for name, task in target.tasks.items()},
        entries=target.entries,
        drift=drift_between(current, target),
        report={"reason": reason, "content_version": target.version},
        lowest_energy_kept=target_event.lowest_energy_kept if target_event else 1.0,
        mean_energy_kept=target_event.mean_energy_kept if target_event else 1.0,
        angle=angle_between(target.subspace, current.subspace),
        content_version=target.version,
    ).candidate(current, stopwatch)


def rotation_of(outcome: MergeOutcome, current: Snapshot) -> bytes:
    """
    Write the step by which who holds the current version with its tail gets to the next one.

    Returns:
        Nothing where the step is no smaller than the next version itself.
    """
    payload = codec.rotation_to_bytes(outcome.rotation, current.subspace, outcome.subspace)
    whole_bytes = sum(
        basis.vectors.nbytes for layer in outcome.subspace.layers.values() for _, basis in layer
    )
    return payload if len(payload) < whole_bytes else b""


def largest_drifts(drift: Mapping[str, float]) -> dict[str, float]:
    """Return the drifts that an event tells of: the largest, of tasks that moved at all."""
    moved = [(amount, task_id) for task_id, amount in drift.items() if amount > 0]
    largest = heapq.nlargest(MAX_TOLD_DRIFTS, moved)
    return {task_id: amount for amount, task_id in sorted(largest, key=lambda item: item[1])}


@dataclass(frozen=True)
class _Made:
    """A version of any kind, before it is encoded; its fields are those of commit and event."""

    kind: VersionKind
    subspace: Subspace
    tasks: Mapping[str, MergedTask]
    entries: Mapping[str, TaskEntry]
    drift: Mapping[str, float]
    report: Mapping[str, object]
    lowest_energy_kept: float
    mean_energy_kept: float
    angle: float
    marks: Mapping[str, MergeMark] = field(default_factory=dict)
    update_ids: tuple[str, ...] = ()
    task_ids: tuple[str, ...] = ()
    rotation: bytes = b""
    content_version: int = 0

    def candidate(self, current: Snapshot, stopwatch: Stopwatch) -> Candidate:
        """Encode it as the version after the current one."""
        served = encode_served(self.subspace)
        commit = VersionCommit(
            subspace=self.subspace,
            tasks=self.tasks,
            entries=self.entries,
            event=self._event(served, stopwatch),
            marks=self.marks,
            report=self.report,
            drift=self.drift,
            rotation=self.rotation,
        )
        version = encode_version(commit, parent_digest=current.digest)
        return Candidate(version, served, _snapshot_of(version.commit))

    def _event(self, served: ServedPayload, stopwatch: Stopwatch) -> VersionEvent:
        return VersionEvent(
            version=self.subspace.version,
            merged_at=stopwatch.clock.now(),
            update_ids=self.update_ids,
            task_ids=self.task_ids,
            lowest_energy_kept=self.lowest_energy_kept,
            mean_energy_kept=self.mean_energy_kept,
            angle=self.angle,
            num_factors=self.subspace.num_factors,
            subspace_bytes=served.num_bytes,
            drift=largest_drifts(self.drift),
            merge_seconds=stopwatch.seconds,
            kind=self.kind,
            content_version=self.content_version,
            rotation_bytes=len(self.rotation),
            num_moved=sum(drift > 0 for drift in self.drift.values()),
            largest_drift=max(self.drift.values(), default=0.0),
        )


def _snapshot_of(commit: VersionCommit) -> Snapshot:
    return Snapshot(commit.subspace, commit.tasks, commit.entries, commit.event.digest)


def _require_finite(report: MergeReport) -> None:
    whole = {
        "lowest_energy_kept": report.lowest_energy_kept,
        "mean_energy_kept": report.mean_energy_kept,
        "angle": report.angle,
    }
    measured = {
        "drift of task": report.drift,
        "base_angle of update": report.base_angle,
        "truncation of update": report.truncation,
        "the version's": whole,
    }
    for what, values in measured.items():
        for name, value in values.items():
            # a root of something negative is complex, which only a comparison of types tells
            if not (isinstance(value, float | int) and math.isfinite(value)):
                raise NotFinite(
                    f"the merge measured {what} {name!r} as {value}: an update holds numbers that "
                    "are too large or too small to compute with",
                    num_entries=1,
                )

"""The next version before it is committed: merged, measured and encoded, so that only the disk can still fail."""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from coordinator.clock import Clock
from coordinator.config import SubspaceConfig
from coordinator.store.base import EncodedVersion, MergeMark, VersionCommit, entries_after
from coordinator.store.format import encode_version
from coordinator.versions import ServedPayload, Snapshot, encode_served
from share_dist.core.merge import merge
from share_dist.core.outcome import MergeOutcome, MergeReport
from share_dist.core.values import Subspace, TaskUpdate
from share_dist.errors import NotFinite
from share_dist.wire.records import MAX_TOLD_DRIFTS, VersionEvent


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


def make_candidate(
    updates: Sequence[TaskUpdate],
    *,
    current: Snapshot,
    bases: Mapping[int, Subspace],
    config: SubspaceConfig,
    clock: Clock,
) -> Candidate:
    """
    Merge updates, and do everything that could go wrong before the disk is touched.

    Args:
        updates: What to merge.
        current: The current version.
        bases: The older versions that the updates were trained on.
        config: How many factors to keep.
        clock: Times the merge.

    Raises:
        NotFinite: A number that the merge measured is none.
        ShareError: As ``merge`` does, or an encoder.
    """
    started = clock.monotonic_seconds()
    outcome = merge(
        current.subspace,
        current.tasks,
        updates,
        config.num_factors,
        config.energy,
        oversample=config.oversample,
        bases=bases,
    )
    _require_finite(outcome.report)
    served = encode_served(outcome.subspace)
    event = _event(outcome, served, clock)
    event = replace(event, merge_seconds=clock.monotonic_seconds() - started)
    report = outcome.report
    marks = {
        update_id: MergeMark(
            report.lag[update_id], report.base_angle[update_id], report.truncation[update_id]
        )
        for update_id in report.update_ids
    }
    merged = dict(zip(report.task_ids, report.update_ids, strict=True))
    commit = VersionCommit(
        subspace=outcome.subspace,
        tasks=outcome.tasks,
        entries=entries_after(current.entries, report.drift, merged),
        event=event,
        marks=marks,
        report=report.to_dict(),
        drift=report.drift,
    )
    version = encode_version(commit, parent_digest=current.digest)
    return Candidate(version, served, _snapshot_of(version.commit))


def _event(outcome: MergeOutcome, served: ServedPayload, clock: Clock) -> VersionEvent:
    report = outcome.report
    return VersionEvent(
        version=outcome.subspace.version,
        merged_at=clock.now(),
        update_ids=report.update_ids,
        task_ids=report.task_ids,
        lowest_energy_kept=report.lowest_energy_kept,
        mean_energy_kept=report.mean_energy_kept,
        angle=report.angle,
        num_factors=report.num_factors,
        subspace_bytes=served.num_bytes,
        drift=largest_drifts(report.drift),
        num_moved=sum(drift > 0 for drift in report.drift.values()),
        largest_drift=max(report.drift.values(), default=0.0),
    )


def largest_drifts(drift: Mapping[str, float]) -> dict[str, float]:
    """Return the drifts that an event tells of: the largest, of tasks that moved at all."""
    moved = [(amount, task_id) for task_id, amount in drift.items() if amount > 0]
    largest = heapq.nlargest(MAX_TOLD_DRIFTS, moved)
    return {task_id: amount for amount, task_id in sorted(largest, key=lambda item: item[1])}


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


def _snapshot_of(commit: VersionCommit) -> Snapshot:
    return Snapshot(commit.subspace, commit.tasks, commit.entries, commit.event.digest)

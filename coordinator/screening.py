"""
Which of the updates that could be merged should not be, for the sake of the others.

An update may be well formed, and yet turn the subspace so far that tasks which were
learnt long ago no longer say what they said. Whom that is due to is set aside; the others merge.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from coordinator.config import SubspaceConfig
from coordinator.versions import Snapshot
from share_dist.core.budget import DriftBudget, park_for_budget, task_norms
from share_dist.core.outcome import MergeOutcome
from share_dist.core.prepared import angle_between, prepare_merge
from share_dist.core.staleness import staleness_factor
from share_dist.core.truncation import Truncation
from share_dist.core.values import Subspace, TaskUpdate
from share_dist.wire.records import UpdateState


@dataclass(frozen=True, slots=True)
class SetAside:
    """What becomes of an update that is not merged: QUARANTINED or PARKED, and why."""

    task_id: str
    state: UpdateState
    reason: str


@dataclass(frozen=True)
class Screened:
    """
    A merge of all that may be merged together.

    Args:
        outcome: None if nothing may be.
        set_aside: Update -> why it is not in it.
    """

    outcome: MergeOutcome | None
    set_aside: Mapping[str, SetAside] = field(default_factory=dict)


def screen(
    updates: Sequence[TaskUpdate],
    current: Snapshot,
    bases: Mapping[int, Subspace],
    consented: Collection[str],
    config: SubspaceConfig,
) -> Screened:
    """
    Merge updates but for those that do too much to others.

    Args:
        updates: What to merge.
        current: The current version.
        bases: The older versions that the updates were trained on.
        consented: Updates whose influence an operator has consented to.
        config: How many factors to keep, and the bounds.

    Returns:
        The merge of the others. An update that is neither in it nor set aside keeps within
        every bound alone, and is for the next merge.

    Raises:
        ShareError: As ``merge`` does.
    """
    updates = [_weighed(update, current, bases, config) for update in updates]
    quarantined = _quarantined(updates, current, bases, consented, config)
    left = [update for update in updates if update.update_id not in quarantined]
    if updates and not left:
        return Screened(None, quarantined)
    if config.drift_budget is None:
        return Screened(merge_of(left, current, bases, config), quarantined)
    merged = park_for_budget(
        current.subspace,
        current.tasks,
        left,
        _budget(current, config),
        truncation_of(config),
        bases=bases,
        gives_credit=config.gives_credit,
    )
    tasks = {update.update_id: update.task_id for update in left}
    parked = {
        update_id: SetAside(tasks[update_id], UpdateState.PARKED, _over_budget(excess, config))
        for update_id, excess in merged.parked.items()
        if excess
    }
    outcome = merged.merge.outcome if merged.merge else None
    return Screened(outcome, {**quarantined, **parked})


def merge_of(
    updates: Sequence[TaskUpdate],
    current: Snapshot,
    bases: Mapping[int, Subspace],
    config: SubspaceConfig,
) -> MergeOutcome:
    """Merge updates as they are; raises what ``merge`` raises."""
    prepared = prepare_merge(
        current.subspace, current.tasks, updates, bases=bases, gives_credit=config.gives_credit
    )
    return prepared.cut(truncation_of(config))


def truncation_of(config: SubspaceConfig) -> Truncation:
    """Say how many columns a configuration keeps; what a drift budget has grown stays."""
    return Truncation(
        config.num_factors,
        config.energy,
        config.oversample,
        keeps_factors=config.drift_budget is not None,
        max_bytes=config.max_bytes,
    )


def _weighed(
    update: TaskUpdate, current: Snapshot, bases: Mapping[int, Subspace], config: SubspaceConfig
) -> TaskUpdate:
    """Let a late update count for less, where the policy says so."""
    lag = current.version - update.base_version
    if config.staleness != "down-weight" or lag == 0:
        return update
    angle = angle_between(bases[update.base_version], current.subspace)
    return replace(update, weight=update.weight * staleness_factor(lag, angle))


def _quarantined(
    updates: Sequence[TaskUpdate],
    current: Snapshot,
    bases: Mapping[int, Subspace],
    consented: Collection[str],
    config: SubspaceConfig,
) -> dict[str, SetAside]:
    """
    Find updates each of which alone would move a task by more than ``max_influence``.

    Each is merged alone only if all of them together move some task so far.
    """
    if config.max_influence is None or not updates:
        return {}
    norms = task_norms(current.subspace, current.tasks)

    def furthest_of(which: Sequence[TaskUpdate]) -> tuple[float, str]:
        drift = merge_of(which, current, bases, config).report.drift
        return _furthest(drift, norms)

    if furthest_of(updates)[0] <= config.max_influence:
        return {}
    found = {}
    for update in updates:
        share, task_id = furthest_of([update])
        if share > config.max_influence and update.update_id not in consented:
            reason = (
                f"alone it would move task {task_id!r} by {share:.3g} of its norm, max_influence is "
                f"{config.max_influence:g}"
            )
            found[update.update_id] = SetAside(update.task_id, UpdateState.QUARANTINED, reason)
    return found


def _furthest(drift: Mapping[str, float], norms: Mapping[str, float]) -> tuple[float, str]:
    shares = (
        (moved / norms[task_id], task_id) for task_id, moved in drift.items() if norms[task_id] > 0
    )
    return max(shares, default=(0.0, ""))


def _budget(current: Snapshot, config: SubspaceConfig) -> DriftBudget:
    assert config.drift_budget is not None
    return DriftBudget(
        largest=config.drift_budget,
        max_basis_bytes=config.max_subspace_bytes,
        drift_so_far={
            task_id: entry.cumulative_drift for task_id, entry in current.entries.items()
        },
    )


def _over_budget(excess: Mapping[str, float], config: SubspaceConfig) -> str:
    task_id, share = next(iter(excess.items()))
    others = f" and {len(excess) - 1} others beyond it" if len(excess) > 1 else ""
    within = f", in max_bytes of {config.max_bytes}" if config.max_bytes else ""
    return (
        f"it would carry task {task_id!r} to a cumulative drift of {share:.3g} of its norm{others}, "
        f"drift_budget is {config.drift_budget:g}{within}"
    )

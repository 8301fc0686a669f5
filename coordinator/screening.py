"""
Which of the updates that could be merged should not be, for the sake of the others.

An update may be well formed, and yet turn the subspace so far that tasks which were
learnt long ago no longer say what they said. Whom that is due to is set aside; the others merge.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from coordinator.config import SubspaceConfig
from coordinator.versions import Snapshot
from share_dist.core.outcome import MergeOutcome
from share_dist.core.prepared import prepare_merge
from share_dist.core.sides import Truncation
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

    Raises:
        ShareError: As ``merge`` does.
    """
    return Screened(merge_of(updates, current, bases, config))


def merge_of(
    updates: Sequence[TaskUpdate],
    current: Snapshot,
    bases: Mapping[int, Subspace],
    config: SubspaceConfig,
) -> MergeOutcome:
    """Merge updates as they are; raises what ``merge`` raises."""
    return prepare_merge(current.subspace, current.tasks, updates, bases=bases).cut(
        truncation_of(config)
    )


def truncation_of(config: SubspaceConfig) -> Truncation:
    """Say how many columns a configuration keeps; what a drift budget has grown stays."""
    return Truncation(
        config.num_factors,
        config.energy,
        config.oversample,
        keeps_factors=config.drift_budget is not None,
    )

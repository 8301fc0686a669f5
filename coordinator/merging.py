"""A merge that one bad update cannot stop: the culprit is found by halving, the others merge."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from share_dist.core.outcome import MergeOutcome
from share_dist.core.values import TaskUpdate

Merge: TypeAlias = Callable[[Sequence[TaskUpdate]], MergeOutcome]


@dataclass(frozen=True, slots=True)
class MergeAttempt:
    """
    What could be merged.

    Args:
        outcome: The merge of all but the culprits; None if nothing is left.
        culprits: Update that cannot be merged -> why.
    """

    outcome: MergeOutcome | None = None
    culprits: Mapping[str, str] = field(default_factory=dict)


def merge_without_culprits(merge: Merge, updates: Sequence[TaskUpdate]) -> MergeAttempt:
    """
    Merge as many updates as can be merged together.

    Should both halves merge alone, and only together fail, then the first half
    is merged and the other is left for the next merge.

    Args:
        merge: Merges some updates into the current version; may raise anything.
        updates: What to merge, sorted.

    Raises:
        MemoryError: No update is to blame for that.
    """
    if not updates:
        return MergeAttempt()
    try:
        return MergeAttempt(merge(updates))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever one update causes, the others must merge
        if len(updates) == 1:
            return MergeAttempt(culprits={updates[0].update_id: f"{type(error).__name__}: {error}"})
    middle = len(updates) // 2
    first = merge_without_culprits(merge, updates[:middle])
    second = merge_without_culprits(merge, updates[middle:])
    culprits = {**first.culprits, **second.culprits}
    if not culprits:
        return first
    good = [update for update in updates if update.update_id not in culprits]
    rest = merge_without_culprits(merge, good)
    return MergeAttempt(rest.outcome, {**culprits, **rest.culprits})

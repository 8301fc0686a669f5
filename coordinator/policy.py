"""When to merge, and what: a pure function of the time, of what is pending, and of the policy."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MergePolicy:
    """
    When a merge is due.

    Args:
        min_updates: Merge as soon as so many tasks have a pending update.
        max_wait_seconds: Merge anyway once the oldest update has waited so long.
        max_updates: At most so many updates in one merge; bounds its memory.
    """

    min_updates: int = 1
    max_wait_seconds: float = 10.0
    max_updates: int = 64


@dataclass(frozen=True, slots=True)
class PendingUpdate:
    """What the policy knows of an update that waits. Arrival order is the order of the sequence."""

    update_id: str
    task_id: str
    pushed_at_seconds: float


@dataclass(frozen=True, slots=True)
class Decision:
    """
    What to do now.

    Args:
        merge: Whether to merge at once.
        which: The updates to merge, sorted.
        reason: A sentence for the operator.
        look_again_seconds: When waiting may be over; None if only a push can end it.
    """

    merge: bool
    which: tuple[str, ...]
    reason: str
    look_again_seconds: float | None = None


def decide(now_seconds: float, pending: Sequence[PendingUpdate], policy: MergePolicy) -> Decision:
    """
    Say whether to merge now, and which updates.

    Of one task at most one update is merged at a time, the one that came first;
    a later one replaces it in the following merge.

    Args:
        now_seconds: The time, on the clock of ``pushed_at_seconds``.
        pending: Admitted updates, in order of arrival.
        policy: When a merge is due.

    Examples:
        >>> waiting = [PendingUpdate("u2", "cats", 5.0), PendingUpdate("u1", "dogs", 6.0)]
        >>> decide(7.0, waiting, MergePolicy(min_updates=2))
        Decision(merge=True, which=('u1', 'u2'), reason='2 updates are in, 2 would do', look_again_seconds=None)
        >>> decide(7.0, waiting, MergePolicy(min_updates=3, max_wait_seconds=10.0)).reason
        '2 of 3 updates are in: waiting up to 8.0 s more'
    """
    if not pending:
        return Decision(merge=False, which=(), reason="nothing is pending")
    ready = _first_of_each_task(pending)[: policy.max_updates]
    # sorted: the merge must not depend on the order of arrival
    which = tuple(sorted(update.update_id for update in ready))
    needed = min(policy.min_updates, policy.max_updates)
    if len(ready) >= needed:
        reason = f"{len(ready)} updates are in, {needed} would do"
        return Decision(merge=True, which=which, reason=reason)
    waited = max(0.0, now_seconds - min(update.pushed_at_seconds for update in pending))
    left = policy.max_wait_seconds - waited
    if left <= 0:
        return Decision(
            merge=True, which=which, reason=f"the oldest update has waited {waited:.1f} s"
        )
    return Decision(
        merge=False,
        which=(),
        reason=f"{len(ready)} of {needed} updates are in: waiting up to {left:.1f} s more",
        look_again_seconds=left,
    )


def _first_of_each_task(pending: Sequence[PendingUpdate]) -> list[PendingUpdate]:
    first: dict[str, PendingUpdate] = {}
    for update in pending:
        first.setdefault(update.task_id, update)
    return list(first.values())

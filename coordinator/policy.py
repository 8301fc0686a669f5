"""
When to merge, and what: pure functions of the time, of what is pending, and of the policy.

How late an update is has two measures: its lag counts versions, its angle says
how far the subspace has turned since. ``require_fresh`` asks a worker at the door to fit
again; what was let in is merged, however many versions come while it waits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from share_dist.errors import BaseVersionTooOld

Staleness: TypeAlias = Literal["transport", "down-weight", "refit"]
"""What becomes of an update that was trained on an older version: it is merged exactly as
trained; it counts for less; or, beyond a bound, its worker is asked to fit again."""


@dataclass(frozen=True, slots=True)
class MergePolicy:
    """
    When a merge is due, and what being late means.

    Args:
        min_updates: Merge as soon as so many tasks have a pending update.
        max_wait_seconds: Merge anyway once the oldest update has waited so long.
        max_updates: At most so many updates in one merge; bounds its memory.
        staleness: What becomes of a late update.
        max_lag: With ``"refit"``: more versions late than this is too late; None for no bound.
        max_angle: With ``"refit"``: a subspace that turned by more than this, in radians, since
            the base version makes an update too late; None for no bound.
    """

    min_updates: int = 1
    max_wait_seconds: float = 10.0
    max_updates: int = 64
    staleness: Staleness = "transport"
    max_lag: int | None = None
    max_angle: float | None = None

    @property
    def needs_angle(self) -> bool:
        """Whether ``require_fresh`` looks at the angle."""
        return self.staleness == "refit" and self.max_angle is not None


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


def require_fresh(
    name: str, base_version: int, current_version: int, angle: float, policy: MergePolicy
) -> None:
    """
    Ask for a re-fit of an update that is later than the policy takes.

    Args:
        name: How to call the update.
        base_version: The version that it was trained on.
        current_version: The newest.
        angle: Largest principal angle between the two, radians.
        policy: What is too late.

    Raises:
        BaseVersionTooOld: With the measure that is beyond its bound.

    Examples:
        >>> policy = MergePolicy(staleness="refit", max_lag=2)
        >>> require_fresh("update u1", 5, 7, 1.2, policy)
        >>> require_fresh("update u1", 4, 7, 1.2, policy)
        Traceback (most recent call last):
        share_dist.errors.BaseVersionTooOld: update u1 was trained on version 4 and is 3 versions late, 2 are taken: pull version 7, rebase, fit again and push
    """
    late = _lateness(current_version - base_version, angle, policy)
    if policy.staleness != "refit" or late is None:
        return
    oldest_by_lag = 0 if policy.max_lag is None else current_version - policy.max_lag
    raise BaseVersionTooOld(
        f"{name} was trained on version {base_version} and {late}: pull version "
        f"{current_version}, rebase, fit again and push",
        base_version=base_version,
        first_version=max(base_version + 1, oldest_by_lag),
        current_version=current_version,
    )


def _lateness(lag: int, angle: float, policy: MergePolicy) -> str | None:
    if policy.max_lag is not None and lag > policy.max_lag:
        return f"is {lag} versions late, {policy.max_lag} are taken"
    if policy.max_angle is not None and angle > policy.max_angle:
        return (
            f"the subspace has turned by {angle:.3f} radians since, {policy.max_angle:g} are taken"
        )
    return None


def _first_of_each_task(pending: Sequence[PendingUpdate]) -> list[PendingUpdate]:
    first: dict[str, PendingUpdate] = {}
    for update in pending:
        first.setdefault(update.task_id, update)
    return list(first.values())

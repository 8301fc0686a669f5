"""
The drift budget: how far merges may move a task, and what is done before one moves it further.

A task's *relative cumulative drift* is the sum of its drifts since its newest update was merged,
over the norm of its ``dW`` as it is served: an upper bound of how far it is from where
it was, as a share of itself. A merge that would carry some task beyond the budget
keeps more columns; where memory does not allow enough of them, the updates that do it are parked.
"""

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from share_dist.core.outcome import MergeOutcome
from share_dist.core.prepared import PreparedMerge, prepare_merge
from share_dist.core.sides import SideSpectrum
from share_dist.core.table import TaskTable
from share_dist.core.truncation import Truncation, factor_bytes
from share_dist.core.values import MergedTask, Subspace, TaskUpdate
from share_dist.errors import ConfigError

UNMOVED = 1e-5
"""A merge that moves a task by less than this share of its norm has not moved it: float32 rounds so."""


@dataclass(frozen=True)
class DriftBudget:
    """
    What merges may do to tasks, and what keeping them in place may cost.

    Args:
        largest: Largest relative cumulative drift of a task; greater than 0.
        max_basis_bytes: Most bytes of all columns of all bases, tails included, that ``k`` may
            grow to; None for no bound but the rank.
        drift_so_far: Task -> its cumulative drift before this merge; 0 where it is not named.
    """

    largest: float
    max_basis_bytes: int | None = None
    drift_so_far: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.largest > 0:
            raise ConfigError(
                f"the drift budget is {self.largest}: give a share of a task's norm above 0, such as 0.1",
                key="drift_budget",
            )


@dataclass(frozen=True)
class BudgetedMerge:
    """
    What a merge under a budget came to.

    Args:
        outcome: The merge; where none keeps within, the one that exceeds least.
        relative_drift: Every task that was there before and still is -> its relative
            cumulative drift after the merge; 0 for one that this merge does not move.
        excess: Those beyond the budget, the furthest first; empty when it keeps within.
        least_factors: The ``k`` that was grown to; 0 where it did not need to grow.
    """

    outcome: MergeOutcome
    relative_drift: Mapping[str, float]
    excess: Mapping[str, float]
    least_factors: int = 0

    @property
    def furthest(self) -> float:
        """The largest relative cumulative drift of a task that this merge moves."""
        return max(self.relative_drift.values(), default=0.0)


@dataclass(frozen=True)
class ParkedMerge:
    """
    What is left of a merge that went beyond the budget.

    Args:
        merge: Of the updates that keep within together; None when there are none.
        parked: Update that has to wait -> the tasks that it alone would carry beyond the budget,
            and how far. There may be none: it takes several updates together then.
    """

    merge: BudgetedMerge | None
    parked: Mapping[str, Mapping[str, float]]


def task_norms(subspace: Subspace, tasks: Mapping[str, MergedTask]) -> dict[str, float]:
    """
    Measure ``||dW||_F`` of tasks as they are served, over all layers, from coefficients alone.

    Args:
        subspace: The version that the tasks are said in.
        tasks: The tasks.
    """
    norms: dict[str, float] = {}
    for group in TaskTable.of(tasks, subspace.version).groups:
        squares = torch.zeros(len(group.task_ids), dtype=torch.float64)
        for name, both in group.layers.items():
            a, b = (
                block.rows[..., : subspace.layers[name][side].num_factors].double()
                for side, block in both
            )
            found = ((a @ a.mT) * (b @ b.mT)).sum(dim=(-2, -1))
            squares += found.clamp_min(0.0).cpu()
        norms.update(zip(group.task_ids, squares.sqrt().tolist(), strict=True))
    return norms


def merge_within_budget(
    subspace: Subspace,
    tasks: Mapping[str, MergedTask],
    updates: Sequence[TaskUpdate],
    budget: DriftBudget,
    truncation: Truncation,
    *,
    bases: Mapping[int, Subspace] | None = None,
    gives_credit: bool = False,
) -> BudgetedMerge:
    """
    Merge, with as many more columns as keep every task within its drift budget.

    No side ever gets fewer factors than it has, but for its rank: what once grew stays, because the
    ``k`` of the current version is where this merge begins. Only if some task then goes beyond the
    budget does ``k`` grow: in steps that double until all are within, then halved back, so that
    the next smaller ``k`` that was tried is too small. The large products are done once.

    Where the truncation has ``max_bytes``, these win over all growth. They are shared out anew first,
    whatever each side has; only if that carries some task beyond the budget, every side keeps the factors
    that it has, if they fit, and what is left of the bytes is where ``k`` can grow.

    Args:
        subspace: The current version, with its oversampled tail.
        tasks: Every task that is merged in it.
        updates: At most one per task.
        budget: How far tasks may be moved, and at what cost.
        truncation: How many columns to keep where nobody is moved too far.
        bases: Version -> subspace, for updates that were trained on an older version.
        gives_credit: As ``merge`` says it.

    Returns:
        The merge, and who goes beyond the budget all the same: ``park_for_budget`` then
        finds the updates that it is due to.

    Raises:
        ShareError: As ``merge`` does.
    """
    prepared = prepare_merge(subspace, tasks, updates, bases=bases, gives_credit=gives_credit)
    held, is_shared_out = replace(truncation, keeps_factors=True), truncation.max_bytes is not None
    norms = task_norms(subspace, prepared.tasks)

    def attempt(least_factors: int, start: Truncation = held) -> BudgetedMerge:
        outcome = prepared.cut(replace(start, least_factors=least_factors))
        relative = _relative_drift(outcome.report.drift, norms, budget)
        far = sorted((-drift, task_id) for task_id, drift in relative.items() if drift > budget.largest)  # fmt: skip
        excess = {task_id: -drift for drift, task_id in far}
        return BudgetedMerge(outcome, relative, excess, least_factors)

    first = attempt(0, replace(truncation, keeps_factors=not is_shared_out))
    if first.excess and is_shared_out:
        first = min(first, attempt(0), key=lambda tried: tried.furthest)
    if not first.excess:
        return first
    return _grow(attempt, first, *_range(prepared, held, budget.max_basis_bytes))


def park_for_budget(
    subspace: Subspace,
    tasks: Mapping[str, MergedTask],
    updates: Sequence[TaskUpdate],
    budget: DriftBudget,
    truncation: Truncation,
    *,
    bases: Mapping[int, Subspace] | None = None,
    gives_credit: bool = False,
) -> ParkedMerge:
    """
    Merge what keeps within the budget, and name the updates that have to wait.

    Each update is merged alone to see how far it carries a task. Those that carry one furthest
    are left out first, as few as it takes: one merge for each update, and a few more.

    Args:
        subspace: The current version, with its oversampled tail.
        tasks: Every task that is merged in it.
        updates: At most one per task.
        budget: How far tasks may be moved, and at what cost.
        truncation: How many columns to keep where nobody is moved too far.
        bases: Version -> subspace, for updates that were trained on an older version.
        gives_credit: As ``merge`` says it.

    Raises:
        ShareError: As ``merge`` does.
    """

    def merged(which: Sequence[TaskUpdate]) -> BudgetedMerge:
        return merge_within_budget(
            subspace, tasks, which, budget, truncation, bases=bases, gives_credit=gives_credit
        )

    together = merged(updates)
    if not together.excess:
        return ParkedMerge(together, {})
    alone = {update.update_id: merged([update]) for update in updates}
    order = sorted(
        updates, key=lambda update: (-alone[update.update_id].furthest, update.update_id)
    )
    kept, fewest, parked = None, 1, len(order)
    while fewest < parked:
        middle = (fewest + parked) // 2
        tried = merged(order[middle:])
        if tried.excess:
            fewest = middle + 1
        else:
            kept, parked = tried, middle
    waiting = {update.update_id: alone[update.update_id].excess for update in order[:parked]}
    return ParkedMerge(kept, waiting)


def _relative_drift(
    drift: Mapping[str, float], norms: Mapping[str, float], budget: DriftBudget
) -> dict[str, float]:
    return {
        task_id: (budget.drift_so_far.get(task_id, 0.0) + moved) / norms[task_id]
        if moved > UNMOVED * norms[task_id] > 0
        else 0.0
        for task_id, moved in drift.items()
    }


def _range(prepared: PreparedMerge, start: Truncation, max_bytes: int | None) -> tuple[int, int]:
    """Find a ``k`` that changes nothing, and the largest that ranks and memory allow."""
    sides = [side for layer in prepared.sides.values() for _, side in layer]
    chosen = [(start.choose(side)[0], side.rank) for side in sides]
    lowest = min((k for k, rank in chosen if k < rank), default=0)
    highest = max((rank for k, rank in chosen if k < rank), default=0)
    if max_bytes is None:
        return lowest, highest
    fits = bisect.bisect_right(
        range(lowest, highest + 1),
        max_bytes,
        key=lambda k: _bytes(sides, replace(start, least_factors=k)),
    )
    return lowest, lowest + fits - 1


def _bytes(sides: Sequence[SideSpectrum], truncation: Truncation) -> int:
    return sum(factor_bytes(side) * truncation.choose(side)[1] for side in sides)


def _grow(
    attempt: Callable[[int], BudgetedMerge], first: BudgetedMerge, lowest: int, highest: int
) -> BudgetedMerge:
    """Double the growth until nobody is beyond the budget, then halve back."""
    best, too_small, step = first, lowest, 1
    while best.excess and too_small < highest:
        tried = attempt(min(lowest + step, highest))
        best = tried if tried.furthest < best.furthest or not tried.excess else best
        if tried.excess:
            too_small, step = tried.least_factors, 2 * step
    while not best.excess and best.least_factors - too_small > 1:
        tried = attempt((too_small + best.least_factors) // 2)
        if tried.excess:
            too_small = tried.least_factors
        else:
            best = tried
    return best

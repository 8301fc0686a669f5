"""Removal: tasks are taken out of the subspace, and what they may leave behind is bounded."""

import difflib
from collections.abc import Collection, Mapping

from share_dist.core.outcome import MergeOutcome
from share_dist.core.prepared import prepare_merge
from share_dist.core.truncation import Truncation
from share_dist.core.values import MergedTask, Subspace
from share_dist.errors import ConfigError, UnknownTask


def remove_tasks(
    subspace: Subspace,
    tasks: Mapping[str, MergedTask],
    task_ids: Collection[str],
    num_factors: int | None = None,
    energy: float | None = None,
    *,
    oversample: int = 0,
    keeps_factors: bool = False,
    max_bytes: int | None = None,
) -> MergeOutcome:
    """
    Take tasks out of a subspace.

    Their contribution is subtracted from the second moment, and what is left is
    decomposed anew: a merge of nothing but their leaving.

    Args:
        subspace: The current version, with its oversampled tail.
        tasks: Every task that is merged in it.
        task_ids: The tasks to take out; all of them leave a subspace without columns.
        num_factors: ``k``; None keeps all that the other tasks have.
        energy: Instead, or as well: the least ``k`` that explains this share.
        oversample: ``o``.
        keeps_factors: No side gets fewer than it has now, but for its rank.
        max_bytes: As ``merge`` takes it.

    Returns:
        The next version, the tasks that stay said in it, the rotation, and a report of how far
        each one moved. ``report.residue_bound`` says how much of the others may be left.

    Accuracy:
        Where nothing was truncated while they were in it, the subspace is the one that was
        never fed with them, to rounding. Otherwise its second moment differs from theirs who stay
        by at most ``residue_bound`` times the energy of those who go; derived in ``account``.

    Raises:
        ConfigError: No task is named, or an option is out of range.
        UnknownTask: A task is not in the subspace.
    """
    truncation = Truncation(
        num_factors, energy, oversample, keeps_factors=keeps_factors, max_bytes=max_bytes
    )
    if not task_ids:
        raise ConfigError("no task was named to be removed: name at least one", key="task_ids")
    for task_id in sorted(task_ids):
        if task_id not in tasks:
            nearest = ", ".join(difflib.get_close_matches(task_id, tasks, n=3))
            raise UnknownTask(
                f"no task {task_id!r} is merged in version {subspace.version}"
                + (f": did you mean {nearest}?" if nearest else f", {len(tasks)} others are"),
                task_id=task_id,
                nearest=nearest,
            )
    return prepare_merge(subspace, tasks, (), removed=set(task_ids)).cut(truncation)

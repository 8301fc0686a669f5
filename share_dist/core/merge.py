"""
The exact merge: a subspace and task updates in, the next version out, without the past.

All that a merge must remember of earlier tasks is the energy ``l`` of each
column of a basis ``V``, because ``G = V diag(l) V.T`` *is* the second moment of
everything merged before. New columns ``X`` are split into what the basis can
say and what it cannot, ``X = V C + Q S``, and one small SVD does the rest::

    M = [ diag(sqrt(l))  C ]  =  U diag(sigma) W.T          (m + q', m + q)
        [ 0              S ]

    V_new = [V Q] U[:, :m]     l_new = sigma[:m] ** 2
    E_t  <- U[:m, :m].T E_t    for every old task t
    E     = V_new.T F          for a new task with raw factor F

``U`` is the rotation. Nothing here grows with the number of earlier tasks: the product that
rotates their coefficients is owed, until somebody reads them (``table``). The large products are done in the
dtype of the bases, small matrices are decomposed in float64; layers and sides of equal
shape are computed as one batch, of as many as a cache holds.

Source: Share, arXiv:2602.06043 (the merge by SVD of all tasks), incremental SVD
(Brand, 2006) and Tucker-2 / HOSVD (De Lathauwer, 2000) for the metric ``delta``.
"""

from collections.abc import Mapping, Sequence

from share_dist.core.outcome import MergeOutcome
from share_dist.core.prepared import prepare_merge
from share_dist.core.truncation import Truncation
from share_dist.core.values import MergedTask, Subspace, TaskUpdate


def merge(
    subspace: Subspace,
    tasks: Mapping[str, MergedTask],
    updates: Sequence[TaskUpdate],
    num_factors: int | None = None,
    energy: float | None = None,
    *,
    oversample: int = 0,
    max_bytes: int | None = None,
    bases: Mapping[int, Subspace] | None = None,
    gives_credit: bool = False,
) -> MergeOutcome:
    """
    Merge task updates into a subspace.

    Args:
        subspace: The current version, with its oversampled tail.
        tasks: Every task that is merged in it. A task that an update names
            again is replaced: its former contribution is taken out first.
        updates: At most one per task. Their order does not matter.
        num_factors: ``k``; None keeps all that the data have.
        energy: Instead, or as well: the least ``k`` per side that explains
            this share of the energy of everything merged, 0 to 1.
        oversample: ``o``; columns kept beyond ``k`` for the sake of later merges.
        max_bytes: Of the factors of all bases together, as they are broadcast: what the others say
            is then the most that a side gets, and each gets as many as explain most.
        bases: Version -> subspace, for updates that were trained on an older
            version. They are merged exactly: being late loses nothing.
        gives_credit: Credit each direction that comes anew with about what truncation has cut of a direction
            so far, on average: else those that came first keep others out for ever, where tasks come sorted by theme. The
            energies then hold an estimate beside what is known; a task that is taken out does not take it along.

    Returns:
        The next version, all tasks said in it, the rotation and a report.

    Accuracy:
        The leading columns are those of the SVD of everything merged since
        version 0, exactly while nothing is truncated, with ``gives_credit`` too; what a truncation cuts
        is in the report. Taking out a replaced task is exact while nothing
        was truncated since it came; ``report.residue_bound`` bounds it otherwise.

    Raises:
        ShapeMismatch: An update does not fit the subspace, or names a task twice.
        BaseVersionTooOld: An update's base version is not in ``bases``.
        VersionInFuture: An update's base version does not exist yet.
        UpdateRefused: An update changes nothing in some layer.
        ConfigError: ``num_factors``, ``energy`` or ``oversample`` is out of range, or
            ``max_bytes`` do not hold a factor of every side.
    """
    truncation = Truncation(num_factors, energy, oversample, max_bytes=max_bytes)
    return prepare_merge(subspace, tasks, updates, bases=bases, gives_credit=gives_credit).cut(
        truncation
    )

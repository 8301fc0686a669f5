"""
The account of cut energy: what truncation took from each task, and what removing one may leave behind.

On one side of one layer, let ``Z`` hold the weighted metric columns ``sqrt(w) X`` of tasks as
they would be if nothing had been cut since a certain version, and ``Y`` the same columns as
they are kept. A merge that truncates replaces the kept columns of *all* tasks by their projections on the
leading singular directions of ``Y``, so what it cuts, ``D``, has no product with what it keeps::

    Y = P Y + D      P Y D.T = 0      moment(Y) = moment(P Y) + D D.T

Summed over the merges since that version, for all tasks together::

    moment(Z) = moment(Y) + C         C = sum D D.T         c = sum |D D.T|  >=  |C|

with Frobenius norms throughout. Now the tasks ``R`` stay and the tasks ``G`` go, ``G`` having come with or after that
version. Their kept columns are subtracted, ``moment(Y_R) = moment(Y) - moment(Y_G)``, which is exact. Of their own
columns ``Z_G = Y_G + D_G`` truncation had cut ``D_G``; each column's cuts are orthogonal to each other and to
what is kept of it, so with ``a^2 = |Y_G|^2`` and ``b^2 = |D_G|^2`` the energy of ``G`` as merged is
``a^2 + b^2``. Then what stays differs from what would have been, had ``G`` never come, by::

    moment(Z_R) - moment(Y_R) = C - (Y_G D_G.T + D_G Y_G.T + D_G D_G.T)

    | moment(Z_R) - moment(Y_R) |  <=  c + 2 a b + b^2

The cross terms ``2 a b`` are there because a projection is orthogonal to what it cuts over all tasks together
only, not task by task. A removal itself so leaves a residue of ``2 a b + b^2`` in the account of the
tasks that stay: it is added to what was cut meanwhile of each of them, beside the moments of later
cuts, and the bound holds for any sequence of merges, replacements and removals.

A merge that gives credit adds columns ``K`` that nobody sent: those of one more task that always stays, and of which the truth
has none. By the triangle inequality their moment's norm ``|K K.T|`` joins ``c``.

Accuracy:
    To the rounding of the coefficients, in their dtype; where nothing was cut, all of this is 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from share_dist.core.values import MergedTask, Side


@dataclass(frozen=True, slots=True)
class TakenOut:
    """
    The tasks that one step takes out of one side of one layer.

    Args:
        kept: ``a^2``; their energy in the basis.
        cut: ``b^2``; their energy that was cut while they were in it.
        meanwhile: ``c``; norms of the second moments cut of all tasks since the first of them
            came, with the residues of the removals since then.
    """

    kept: float = 0.0
    cut: float = 0.0
    meanwhile: float = 0.0

    @property
    def residue(self) -> float:
        """``2 a b + b^2``: what taking them out adds to the account of every task that stays."""
        return 2 * math.sqrt(self.kept * self.cut) + self.cut

    @property
    def bound(self) -> float:
        """``(c + 2 a b + b^2) / (a^2 + b^2)``; 0 when nothing was cut while they were here."""
        whole = self.kept + self.cut
        return (self.meanwhile + self.residue) / whole if whole > 0 else 0.0


def taken_out(tasks: Sequence[MergedTask], name: str, side: Side) -> TakenOut:
    """Sum up the tasks that go, on one side of one layer."""
    layers = [task.layers[name] for task in tasks]
    kept = [
        float(kept_energy(layer.coefficients[side], layer.grams[side])) * layer.weights[side]
        for layer in layers
    ]
    return TakenOut(
        kept=math.fsum(kept),
        # what was cut is a difference to what is kept, known to the rounding of the coefficients
        cut=math.fsum(
            layer.cut_energy[side] + 4 * torch.finfo(layer.coefficients[side].dtype).eps * energy
            for layer, energy in zip(layers, kept, strict=True)
            if layer.cut_meanwhile[side] > 0
        ),
        meanwhile=max((layer.cut_meanwhile[side] for layer in layers), default=0.0),
    )


def kept_energy(
    coefficients: Float[Tensor, "*t m p"], grams: Float[Tensor, "*t p p"]
) -> Float[Tensor, "*t"]:
    """
    Compute ``tr(E N E.T)``: the energy of metric columns, before they are weighted.

    With what a cut takes of the coefficients, it is the energy that is cut.

    Examples:
        >>> import torch
        >>> E = torch.tensor([[3.0], [4.0]])
        >>> float(kept_energy(E, torch.full((1, 1), 2.0, dtype=torch.float64)))
        50.0
    """
    E = coefficients.double()
    energy: Tensor = ((E.mT @ E) * grams).sum(dim=(-2, -1))
    return energy

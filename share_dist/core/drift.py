"""Drift: how a merge carries the tasks over, and the certificate of how far each one moved."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from share_dist.core.table import Carry, SideBlock, TaskTable
from share_dist.core.values import Pair, Side

_NUMBERS_AT_ONCE = 2**18
"""Of coefficients: what a processor's cache holds beside the products made of them."""


@dataclass(frozen=True, slots=True)
class SideTurn:
    """
    How one side of one layer gets to the next version, as its tasks see it.

    Args:
        matrix: ``T``, ``(m, m_new)`` float64; says old columns in new ones.
        unsaid: ``(k, c)`` float64; what of the served columns lies outside the new served ones, in
            orthonormal columns.
        num_factors: The new ``k``.
        cut_moment: Norm of the second moment that the merge cuts of all tasks.
        residue: What the tasks that it takes out add to the account of those that stay.
    """

    matrix: Tensor
    unsaid: Tensor
    num_factors: int
    cut_moment: float
    residue: float

    @property
    def carry(self) -> Carry:
        """How the tasks that stay are carried over."""
        return Carry(self.matrix, self.cut_moment + self.residue)


class Drift(Mapping[str, float]):
    """
    How far each task was moved, ``||dW(after) - dW(before)||_F`` over all layers, as served.

    It is measured, of all tasks at once, when somebody asks.

    Args:
        measure: Measures all of them.
    """

    def __init__(self, measure: Callable[[], dict[str, float]]) -> None:
        self._measure: Callable[[], dict[str, float]] | None = measure
        self._measured: dict[str, float] = {}

    def _known(self) -> dict[str, float]:
        if (measure := self._measure) is not None:
            # in this order: another thread that finds no measure must find what was measured
            self._measured = measure()
            self._measure = None
        return self._measured

    def __getitem__(self, task_id: str) -> float:
        return self._known()[task_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())

    def __repr__(self) -> str:
        return repr(self._known())

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, float]:
        return dict(self._known())


def measure_drift(
    tasks: TaskTable, leaving: Collection[str], turns: Mapping[str, Pair[SideTurn]]
) -> dict[str, float]:
    """
    Measure how far a merge moves each task that stays.

    Args:
        tasks: All tasks, in the columns before.
        leaving: Those that do not stay.
        turns: Layer name -> how each side gets to the next version.

    Accuracy:
        Exact but for the rounding of the coefficients' dtype, relative to the drift.
    """
    found: dict[str, float] = {}
    for group in (each.without(leaving) for each in tasks.groups):
        squares = torch.zeros(len(group.task_ids), dtype=torch.float64)
        for name, both in group.layers.items():
            squares += _squared_drift(both, turns[name]).cpu()
        found |= dict(zip(group.task_ids, squares.sqrt().tolist(), strict=True))
    return dict(sorted(found.items()))


def _squared_drift(blocks: Pair[SideBlock], turns: Pair[SideTurn]) -> Float[Tensor, " t"]:
    """Compute ``||dW(after) - dW(before)||_F^2`` of each task in one layer."""
    numbers_each = max(block.rows[:1].numel() for _, block in blocks)
    tasks_at_once = max(1, _NUMBERS_AT_ONCE // max(1, numbers_each))
    parts = zip(*(torch.split(block.rows, tasks_at_once) for _, block in blocks), strict=True)
    squares = []
    for rows_a, rows_b in parts:
        a, b = _Moves.of(rows_a, turns.a), _Moves.of(rows_b, turns.b)
        squares.append(
            _dot(b.change, a.after) + 2 * _dot(b.change_before, a.after_change) + _dot(b.before, a.change)
        )  # fmt: skip
    return torch.cat(squares).clamp_min(0.0) if squares else torch.zeros(0, dtype=torch.float64)


def _dot(left: Float[Tensor, "t p p"], right: Float[Tensor, "t p p"]) -> Float[Tensor, " t"]:
    product: Tensor = (left * right).sum(dim=(-2, -1), dtype=torch.float64)
    return product


@dataclass(frozen=True, slots=True)
class _Moves:
    """
    Products ``(t, p, p)`` of tasks' factors on one side, as served before and after, and their change.

    In orthonormal columns of which the first ``k_new`` are the new served ones, with ``e`` the served
    and ``t`` the other rows of ``E``, and ``T`` split alike::

        before = [ T_e.T e        ]     after = [ T_e.T e + T_t.T t ]     change = [ T_t.T t     ]
                 [ unsaid.T e     ]             [ 0                 ]              [ -unsaid.T e ]
    """

    before: Tensor
    after: Tensor
    change: Tensor
    change_before: Tensor
    after_change: Tensor

    @staticmethod
    def of(rows: Float[Tensor, "t p m"], turn: SideTurn) -> "_Moves":
        """Compute them from the rows of the tasks."""
        k = turn.unsaid.shape[0]
        served = rows[..., :k]
        lost = served @ turn.unsaid.to(rows.dtype)
        before, change = served @ served.mT, lost @ lost.mT
        if rows.shape[-1] == k:
            return _Moves(before, before - change, change, -change, torch.zeros_like(change))
        T = turn.matrix[:, : turn.num_factors].to(rows.dtype)
        gained, held = rows[..., k:] @ T[k:], served @ T[:k]
        after = held + gained
        return _Moves(
            before,
            after @ after.mT,
            change + gained @ gained.mT,
            gained @ held.mT - change,
            after @ gained.mT,
        )


def squared_difference(
    old: Mapping[Side, Tensor], new: Mapping[Side, Tensor], change: Mapping[Side, Tensor]
) -> Float[Tensor, "*t"]:
    """
    Compute ``||B_new A_new.T - B_old A_old.T||_F^2`` from ``p x p`` products.

    The difference is split as ``dB A_new.T + B_old dA.T``, which does not
    cancel when it is far below the norm of either product.
    """
    square: Tensor = (
        (change["b"].mT @ change["b"]) * (new["a"].mT @ new["a"])
        + 2 * (change["b"].mT @ old["b"]) * (new["a"].mT @ change["a"])
        + (old["b"].mT @ old["b"]) * (change["a"].mT @ change["a"])
    )
    summed: Tensor = square.sum(dim=(-2, -1))
    return summed.clamp_min(0.0)

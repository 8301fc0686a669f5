"""What bases hold of all updates, against what the best bases of as many columns hold."""

from collections.abc import Mapping

import torch
from torch import Tensor

from share_dist.core.values import SIDES, Factors, Side, Subspace
from share_dist.simulation.updates import metric_columns

_AT_ONCE = 512
"""Columns that are gathered before they are summed up."""


class Moments:
    """Sums up the second moments of updates, side by side, as merges weigh them: each ``dW`` with norm one."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, Side], Tensor] = {}
        self._waiting: dict[tuple[str, Side], list[Tensor]] = {}
        self._best: dict[tuple[str, Side], Tensor] = {}

    def add(self, factors: Factors) -> None:
        """Count one update; its factors are evenly split."""
        self._best.clear()
        for name, layer in factors.items():
            for side, columns in metric_columns(layer):
                waiting = self._waiting.setdefault((name, side), [])
                waiting.append(columns)
                if sum(each.shape[1] for each in waiting) >= _AT_ONCE:
                    self._settle((name, side))

    @property
    def sums(self) -> Mapping[tuple[str, Side], Tensor]:
        """The moment of each side of each layer, ``(d, d)``."""
        for key in list(self._waiting):
            self._settle(key)
        return self._sums

    def add_all(self, sums: Mapping[tuple[str, Side], Tensor]) -> None:
        """Count every update that other sums count."""
        self._best.clear()
        own = self.sums
        self._sums = {
            key: own[key] + moment if key in own else moment for key, moment in sums.items()
        }

    def captured(self, subspace: Subspace, num_factors: int) -> float:
        """
        Tell the energy in the ``k`` factors of a subspace over that in the best ``num_factors`` of each side, 0 to 1.

        Energies are summed over layers and sides. Nothing merged is told as 0.
        """
        held = best = 0.0
        if not (self._sums or self._waiting):
            return 0.0
        for name, layer in subspace.layers.items():
            for side in SIDES:
                moment = self._settle((name, side))
                V = layer[side].leading
                held += float((V * (moment @ V)).sum())
                best += float(self._energies((name, side))[-num_factors:].sum())
        return held / best if best else 0.0

    def _energies(self, key: tuple[str, Side]) -> Tensor:
        if key not in self._best:
            self._best[key] = torch.linalg.eigvalsh(self._settle(key))
        return self._best[key]

    def _settle(self, key: tuple[str, Side]) -> Tensor:
        """Sum up what waits."""
        waiting = self._waiting.pop(key, [])
        if waiting:
            columns = torch.cat(waiting, dim=1)
            square = columns @ columns.mT
            self._sums[key] = self._sums[key] + square if key in self._sums else square
        return self._sums[key]

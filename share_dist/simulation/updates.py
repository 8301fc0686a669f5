r"""
The n-th update of a run: a recorded one, and beyond what was recorded a synthetic one.

A synthetic update has the spectra of recorded ones. On each side of a layer let ``X`` hold the unit-norm columns of all recorded
updates, ``X = [C U] diag(sigma) W.T``, with ``C`` the directions that they have in common. What lies in ``C`` stays, all else is
turned elsewhere, for each cohort of as many updates as were recorded by another random rotation ``R`` of what is orthogonal to ``C``::

    F  =  C C.T F  +  K z          z = K.T F,  K an orthonormal basis of the rest
    F' =  C C.T F  +  K R z        the same singular values, of each dW and of the cohort's stack

In common are as many of the leading directions as have larger singular values than they would have if every
update were turned by itself (parallel analysis: Horn, 1965). So cohorts share with each other what
recorded updates share, and beyond that nothing but by chance.
"""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from share_dist.core.linalg import thin_svd
from share_dist.core.values import SIDES, Factors, Head, LayerFactors, Pair
from share_dist.errors import ConfigError
from share_dist.simulation.recorded import Recording

MOST_BYTES = 2**32
"""Of what synthetic updates are made of, and likewise of the moments of all updates."""

_MARGIN = 1 + 1e-6


@dataclass(frozen=True)
class DrawnUpdate:
    """
    What a simulated worker has learnt.

    Args:
        factors: Layer name -> factors.
        head: The task's output layer.
        recorded_as: Name of the recording that it is, or that it has the spectra of.
        cohort: 0 for what was recorded; from 1 on it is synthetic.
    """

    factors: Factors
    head: Head
    recorded_as: str
    cohort: int

    @property
    def is_synthetic(self) -> bool:
        """Whether it was never trained."""
        return self.cohort > 0

    @property
    def origin(self) -> str:
        """What it is called wherever it is told."""
        if self.is_synthetic:
            return f"synthetic {self.cohort}: {self.recorded_as}"
        return f"recorded: {self.recorded_as}"


class Updates:
    """
    All updates of a run, each made when it is asked for.

    Args:
        recorded: At least one, of equal layers.
        seed: Of their order, and of what is synthetic.

    Raises:
        ConfigError: The layers are too large to be simulated.
    """

    def __init__(self, recorded: Sequence[Recording], seed: int) -> None:
        self._recorded = list(recorded)
        self._seed = seed
        random.Random(f"{seed}/order").shuffle(self._recorded)  # noqa: S311 - a simulation
        require_small(recorded[0].factors)

    @property
    def num_recorded(self) -> int:
        """Updates from here on are synthetic."""
        return len(self._recorded)

    @property
    def factors(self) -> Factors:
        """Those of one recording: the layers of all."""
        return self._recorded[0].factors

    def recorded(self, index: int) -> DrawnUpdate:
        """Get the recorded update that the update of a number has its shapes and its head of."""
        chosen = self._recorded[index % len(self._recorded)]
        return DrawnUpdate(chosen.factors, chosen.head, chosen.name, 0)

    def draw(self, index: int) -> DrawnUpdate:
        """Make the update of a number; always the same."""
        cohort, place = divmod(index, len(self._recorded))
        recorded = self.recorded(index)
        if not cohort:
            return recorded
        factors = {
            name: LayerFactors(*(both[side].turned(place, cohort) for side in SIDES))
            for name, both in self._turners.items()
        }
        return replace(recorded, factors=factors, cohort=cohort)

    @property
    def num_common(self) -> Mapping[str, Pair[int]]:
        """Layer name -> how many directions the recorded updates have in common, on each side."""
        return {
            name: Pair(both.a.num_common, both.b.num_common) for name, both in self._turners.items()
        }

    @cached_property
    def _turners(self) -> dict[str, Pair["_Turner"]]:
        return {
            name: Pair(*(
                _Turner([each.factors[name] for each in self._recorded], side, f"{self._seed}/{name}/{side}")
                for side in SIDES
            ))
            for name in self.factors
        }  # fmt: skip


def metric_columns(layer: LayerFactors) -> Pair[Tensor]:
    """
    Make of evenly split factors the columns that a merge sums up: ``X_A X_A.T = dW.T dW / ||dW||^2``.

    Examples:
        >>> half = torch.tensor([[2.0], [0.0]])
        >>> metric_columns(LayerFactors(half, half)).a.tolist()
        [[1.0], [0.0]]
    """
    strengths = torch.linalg.vector_norm(layer.a, dim=0)
    norm = torch.linalg.vector_norm(strengths.square())
    return Pair(layer.a * (strengths / norm), layer.b * (strengths / norm))


def require_small(factors: Factors) -> None:
    """
    Raise unless square matrices of all sides fit in memory, three of each.

    Raises:
        ConfigError: They do not; says of how many layers they would.
    """
    squares = [sum(12 * factor.shape[0] ** 2 for _, factor in factors[name]) for name in sorted(factors)]  # fmt: skip
    if sum(squares) > MOST_BYTES:
        fit = sum(total <= MOST_BYTES for total in itertools.accumulate(squares))
        raise ConfigError(
            f"{len(squares)} layers take {sum(squares) / 2**30:.1f} GiB to be simulated, at most "
            f"{MOST_BYTES / 2**30:.0f} are taken: simulate the first {fit} of them by --layers {fit}",
            key="layers",
        )


class _Turner:
    """Makes one side of one layer of synthetic updates."""

    def __init__(self, layers: Sequence[LayerFactors], side: str, seed: str) -> None:
        self._seed = seed
        which = SIDES.index(side)
        factors = [(layer.a, layer.b)[which].double() for layer in layers]
        columns = [(both.a, both.b)[which].double() for both in map(metric_columns, layers)]
        generator = _generator(f"{seed}/frame")
        U, sigma, _ = thin_svd(torch.cat(columns, dim=1))
        self.num_common = _leading(sigma, _turned_apart(columns, generator))
        common = U[:, : self.num_common]
        features = U.shape[0]
        noise = torch.randn(features, features, generator=generator, dtype=torch.float64)
        noise[:, : self.num_common] = common
        self._rest = torch.linalg.qr(noise).Q[:, self.num_common :]
        mixed = torch.randn(self._rest.shape[1], self._rest.shape[1], generator=generator, dtype=torch.float64)  # fmt: skip
        mixing = torch.linalg.qr(mixed).Q
        self._kept = [(common @ (common.mT @ factor)).float() for factor in factors]
        self._coordinates = [(mixing @ (self._rest.mT @ factor)).float() for factor in factors]
        self._rest = (self._rest @ mixing).float()

    def turned(self, place: int, cohort: int) -> Tensor:
        """Turn the factor of one recording as its cohort is turned."""
        z = self._coordinates[place]
        generator = _generator(f"{self._seed}/{cohort}")
        order = torch.randperm(z.shape[0], generator=generator)
        signs = 2.0 * torch.randint(2, (z.shape[0], 1), generator=generator) - 1
        turned: Tensor = self._kept[place] + self._rest @ (signs * z[order])
        return turned


def _generator(seed: str) -> torch.Generator:
    return torch.Generator().manual_seed(random.Random(seed).getrandbits(63))  # noqa: S311 - a simulation


def _turned_apart(columns: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """Find the singular values of the same columns, those of each update turned by themselves."""
    turned = []
    for each in columns:
        noise = torch.randn(each.shape, generator=generator, dtype=torch.float64)
        turned.append(torch.linalg.qr(noise).Q @ torch.linalg.qr(each).R)
    sigma: Tensor = torch.linalg.svdvals(torch.cat(turned, dim=1))
    return sigma


def _leading(sigma: Tensor, null: Tensor) -> int:
    """Count the leading values that are larger than the others in their place."""
    is_larger = sigma > null * _MARGIN
    return int(is_larger.long().cumprod(0).sum())

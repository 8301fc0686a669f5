"""Truncation: how many columns of each side a merge keeps, and how many of them are broadcast."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from share_dist.core.allocation import Spectrum, allocate
from share_dist.core.sides import SideSpectrum
from share_dist.core.values import Pair, Side
from share_dist.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Truncation:
    """
    How many columns a merge keeps on each side; never beyond the numerical rank.

    Args:
        num_factors: ``k``; None for all that the data have.
        energy: Instead, or as well: the least ``k`` that explains this share of the energy
            of everything merged, 0 to 1; all there is where what was cut before is too much.
        oversample: ``o``; columns kept beyond ``k``.
        least_factors: ``k`` is not chosen below this, whatever the two say.
        keeps_factors: Nor below what the side has now.
        shrink: Take the energy of the first column that is cut from every column that is kept, as
            Frequent Directions does (Liberty, 2013). In no direction is then more energy lost over
            all merges than ``basis.cut_energy / (m + 1)``, whatever arrived; in practice the
            leading columns are worse.
        max_bytes: Of the factors of all sides together, as they are broadcast. The ``k`` that the others
            say is then the most that a side gets, and ``m`` stays that ``k + o``, but for ``least_factors`` that
            it did not get: ``allocate`` chooses. No side gets fewer factors than it has where ``keeps_factors``
            says so, unless these do not fit.
    """

    num_factors: int | None = None
    energy: float | None = None
    oversample: int = 0
    least_factors: int = 0
    keeps_factors: bool = False
    shrink: bool = False
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        for key in ("num_factors", "max_bytes"):
            if (value := getattr(self, key)) is not None and value < 1:
                raise ConfigError(f"{key} is {value}: ask for at least 1", key=key)
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ConfigError(f"energy is {self.energy}: give a share in (0, 1]", key="energy")
        if self.oversample < 0:
            raise ConfigError(f"oversample is {self.oversample}: give 0 or more", key="oversample")

    def choose(self, side: SideSpectrum) -> tuple[int, int]:
        """Choose ``k`` and ``m`` for one side, whatever ``max_bytes`` is."""
        k = side.rank if self.num_factors is None else self.num_factors
        if self.energy is not None:
            squares = side.sigma.square()
            share = self.energy * (float(squares.sum()) + side.cut_before) * (1 - 1e-12)
            k = min(k, int((squares.cumsum(0) < share).sum()) + 1)
        k = max(k, self.least_factors, side.old.num_factors if self.keeps_factors else 0)
        k = min(k, side.rank)
        return k, min(side.rank, k + self.oversample)

    def choose_all(
        self, sides: Mapping[str, Pair[SideSpectrum]], importance: Mapping[str, float]
    ) -> dict[str, Pair[tuple[int, int]]]:
        """
        Choose ``k`` and ``m`` for every side of every layer.

        Args:
            sides: Layer name -> both sides.
            importance: Layer name -> what its energy counts; looked at where there are ``max_bytes``.

        Raises:
            ConfigError: ``max_bytes`` does not hold a factor of every side.
        """
        most = {
            name: Pair(self.choose(layer.a), self.choose(layer.b)) for name, layer in sides.items()
        }
        if self.max_bytes is None:
            return most
        chosen = allocate(self._spectra(sides, most, importance), self.max_bytes)
        return {
            name: Pair(*(self._kept(side, chosen[name, which]) for which, side in layer))
            for name, layer in sides.items()
        }

    def _kept(self, side: SideSpectrum, k: int) -> tuple[int, int]:
        """Keep as many columns as without a budget; more only where a side was let grow beyond that."""
        usual, _ = replace(self, least_factors=0).choose(side)
        return k, min(side.rank, max(usual, k) + self.oversample)

    def _spectra(
        self,
        sides: Mapping[str, Pair[SideSpectrum]],
        most: Mapping[str, Pair[tuple[int, int]]],
        importance: Mapping[str, float],
    ) -> dict[tuple[str, Side], Spectrum]:
        """Say what can be bought of each side, and what it gets first."""
        held = sum(
            min(side.old.num_factors, side.rank) * factor_bytes(side)
            for layer in sides.values()
            for _, side in layer
        )
        keeps = self.keeps_factors and held <= (self.max_bytes or 0)
        return {
            (name, which): Spectrum(
                side.sigma[: most[name][which][0]].square(),
                factor_bytes(side),
                importance[name],
                # one at least: what was empty has none to keep
                least=max(1, side.old.num_factors) if keeps else 1,
            )
            for name, layer in sides.items()
            for which, side in layer
        }


def factor_bytes(side: SideSpectrum) -> int:
    """Bytes of one column of one side, as it is broadcast."""
    return side.old.features * side.old.vectors.element_size()

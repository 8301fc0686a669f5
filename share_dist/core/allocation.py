"""
Allocation: one budget of bytes, spent where it explains most.

Every side of every layer has a spectrum, and its next column explains less than the one before. So the
columns of all sides stand in one queue, by the energy that each byte of them explains, and are
taken from its head until the budget is spent (water-filling): columns are bought above a water line of energy
per byte, the same for all.

```
 energy  #            side 1   # # # .          a column of side 2 has twice the features,
 a byte  # #          side 2   # .              so that it costs twice the bytes
         # # # ------ water line
         . .   .
```

The same queue chooses each task's pseudo-ranks: there a column is one singular value of its ``dW``.
"""

import heapq
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from share_dist.core.values import LayerShape, LayerSubspace, Subspace
from share_dist.errors import ConfigError

KeyT = TypeVar("KeyT", bound=Hashable)


@dataclass(frozen=True)
class Spectrum:
    """
    What can be bought of one thing, the best first.

    Args:
        energies: ``(c,)``; of each column, never increasing.
        column_bytes: What one column costs.
        importance: What its energy counts, in units that all things share.
        least: Columns that it gets first, as far as it has them: a side without any leaves a task
            without its layer.
    """

    energies: Float[Tensor, " c"]
    column_bytes: int
    importance: float = 1.0
    least: int = 1


def allocate(spectra: Mapping[KeyT, Spectrum], max_bytes: int) -> dict[KeyT, int]:
    """
    Choose how many columns of each spectrum to keep, so that what they explain together is most.

    Args:
        spectra: Name -> what there is. Columns of no energy are never bought.
        max_bytes: The budget for all columns together.

    Returns:
        Name -> number of its leading columns, in the order of ``spectra``.

    Accuracy:
        Of the most that ``max_bytes`` can explain it lacks less than one column: the first that did not fit
        any more. Where all columns cost the same it lacks nothing. Both hold because each spectrum falls.

    Raises:
        ConfigError: The budget does not buy what everything gets first.

    Examples:
        >>> import torch
        >>> flat = Spectrum(torch.tensor([3.0, 3.0, 3.0]), column_bytes=10)
        >>> steep = Spectrum(torch.tensor([9.0, 2.0, 1.0]), column_bytes=10)
        >>> allocate({"flat": flat, "steep": steep}, max_bytes=40)
        {'flat': 3, 'steep': 1}
    """
    chosen = {name: min(each.least, len(each.energies)) for name, each in spectra.items()}
    spent = sum(count * spectra[name].column_bytes for name, count in chosen.items())
    _require(max_bytes, spent, len(spectra))
    energies = {name: each.energies.tolist() for name, each in spectra.items()}
    queue: list[tuple[float, int, KeyT]] = []

    def offer(place: int, name: KeyT) -> None:
        """Put the next column of a spectrum in the queue; equal ones by the order of the spectra."""
        at, spectrum = chosen[name], spectra[name]
        if at < len(energies[name]) and energies[name][at] > 0:
            worth = spectrum.importance * energies[name][at] / spectrum.column_bytes
            heapq.heappush(queue, (-worth, place, name))

    for place, name in enumerate(spectra):
        offer(place, name)
    while queue:
        _, place, name = heapq.heappop(queue)
        if spent + spectra[name].column_bytes > max_bytes:
            continue  # a narrower side further down may still fit
        spent += spectra[name].column_bytes
        chosen[name] += 1
        offer(place, name)
    return chosen


def require_first_factors(shapes: Mapping[str, LayerShape], max_bytes: int) -> None:
    """
    Raise unless a budget buys a float32 factor for both sides of every layer.

    Raises:
        ConfigError: With both numbers.
    """
    needed = sum(4 * features for shape in shapes.values() for features in shape)
    _require(max_bytes, needed, 2 * len(shapes))


def _require(max_bytes: int, needed_bytes: int, num_bases: int) -> None:
    if needed_bytes > max_bytes:
        raise ConfigError(
            f"max_bytes is {max_bytes}, too little for the first factors of {num_bases} bases, which take "
            f"{needed_bytes}: allow at least these, or adapt fewer layers",
            key="max_bytes",
        )


def within_bytes(subspace: Subspace, max_bytes: int) -> Subspace:
    """
    Choose every side's ``k`` from one budget, by what its columns explain, among all that it keeps.

    Args:
        subspace: A version with its tail: what is kept of a side is the most that it can get.
        max_bytes: Of all factors of all bases together, as they are broadcast.

    Returns:
        The same bases, each with its own ``k``; what is beyond it is its tail.

    Raises:
        ConfigError: The budget does not buy a factor for every side.

    Examples:
        >>> import torch
        >>> from share_dist.core.values import Basis
        >>> steep, flat = (
        ...     Basis(torch.eye(4)[:, :3], torch.tensor(energies, dtype=torch.float64), 2)
        ...     for energies in ([9.0, 0.5, 0.1], [3.0, 3.0, 3.0])
        ... )
        >>> chosen = within_bytes(Subspace({"q": LayerSubspace(steep, flat)}), max_bytes=4 * 16)
        >>> chosen.layers["q"].a.num_factors, chosen.layers["q"].b.num_factors
        (1, 3)
    """
    spectra = {
        (name, side): Spectrum(basis.energies, basis.features * basis.vectors.element_size())
        for name, layer in subspace.layers.items()
        for side, basis in layer
    }
    chosen = allocate(spectra, max_bytes)
    layers = {
        name: LayerSubspace(*(
            replace(basis, num_factors=chosen[name, side]) for side, basis in layer
        ))
        for name, layer in subspace.layers.items()
    }  # fmt: skip
    return replace(subspace, layers=layers)

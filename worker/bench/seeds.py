"""Seeds: what several runs of one thing say together."""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any


def mean_of(values: Iterable[float | None]) -> float | None:
    """Mean of what there is; None of nothing."""
    known = [each for each in values if each is not None]
    return math.fsum(known) / len(known) if known else None


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds; None of fewer than two."""
    return statistics.stdev(values) if len(values) > 1 else None


def interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of a mean of paired differences, by Student's t; None of fewer than two."""
    if len(differences) < 2:
        return None
    from scipy.stats import t  # type: ignore[import-untyped]  # scipy has no types

    middle = statistics.fmean(differences)
    half = (
        t.ppf(0.975, len(differences) - 1)
        * statistics.stdev(differences)
        / math.sqrt(len(differences))
    )
    return middle - half, middle + half


def spread(values: Sequence[float]) -> dict[str, Any]:
    """
    What one number of every seed says: ``by_seed``, ``mean``, ``deviation`` and the mean's ``interval``.

    Examples:
        >>> spread([0.5])
        {'by_seed': [0.5], 'mean': 0.5, 'deviation': None, 'interval': None}
    """
    return {
        "by_seed": list(values),
        "mean": mean_of(values),
        "deviation": deviation(values),
        "interval": interval(values),
    }

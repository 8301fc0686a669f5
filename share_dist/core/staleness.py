"""Staleness: how much less an update counts that was trained while the subspace turned away."""

import math

from share_dist.errors import ConfigError


def staleness_factor(lag: int, angle: float, *, power: float = 1.0, least: float = 0.01) -> float:
    """
    Find the factor that a late update's weight is multiplied with.

    ``cos(angle)^(2 power)``: the share of a direction's energy that survives when it is said in a
    basis turned by ``angle``. Lateness is measured by how far the subspace turned meanwhile, not by
    counting: many versions that changed nothing make no update stale.

    Args:
        lag: Current version minus base version; an update without lag counts in full.
        angle: Largest principal angle between the two versions, radians, 0 to pi/2.
        power: How steep; 0 counts every update in full.
        least: What an update counts at least; in (0, 1].

    Raises:
        ConfigError: An argument is out of its range.

    Examples:
        >>> staleness_factor(0, 0.0), staleness_factor(3, 0.0)
        (1.0, 1.0)
        >>> round(staleness_factor(1, math.pi / 4), 6), staleness_factor(1, math.pi / 2)
        (0.5, 0.01)
    """
    if not 0 <= angle <= math.pi / 2 * (1 + 1e-9):
        raise ConfigError(f"angle is {angle}: give radians from 0 to pi/2", key="angle")
    if not (math.isfinite(power) and power >= 0):
        raise ConfigError(f"power is {power}: give 0 or more", key="power")
    if not 0 < least <= 1:
        raise ConfigError(f"least is {least}: give a share in (0, 1]", key="least")
    if lag == 0:
        return 1.0
    return max(least, math.pow(abs(math.cos(angle)), 2 * power))

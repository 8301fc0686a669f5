"""One point per version for the charts, thinned so that a page stays small however many there are."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from share_dist.wire.records import VersionEvent, VersionKind

MAX_POINTS = 1000
"""Points in one chart: more are not seen on any screen."""


class VersionPoint(NamedTuple):
    """
    What the charts show of one version, or of several neighbours.

    Args:
        version: Its number; of several, the newest.
        num_versions: How many versions it stands for.
        kind: How it came to be; of several, whatever is no ordinary merge.
        lowest_energy_kept: Smallest share of energy that a side of a layer keeps; the lowest.
        mean_energy_kept: Averaged over sides and layers; the lowest.
        angle: Largest principal angle to the version before, radians; the largest.
        num_factors: Largest ``k``; of the newest.
        largest_drift: Largest drift of a single task; the largest.
        merge_seconds: How long the merge took; the longest.
    """

    version: int
    num_versions: int
    kind: VersionKind
    lowest_energy_kept: float
    mean_energy_kept: float
    angle: float
    num_factors: int
    largest_drift: float
    merge_seconds: float


def point_of(event: VersionEvent) -> VersionPoint:
    """Take from an event what the charts show."""
    return VersionPoint(
        version=event.version,
        num_versions=1,
        kind=event.kind,
        lowest_energy_kept=event.lowest_energy_kept,
        mean_energy_kept=event.mean_energy_kept,
        angle=event.angle,
        num_factors=event.num_factors,
        largest_drift=event.largest_drift,
        merge_seconds=event.merge_seconds,
    )


def thinned(points: Sequence[VersionPoint], limit: int = MAX_POINTS) -> tuple[VersionPoint, ...]:
    """
    Join neighbours until there are at most ``limit`` points; what is worst stays to be seen.

    Args:
        points: By version, oldest first.
        limit: At least 1.

    Examples:
        >>> event = dict(num_versions=1, kind=VersionKind.MERGE, lowest_energy_kept=1.0,
        ...              mean_energy_kept=1.0, num_factors=8, largest_drift=0.0, merge_seconds=0.1)
        >>> points = [VersionPoint(version=v, angle=v / 10, **event) for v in (1, 2, 3, 4)]
        >>> [(point.version, point.num_versions, point.angle) for point in thinned(points, 2)]
        [(2, 2, 0.2), (4, 2, 0.4)]
    """
    width = -(-len(points) // limit) or 1
    if width == 1:
        return tuple(points)
    return tuple(_joined(points[start : start + width]) for start in range(0, len(points), width))


def _joined(points: Sequence[VersionPoint]) -> VersionPoint:
    newest = points[-1]
    unusual = [point.kind for point in points if point.kind is not VersionKind.MERGE]
    return VersionPoint(
        version=newest.version,
        num_versions=sum(point.num_versions for point in points),
        kind=unusual[-1] if unusual else VersionKind.MERGE,
        lowest_energy_kept=min(point.lowest_energy_kept for point in points),
        mean_energy_kept=min(point.mean_energy_kept for point in points),
        angle=max(point.angle for point in points),
        num_factors=newest.num_factors,
        largest_drift=max(point.largest_drift for point in points),
        merge_seconds=max(point.merge_seconds for point in points),
    )


class History:
    """The points of one named subspace, read once: versions never change."""

    def __init__(self) -> None:
        self._points: list[VersionPoint] = []

    @property
    def newest_version(self) -> int:
        """The newest version that is held; 0 when there is none."""
        return self._points[-1].version if self._points else 0

    def extend(self, events: Iterable[VersionEvent]) -> None:
        """Take the events of later versions, oldest first; known ones are passed over."""
        for event in events:
            if event.version > self.newest_version:
                self._points.append(point_of(event))

    def points(self) -> tuple[VersionPoint, ...]:
        """Every point, oldest first."""
        return tuple(self._points)

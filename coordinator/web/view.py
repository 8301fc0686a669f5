"""Records -> the page, as HTML; pure: nothing here reads a clock, a store or a socket."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from urllib.parse import urlencode

import jinja2

from coordinator.web.history import VersionPoint
from share_dist.wire.records import (
    CoordinatorStatus,
    SubspaceSummary,
    TaskSummary,
    UpdateSummary,
    VersionSummary,
    WorkerStatus,
)

MAX_SCORE_COLUMNS = 3
"""Named scores that get a column of their own; accuracy is always the first of them."""

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True, slots=True)
class Cursor:
    """
    Where a long list goes on.

    Args:
        first: Query that shows its beginning; empty when this is it.
        following: Query that shows what follows; empty when nothing does.
    """

    first: str = ""
    following: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """
    Everything that the page of one named subspace shows.

    Args:
        now: When it was read.
        status: As ``GetStatus`` answers.
        subspaces: Those that the reader may see.
        versions: Newest first.
        points: One per version or per few of them, oldest first.
        tasks: By name.
        waiting: Updates that are pending, newest first.
        set_aside: Updates that are quarantined or parked, newest first.
        older_versions: Where the list of versions goes on.
        more_tasks: Where the list of tasks goes on.
        can_sign_out: Whether the reader came with a token in a cookie.
    """

    now: datetime
    status: CoordinatorStatus
    subspaces: Sequence[SubspaceSummary]
    versions: Sequence[VersionSummary]
    points: Sequence[VersionPoint]
    tasks: Sequence[TaskSummary]
    waiting: Sequence[UpdateSummary]
    set_aside: Sequence[UpdateSummary]
    older_versions: Cursor = Cursor()
    more_tasks: Cursor = Cursor()
    can_sign_out: bool = False

    @property
    def score_names(self) -> tuple[str, ...]:
        """The scores that most of the tasks have, accuracy first."""
        counted = Counter(name for task in self.tasks for name in task.scores)
        ranked = sorted(counted, key=lambda name: (name != "accuracy", -counted[name], name))
        return tuple(ranked[:MAX_SCORE_COLUMNS])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What an operator should look at, one sentence each."""
        status = self.status
        gone = [worker.worker_id for worker in status.workers if not worker.is_live]
        found = {
            f"merging fails, and is tried again: {status.merge_failure}": len(status.merge_failure),
            f"{_counted(status.num_quarantined, 'update')} quarantined: look with "
            "share-dist updates list --state quarantined": status.num_quarantined,
            f"{_counted(status.num_parked, 'update')} parked: look with "
            "share-dist updates list --state parked": status.num_parked,
            f"{_counted(status.num_slow_watchers, 'watcher')} did not keep up: "
            "each reads history again": status.num_slow_watchers,
            f"{_counted(len(gone), 'worker')} without a lease that holds: "
            f"{', '.join(gone[:5])}{' and others' if gone[5:] else ''}": len(gone),
        }
        return tuple(sentence for sentence, number in found.items() if number)


def render(page: Page) -> str:
    """Render the page of one named subspace."""
    return _environment().get_template("subspace.html.j2").render(page=page, status=page.status)


def render_sign_in(reason: str, target: str) -> str:
    """
    Render the form that takes a token.

    Args:
        reason: Why it is asked for; empty at the first time.
        target: Where the reader wanted to go.
    """
    return _environment().get_template("sign_in.html.j2").render(reason=reason, target=target)


def render_error(status_code: int, message: str) -> str:
    """Render an error, as a letter to the reader."""
    template = _environment().get_template("error.html.j2")
    return template.render(status_code=status_code, message=message)


def chart_columns(points: Sequence[VersionPoint]) -> dict[str, list[object]]:
    """Turn points into the columns that the page's script draws."""
    columns: dict[str, list[object]] = {
        name: [getattr(point, name) for point in points]
        for name in VersionPoint._fields
        if name != "kind"
    }
    return columns | {"kind": [point.kind.value for point in points]}


def as_bytes(number: int) -> str:
    """
    Write a size for people.

    Examples:
        >>> as_bytes(0), as_bytes(1536), as_bytes(5 * 2**40 * 1000)
        ('0 B', '1.5 KiB', '5,000 TiB')
    """
    exponent = min(max(number.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    scaled = number / 1024**exponent
    digits = 1 if exponent and scaled < 100 else 0
    return f"{scaled:,.{digits}f} {_UNITS[exponent]}"


def as_duration(seconds: float) -> str:
    """
    Write a duration for people, in the unit that suits it.

    Examples:
        >>> as_duration(0.0312), as_duration(42.4), as_duration(3700), as_duration(200_000)
        ('31 ms', '42 s', '1 h 1 min', '2 d 7 h')
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if hours == 0:
        return f"{minutes} min"
    if days == 0:
        return f"{hours} h {minutes % 60} min"
    return f"{days} d {hours % 24} h"


def as_age(at: datetime | None, now: datetime) -> str:
    """
    Write how long ago something was; a clock that was set back gives "just now".

    Examples:
        >>> now = datetime(2030, 1, 1, 12, tzinfo=timezone.utc)
        >>> as_age(datetime(2030, 1, 1, 11, tzinfo=timezone.utc), now), as_age(now, now)
        ('1 h 0 min ago', 'just now')
    """
    if at is None:
        return "-"
    seconds = (now - at).total_seconds()
    return f"{as_duration(seconds)} ago" if seconds >= 1 else "just now"


def as_score(scores: Mapping[str, float], name: str) -> str:
    """Write one score of a task, or a dash where it has none of this name."""
    return f"{scores[name]:.3f}" if name in scores else "-"


def lag_of(worker: WorkerStatus, current_version: int) -> str:
    """Write how many versions a worker is behind, by what it pulled or pushed on last; a dash if that is not known."""
    is_known = worker.base_version or worker.num_merged
    return f"{max(current_version - worker.base_version, 0):,}" if is_known else "-"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("coordinator.web"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": as_bytes,
        "duration": as_duration,
        "age": as_age,
        "score": as_score,
        "lag": lag_of,
        "columns": chart_columns,
        "query": urlencode,
        "utc": lambda at: at.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S"),
    }
    return environment

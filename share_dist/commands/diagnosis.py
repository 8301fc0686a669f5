"""What the doctor makes of what it sees: pure, time is an argument."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias

from share_dist.wire.records import CoordinatorStatus, UpdateSummary, VersionSummary

Outcome: TypeAlias = Literal["well", "finding", "not checked"]

LEAST_DAYS_LEFT = 14.0
"""A certificate that ends sooner should be renewed now."""

MOST_SKEW_SECONDS = 5.0
MOST_LAG = 50
"""Versions that a worker may be behind before its updates say little about what is current."""

MOST_WAIT = timedelta(minutes=10)
"""An update that waits longer is not merged, whatever the policy says."""

LEAST_FREE_BYTES = 2**30
MOST_SYNC_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Check:
    """
    One thing that was looked at.

    Args:
        number: The same for the same thing, whenever it is looked at.
        subject: What was looked at.
        outcome: What came of it.
        said: What was seen, with the numbers; why it was not checked.
        remedy: What to do; empty where nothing is to be done.
    """

    number: int
    subject: str
    outcome: Outcome
    said: str
    remedy: str = ""


def well(number: int, subject: str, said: str) -> Check:
    """Make a check that found nothing to do."""
    return Check(number, subject, "well", said)


def finding(number: int, subject: str, said: str, remedy: str) -> Check:
    """Make a check that found something for a person."""
    return Check(number, subject, "finding", said, remedy)


def not_checked(number: int, subject: str, why: str) -> Check:
    """Make a check that could not be made."""
    return Check(number, subject, "not checked", why)


def of_status(status: CoordinatorStatus, now: datetime, own_release: str) -> Iterator[Check]:
    """Look at what ``GetStatus`` says: checks 4 to 10."""
    yield _release(status, own_release)
    yield _clock(status, now)
    yield _workers_live(status)
    yield _workers_lag(status)
    yield _watchers(status)
    yield _set_aside(9, "quarantine", "quarantined", status.num_quarantined)
    yield _set_aside(10, "parked updates", "parked", status.num_parked)


def of_failure(merge_failure: str) -> Check:
    """Tell why the last attempt to merge failed: check 11."""
    return finding(
        11,
        "merging",
        f"it fails, and is tried again: {merge_failure}",
        "mend what it names; merge_postponed in the coordinator's log has more",
    )


def of_pending(oldest: UpdateSummary | None, now: datetime) -> Check:
    """Look at the update that waits longest: check 11."""
    if oldest is None:
        return well(11, "merging", "nothing waits")
    waited = max(now - oldest.pushed_at, timedelta(0))
    said = f"the oldest update that waits came {waited.total_seconds():,.0f} s ago"
    if waited <= MOST_WAIT:
        return well(11, "merging", said)
    return finding(
        11,
        "merging",
        f"{said}: {oldest.receipt.update_id} of task {oldest.task_id!r}",
        "look for merge_postponed in the coordinator's log, and at its policy: min_updates and "
        "max_wait_seconds",
    )


def of_lineage(versions: Sequence[VersionSummary], first_known_digest: str = "") -> Check:
    """
    Look whether each version names the one before as its parent: check 12.

    Args:
        versions: Neighbours, oldest first.
        first_known_digest: Of the version before the oldest of them; empty if not known.
    """
    parent = first_known_digest
    for version in versions:
        event = version.event
        if parent and event.parent_digest != parent:
            return finding(
                12,
                "lineage",
                f"version {event.version} says its parent is {event.parent_digest[:12]}, and version "
                f"{event.version - 1} is {parent[:12]}",
                "run `share-dist store verify` on the coordinator's machine, and restore what it names",
            )
        parent = event.digest
    return well(12, "lineage", f"the newest {len(versions):,} versions follow one another")


def of_metrics(samples: Mapping[str, float], status: CoordinatorStatus, at: str) -> Check:
    """Look whether Prometheus metrics say the version that the status says: check 13."""
    key = f'share_dist_version{{subspace="{status.subspace}"}}'
    told = samples.get(key)
    if told is None:
        return finding(
            13,
            "metrics",
            f"what answers at {at} says nothing of subspace {status.subspace!r}",
            "check the address: it is the coordinator's --metrics-listen, with /metrics behind it",
        )
    # a version may have come between the two questions
    if told < status.current_version:
        return finding(
            13,
            "metrics",
            f"metrics at {at} say version {told:.0f}, the coordinator says {status.current_version}",
            "check the address: another coordinator may serve there",
        )
    return well(13, "metrics", f"they are served at {at}")


def of_certificate(number: int, subject: str, ends_at: datetime, now: datetime) -> Check:
    """Look how long a certificate holds: check 2 for the coordinator's, 3 for the client's own."""
    days = (ends_at - now) / timedelta(days=1)
    said = f"it holds until {ends_at.isoformat(timespec='minutes')}, for {days:.1f} days"
    if days >= LEAST_DAYS_LEFT:
        return well(number, subject, said)
    if days < 0:
        said = f"it ended {ends_at.isoformat(timespec='minutes')}, {-days:.1f} days ago"
    remedy = "renew it with `share-dist certs renew`; a running coordinator takes the new one up"
    return finding(number, subject, said, remedy)


def of_space(free_bytes: int, place: str) -> Check:
    """Look at the room that a store has: check 15."""
    said = f"{free_bytes / 2**30:,.1f} GiB are free at {place}"
    if free_bytes >= LEAST_FREE_BYTES:
        return well(15, "free space", said)
    remedy = "make room, or let go of old versions: `share-dist compact --keep N --dry-run` says how much"
    return finding(15, "free space", said, remedy)


def of_sync(seconds: float, place: str) -> Check:
    """Look how long the disk takes to keep something: check 16."""
    said = f"writing 4 KiB and waiting for the disk took {seconds * 1000:.1f} ms at {place}"
    if seconds <= MOST_SYNC_SECONDS:
        return well(16, "disk", said)
    return finding(16, "disk", said, "put the store on a faster disk: every push waits for it once")


def of_store(info: Mapping[str, Any]) -> Check:
    """Look who owns a store, by what ``share-dist store info`` says: check 17."""
    said = f"schema {info['schema_version']}, {len(info['subspaces'])} subspaces"
    owner = info["owner"]
    if owner is None or owner["is_provably_dead"] or owner["seconds_left"] < 0:
        remedy = "start the coordinator; it takes the store over at once"
        return finding(17, "store", f"{said}, no coordinator owns it", remedy)
    return well(17, "store", f"{said}, owned under fence {owner['fence']}")


def of_verify(found: Sequence[Mapping[str, Any]]) -> Check:
    """Look at what ``share-dist store verify`` named: check 18."""
    broken = [each for each in found if not each["is_harmless"]]
    if not broken:
        return well(18, "contents", "everything that the store names is there and unbroken")
    first = broken[0]
    said = f"{len(broken):,} things are broken, the first is {first['subject']}: {first['problem']}"
    return finding(18, "contents", said, first["remedy"])


def _release(status: CoordinatorStatus, own_release: str) -> Check:
    said = f"the coordinator runs {status.release}, this is {own_release}"
    if status.release == own_release:
        return well(4, "release", f"both run {own_release}")
    return finding(4, "release", said, "update the older one; both go on to understand each other")


def _clock(status: CoordinatorStatus, now: datetime) -> Check:
    told = [status.started_at, *(worker.last_heartbeat_at for worker in status.workers)]
    newest = max([*told, *([status.newest_version_at] if status.newest_version_at else [])])
    ahead = (newest - now).total_seconds()
    if ahead <= MOST_SKEW_SECONDS:
        return well(5, "clocks", "the coordinator tells of nothing that is yet to come here")
    return finding(
        5,
        "clocks",
        f"the coordinator's clock is at least {ahead:,.0f} s ahead of this one",
        "let both machines take their time from NTP: certificates and tokens hold by the clock",
    )


def _workers_live(status: CoordinatorStatus) -> Check:
    gone = [worker.worker_id for worker in status.workers if not worker.is_live]
    if not gone:
        return well(6, "workers", f"all {len(status.workers)} have a lease that holds")
    return finding(
        6,
        "workers",
        f"{len(gone)} of {len(status.workers)} have no lease that holds: {', '.join(gone[:5])}",
        "start them again with --resume, or let them be if their streams are done",
    )


def _workers_lag(status: CoordinatorStatus) -> Check:
    behind = {
        worker.worker_id: status.current_version - worker.base_version
        for worker in status.workers
        if worker.is_live and worker.num_merged
    }
    worst = max(behind, key=lambda worker_id: behind[worker_id], default=None)
    if worst is None or behind[worst] <= MOST_LAG:
        said = f"the one furthest behind is {max(behind.values(), default=0)} versions behind"
        return well(7, "lag", said)
    return finding(
        7,
        "lag",
        f"worker {worst!r} last trained on a version that is {behind[worst]:,} behind",
        "let it pull more often, or let merges wait for more updates: min_updates",
    )


def _watchers(status: CoordinatorStatus) -> Check:
    if not status.num_slow_watchers:
        return well(8, "watchers", f"{status.num_watchers:,}, none of them slow")
    return finding(
        8,
        "watchers",
        f"{status.num_slow_watchers:,} of {status.num_watchers:,} do not keep up",
        "look at their network and at what they do with each version; they miss nothing, and old "
        "versions are kept for them",
    )


def _set_aside(number: int, subject: str, state: str, num_updates: int) -> Check:
    if not num_updates:
        return well(number, subject, "empty")
    return finding(
        number,
        subject,
        f"{num_updates:,} updates are {state}",
        f"look with `share-dist updates list --state {state}`, then replay or drop each",
    )

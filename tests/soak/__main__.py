"""
A coordinator under fire, for minutes: `make soak` (SECONDS=600).

Two hundred workers push, some twice; vandals send what nobody should; watchers read nothing. In
the first part the coordinator is killed again and again, in the second it is left
alone and its memory is watched. At the end every acknowledged update must be in exactly one version, and
the store sound.
"""

import argparse
import json
import multiprocessing
import random
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from coordinator.store import tools
from coordinator.store.place import Place
from share_dist.client import ShareClient
from share_dist.client.admin import AdminClient
from share_dist.wire.records import UpdateState
from tests.coordinator.support import CoordinatorProcess, client_of, make_update, wait_until
from tests.soak.peers import crowd
from tests.system.moments import Layout, set_up

KILLED_SHARE = 0.45
WARM_UP_SHARE = 0.4
"""Of the quiet part: left out where memory is judged."""

MOST_MIB_PER_MINUTE = 3.0
PROCESSES = 2


class Held(NamedTuple):
    """
    What a coordinator has to hold; while it does not grow, neither may memory.

    Args:
        tasks: How many tasks the current version contains.
        subspace_bytes: Length of that version as it is pulled.
        updates: How many were merged since the store was made; these are on disk alone.
    """

    tasks: int
    subspace_bytes: int
    updates: int


@dataclass
class Report:
    """What a soak found."""

    seconds: float
    workers: int
    kills: int = 0
    recovery_seconds: list[float] = field(default_factory=list)
    acknowledged: int = 0
    merged: int = 0
    versions: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    rss_mib: list[tuple[float, float]] = field(default_factory=list)
    rss_slope_mib_per_minute: float = 0.0
    held: list[Held] = field(default_factory=list)
    """Where memory begins to be judged, and at the end."""

    def problems(self) -> list[str]:
        """Say what must not be so."""
        found = [
            *(f"lost: {each}" for each in self.lost),
            *(f"merged twice: {each}" for each in self.doubled),
            *self.findings,
            *self.errors,
        ]
        if self.rss_slope_mib_per_minute > MOST_MIB_PER_MINUTE:
            found.append(f"memory grows by {self.rss_slope_mib_per_minute:.1f} MiB a minute")
        if not self.acknowledged:
            found.append("nothing was acknowledged")
        return found


class Target:
    """A coordinator that is killed and started again on the same store and port."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.port = _free_port()
        self._process = self._start()
        self.kills = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def kill(self) -> float:
        """Kill it, start it again; return the seconds until it answers."""
        began = time.monotonic()
        self._process.kill()
        self._process.wait()
        self._process.__exit__()
        self._process = self._start()
        with ShareClient(self.address) as client:
            client.status()
        self.kills += 1
        return time.monotonic() - began

    def rss_mib(self) -> float:
        """Resident memory now."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    def stop(self) -> None:
        """Let it end as it should."""
        code = self._process.stop()
        words = self._process.stderr[-2000:]
        self._process.__exit__()
        assert code == 0, words

    def _start(self) -> CoordinatorProcess:
        flags = ("--listen", f"127.0.0.1:{self.port}")
        process = CoordinatorProcess(
            self.store, *flags, prepare=partial(set_up, Layout("soak", 2**18), None)
        )
        assert process.ready, process.stderr[-2000:]
        return process


def main() -> int:
    """Soak; return 1 if something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--watchers", type=int, default=20)
    parser.add_argument("--think-seconds", type=float, default=8.0, help="of a worker, on average")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="share-dist-soak-") as folder:
        report = _soak(Path(folder), options)
    _print(report)
    if options.output:
        recovery = {
            "p50": _p50(report.recovery_seconds),
            "max": max(report.recovery_seconds, default=0),
        }
        result = asdict(report) | {"recovery_seconds": recovery, "problems": report.problems()}
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    return 1 if report.problems() else 0


def _soak(folder: Path, options: argparse.Namespace) -> Report:
    report = Report(options.seconds, options.workers)
    target = Target(folder / "store")
    with client_of(target.address) as client:
        client.register()
        client.push(make_update("first"), wait="merged")
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    each = (options.workers // PROCESSES, options.watchers // PROCESSES)
    peers = [
        context.Process(
            target=crowd, args=(n, target.address, stop, folder, options.think_seconds, *each)
        )
        for n in range(PROCESSES)
    ]
    for peer in peers:
        peer.start()
    wait_until(lambda: _acknowledged(folder), 120)
    _kill_again_and_again(
        target, report, options.seconds * KILLED_SHARE, random.Random(options.seed)
    )
    _watch_memory(target, report, options.seconds * (1 - KILLED_SHARE))
    stop.set()
    for peer in peers:
        peer.join(300)
        if peer.exitcode != 0:
            report.errors.append(f"a process of peers ended with {peer.exitcode}")
            peer.kill()
    _judge(target, report, folder)
    return report


def _kill_again_and_again(
    target: Target, report: Report, seconds: float, rng: random.Random
) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(rng.uniform(1.0, 10.0))
        report.recovery_seconds.append(round(target.kill(), 3))
        print(f"killed, back after {report.recovery_seconds[-1]:.2f} s", flush=True)
    report.kills = target.kills


def _watch_memory(target: Target, report: Report, seconds: float) -> None:
    began = time.monotonic()
    while (since := time.monotonic() - began) < seconds:
        if not report.held and since > seconds * WARM_UP_SHARE:
            report.held.append(_held(target))
        report.rss_mib.append((round(since, 1), round(target.rss_mib(), 1)))
        time.sleep(2.0)
    judged = [point for point in report.rss_mib if point[0] > seconds * WARM_UP_SHARE]
    slope = statistics.linear_regression(*zip(*judged, strict=True)).slope
    report.rss_slope_mib_per_minute = round(slope * 60, 2)
    report.held.append(_held(target))


def _held(target: Target) -> Held:
    with AdminClient(target.address) as admin:
        events = [summary.event for summary in admin.versions()]
        updates = sum(len(event.update_ids) for event in events)
        return Held(admin.status().num_tasks, events[-1].subspace_bytes, updates)


def _judge(target: Target, report: Report, folder: Path) -> None:
    with AdminClient(target.address) as admin:
        wait_until(lambda: admin.status().num_pending == 0, 300)
        events = [summary.event for summary in admin.versions()]
        set_aside = admin.updates((UpdateState.QUARANTINED, UpdateState.PARKED))
    merged = Counter(update_id for event in events for update_id in event.update_ids)
    acknowledged = _acknowledged(folder)
    report.versions, report.merged = len(events), len(merged)
    report.acknowledged = len(acknowledged)
    report.lost = sorted(acknowledged - merged.keys())
    report.doubled = sorted(update_id for update_id, count in merged.items() if count > 1)
    report.errors += [
        f"set aside: {each.receipt}" for each in set_aside if "odd" not in each.task_id
    ]
    report.errors += [line for path in folder.glob("*.errors") for line in _lines(path)]
    target.stop()
    findings = tools.verify(Place(str(target.store), None))
    report.findings = [str(each) for each in findings if not each.is_harmless]


def _acknowledged(folder: Path) -> set[str]:
    return {line for path in folder.glob("*.acknowledged") for line in _lines(path)}


def _lines(path: Path) -> Iterator[str]:
    yield from path.read_text().splitlines()


def _p50(values: list[float]) -> float:
    return statistics.median(values) if values else 0.0


def _print(report: Report) -> None:
    recovery = report.recovery_seconds
    print(
        f"{report.workers} workers, {report.seconds:.0f} s, {report.kills} kills; "
        f"{report.acknowledged:,d} updates acknowledged, {report.merged:,d} merged in "
        f"{report.versions:,d} versions; {len(report.lost)} lost, {len(report.doubled)} merged twice; "
        f"recovery p50 {_p50(recovery):.2f} s, longest {max(recovery, default=0):.2f} s; "
        f"memory {report.rss_slope_mib_per_minute:+.1f} MiB a minute"
    )
    before, after = report.held
    print(
        f"meanwhile {before.tasks:,d} tasks became {after.tasks:,d}, "
        f"{before.subspace_bytes:,d} bytes of subspace {after.subspace_bytes:,d}, "
        f"{before.updates:,d} merged updates {after.updates:,d}"
    )
    for problem in report.problems()[:20]:
        print(f"  {problem}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main())

"""
Four actors on two cores under fire, for minutes: `make chaos` (SECONDS=600).

An actor or the coordinator is killed every 20 s, a node every 90 s, as one seed says. Whatever was
away comes back; the streams must end with each task merged exactly once. The same streams are then
learnt undisturbed with three seeds, whose spread says what a difference of scores means.
"""

import argparse
import json
import math
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from coordinator.store import tools
from coordinator.store.place import Place
from share_dist.wire.records import UpdateState
from tests.chaos.disturbance import Disturbance, spread
from tests.chaos.faults import schedule
from tests.chaos.site import NODES, Nodes, Site, end_all
from tests.chaos.streams import WORKERS, task_ids, write_streams

SEEDS = 3
SECONDS_PER_TASK = 75
"""Of one actor, under fire, and rather less: a stream is as long as the fire."""

_END_SECONDS = 1800.0
_PROGRESS_SECONDS = 20.0
_CRITICAL = 4.3
"""Two-sided 95 % of Student's t with the two degrees of freedom of three seeds."""


@dataclass
class Run:
    """What became of one run."""

    seconds: float = 0.0
    exit_code: int | None = None
    tasks: int = 0
    missing: list[str] = field(default_factory=list)
    double: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    versions: int = 0
    events: dict[str, int] = field(default_factory=dict)
    accuracy: float = math.nan
    scores: dict[str, float] = field(default_factory=dict)
    last_words: str = ""

    @property
    def is_right(self) -> bool:
        """Whether each task is merged exactly once, and the store is sound."""
        return not (self.missing or self.double or self.findings or self.exit_code)


def main() -> int:
    """Disturb, then do not; return 1 if a task is missing or double."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600, help="how long there are faults")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--tasks", type=int, default=None, help="in each of the four streams")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="undisturbed runs")
    parser.add_argument("--output", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args()
    # also where a shell has started it in the background, which lets Ctrl-C be ignored
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    num_tasks = options.tasks or max(3, int(options.seconds / SECONDS_PER_TASK))
    with tempfile.TemporaryDirectory(prefix="share-dist-chaos-") as folder:
        nodes = Nodes()
        try:
            report = _report(Path(folder), nodes, num_tasks, options)
        except KeyboardInterrupt:
            print("stopped; nothing is reported", file=sys.stderr)
            return 130
        finally:
            nodes.close()
            end_all()
    print(json.dumps(report, indent=2))
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if report["each_task_merged_once"] else 1


def _report(
    folder: Path, nodes: Nodes, num_tasks: int, options: argparse.Namespace
) -> dict[str, Any]:
    streams = write_streams(folder / "streams-0", num_tasks, seed=0)
    faults = schedule(options.seconds, options.seed, NODES)
    print(
        f"{len(WORKERS)} actors, {num_tasks} tasks each; {len(faults)} faults in {options.seconds:.0f} s"
    )
    with Site(_made(folder / "disturbed"), nodes, streams) as site:
        disturbance = Disturbance(site, faults)
        under_fire = disturbance.run()
        print(disturbance.line(under_fire), "- no more faults", flush=True)
        disturbed = _ended(site, num_tasks, under_fire)
        recovery = disturbance.recovery_seconds(site.events())
    quiet = [_undisturbed(folder, nodes, num_tasks, seed) for seed in range(options.seeds)]
    return {
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "seconds": options.seconds,
        "seed": options.seed,
        "actors": len(WORKERS),
        "tasks": len(task_ids(num_tasks)),
        "seconds_under_fire": round(under_fire, 1),
        "killed": dict(Counter(fault.kind for _, fault, _ in disturbance.made)),
        "recovery_seconds": {kind: spread(values) for kind, values in recovery.items()},
        "each_task_merged_once": disturbed.is_right and all(each.is_right for each in quiet),
        "accuracy": _compared(disturbed, quiet),
        "disturbed": asdict(disturbed),
        "undisturbed": [asdict(each) for each in quiet],
    }  # fmt: skip


def _undisturbed(folder: Path, nodes: Nodes, num_tasks: int, seed: int) -> Run:
    streams = folder / f"streams-{seed}"
    paths = (
        sorted(streams.glob("*.toml"))
        if streams.exists()
        else write_streams(streams, num_tasks, seed)
    )
    with Site(_made(folder / f"quiet-{seed}"), nodes, paths) as site:
        return _ended(site, num_tasks, 0.0)


def _ended(site: Site, num_tasks: int, since: float) -> Run:
    """Wait for the end of the workers, and look at what the store has."""
    begun = time.monotonic() - since
    while not site.wait(_PROGRESS_SECONDS):
        now = time.monotonic() - begun
        print(f"{now:5.0f} s  {site.folder.name}: tasks merged: {site.num_merged()}", flush=True)
        if now - since > _END_SECONDS:
            break
    run = Run(round(time.monotonic() - begun, 1), site.exit_code, num_tasks * len(WORKERS))
    versions, tasks = site.coordinator.history()
    site.coordinator.stop()
    merged = Counter(update_id for each in versions for update_id in each.update_ids)
    told = Counter(task_id for each in versions for task_id in each.task_ids)
    there = {each.task_id for each in tasks if each.state is UpdateState.MERGED}
    run.missing = sorted(set(task_ids(num_tasks)) - there)
    run.double = sorted(
        {name for name, times in (merged + told).items() if times > 1} | there - set(task_ids(num_tasks))
    )  # fmt: skip
    found = tools.verify(Place(str(site.coordinator.store)))
    run.findings = [str(each) for each in found if not each.is_harmless]
    run.versions = len(versions)
    run.events = dict(Counter(each["event"] for each in site.events()))
    run.scores = {
        name: each["final"] for name, each in sorted(site.results().items()) if each["final"]
    }
    run.accuracy = statistics.mean(run.scores.values()) if run.scores else math.nan
    run.last_words = "" if run.exit_code == 0 else site.last_words
    print(
        f"{site.folder.name}: {run.seconds:.0f} s, exit code {run.exit_code}, {len(there)} of {run.tasks} tasks "
        f"merged, {len(run.double)} double, mean accuracy {run.accuracy:.4f}",
        flush=True,
    )
    return run


def _compared(disturbed: Run, quiet: Sequence[Run]) -> Mapping[str, Any]:
    """The mean score of all tasks, beside what seeds make of it."""
    means = [each.accuracy for each in quiet]
    found: dict[str, Any] = {"disturbed": disturbed.accuracy, "undisturbed": means}
    if len(means) > 1:
        deviation = statistics.stdev(means)
        # one run more beside so many: its difference to their mean has this standard error
        noise = _CRITICAL * deviation * math.sqrt(1 + 1 / len(means))
        difference = disturbed.accuracy - statistics.mean(means)
        found |= {
            "difference": difference,
            "deviation_of_seeds": deviation,
            "noise": noise,
            "is_within_noise": abs(difference) <= noise,
        }
    return found


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    sys.exit(main())

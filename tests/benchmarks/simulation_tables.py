"""The tables of the simulation, from the JSON of its benchmark; ``readme_tables`` puts them in their place."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.house.readme_tables import table

RESULT = Path(__file__).with_name("results") / "simulate.json"


def _told(tell: Callable[[Mapping[str, Any]], str]) -> Callable[[], str]:
    """Make a table of the report, where there is one."""

    def made() -> str:
        if not RESULT.exists():
            return "Not measured yet: `make bench` writes `results/simulate.json`."
        return tell(json.loads(RESULT.read_text()))

    return made


def _growth(report: Mapping[str, Any]) -> str:
    """What more workers cost: a line for each number of them."""
    lines = [
        (
            f"{row['workers']:,}",
            f"{row['updates']['merged']:,} ({row['updates']['synthetic']:,} synthetic)",
            f"{row['offered_per_second']:.3g}",
            f"{row['measured_service_seconds']['p50'] * 1e3:.0f}, {row['measured_service_seconds']['p99'] * 1e3:.0f}",
            f"{row['coordinator']['cpu_seconds_per_1000']:.0f}",
            f"{row['coordinator']['received_bytes_per_1000'] / 1e6:.0f}, {row['coordinator']['sent_bytes_per_1000'] / 1e6:.0f}",
            f"{row['lag']['p50']:,}, {row['lag']['p99']:,}",
            f"{row['arrived_to_merged_seconds']['p50']:.2f}, {row['arrived_to_merged_seconds']['p99']:.2f}",
            f"{row['captured']:.3f}",
            f"{row['offered_load']:.2g}",
            f"{row['room_for_workers']:,.0f}",
        )
        for row in report["rows"]
    ]
    made = table(
        [
            "workers", "updates", "a second while all learn", "a push, ms: p50, p99", "processor s per 1,000",
            "MB in, out per 1,000", "lag: p50, p99", "arrived to merged, s: p50, p99", "energy captured", "load", "room for workers",
        ],
        lines,
    )  # fmt: skip
    return (
        f"{report['recordings']} recorded adapters, {report['layers']} layers of them, a task in {report['train_seconds']:.0f} s "
        f"(median), {report['cpus']} processors for all, load average {report['load_average'][0]:.1f} at the start:\n\n{made}"
    )


def _rounds(report: Mapping[str, Any]) -> str:
    """The same work with and without waiting for each other."""
    found = report["rounds"]
    kinds = {"until_captured": "of the energy that both capture", "until_merged": "of all updates"}
    lines = [
        (
            f"{line['share']:.0%} {what}",
            f"{line['asynchronous_seconds'] / 3600:.2f}",
            f"{line['rounds_seconds'] / 3600:.2f}",
            f"{line['ratio']:.1f}x",
        )
        for kind, what in kinds.items()
        for line in found["comparison"][kind]
    ]
    made = table(["until", "asynchronous, virtual h", "in rounds, virtual h", "rounds to asynchronous"], lines)  # fmt: skip
    captured = found["captured"]
    return (
        f"{found['workers']} workers with {found['tasks']} tasks each, {found['updates']['merged']:,} updates, of which "
        f"{found['updates']['synthetic']:,} synthetic; captured in the end {captured['asynchronous']:.3f} asynchronously and "
        f"{captured['rounds']:.3f} in rounds. An update takes the coordinator {found['service_seconds'] * 1e3:.0f} ms by itself and "
        f"{found['service_seconds_in_rounds'] * 1e3:.0f} ms where {found['workers']} are merged at once:\n\n{made}"
    )


def _tree(report: Mapping[str, Any]) -> str:
    """One coordinator, and more of them below a root."""
    rows = report["tree"]
    first = ("1", f"{rows[0]['load_of_one']:.2g}", f"{rows[0]['captured_by_one']:.3f}", "", "")
    lines = [
        (
            row["leaves"],
            f"{row['largest_load']:.2g}",
            f"{row['captured']:.3f}",
            f"{row['fusion_seconds'] * 1e3:.0f}",
            f"{row['received_bytes'] / 1e6:.2f}",
        )
        for row in rows
    ]
    made = table(
        ["coordinators", "load of the busiest", "energy captured", "the root's fusion, ms", "MB it gets for it"],
        [first, *lines],
    )  # fmt: skip
    return f"The same {rows[0]['workers']} workers and updates:\n\n{made}"


TABLES = {
    "simulated growth": _told(_growth),
    "simulated rounds": _told(_rounds),
    "simulated tree": _told(_tree),
}

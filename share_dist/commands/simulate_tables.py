"""The report of a simulation as people read it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from share_dist.commands.console import rows

_KINDS = {"asynchronous": "asynchronous", "rounds": "synchronous rounds"}

_DISTRIBUTIONS = {
    "lag": "lag, versions",
    "angle": "angle, radians",
    "arrived_to_merged_seconds": "arrived to merged, virtual s",
    "counted_service_seconds": "a push, counted s",
    "measured_service_seconds": "a push, measured s",
}


def tables_of(report: Mapping[str, Any]) -> Iterator[Table]:
    """Make the tables, one after the other."""
    for kind, name in _KINDS.items():
        if kind in report:
            yield _figures(name, report[kind], report["num_recorded"])
            yield _distributions(name, report[kind])
            yield _sites(name, report[kind]["sites"])
    if report.get("comparison"):
        yield _comparison(
            "until so much energy is captured", report["comparison"]["until_captured"]
        )
        yield _comparison("until so many updates are merged", report["comparison"]["until_merged"])
    if "tree" in report:
        yield _tree(report["tree"], report["asynchronous"])


def _tree(tree: Mapping[str, Any], single: Mapping[str, Any]) -> Table:
    leaves = tree["leaves"]
    lines = [
        (
            "one coordinator",
            single["updates"]["merged"],
            single["utilisation"],
            single["offered_load"],
            single["energy"]["captured"],
        ),
        (
            "the busiest leaf",
            max(leaf["updates"]["merged"] for leaf in leaves),
            max(leaf["utilisation"] for leaf in leaves),
            max(leaf["offered_load"] for leaf in leaves),
            None,
        ),
        ("all leaves, fused", sum(leaf["updates"]["merged"] for leaf in leaves), None, None, tree["captured"]),
    ]  # fmt: skip
    title = (
        f"{len(leaves)} leaves, of which {sum(leaf['updates']['synthetic'] for leaf in leaves):,} updates are synthetic; the root got "
        f"{tree['received_bytes'] / 1e6:.1f} MB and fused them in {tree['fusion_seconds']:.3f} s"
    )
    return rows(title, ["", "updates", "busy", "load while all learn", "energy captured"], lines)


def _figures(name: str, run: Mapping[str, Any], num_recorded: int) -> Table:
    updates, coordinator = run["updates"], run["coordinator"]
    ended = "" if run["is_whole"] else f", ended before all of {updates['asked']:,} were merged"
    title = (
        f"{name}: {updates['merged']:,} updates, {updates['recorded']:,} recorded "
        f"(of {num_recorded:,}), {updates['synthetic']:,} synthetic{ended}"
    )
    lines = [
        ("virtual time, h", run["seconds"] / 3600),
        ("updates merged per virtual hour", run["updates_per_hour"]),
        ("load while all learn: arrivals x counted service", run["offered_load"]),
        ("energy captured, of the batch optimum", run["energy"]["captured"]),
        ("coordinator busy with pushes, share of the time", run["utilisation"]),
        ("coordinator, processor s per 1,000 updates", coordinator["cpu_seconds_per_1000"]),
        (
            "coordinator, MB received per 1,000 updates",
            coordinator["received_bytes_per_1000"] / 1e6,
        ),
        ("coordinator, MB sent per 1,000 updates", coordinator["sent_bytes_per_1000"] / 1e6),
    ]
    return rows(title, ["", ""], lines)


def _distributions(name: str, run: Mapping[str, Any]) -> Table:
    columns = ("mean", "smallest", "p50", "p90", "p99", "largest")
    lines = [
        (heading, *(run[field].get(column) for column in columns))
        for field, heading in _DISTRIBUTIONS.items()
    ]
    return rows(f"{name}: distributions", ["", *columns], lines)


def _sites(name: str, sites: Sequence[Mapping[str, Any]]) -> Table:
    lines = [
        (
            each["site"],
            each["workers"],
            each["latency_seconds"],
            each["megabits_per_second"],
            each["updates"],
            each["pushed_bytes"],
            each["pulled_bytes"],
        )
        for each in sites
    ]
    headings = ["site", "workers", "latency, s", "Mbit/s", "updates", "bytes pushed", "bytes pulled"]  # fmt: skip
    return rows(f"{name}: sites", headings, lines)


def _comparison(title: str, lines: Sequence[Mapping[str, Any]]) -> Table:
    return rows(
        title,
        ["share", "asynchronous, virtual h", "rounds, virtual h", "rounds over asynchronous"],
        [
            (
                each["share"],
                each["asynchronous_seconds"] / 3600,
                each["rounds_seconds"] / 3600,
                each["ratio"],
            )
            for each in lines
        ],
    )

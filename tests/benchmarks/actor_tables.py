"""The tables of actors: overheads, and what one slow actor costs the others; ``readme_tables`` puts them in their place."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from tests.house.readme_tables import table

RESULTS = Path(__file__).with_name("results")


def _told(name: str, part: str, tell: Callable[[Mapping[str, Any]], str]) -> Callable[[], str]:
    """Make a table of a report, where that part of it was measured."""

    def made() -> str:
        path = RESULTS / f"{name}.json"
        report = json.loads(path.read_text()) if path.exists() else {}
        if part not in report:
            return f"Not measured yet: `make bench` writes `results/{name}.json`."
        return tell(report)

    return made


def _cell(found: Mapping[str, float], digits: int) -> str:
    return f"{found['median']:.{digits}f} ({found['smallest']:.{digits}f} to {found['largest']:.{digits}f})"


def _overhead(report: Mapping[str, Any]) -> str:
    names = {"training_seconds": "training alone", "whole_seconds": "the stream, with pulls, pushes and scores"}  # fmt: skip
    lines = [
        (said, _cell(found["plain process"], 1), _cell(found["actor"], 1), _cell(found["ratio"], 3))
        for name, said in names.items()
        for found in [report["over_plain"][name]]
    ]
    made = table(["what", "plain process, s", "actor, s", "actor to plain (wanted: at most 1.05)"], lines)  # fmt: skip
    return (
        f"{len(report['tasks'])} tasks of {report['rows']} rows, {report['epochs']} epochs, one thread, {report['rounds']} rounds, "
        f"load average {report['load_average'][0]:.1f} at the end:\n\n{made}"
    )


def _start_up(report: Mapping[str, Any]) -> str:
    lines = [(stage, _cell(found, 2)) for stage, found in report["start_up_seconds"].items()]
    return table(["stage", "seconds"], lines)


def _memory(report: Mapping[str, Any]) -> str:
    lines = [
        (
            each["model"],
            f"{each['weights_mib']:,.0f}",
            f"{each['one_pss_mib']:,.0f}",
            f"{each['extra_pss_mib']:,.0f}",
            f"{each['extra_to_one']:.2f}",
            f"{sum(one['weights_pss_mib'] for one in each['each_of_many']):,.0f}",
            f"{max(one['weights_copied_mib'] for one in each['each_of_many']):,.0f}",
        )
        for each in report["memory"]
    ]
    made = table(
        ["model", "weights, MiB", "one actor", "each further one", "of the first", "weights of all together", "weights copied by any"],
        lines,
    )  # fmt: skip
    return f"{report['memory'][0]['actors']} actors that train at the same time on one machine, MiB of Pss:\n\n{made}"


def _no_barrier(report: Mapping[str, Any]) -> str:
    runs = ("without", "with", "in rounds")
    lines = [
        ("tasks a minute of the others", *(_cell(report["tasks_per_minute"][run], 1) for run in runs)),
        ("until the others have finished, s", *(_cell(report["others_seconds"][run], 1) for run in runs)),
        ("until 75 % of all tasks are merged, s", "", *(_cell(report["most_merged_seconds"][run], 1) for run in runs[1:])),
    ]  # fmt: skip
    made = table(["", "without the slow one", "with it", "with it, in rounds"], lines)
    found = [
        ("the others' tasks a minute, with the slow one to without", "pace_beside_slow", "at least 0.9"),
        ("until the others have finished, in rounds to asynchronous", "others_in_rounds_to_async", "at least 2"),
        ("until 75 % are merged, in rounds to asynchronous", "most_merged_in_rounds_to_async", "at least 2"),
    ]  # fmt: skip
    ratios = table(["ratio of one round", "found", "wanted"], [(said, _cell(report[name], 2), wanted) for said, name, wanted in found])  # fmt: skip
    return (
        f"{report['actors'] - 1} actors and a slow one with {report['tasks_each']} tasks each, {report['rounds']} rounds; the slow one took "
        f"{_cell(report['slow_task_to_others'], 1)} times as long for a task; load average {report['load_average'][0]:.1f} at the end:\n\n"
        f"{made}\n\n{ratios}"
    )


def gpu_actors() -> str:
    """One actor a GPU, and two."""
    path = RESULTS / "gpu_actors.json"
    said = {1: "one actor a GPU (`num_gpus` 1)", 2: "two actors on each (`num_gpus` 0.5)"}
    if not path.exists():
        absent = "*not run*: no GPU was at hand"
        return table(["what", "found"], [(each, absent) for each in said.values()])
    report = json.loads(path.read_text())
    lines = [(said[run["actors_each"]], _gpu_run(run)) for run in report["runs"]]
    return f"{report['devices']} x {report['device']}:\n\n{table(['what', 'found'], lines)}"


def _gpu_run(run: Mapping[str, Any]) -> str:
    return (
        f"{run['actors']} actors, {run['merged']} tasks merged in {run['seconds']:.0f} s, {run['training_seconds']:.0f} s of training in all; mean score "
        f"{fmean(run['scores'].values()):.3f}, of the frozen model {fmean(run['frozen'].values()):.3f}"
    )


TABLES = {
    "actor overhead": _told("actor_overhead", "over_plain", _overhead),
    "actor start-up": _told("actor_overhead", "start_up_seconds", _start_up),
    "actor memory": _told("actor_overhead", "memory", _memory),
    "gpu actors": gpu_actors,
    "no barrier": _told("no_barrier", "runs", _no_barrier),
}

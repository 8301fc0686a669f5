"""What the ``bench`` commands do: read a suite, compute its cells with a bar, and write the report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from share_dist.errors import ConfigError, ExitCode
from share_dist.files import write_file
from worker.bench.cell import CellFolder
from worker.bench.methods import METHODS, RANDOM_CONTROL
from worker.bench.report import print_report, render
from worker.bench.runner import Standing, lesson_of, run_cells
from worker.bench.suite import Suite, read_suite, suite_names
from worker.bench.summary import summarise

DEFAULT_FOLDER = Path("runs", "bench")


@dataclass(frozen=True)
class Asked:
    """
    What is asked for of a suite.

    Args:
        name: One that comes with the package, or a file.
        output: Folder of the benchmark; None: the suite's own.
        small: Whether its small form.
        methods: Only these and what they build on; None: the suite's.
        seeds: How many; None: the suite's.
        changes: ``section.key=value`` that stand instead of what the suite says.
    """

    name: str
    output: Path | None = None
    small: bool = False
    methods: Sequence[str] | None = None
    seeds: int | None = None
    changes: Sequence[str] = ()

    def folder_of(self, suite: Suite) -> Path:
        """
        Where its cells lie.

        Raises:
            ConfigError: Another benchmark lies there, or could come to.
        """
        if self.output is None and self.changes:
            raise ConfigError(
                f"--set makes another benchmark of {suite.name}, whose cells are not to be mixed with "
                "its own: give it a folder by --output",
                key="output",
            )
        folder = self.output or DEFAULT_FOLDER / suite.name
        try:
            there = json.loads((folder / "summary.json").read_text())["suite"]
        except (OSError, ValueError, KeyError, TypeError):
            return folder
        if there != suite.name:
            raise ConfigError(
                f"{folder} holds the benchmark {there!r}, and {suite.name!r} would take its place: "
                "give another --output",
                key="output",
            )
        return folder


def run_suite(asked: Asked, *, num_at_once: int, quiet: bool) -> dict[str, Any]:
    """
    Compute what a benchmark lacks, and report.

    Raises:
        ConfigError: The suite or the folder cannot be used.
        ShareError: A cell cannot be computed; what is done is kept.
    """
    suite = chosen_suite(asked)
    folder = asked.folder_of(suite)
    say = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TextColumn("{task.fields[left]}"), console=say) as bar:
        cells = bar.add_task(suite.name, total=None, left="")

        def on_standing(standing: Standing) -> None:
            bar.update(
                cells,
                completed=standing.done,
                total=standing.total,
                description=_under_way(standing) or suite.name,
                left=_left(standing),
            )

        def on_done(cell: str, outcome: dict[str, Any]) -> None:
            test = outcome.get("test")
            said = "" if test is None else f": {test:.3f}"
            say.print(f"{cell}{said}, {outcome.get('seconds', 0):.0f} s", highlight=False)

        try:
            run_cells(suite, folder, num_at_once, on_standing, on_done)
        except KeyboardInterrupt:
            bar.stop()
            say.print("stopped; the same command goes on")
            raise typer.Exit(ExitCode.INTERRUPTED) from None
    return _report(suite, folder, quiet=quiet)


def report_suite(asked: Asked, *, quiet: bool) -> dict[str, Any]:
    """
    Report on what is done.

    Raises:
        ConfigError: The suite or the folder cannot be used, or nothing of it is done.
    """
    suite = chosen_suite(asked)
    folder = asked.folder_of(suite)
    if not (folder / "cells").is_dir():
        raise ConfigError(
            f"{folder} holds no cells: begin with `share-dist bench learn {asked.name}`",
            key="output",
        )
    return _report(suite, folder, quiet=quiet)


def chosen_suite(asked: Asked) -> Suite:
    """
    Read a suite, and leave of it what was asked for.

    Raises:
        ConfigError: There is none of this name, a method is not its, or a change cannot be made.
    """
    suite = read_suite(asked.name, list(METHODS), asked.changes)
    if asked.small:
        suite = suite.small()
    chosen = list(asked.methods or suite.settings.methods)
    unknown = [each for each in chosen if each not in METHODS]
    if unknown:
        raise ConfigError(
            f"unknown method {', '.join(unknown)}: choose of {', '.join(METHODS)}", key="method"
        )
    needed = [METHODS[each].needs for each in chosen if METHODS[each].needs]
    is_in_subspace = any(METHODS[each].has_subspace for each in chosen)
    control = [RANDOM_CONTROL] if is_in_subspace else []
    kept = [each for each in METHODS if each in {*chosen, *needed, *control}]
    update: dict[str, Any] = {"methods": kept}
    if asked.seeds is not None:
        update["seeds"] = asked.seeds
    return Suite(suite.name, suite.stream, suite.settings.model_copy(update=update))


def describe_suites() -> dict[str, str]:
    """Name of each suite -> what it is."""
    found = {}
    for name in suite_names():
        suite = read_suite(name, list(METHODS))
        found[name] = (
            f"{len(suite.task_ids)} tasks, {len(suite.settings.methods)} methods, "
            f"{suite.settings.seeds} seeds"
        )
    return found


def _report(suite: Suite, folder: Path, *, quiet: bool) -> dict[str, Any]:
    summary = summarise(suite, CellFolder(folder, lesson_of(suite)))
    write_file(folder / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    write_file(folder / "report.html", render(summary).encode())
    say = Console(stderr=quiet)
    print_report(summary, say)
    say.print(f"{folder / 'summary.json'}, {folder / 'report.html'}", highlight=False)
    return summary


def _under_way(standing: Standing) -> str:
    return ", ".join(
        f"{name} {step}/{steps}" for name, (step, steps) in sorted(standing.under_way.items())
    )


def _left(standing: Standing) -> str:
    if standing.seconds_left is None:
        return ""
    minutes = round(standing.seconds_left / 60)
    return f"about {minutes} min left" if minutes else "less than a minute left"

"""`share-dist simulate`: what a coordinator makes of thousands of workers, in minutes."""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from share_dist.commands.console import JsonOption, jsonable, make_console, writing
from share_dist.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from share_dist.simulation.session import ServiceClock

LINE_SECONDS = 10.0
"""Between two lines of progress, where nobody sees a bar."""


def simulate(
    recorded: Annotated[list[Path], typer.Argument(help="Folders with PEFT LoRA directories or work folders of workers, at any depth: what is pushed. Beyond it, synthetic updates of the same spectra.", exists=True, file_okay=False)],
    bases: Annotated[list[Path] | None, typer.Option("--bases", help="Subspace file that `share-dist pull --version` wrote, for workers' updates that were trained in that version; once for each.", exists=True, dir_okay=False)] = None,
    workers: Annotated[int, typer.Option("--workers", help="How many learn.")] = 100,
    tasks: Annotated[int, typer.Option("--tasks", help="That each of them learns.")] = 5,
    sites: Annotated[int, typer.Option("--sites", help="Where they are; each has its own latency and bandwidth.")] = 5,
    seed: Annotated[int, typer.Option("--seed", help="Of all that is drawn.")] = 0,
    train_seconds: Annotated[float, typer.Option("--train-seconds", help="That a task takes: the median.")] = 600.0,
    train_spread: Annotated[float, typer.Option("--train-spread", help="Standard deviation of its logarithm, over tasks.")] = 0.5,
    stragglers: Annotated[float, typer.Option("--stragglers", help="Share of workers that are slow.")] = 0.05,
    straggler_factor: Annotated[float, typer.Option("--straggler-factor", help="How many times slower they are.")] = 10.0,
    latency_seconds: Annotated[float, typer.Option("--latency-seconds", help="From a site to the coordinator: the median.")] = 0.05,
    megabits_per_second: Annotated[float, typer.Option("--megabits-per-second", help="Of a site's line, for each of its workers: the median.")] = 100.0,
    site_spread: Annotated[float, typer.Option("--site-spread", help="Standard deviation of the logarithms of both, over sites.")] = 0.5,
    present_seconds: Annotated[float | None, typer.Option("--present-seconds", help="That a worker is there before it goes away, on average. [default: nobody goes]")] = None,
    absent_seconds: Annotated[float, typer.Option("--absent-seconds", help="That it stays away, on average.")] = 1800.0,
    join_seconds: Annotated[float | None, typer.Option("--join-seconds", help="In which all join. [default: as --train-seconds]")] = None,
    num_factors: Annotated[int, typer.Option("--num-factors", "-k", help="Principal factors per side.")] = 32,
    oversample: Annotated[int, typer.Option("--oversample", help="Columns kept beyond those.")] = 32,
    layers: Annotated[int | None, typer.Option("--layers", help="Simulate the first layers only, by name. [default: all]")] = None,
    pushes: Annotated[int | None, typer.Option("--pushes", help="End after so many updates.")] = None,
    rounds: Annotated[bool, typer.Option("--rounds", help="Do the same work in synchronous rounds as well, and compare.")] = False,
    leaves: Annotated[int | None, typer.Option("--leaves", min=1, help="Do the same work before so many coordinators as well, and fuse what they learnt at a root.")] = None,
    service_seconds: Annotated[float | None, typer.Option("--service-seconds", min=0, help="Count this for each push, so that the seed alone decides. [default: what is measured]")] = None,
    trace: Annotated[Path | None, typer.Option("--trace", help="JSON Lines file to write: the scenario, and every push.")] = None,
    replay: Annotated[Path | None, typer.Option("--replay", help="Count what an earlier --trace counted, so that all is as it was.", exists=True, dir_okay=False)] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """
    Simulate workers by the thousand before one real coordinator.

    Their time is virtual: learning, absences and lines are drawn from the seed. The coordinator, the wire, each push and
    each merge are real, on this machine, and what a push takes is measured and counted in.
    Versions that somebody still learns in lie in the folder for temporary files ($TMPDIR). Ctrl-C ends
    the run with what was measured so far.
    """
    from share_dist.commands.simulate_tables import tables_of
    from share_dist.simulation.recorded import read_recorded
    from share_dist.simulation.report import compare, summarise, summarise_tree
    from share_dist.simulation.run import simulate as run
    from share_dist.simulation.scenario import make_scenario
    from share_dist.simulation.trace import read_service_seconds, write_trace
    from share_dist.simulation.tree import simulate_tree
    from share_dist.simulation.updates import Updates

    scenario = make_scenario(
        seed=seed, workers=workers, tasks=tasks, sites=sites, train_seconds=train_seconds,
        train_spread=train_spread, stragglers=stragglers, straggler_factor=straggler_factor,
        latency_seconds=latency_seconds, megabits_per_second=megabits_per_second, site_spread=site_spread,
        present_seconds=present_seconds, absent_seconds=absent_seconds, join_seconds=join_seconds,
        num_factors=num_factors, oversample=oversample, layers=layers, pushes=pushes,
    )  # fmt: skip
    earlier = None if replay is None else read_service_seconds(replay, scenario)
    beside = {"rounds": rounds, "leaves": leaves is not None}
    clock = _clock(service_seconds, earlier, beside, is_part=pushes is not None)
    _require_leaves(leaves, workers)
    if trace is not None:
        with writing(trace, "trace"):
            trace.touch()
    updates = Updates(read_recorded(recorded, bases or [], layers), seed)
    report: dict[str, Any] = {
        "scenario": scenario.model_dump(),
        "num_recorded": updates.num_recorded,
    }
    with _stopping() as should_stop:
        num_pushes = None if earlier is None else len(earlier)
        with _shown("updates, asynchronous", num_pushes or scenario.num_pushes) as progress:
            done = run(
                scenario,
                updates,
                clock=clock,
                progress=progress,
                should_stop=should_stop,
                num_pushes=num_pushes,
            )
        report["asynchronous"] = summarise(scenario, done)
        if trace is not None:
            with writing(trace, "trace"):
                write_trace(trace, scenario, done.pushes)
        if rounds and not should_stop():
            with _shown("updates, in rounds", scenario.num_pushes) as progress:
                done = run(
                    scenario,
                    updates,
                    in_rounds=True,
                    clock=clock,
                    progress=progress,
                    should_stop=should_stop,
                )
            report["rounds"] = summarise(scenario, done)
            report["comparison"] = compare(report["asynchronous"], report["rounds"])
        if leaves is not None and not should_stop():
            with _shown(f"updates, {leaves} leaves", scenario.num_pushes) as progress:
                tree = simulate_tree(
                    scenario,
                    updates,
                    leaves,
                    clock=clock,
                    progress=progress,
                    should_stop=should_stop,
                )
            report["tree"] = summarise_tree(scenario, tree)
        is_stopped = should_stop()
    if as_json:
        typer.echo(json.dumps(jsonable(report)))
    else:
        for table in tables_of(report):
            make_console().print(table)
    if is_stopped:
        raise typer.Exit(ExitCode.INTERRUPTED)


def _require_leaves(leaves: int | None, workers: int) -> None:
    if leaves is not None and leaves > workers:
        raise ConfigError(
            f"{leaves} leaves for {workers} workers leave some with nobody: ask for fewer leaves",
            key="leaves",
        )


def _clock(
    service_seconds: float | None,
    earlier: list[float] | None,
    beside: Mapping[str, bool],
    *,
    is_part: bool,
) -> "ServiceClock":
    """
    Choose what counts.

    Raises:
        ConfigError: Options were given that contradict each other.
    """
    from share_dist.simulation.session import constant, measured, replayed

    for name, is_asked in beside.items():
        if is_asked and (is_part or earlier is not None):
            raise ConfigError(
                f"--{name} compares all of the work, each with what it takes itself: drop --{name}, or drop "
                "--pushes and --replay",
                key=name,
            )
    if service_seconds is not None and earlier is not None:
        raise ConfigError(
            "both --service-seconds and --replay say what a push takes: give one of them",
            key="replay",
        )
    if earlier is not None:
        return replayed(earlier)
    return measured if service_seconds is None else constant(service_seconds)


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C ask for an end; a second one ends at once."""
    asked = Event()
    before = signal.getsignal(signal.SIGINT)

    def ask(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _shown(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how many of all are merged and how long the rest will take: as a bar, or in a line now and then."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(what, total).merged
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console) as shown:
        task = shown.add_task(what, total=total)
        yield lambda merged: shown.update(task, completed=merged)


class _Lines:
    """Says with the first update how many there are, then now and then how many are left."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._began = time.monotonic()
        self._said = -math.inf

    def merged(self, count: int) -> None:
        now = time.monotonic()
        if now - self._said < LINE_SECONDS:
            return
        self._said = now
        left = (now - self._began) / count * (self._total - count)
        typer.echo(
            f"{self._what}: {count:,} of {self._total:,}, about {left:,.0f} s left", err=True
        )

"""The ``bench`` commands."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Measure how well tasks are learnt, beside other methods.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

SuiteArgument = Annotated[
    str, typer.Argument(help="A suite that comes with the package, or a file. `share-dist bench suites` lists them.")
]  # fmt: skip
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder of the benchmark; what is done there stays. [default: runs/bench/SUITE]")
]  # fmt: skip
SmallOption = Annotated[bool, typer.Option("--small", help="A few tasks, methods and rows: minutes on two cores.")]  # fmt: skip
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
MethodOption = Annotated[
    list[str] | None, typer.Option("--method", help="Only this one, and what it builds on; repeat for more. [default: the suite's]")
]  # fmt: skip
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Of [training], [bench] and [model], instead of what the suite says, such as training.num_temporary=8; repeat for more. Needs an --output of its own.")
]  # fmt: skip
SeedsOption = Annotated[int | None, typer.Option("--seeds", min=1, help="How many. [default: the suite's]")]  # fmt: skip


@app.callback()
def _group() -> None:
    """Measure how well tasks are learnt, beside other methods."""


@app.command()
def learn(
    suite: SuiteArgument = "text",
    output: OutputOption = None,
    small: SmallOption = False,  # typer makes a flag of it
    method: MethodOption = None,
    seeds: SeedsOption = None,
    changes: SetOption = None,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Cells at once, each with a model of its own. [default: one for every two cores]")] = None,
    as_json: JsonOption = False,  # typer makes a flag of it
) -> None:  # fmt: skip
    """
    Learn a suite's tasks by all of its methods, and report.

    Every cell is kept as soon as it is done. Ctrl-C stops; the same command goes on.
    """
    from worker.bench.command import Asked, run_suite

    at_once = jobs or max(1, len(os.sched_getaffinity(0)) // 2)
    asked = Asked(suite, output, small, method, seeds, tuple(changes or ()))
    summary = run_suite(asked, num_at_once=at_once, quiet=as_json)
    if as_json:
        typer.echo(json.dumps(summary))


@app.command()
def report(
    suite: SuiteArgument = "text",
    output: OutputOption = None,
    small: SmallOption = False,  # typer makes a flag of it
    method: MethodOption = None,
    seeds: SeedsOption = None,
    changes: SetOption = None,
    as_json: JsonOption = False,  # typer makes a flag of it
) -> None:
    """Report on what is done of a benchmark, and compute nothing."""
    from worker.bench.command import Asked, report_suite

    asked = Asked(suite, output, small, method, seeds, tuple(changes or ()))
    summary = report_suite(asked, quiet=as_json)
    if as_json:
        typer.echo(json.dumps(summary))


@app.command()
def suites(as_json: JsonOption = False) -> None:  # typer makes a flag of it
    """List the suites that come with the package."""
    from worker.bench.command import describe_suites

    described = describe_suites()
    if as_json:
        typer.echo(json.dumps(described))
        return
    for name, about in described.items():
        typer.echo(f"{name:12} {about}")


@app.command()
def methods(as_json: JsonOption = False) -> None:  # typer makes a flag of it
    """List the methods that suites may compare."""
    from worker.bench.methods import METHODS

    if as_json:
        typer.echo(json.dumps({each.name: each.about for each in METHODS.values()}))
        return
    for each in METHODS.values():
        source = f" ({each.source})" if each.source else ""
        typer.echo(f"{each.name:16} {each.about}{source}")

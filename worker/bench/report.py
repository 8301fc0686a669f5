"""The report of a learning benchmark: tables on a terminal, and one self-contained page."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from worker.bench.methods import METHODS
from worker.bench.summary import deviation, mean_of

Summary = Mapping[str, Any]
Rows = tuple[list[str], list[list[str]]]
"""Headings, and lines of cells."""


def print_report(summary: Summary, say: Console) -> None:
    """Print the tables that fit into a terminal."""
    for title, (headings, lines) in tables(summary).items():
        table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for index, heading in enumerate(headings):
            table.add_column(heading, justify="left" if index == 0 else "right", overflow="fold")
        for line in lines:
            table.add_row(*line)
        say.print(table)
    if summary["missing"]:
        say.print(
            f"{summary['missing']} cells are not computed yet: `share-dist bench learn` goes on"
        )


def tables(summary: Summary) -> dict[str, Rows]:
    """Title -> table, those that have lines."""
    made = {
        f"accuracy and cost, mean of {summary['seeds']} seeds": method_rows(summary),
        "accuracy by task": task_rows(summary, summary["methods"]),
        "streams: what later tasks do to earlier ones": stream_rows(summary),
        f"from {summary['few_rows']} rows": task_rows(summary, summary["few"]),
    }
    return {title: rows for title, rows in made.items() if rows[1]}


def method_rows(summary: Summary) -> Rows:
    """A line for each method: mean accuracy, its share of a LoRA's, what it costs."""
    headings = ["method", "accuracy", "of own LoRA's", "numbers a task", "seconds a task"]
    lora = _mean(summary["methods"].get("lora", {}))
    lines = []
    for name, method in summary["methods"].items():
        mean = _mean(method)
        if mean is None:
            continue
        spread = deviation(method["by_seed"])
        per_task = method["seconds"] / (len(summary["order"]) if METHODS[name].scope == "stream" else 1) if method["seconds"] else None  # fmt: skip
        lines.append(
            [
                name,
                f"{mean:.4f}" + ("" if spread is None else f" ± {spread:.4f}"),
                "-" if not lora else f"{mean / lora:.3f}",
                "-" if method["num_parameters"] is None else f"{method['num_parameters']:,.0f}",
                "-" if per_task is None else f"{per_task:.0f}",
            ]
        )
    return headings, lines


def task_rows(summary: Summary, methods: Mapping[str, Any]) -> Rows:
    """A line for each task, a column for each method; the majority class first."""
    shown = {name: each for name, each in methods.items() if mean_of(each["tasks"].values())}
    majority: Mapping[str, float] = next(
        (each["majority"] for each in shown.values() if "majority" in each), {}
    )
    lines = [
        [task_id, _number(majority.get(task_id)), *(_number(each["tasks"][task_id]) for each in shown.values())]
        for task_id in summary["order"]
    ]  # fmt: skip
    return ["task", "majority", *shown], lines if shown else []


def stream_rows(summary: Summary) -> Rows:
    """A line for each method of whole streams."""
    headings = ["method", "when learnt", "final", "BWT", "forgetting"]
    lines = []
    for name, method in summary["methods"].items():
        if METHODS[name].scope != "stream" or not method["by_seed"]:
            continue
        scores = method["scores"]
        lines.append(
            [
                name,
                _number(scores["learning_accuracy"]),
                _number(mean_of(method["by_seed"])),
                _number(scores["backward_transfer"], "+.4f"),
                _number(scores["forgetting"], ".4f"),
            ]
        )
    return headings, lines


def render(summary: Summary) -> str:
    """Render a summary to HTML: no script, nothing fetched."""
    import jinja2

    from worker.bench.figures import FIGURES, draw

    template = files("worker.bench").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template).render(
        summary=summary,
        tables=tables(summary),
        figures={name: draw(name, summary) for name in FIGURES},
        methods=[METHODS[name] for name in summary["methods"]],
    )


def _mean(method: Mapping[str, Any]) -> float | None:
    """Mean over tasks and seeds; None before all tasks are there."""
    return mean_of(method["by_seed"]) if method.get("by_seed") else None


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def markdown(rows: Rows) -> str:
    """A table as the README has it."""
    headings, lines = rows

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    return "\n".join([line(headings), line(["---"] * len(headings)), *map(line, lines)])

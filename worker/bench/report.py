"""The report of a learning benchmark: tables on a terminal, and one self-contained page."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from statistics import fmean
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from worker.bench.methods import METHODS
from worker.bench.seeds import deviation, mean_of

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
    score = _score_name(summary)
    made = {
        f"{score} and cost, mean of {summary['seeds']} seeds": method_rows(summary),
        f"{score} by task": task_rows(summary, summary["methods"]),
        **{f"{name} by task": score_rows(summary, name) for name in _names_beside(summary)},
        "streams: what later tasks do to earlier ones": stream_rows(summary),
        "principal factors a side (k) by version": factor_rows(summary),
        "four workers at once against one": async_rows(summary),
        "rows without their task's id": task_free_rows(summary),
        "bytes of a task in fp32, bases left out": byte_rows(summary),
        "coefficients sent in fewer bits": short_rows(summary),
        "bytes in all by number of tasks, with heads and bases, to as many LoRAs": total_rows(
            summary
        ),
        f"from {summary['few_rows']} rows": task_rows(summary, summary["few"]),
        f"gain from {summary['few_rows']} rows": gain_rows(summary),
        f"{score} after so many steps, mean of {summary['seeds']} seeds": step_rows(summary),
        "learning rates searched: mean validation score of one seed": rate_rows(summary),
    }
    return {title: rows for title, rows in made.items() if rows[1]}


def method_rows(summary: Summary) -> Rows:
    """A line for each method: mean accuracy, its share of a LoRA's and of what a LoRA gains over the frozen model, what it costs."""
    headings = [
        "method",
        _score_name(summary),
        "of own LoRA's",
        "of its gain",
        "numbers a task",
        "seconds a task",
        "peak MiB",
    ]
    of_lora = summary["comparisons"]["of_lora"]
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
                _with_spread(mean, spread, ".4f"),
                _spread(of_lora.get(name), ".3f"),
                _number(_share_of_gain(summary, mean), ".2f"),
                "-" if method["num_parameters"] is None else f"{method['num_parameters']:,.0f}",
                "-" if per_task is None else f"{per_task:.0f}",
                _number(method["peak_mib"], ",.0f"),
            ]
        )
    return headings, lines


def _share_of_gain(summary: Summary, mean: float) -> float | None:
    """How much of what LoRAs gain over the frozen model, on the mean; None where they gain nothing."""
    frozen, lora = (_mean(summary["methods"].get(name, {})) for name in ("frozen", "lora"))
    if frozen is None or lora is None or lora <= frozen:
        return None
    return (mean - frozen) / (lora - frozen)


def task_rows(summary: Summary, methods: Mapping[str, Any]) -> Rows:
    """A line for each task, a column for each method; the majority class first."""
    shown = {
        name: each for name, each in methods.items() if mean_of(each["tasks"].values()) is not None
    }
    majority: Mapping[str, float] = next(
        (each["majority"] for each in shown.values() if "majority" in each), {}
    )
    lines = [
        [task_id, _number(majority.get(task_id)), *(_number(each["tasks"][task_id]) for each in shown.values())]
        for task_id in summary["order"]
    ]  # fmt: skip
    return ["task", "majority", *shown], lines if shown else []


def score_rows(summary: Summary, name: str) -> Rows:
    """A line for each task that has a score of this name, a column for each method."""
    found = {
        method: each["all_scores"][name]
        for method, each in summary["methods"].items()
        if name in each["all_scores"]
    }
    lines = [
        [task_id, *(_number(each.get(task_id)) for each in found.values())]
        for task_id in summary["order"]
        if any(task_id in each for each in found.values())
    ]
    return ["task", *found], lines


def _names_beside(summary: Summary) -> list[str]:
    """Names of the scores that are more than the one by which all tasks are compared."""
    names = {name for each in summary["methods"].values() for name in each["all_scores"]}
    return sorted(names - {_score_name(summary)})


def _score_name(summary: Summary) -> str:
    """By what tasks are compared, in a word."""
    metrics = set(summary["metrics"].values())
    return metrics.pop() if len(metrics) == 1 else "score"


def stream_rows(summary: Summary) -> Rows:
    """A line for each method of whole streams."""
    headings = ["method", "when learnt", "final", "BWT", "FWT", "forgetting"]
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
                _number(scores["forward_transfer"], "+.4f"),
                _number(scores["forgetting"], ".4f"),
            ]
        )
    return headings, lines


def factor_rows(summary: Summary) -> Rows:
    """A line for each method that a coordinator keeps, a column for each version; where seeds differ, the least and the largest."""
    found = {
        name: [[each["num_factors"] for each in run["versions"]] for run in method["runs"]]
        for name, method in summary["methods"].items()
        if method.get("runs") and all("versions" in run for run in method["runs"])
    }
    count = max((len(run) for runs in found.values() for run in runs), default=0)
    lines = []
    for name, runs in found.items():
        by_version = [[run[at] for run in runs if at < len(run)] for at in range(count)]
        lines.append([name, *(_from_to(each) for each in by_version)])
    return ["method", *(str(at + 1) for at in range(count))], lines


def _from_to(values: Sequence[int]) -> str:
    if not values:
        return "-"
    return str(values[0]) if min(values) == max(values) else f"{min(values)}-{max(values)}"


def async_rows(summary: Summary) -> Rows:
    """A line for what is lost or won where nobody waits, of the same seeds; the 95 % interval of the mean."""
    headings = ["", "difference of accuracy", "95 % interval", "largest lag", "seeds"]
    lines = []
    for name, found in summary["comparisons"]["less_share"].items():
        if found is not None:
            low, high = found["interval"] or (None, None)
            between = f"{_number(low, '+.4f')} to {_number(high, '+.4f')}"
            lines.append(
                [
                    f"{name} less share",
                    _number(found["mean"], "+.4f"),
                    between,
                    str(largest_lag(summary, name)),
                    str(len(found["by_seed"])),
                ]
            )
    return headings, lines


def largest_lag(summary: Summary, name: str) -> int:
    """By how many versions a task's base version was behind when its update was merged, at most."""
    runs = summary["methods"][name]["runs"]
    return max((lag for run in runs for lag in run.get("lags", {}).values()), default=0)


def task_free_rows(summary: Summary) -> Rows:
    """A line for each method whose test rows were routed without an id."""
    columns = {
        "own task chosen": "choice",
        "left to the base": "abstained",
        "of strangers": "strangers_abstained",
        "right with the id": "oracle",
        "right without": "routed",
        "calibration error": "calibration_error",
    }
    shown = {
        name: each["task_free"]
        for name, each in summary["methods"].items()
        if each.get("task_free")
    }
    lines = [
        [name, _number(found["rows"]["mean"], ",.0f"), *(_spread(found.get(field), ".3f") for field in columns.values())]
        for name, found in shown.items()
    ]  # fmt: skip
    return ["method", "rows", *columns], lines


def byte_rows(summary: Summary) -> Rows:
    """A line for each method: what a task costs its network and its store, with its head and without."""
    shares = ["of a LoRA's", "with head"]
    headings = ["method", "sent", *shares, "bases pulled", "on the wire", "served", *shares, "kept", *shares]  # fmt: skip
    head, tasks = summary["bytes"]["head"], summary["bytes"]["tasks"]
    lora = tasks.get("lora", {}).get("served")

    def three(value: float | None) -> list[str]:
        share = None if value is None or not lora else value / lora
        whole = None if value is None or head is None else value + head
        return [_number(value, ",.0f"), _number(share), _number(whole, ",.0f")]

    known = {name: each for name, each in tasks.items() if each["served"] is not None}
    return headings, [
        [
            name,
            *three(each["sent"]),
            _number(each["pulled"], ",.0f"),
            _number(each["wire"], ",.0f"),
            *three(each["served"]),
            *three(each["kept"]),
        ]
        for name, each in known.items()
    ]


def short_rows(summary: Summary) -> Rows:
    """A line for each method and precision in which its coefficients were sent and scored."""
    headings = ["method", "precision", "bytes", "of a LoRA's", _score_name(summary), "less fp32's"]
    lora = summary["bytes"]["tasks"].get("lora", {}).get("served")
    lines = []
    for name, method in summary["methods"].items():
        for precision, found in method.get("in_fewer_bits", {}).items():
            share = found["adapter_bytes"] / lora if lora else None
            lines.append(
                [
                    name,
                    precision,
                    f"{found['adapter_bytes']:,.0f}",
                    _number(share, ".4f"),
                    _number(mean_of(found["by_seed"]), ".4f"),
                    _spread(found["less_fp32"], "+.4f"),
                ]
            )
    return headings, lines


def total_rows(summary: Summary) -> Rows:
    """Bytes of so many LoRAs, and a line for what each method serves and one for what it keeps, as a share of that."""
    found = summary["bytes"]["in_all"]
    headings = ["", *(f"{count:,}" for count in summary["bytes"]["num_tasks"])]
    if "lora" not in found or len(found) == 1:
        return headings, []
    loras = found["lora"]["kept"]
    lines = [["lora, bytes", *(f"{each:,}" for each in loras)]]
    lines += [
        [
            f"{name}, {of}",
            *(f"{one / other:.3f}" for one, other in zip(each[of], loras, strict=True)),
        ]
        for name, each in found.items()
        if name != "lora"
        for of in ("served", "kept")
    ]
    return headings, lines


def gain_rows(summary: Summary) -> Rows:
    """A line for each method: what it gains from few rows over a LoRA, and over a random subspace of the same size, begun alike."""
    lora, control = (summary["comparisons"][each] for each in ("few_over_lora", "few_over_random"))
    lines = [
        [name, _spread(lora.get(name), "+.4f"), _spread(control.get(name), "+.4f")]
        for name in summary["few"]
        if name in lora or name in control
    ]
    return ["method", "over own LoRA", "over the random subspace"], lines


def step_rows(summary: Summary) -> Rows:
    """A line for each method that was scored along the way, a column for each number of steps."""
    found = {name: each for name, each in summary["after_steps"].items() if each}
    steps = list(next(iter(found.values()), {}))
    lines = [
        [
            name,
            *(_with_spread(fmean(each[at]), deviation(each[at]), ".4f") for at in steps),
        ]
        for name, each in found.items()
    ]
    return ["method", *steps], lines


def rate_rows(summary: Summary) -> Rows:
    """A line for each method whose learning rate was searched: the best, marked where it is the least or the largest that was tried, and what each came to."""
    found = summary["searched"]
    rates = sorted({rate for each in found.values() for rate in each}, key=float)
    lines = []
    for name, means in found.items():
        best = max((rate for rate in means if means[rate] is not None), key=means.__getitem__)
        tried = sorted(means, key=float)
        is_at_end = best in {tried[0], tried[-1]}
        lines.append(
            [name, best + " (end)" * is_at_end, *(_searched(means, rate) for rate in rates)]
        )
    return ["method", "best", *rates], lines


def _searched(means: Mapping[str, float | None], rate: str) -> str:
    if rate in means and means[rate] is None:
        return "diverged"
    return _number(means.get(rate), ".4f")


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


def _spread(found: Mapping[str, Any] | None, form: str) -> str:
    """A mean over seeds with its deviation."""
    return "-" if found is None else _with_spread(found["mean"], found["deviation"], form)


def _with_spread(mean: float, around: float | None, form: str) -> str:
    return format(mean, form) + ("" if around is None else f" ± {around:{form.lstrip('+')}}")


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def markdown(rows: Rows) -> str:
    """A table as the README has it."""
    headings, lines = rows

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    return "\n".join([line(headings), line(["---"] * len(headings)), *map(line, lines)])

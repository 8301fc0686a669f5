"""The report as one self-contained page: tables and figures, no script, nothing fetched."""

import io
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from share_dist.commands.report import COLUMNS, cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = {
    "majority": ("majority class", "#b8b8b8"),
    "frozen": ("frozen + head", "#7a9cc6"),
    "learnt": ("when learnt", "#f0a860"),
    "final": ("final", "#c8553d"),
    "lora": ("own LoRA", "#588157"),
}
"""Accuracy of a task -> legend and colour, in the order of the bars."""

STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "share-dist",
}


def render_page(report: Mapping[str, Any]) -> str:
    """Render a report, as ``share_dist.commands.report.make_report`` makes it, to HTML."""
    import jinja2
    import matplotlib.style

    template = files("share_dist.commands").joinpath("report.html.j2").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    compared = any(row["lora"] is not None for row in report["tasks"])
    with matplotlib.style.context(STYLE):
        figures = [(caption, _svg(draw(report))) for caption, draw in FIGURES.items()]
    return environment.from_string(template).render(
        report=report,
        columns={
            field: heading for field, heading in COLUMNS.items() if compared or field != "lora"
        },
        cell=cell,
        figures=figures,
    )


def _svg(figure: "Figure") -> str:
    target = io.StringIO()
    figure.savefig(target, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = target.getvalue()
    return text[text.index("<svg") :]


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def _accuracies(report: Mapping[str, Any]) -> "Figure":
    tasks = report["tasks"]
    shown = [name for name in SERIES if any(task[name] is not None for task in tasks)]
    figure = _figure(9, 3.2)
    axes = figure.add_subplot()
    width = 0.8 / len(shown)
    for index, name in enumerate(shown):
        label, colour = SERIES[name]
        places = [place + (index - (len(shown) - 1) / 2) * width for place in range(len(tasks))]
        axes.bar(places, [task[name] or 0 for task in tasks], width, label=label, color=colour)
    axes.set_xticks(range(len(tasks)), [task["task"] for task in tasks], rotation=15)
    axes.set_ylim(0, 1)
    axes.set_ylabel("accuracy")
    axes.legend(ncols=len(shown), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return figure


def _matrices(report: Mapping[str, Any]) -> "Figure":
    workers = report["workers"]
    figure = _figure(4.5 * len(workers), 3.4)
    for index, worker in enumerate(workers):
        axes = figure.add_subplot(1, len(workers), index + 1)
        matrix = [[float("nan") if value is None else value for value in row] for row in worker["accuracy_matrix"]]  # fmt: skip
        axes.imshow(matrix, cmap="YlGnBu", vmin=0.4, vmax=1)
        for i, row in enumerate(worker["accuracy_matrix"]):
            for j, value in enumerate(row):
                if value is not None:
                    axes.text(j, i, f"{value:.3f}", ha="center", va="center", color="black" if value < 0.8 else "white")  # fmt: skip
        axes.set_xticks(range(len(matrix)), worker["tasks"], rotation=20)
        axes.set_yticks(range(len(matrix)), worker["tasks"])
        axes.set_title(worker["worker_id"])
    figure.tight_layout()
    return figure


def _versions(report: Mapping[str, Any]) -> "Figure":
    versions = report["versions"]
    numbers = [version["version"] for version in versions]
    figure = _figure(9, 2.8)
    left, right = figure.subplots(1, 2)
    left.plot(numbers, [version["mean_energy_kept"] for version in versions], "o-", color="#588157", label="mean")  # fmt: skip
    left.plot(numbers, [version["lowest_energy_kept"] for version in versions], "o--", color="#c8553d", label="lowest layer and side")  # fmt: skip
    left.set_ylim(0, 1.05)
    left.set_ylabel("energy kept")
    left.legend(frameon=False)
    right.plot(numbers, [version["angle"] for version in versions], "o-", color="#7a9cc6")
    right.set_ylim(0, 1.65)
    right.set_ylabel("angle, radians")
    for axes in (left, right):
        axes.set_xlabel("version")
        axes.set_xticks(numbers)
    figure.tight_layout()
    return figure


def _update_bytes(report: Mapping[str, Any]) -> "Figure":
    tasks = report["tasks"]
    figure = _figure(9, 2.6)
    axes = figure.add_subplot()
    places = range(len(tasks))
    axes.bar([place - 0.2 for place in places], [task["adapter_bytes"] / 1024 for task in tasks], 0.4, label="update", color="#c8553d")  # fmt: skip
    axes.bar([place + 0.2 for place in places], [task["lora_bytes"] / 1024 for task in tasks], 0.4, label="rank-8 LoRA", color="#588157")  # fmt: skip
    axes.set_xticks(places, [task["task"] for task in tasks], rotation=15)
    axes.set_ylabel("KiB")
    axes.legend(frameon=False)
    return figure


def _total_bytes(report: Mapping[str, Any]) -> "Figure":
    accounts = report["bytes"]["accounts"]
    figure = _figure(9, 2.8)
    axes = figure.add_subplot()
    for rank, colour in ((8, "#588157"), (32, "#a3b18a")):
        held = [account for account in accounts if account["lora_rank"] == rank]
        axes.plot([account["num_tasks"] for account in held], [account["lora_total"] / 2**20 for account in held], "o-", color=colour, label=f"rank-{rank} LoRAs and heads")  # fmt: skip
    held = [account for account in accounts if account["lora_rank"] == 8]
    axes.plot([account["num_tasks"] for account in held], [account["total"] / 2**20 for account in held], "o-", color="#c8553d", label="bases, coefficients and heads")  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("tasks")
    axes.set_ylabel("MiB")
    axes.legend(frameon=False)
    return figure


FIGURES: dict[str, Callable[[Mapping[str, Any]], "Figure"]] = {
    "Accuracy of each task on its test rows.": _accuracies,
    "Accuracy on each task (column) after each was learnt (row); the last row is under the final version.": _matrices,
    "Energy that the broadcast factors keep of each merge, and largest principal angle to the version before.": _versions,
    "Bytes of each update, without its head, and of its rank-8 LoRA.": _update_bytes,
    "Bytes in all by number of tasks, bases and heads included.": _total_bytes,
}
"""Caption -> what draws the figure, in the order of the page."""

"""The figures of the quickstart's report, as SVG text."""

import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, ORANGE, GREEN, BLUE, GREY = "#33373d", "#c8553d", "#588157", "#5b7fb0", "#b0b4ba"
PALE_GREEN = "#a3b18a"

ACCURACIES = {
    "majority": ("majority class", "|", GREY),
    "frozen": ("frozen + head", "o", BLUE),
    "learnt": ("when learnt", "D", "#f0a860"),
    "final": ("final, ± standard error", "o", ORANGE),
    "lora": ("own LoRA", "x", GREEN),
}
"""Accuracy of a task -> legend, marker, colour."""

STYLE: dict[str, Any] = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "share-dist",
}

Report = Mapping[str, Any]


def draw(name: str, report: Report) -> str:
    """
    Draw one figure.

    Args:
        name: One of ``FIGURES``.
        report: As ``share_dist.commands.report.make_report`` makes it.
    """
    import matplotlib.style

    with matplotlib.style.context(STYLE):
        return to_svg(FIGURES[name](report))


def to_svg(figure: "Figure") -> str:
    """A figure as SVG text, the same bytes for the same figure."""
    target = io.StringIO()
    figure.savefig(target, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = target.getvalue()
    return text[text.index("<svg") :]


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _legend_above(axes: "Axes", columns: int) -> None:
    axes.legend(ncols=columns, loc="lower left", bbox_to_anchor=(0, 1))


def _accuracies(report: Report) -> "Figure":
    """One line per task, from its majority class to what it has learnt."""
    tasks = report["tasks"]
    shown = {name: how for name, how in ACCURACIES.items() if any(task[name] is not None for task in tasks)}  # fmt: skip
    figure = new_figure(9, 0.9 + 0.34 * len(tasks))
    axes = figure.add_subplot()
    places = range(len(tasks))
    for place, task in enumerate(tasks):
        axes.plot([task["majority"], task["final"]], [place, place], color="#e4e6e9", zorder=1)
    axes.errorbar(
        [task["final"] for task in tasks],
        list(places),
        xerr=[task["standard_error"] for task in tasks],
        fmt="none",
        ecolor=ORANGE,
        zorder=2,
    )
    for name, (label, marker, colour) in shown.items():
        known = [place for place in places if tasks[place][name] is not None]
        values = [tasks[place][name] for place in known]
        axes.scatter(values, known, s=34, marker=marker, color=colour, label=label, zorder=3)
    axes.set_yticks(places, [f"{task['task']}  ({task['worker']})" for task in tasks])
    axes.invert_yaxis()
    axes.set_xlabel("accuracy on test rows")
    axes.grid(axis="x", color="#eceef0")
    _legend_above(axes, len(shown))
    return figure


def _matrices(report: Report) -> "Figure":
    workers = report["workers"]
    figure = new_figure(4.5 * len(workers), 3.4)
    for axes, worker in zip(figure.subplots(1, len(workers), squeeze=False)[0], workers, strict=True):  # fmt: skip
        _matrix(axes, worker["accuracy_matrix"], worker["tasks"], worker["worker_id"])
    return figure


def _matrix(
    axes: "Axes", matrix: list[list[float | None]], tasks: list[str], worker_id: str
) -> None:
    shown = [[float("nan") if value is None else value for value in row] for row in matrix]
    axes.imshow(shown, cmap="Blues", vmin=0.3, vmax=1.1)
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            if value is not None:
                colour = "white" if value > 0.8 else INK
                axes.text(j, i, f"{value:.3f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(tasks)), tasks, rotation=20, ha="right")
    axes.set_yticks(range(len(tasks)), [f"after {task}" for task in tasks])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title(worker_id, loc="left")


def _versions(report: Report) -> "Figure":
    versions = report["versions"]
    numbers = [version["version"] for version in versions]
    figure = new_figure(9, 2.6)
    energy, angle, factors = figure.subplots(1, 3)
    for field, style, label in (
        ("mean_energy_kept", "o-", "mean"),
        ("lowest_energy_kept", "o--", "lowest layer and side"),
    ):
        energy.plot(
            numbers, [version[field] for version in versions], style, color=GREEN, label=label, ms=4
        )
    energy.set_ylim(0, 1.05)
    energy.legend(loc="lower left")
    angle.plot(numbers, [version["angle"] for version in versions], "o-", color=BLUE, ms=4)
    angle.set_ylim(0, 1.65)
    factors.plot(numbers, [version["num_factors"] for version in versions], "o-", color=ORANGE, ms=4)  # fmt: skip
    factors.set_ylim(bottom=0)
    titles = ("energy kept", "angle to the version before, radians", "k, principal factors")
    for axes, title in zip((energy, angle, factors), titles, strict=True):
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel("version")
        axes.set_xticks(numbers)
    return figure


def _update_bytes(report: Report) -> "Figure":
    tasks = report["tasks"]
    figure = new_figure(4.6, 2.9)
    axes = figure.add_subplot()
    places = range(len(tasks))
    for field, shift, colour, label in (
        ("adapter_bytes", -0.2, ORANGE, "update"),
        ("lora_bytes", 0.2, PALE_GREEN, "its rank-8 LoRA"),
    ):
        axes.barh([place + shift for place in places], [task[field] / 1024 for task in tasks], 0.38, label=label, color=colour)  # fmt: skip
    axes.set_yticks(places, [task["task"] for task in tasks])
    axes.invert_yaxis()
    axes.set_xlabel("KiB, heads left out")
    _legend_above(axes, 2)
    return figure


def _total_bytes(report: Report) -> "Figure":
    accounts = report["bytes"]["accounts"]
    ranks = sorted({account["lora_rank"] for account in accounts})
    figure = new_figure(4.4, 2.9)
    axes = figure.add_subplot()
    for rank, colour in zip(ranks, (GREEN, PALE_GREEN), strict=True):
        held = [account for account in accounts if account["lora_rank"] == rank]
        _line(axes, held, "lora_total", f"rank-{rank} LoRAs", colour)
    _line(axes, held, "total", "one subspace", ORANGE)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("tasks")
    axes.set_ylabel("MiB, heads included")
    _legend_above(axes, 3)
    return figure


def _line(
    axes: "Axes", accounts: list[dict[str, Any]], field: str, label: str, colour: str
) -> None:
    tasks = [account["num_tasks"] for account in accounts]
    axes.plot(tasks, [account[field] / 2**20 for account in accounts], "o-", color=colour, label=label, ms=4)  # fmt: skip


FIGURES: dict[str, Callable[[Report], "Figure"]] = {
    "accuracies": _accuracies,
    "matrices": _matrices,
    "versions": _versions,
    "update_bytes": _update_bytes,
    "total_bytes": _total_bytes,
}
"""Name in the page's template -> what draws it."""

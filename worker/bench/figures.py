"""The figures of the learning benchmark's report, as SVG text; one that has nothing to show is empty."""

import math
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Any

from share_dist.commands.report_figures import BLUE, GREEN, INK, ORANGE, STYLE, new_figure, to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Summary = Mapping[str, Any]

MATRICES_A_ROW = 2
"""More of them side by side cannot be read on a page."""


def draw(name: str, summary: Summary) -> str:
    """
    Draw one figure.

    Args:
        name: One of ``FIGURES``.
        summary: As ``worker.bench.summary.summarise`` makes it.
    """
    import matplotlib.style

    with matplotlib.style.context(STYLE):
        figure = FIGURES[name](summary)
        return "" if figure is None else to_svg(figure)


def _pareto(summary: Summary) -> "Figure | None":
    """Accuracy against the numbers that a task costs."""
    shown = {
        name: (float(each["num_parameters"]), fmean(each["by_seed"]))
        for name, each in summary["methods"].items()
        if each["num_parameters"] and each["by_seed"]
    }
    if not shown:
        return None
    figure = new_figure(8, 3.6)
    axes = figure.add_subplot()
    for name, (numbers, accuracy) in shown.items():
        axes.scatter(
            [numbers], [accuracy], s=36, color=ORANGE if "share" in name else BLUE, zorder=3
        )
        axes.annotate(name, (numbers, accuracy), xytext=(5, 4), textcoords="offset points")
    frozen = summary["methods"].get("frozen", {}).get("by_seed")
    if frozen:
        axes.axhline(fmean(frozen), color=GREEN, lw=1, label="frozen + head")
        axes.legend(loc="lower right")
    axes.set_xscale("log")
    axes.set_xlabel("trained numbers, heads left out")
    axes.set_ylabel("mean accuracy on test rows")
    axes.grid(color="#eceef0")
    return figure


def _matrices(summary: Summary) -> "Figure | None":
    """Accuracy on every task after each, for the first order."""
    found = {
        name: (each["orders"][0], each["matrices"][0])
        for name, each in summary["methods"].items()
        if each.get("matrices") and each["matrices"][0] and len(each["matrices"][0]) > 1
    }
    if not found:
        return None
    columns = min(MATRICES_A_ROW, len(found))
    figure = new_figure(5.2 * columns, 4.4 * math.ceil(len(found) / columns))
    for at, (name, (order, matrix)) in enumerate(found.items(), start=1):
        axes = figure.add_subplot(math.ceil(len(found) / columns), columns, at)
        shown = [[float("nan") if value is None else value for value in row] for row in matrix]
        axes.imshow(shown, cmap="Blues", vmin=0.3, vmax=1.1)
        for i, row in enumerate(matrix):
            for j, value in enumerate(row):
                if value is not None:
                    colour = "white" if value > 0.8 else INK
                    axes.text(
                        j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=7
                    )
        axes.set_xticks(range(len(order)), order, rotation=35, ha="right")
        axes.set_yticks(range(len(order)), [f"after {each}" for each in order])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_title(name, loc="left")
    return figure


def _versions(summary: Summary) -> "Figure | None":
    """What each version keeps of the energy, how far it turned, and its ``k``."""
    runs = [
        run for run in summary["methods"].get("share", {}).get("runs", []) if run.get("versions")
    ]
    if not runs:
        return None
    figure = new_figure(9, 2.6)
    panels = {"mean_energy_kept": "energy kept", "angle": "angle to the version before, radians", "num_factors": "k, principal factors"}  # fmt: skip
    for axes, (field, title) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for run in runs:
            known = [each for each in run["versions"] if each.get(field) is not None]
            axes.plot(
                [each["version"] for each in known], [each[field] for each in known], "o-", ms=3
            )
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel("version")
        axes.set_ylim(bottom=0)
    return figure


def _in_all(summary: Summary) -> "Figure | None":
    """Bytes in all by the number of tasks."""
    found, counts = summary["bytes"]["in_all"], summary["bytes"]["num_tasks"]
    if len(found) < 2:
        return None
    figure = new_figure(5.4, 3.2)
    axes = figure.add_subplot()
    for name, each in found.items():
        axes.plot(counts, each, "o-", ms=3, color=BLUE if name == "lora" else ORANGE)
        axes.annotate(name, (counts[-1], each[-1]), xytext=(5, -3), textcoords="offset points")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("tasks")
    axes.set_ylabel("bytes, with heads and bases")
    axes.grid(color="#eceef0")
    return figure


FIGURES: dict[str, Callable[[Summary], "Figure | None"]] = {
    "pareto": _pareto,
    "in_all": _in_all,
    "matrices": _matrices,
    "versions": _versions,
}
"""Name in the page's template -> what draws it."""

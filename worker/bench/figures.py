"""The figures of the learning benchmark's report, as SVG text; one that has nothing to show is empty."""

import math
from collections.abc import Callable, Iterable, Mapping
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
    """Accuracy against the bytes of a task: what its node sends, and what a model is given of it."""
    panels = {"sent": "bytes sent for a task, fp32, head left out", "served": "bytes of a task as it is served"}  # fmt: skip
    accuracy = {
        name: fmean(each["by_seed"]) for name, each in summary["methods"].items() if each["by_seed"]
    }
    shown = {
        of: {
            name: (float(each[of]), accuracy[name])
            for name, each in summary["bytes"]["tasks"].items()
            if each[of] and name in accuracy
        }
        for of in panels
    }
    if not any(shown.values()):
        return None
    figure = new_figure(10, 4.2)
    for axes, (of, title) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        for name, (numbers, score) in shown[of].items():
            axes.scatter([numbers], [score], s=30, color=ORANGE if "share" in name else BLUE, zorder=3)  # fmt: skip
            axes.annotate(name, (numbers, score), xytext=(5, 4), textcoords="offset points", fontsize=7)  # fmt: skip
        if front := pareto_front(shown[of].values()):
            axes.step(*zip(*front, strict=True), where="post", color=INK, lw=0.8, label="front")
        if "frozen" in accuracy:
            axes.axhline(accuracy["frozen"], color=GREEN, lw=1, label="frozen + head")
        axes.set_xscale("log")
        axes.set_xlabel(title)
        axes.grid(color="#eceef0")
    figure.axes[0].set_ylabel("mean score on test rows")
    figure.axes[0].legend(loc="lower right")
    return figure


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """
    Keep what nothing cheaper, or as cheap, is better than or as good as.

    Args:
        points: Each its cost, which is to be small, and its score, which is to be large.

    Returns:
        From the cheapest to the dearest.

    Examples:
        >>> pareto_front([(2, 0.8), (1, 0.7), (3, 0.75), (2, 0.6)])
        [(1, 0.7), (2, 0.8)]
    """
    front: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda each: (each[0], -each[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    return front


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
    """Bytes in all by the number of tasks: as served, and as kept."""
    found, counts = summary["bytes"]["in_all"], summary["bytes"]["num_tasks"]
    if not {"lora", "share"} <= found.keys():
        return None
    curves = {
        "lora": (found["lora"]["kept"], BLUE),
        "share, served": (found["share"]["served"], ORANGE),
        "share, kept": (found["share"]["kept"], GREEN),
    }
    figure = new_figure(5.4, 3.2)
    axes = figure.add_subplot()
    for name, (values, color) in curves.items():
        axes.plot(counts, values, "o-", ms=3, color=color)
        axes.annotate(name, (counts[-1], values[-1]), xytext=(5, -3), textcoords="offset points")
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

"""The tables of the merge's quality, from the JSON of its benchmarks; ``readme_tables`` puts them in their place."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.house.readme_tables import table

RESULTS = Path(__file__).with_name("results")


def _report(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _absent(name: str) -> str:
    return f"Not measured yet: `make bench` writes `results/{name}.json`."


def streaming_quality() -> str:
    """Energy captured by a stream over that of the batch SVD: the worst order and seed, and the mean."""
    report = _report("streaming_quality")
    if report is None:
        return _absent("streaming_quality")
    targets = {float(decay): target for decay, target in report["targets"].items()}
    plain = [row for row in report["rows"] if not row["shrink"]]
    ways = sorted({(row["gives_credit"], row["oversample"]) for row in plain})
    lines = []
    for count, decay in sorted({(row["arrivals"], row["decay"]) for row in plain}):
        cells = [
            [row["captured"] for row in plain
             if (row["arrivals"], row["decay"], row["gives_credit"], row["oversample"]) == (count, decay, *way)]
            for way in ways
        ]  # fmt: skip
        target, (as_is, credited) = targets.get(decay), (min(each) for each in cells[-2:])
        lines.append(
            (
                count,
                f"i^-{decay:g}" if decay else "flat",
                *(f"{min(each):.4f} ({statistics.fmean(each):.4f})" for each in cells),
                "-" if target is None else f"{target}: {_reached(as_is, credited, target)}",
            )
        )
    headings = [
        "arrivals",
        "singular values",
        *(f"o = {o}{', with credit' if with_credit else ''}" for with_credit, o in ways),
        "to reach",
    ]
    return (
        f"{report['features']} features, k = {report['num_factors']}, up to {report['most_lag']} versions late; the worst of all "
        f"orders, sides and seeds (the mean):\n\n{table(headings, lines)}"
    )


def _reached(as_is: float, credited: float, target: float) -> str:
    if min(as_is, credited) >= target:
        return "reached"
    return "reached with credit" if credited >= target else "*not reached*"


def shrinkage() -> str:
    """What Frequent Directions proves, what it loses, and what it costs."""
    report = _report("streaming_quality")
    if report is None:
        return _absent("streaming_quality")
    rows = [row for row in report["rows"] if row["shrink"]]
    lines = []
    for count, decay in sorted({(row["arrivals"], row["decay"]) for row in rows}):
        found = [row for row in rows if (row["arrivals"], row["decay"]) == (count, decay)]
        lines.append(
            (
                count,
                f"i^-{decay:g}" if decay else "flat",
                f"{min(row['captured'] for row in found):.4f}",
                f"{max(row['error'] for row in found):.5f}",
                f"{max(row['bound'] for row in found):.5f}",
            )
        )
    return table(
        ["arrivals", "singular values", "captured", "most energy lost in a direction", "proven bound"],
        lines,
    )  # fmt: skip


def merge_quality() -> str:
    """Ways of finding bases, in the same bytes."""
    report = _report("merge_quality")
    if report is None:
        return _absent("merge_quality")
    exact = [row for row in report["rows"] if row["precision"] == "float32"]
    sizes = sorted({row["size"] for row in exact if row["form"] == "delta"})
    lines = [
        (form, *(_size_cell(exact, form, size) for size in sizes))
        for form in dict.fromkeys(row["form"] for row in exact)
        if form != "own"
    ]
    return (
        f"{report['adapters']} adapters of rank {report['rank']}, mean of {len(report['seeds'])} seeds: relative error "
        "of `dW`, its deviation over seeds, the worst task, and held-out adapters where they were measured:\n\n"
        + table(["bases", *(f"k = {size}" for size in sizes)], lines)
    )


def _size_cell(rows: Sequence[Mapping[str, Any]], form: str, size: int) -> str:
    row = next(row for row in rows if (row["form"], row["size"]) == (form, size))
    held_out = f", held out {row['held_out']:.3f}" if "held_out" in row else ""
    return (
        f"{row['error']:.3f} ± {row['error_deviation']:.3f}, worst {row['worst']:.3f}{held_out}; "
        f"{row['bytes'] / 1e6:.2f} MB"
    )


def byte_budget() -> str:
    """One budget of bytes shared out by each merge, against one ``k`` everywhere."""
    report = _report("byte_budget")
    if report is None:
        return _absent("byte_budget")
    lines = [
        (
            row["metric"],
            row["num_factors"],
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['uniform']['error']:.3f}, {row['uniform']['worst']:.3f}",
            f"{row['shared_out']['error']:.3f}, {row['shared_out']['worst']:.3f}",
            f"{row['least_factors']} to {row['most_factors']}",
            f"{row['ratio']['mean']:.3f} ({row['ratio']['largest']:.3f})",
        )
        for row in report["rows"]
    ]
    return table(
        ["metric", "k", "MB of bases", "one k everywhere: mean, worst", "shared out: mean, worst", "k of a side", "ratio of means (largest)"],
        lines,
    )  # fmt: skip


def error_per_byte() -> str:
    """What nothing as small beats, of all forms and precisions."""
    report = _report("merge_quality")
    if report is None:
        return _absent("merge_quality")
    best = sorted(
        (row for row in report["rows"] if row["is_best"] or row["is_best_subspace"]),
        key=lambda row: row["bytes"],
    )
    lines = [
        (
            f"{row['bytes'] / 1e6:.3f}",
            row["form"],
            f"{'rank' if row['form'] == 'own' else 'k'} {row['size']}",
            row["precision"],
            f"{row['error']:.3f}",
            f"{row['worst']:.3f}",
            "all" if row["is_best"] else "the subspaces",
        )
        for row in best
    ]
    return table(["MB", "form", "size", "written in", "error", "worst", "best of"], lines)


def compression() -> str:
    """Bytes of N tasks against N LoRAs, everything counted."""
    report = _report("compression")
    if report is None:
        return _absent("compression")
    lines = [
        (
            row["adapters"],
            f"{row['count']:,}",
            row["num_factors"],
            row["precision"],
            f"{row['error']:.3f}",
            f"{row['marginal_bytes']:,} ({row['marginal_share']:.3f})",
            f"{row['in_all_bytes'] / 1e6:,.2f} MB ({row['in_all_share']:.3f})",
            "never" if row["break_even"] is None else row["break_even"],
        )
        for row in report["rows"]
    ]
    return table(
        ["adapters", "N", "k", "written in", "error", "one task more (of a LoRA)", "in all (of N LoRAs)", "fewer bytes from N ="],
        lines,
    )  # fmt: skip


TABLES = {
    "streaming quality": streaming_quality,
    "shrinkage": shrinkage,
    "merge quality": merge_quality,
    "byte budget": byte_budget,
    "error per byte": error_per_byte,
    "compression": compression,
}


if __name__ == "__main__":
    for name, make in TABLES.items():
        print(f"{name}\n\n{make()}\n")

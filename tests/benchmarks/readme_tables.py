"""
The tables of the benchmarks' README: `python -m tests.benchmarks.readme_tables` writes them.

Every figure comes from a file in ``results``; what has not been measured has no table yet, and says so.
"""

import json
from pathlib import Path
from typing import Any

from tests.benchmarks import actor_tables, quality_tables, simulation_tables
from tests.house.readme_tables import table, with_tables

FOLDER = Path(__file__).parent
README = FOLDER / "README.md"


def _report(name: str) -> dict[str, Any] | None:
    path = FOLDER / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _absent(name: str, target: str = "bench") -> str:
    return f"Not measured yet: `make {target}` writes `results/{name}.json`."


def _time(name: str) -> str:
    report = _report(name)
    if report is None:
        return _absent(name)
    lines = [
        (row["tasks"], peer, *_time_cells(found))
        for row in report["rows"]
        for peer, found in row["peers"].items()
    ]
    made = table(
        ["tasks before", "program", "one more, ms", "times ours", "error of `dW`", "of the new one", "bytes held"],
        lines,
    )  # fmt: skip
    return (
        f"{report['model']}, {report['adapted']} layers adapted, rank {report['rank']}, "
        f"{report['num_factors']} components, singular values falling as i^-{report['decay']:g}, "
        f"{report['rounds']} rounds, {report['threads']} thread:\n\n{made}"
    )


def _time_cells(found: dict[str, Any]) -> tuple[str, ...]:
    if "failed" in found:
        return (f"`{found['failed'].partition(':')[0]}`", "", "", "", "")
    ratio = found["over_ours"]
    return (
        f"{found['seconds']['median'] * 1e3:,.1f}",
        f"{ratio['median']:,.1f} ({ratio['smallest']:,.1f} to {ratio['largest']:,.1f})",
        f"{found['error']:.3f}",
        f"{found['error_of_new']:.3f}",
        f"{found['held_bytes']:,}",
    )


def peer_time() -> str:
    """One adapter more, RoBERTa-base."""
    return _time("peer_time")


def peer_time_mistral() -> str:
    """One adapter more, one layer of Mistral-7B."""
    return _time("peer_time_mistral")


def peer_quality() -> str:
    """The same adapters in the same bytes: a line per population and budget, a column per program."""
    report = _report("peer_quality")
    if report is None:
        return _absent("peer_quality")
    names = list(dict.fromkeys(name for row in report["rows"] for name in row["peers"]))
    lines = [
        (
            row["adapters"],
            f"{row['budget_bytes'] / 1e6:.2f}",
            *(_quality_cell(row["peers"].get(name, {})) for name in names),
        )
        for row in report["rows"]
    ]
    return table(["adapters", "MB", *names], lines)


def _quality_cell(found: dict[str, Any]) -> str:
    if "failed" in found:
        return f"`{found['failed'].partition(':')[0]}`"
    held_out = f" / {found['held_out']:.3f}" if "held_out" in found else ""
    return f"{found['error']:.3f}{held_out}"


def peer_limits() -> str:
    """What every program makes of adapters that are not all alike."""
    report = _report("peer_quality")
    if report is None:
        return _absent("peer_quality")
    cases = list(next(iter(report["limits"].values())))
    lines = [(name, *(_limit(told[case]) for case in cases)) for name, told in report["limits"].items()]  # fmt: skip
    return table(["program", *cases], lines)


def _limit(told: str) -> str:
    return told if told.startswith("error ") else f"`{told.partition(':')[0]}`"


def init_from_many() -> str:
    """A subspace of many adapters on disk."""
    report = _report("init_from_many")
    if report is None:
        return _absent("init_from_many")
    peaks = [f"{peak / 1e6:.0f} MB at {int(count):,}" for count, peak in report["peak_bytes"].items()]  # fmt: skip
    ratio = report["over_floor"]
    line = (
        f"{report['adapters']:,} of {report['adapter_bytes'] / 1e6:.1f} MB",
        f"{report['seconds']['median']:.1f}",
        f"{report['reading_seconds']['median']:.1f}",
        f"{report['products_seconds']['median']:.1f}",
        f"{ratio['median']:.1f} ({ratio['smallest']:.1f} to {ratio['largest']:.1f})",
        ", ".join(peaks),
    )
    return table(["adapters", "seconds", "reading alone", "products at sgemm's speed", "times the larger", "memory"], [line])  # fmt: skip


def _step(name: str, target: str) -> str:
    report = _report(name)
    if report is None:
        return _absent(name, target)
    lines = [
        (
            dtype,
            variant,
            f"{found['seconds']['median'] * 1e3:,.1f}",
            f"{found['time_to_peft']['median']:.3f}",
            f"{found['processor_time_to_peft']['median']:.3f}",
            f"{found['peak_bytes'] / 1e6:,.1f}",
            f"{found['memory_to_peft']:.3f}",
            f"{found['trained']:,}",
        )
        for dtype, variants in report["results"].items()
        for variant, found in variants.items()
    ]
    made = table(
        ["dtype", "what is trained", "step, ms", "times peft's", "processor time, likewise", "peak, MB", "times peft's", "numbers trained"],
        lines,
    )  # fmt: skip
    return f"{report['model']} on {report['device']}, {report['rows']} rows of {report['tokens']} tokens:\n\n{made}"


def training_step() -> str:
    """A training step on the CPU."""
    return _step("training_step", "bench")


def training_step_gpu() -> str:
    """A training step on a GPU."""
    return _step("training_step_gpu", "bench-gpu")


def memory() -> str:
    """Memory of a merge and of holding tasks."""
    report = _report("memory")
    if report is None:
        return _absent("memory")
    lines = [
        (
            f"{row['tasks']:,}",
            f"{row['state_bytes'] / 1e6:.1f}",
            f"{row['holding_over_state']:.2f}",
            f"{row['merging_over_state']:.2f}",
        )
        for row in report["rows"]
    ]
    return table(["tasks", "state, MB", "held, times the state", "at most in a merge, likewise"], lines)  # fmt: skip


TABLES = {
    "peer time": peer_time,
    "peer time mistral": peer_time_mistral,
    "peer quality": peer_quality,
    "peer limits": peer_limits,
    "init from many": init_from_many,
    "training step": training_step,
    "training step gpu": training_step_gpu,
    "memory": memory,
    **quality_tables.TABLES,
    **simulation_tables.TABLES,
    **actor_tables.TABLES,
}


def written(text: str) -> str:
    """A README's text with every table made anew."""
    return with_tables(text, TABLES)


if __name__ == "__main__":
    README.write_text(written(README.read_text()))

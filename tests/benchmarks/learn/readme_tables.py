"""
The tables of what was learnt: `python -m tests.benchmarks.learn.readme_tables` writes them.

Each folder beside this file is what `share-dist bench learn SUITE --output FOLDER` left there, without the adapters.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tests.house.readme_tables import table, with_tables
from worker.bench.report import largest_lag, markdown, tables
from worker.bench.summary import AT_ONCE

FOLDER = Path(__file__).parent
README = FOLDER / "README.md"

Summary = Mapping[str, Any]


def summary_of(name: str) -> Summary:
    """What is committed of a suite."""
    found: Summary = json.loads((FOLDER / name / "summary.json").read_text())
    return found


def everything(name: str) -> str:
    """All tables of a suite's report."""
    summary = summary_of(name)
    parts = [f"**{title}**\n\n{markdown(rows)}" for title, rows in tables(summary).items()]
    if summary["missing"]:
        parts.append(f"{summary['missing']} cells are not computed yet.")
    return "\n\n".join(parts)


def of_title(name: str, beginning: str) -> str:
    """One table of a suite's report, by how its title begins."""
    found = tables(summary_of(name))
    return markdown(next(rows for title, rows in found.items() if title.startswith(beginning)))


def wanted(name: str, *, of_variants: bool = True) -> str:
    """What was wanted of a suite, and what was found; without those of variants if they are not asked for."""
    summary = summary_of(name)
    made = (*WANTED, *OF_VARIANTS) if of_variants else WANTED
    rows = [each for make in made if (each := make(summary)) is not None]
    return table(["what", "wanted", "found", ""], rows)


Row = tuple[str, str, str, str]


def _verdict(*, is_reached: bool) -> str:
    return "reached" if is_reached else "*not reached*"


def _final(summary: Summary, name: str) -> Row | None:
    found = summary["comparisons"]["of_lora"].get(name)
    if found is None:
        return None
    said = f"{found['mean']:.4f} ± {found['deviation']:.4f}"
    return (
        f"`{name}`: mean final score, to that of each task's own tuned LoRA",
        "≥ 0.99",
        said,
        _verdict(is_reached=found["mean"] >= 0.99),
    )


def _as_a_lora(summary: Summary, scores: Mapping[str, float]) -> tuple[int, int]:
    """Of how many tasks 0.95 of what a LoRA gains over the frozen model is learnt, and on how many it gains."""
    learnt, gained = 0, 0
    for task_id, score in scores.items():
        frozen, lora = (summary["methods"][each]["tasks"][task_id] for each in ("frozen", "lora"))
        if lora > frozen:
            gained += 1
            learnt += score - frozen >= 0.95 * (lora - frozen)
    return learnt, gained


def _kept(summary: Summary, name: str) -> Row | None:
    share = summary["methods"].get(name)
    if name not in summary["comparisons"]["of_lora"] or not share["runs"]:
        return None
    change = share["scores"]["backward_transfer"]
    scores = {
        task_id: sum(run["learnt"][task_id] for run in share["runs"]) / len(share["runs"])
        for task_id in summary["order"]
    }
    learnt, gained = _as_a_lora(summary, scores)
    said = f"{change:+.4f}; {learnt} of {gained} tasks that a LoRA gains on"
    return (
        f"`{name}`: backward transfer, and tasks learnt to 0.95 of their LoRA's gain over the frozen model",
        "≥ -0.003; all",
        said,
        _verdict(is_reached=change >= -0.003 and learnt == gained),
    )


def _again(summary: Summary, name: str) -> Row | None:
    found = summary["comparisons"]["of_lora"].get(name)
    if found is None:
        return None
    learnt, gained = _as_a_lora(summary, summary["methods"][name]["tasks"])
    return (
        f"`{name}`, for comparison: the same two figures of another LoRA of each task's own",
        "-",
        f"{found['mean']:.4f} ± {found['deviation']:.4f}; {learnt} of {gained} tasks",
        "-",
    )


def _bytes(summary: Summary, name: str, precision: str | None, share: float) -> Row | None:
    settled, lora = summary["methods"].get(name), summary["bytes"]["tasks"].get("lora")
    if not settled or not settled["by_seed"] or lora is None:
        return None
    loras = summary["methods"]["lora"]["by_seed"]
    lora_mean = sum(loras) / len(loras)
    if precision is None:
        sent, scores = settled["adapter_bytes"], settled["by_seed"]
    elif precision in settled["in_fewer_bits"]:
        found = settled["in_fewer_bits"][precision]
        sent, scores = found["adapter_bytes"], found["by_seed"]
    else:
        return None
    points = 100 * (sum(scores) / len(scores) - lora_mean)
    head = summary["bytes"]["head"]
    said = (
        f"1/{lora['served'] / sent:.1f} ({(sent + head) / (lora['served'] + head):.3f} with heads) "
        f"at {points:+.2f} points"
    )
    return (
        f"`{name}`: coefficients alone, as sent once a subspace has settled, in {precision or 'fp32'}, to a rank-8 LoRA",
        f"≤ 1/{1 / share:.0f} at ≥ -0.2 points",
        said,
        _verdict(is_reached=sent / lora["served"] <= share and points >= -0.2),
    )


def _in_all(summary: Summary, of: str) -> Row | None:
    found = summary["bytes"]["in_all"]
    if not {"share", "lora"} <= found.keys():
        return None
    at = summary["bytes"]["num_tasks"].index(10)
    ratio = found["share"][of][at] / found["lora"][of][at]
    return (
        f"`share`: bytes in all of 10 tasks as {IN_ALL[of]}, bases and heads included, to 10 LoRAs",
        "< 1",
        f"{ratio:.3f}",
        _verdict(is_reached=ratio < 1),
    )


def _few(summary: Summary, name: str) -> Row | None:
    comparisons = summary["comparisons"]
    found = [comparisons[each].get(name) for each in ("few_over_lora", "few_over_random")]
    if None in found:
        return None
    said = "; ".join(f"{each['mean']:+.4f} ± {each['deviation']:.4f}" for each in found)
    return (
        f"`{name}` from {summary['few_rows']} rows: gain over a LoRA; over random directions that begin alike",
        "95 % interval of both above 0",
        said,
        _verdict(is_reached=all(each["interval"][0] > 0 for each in found)),
    )


def _async(summary: Summary, name: str) -> Row | None:
    found = summary["comparisons"]["less_share"].get(name)
    if found is None:
        return None
    low, high = found["interval"]
    lag = largest_lag(summary, name)
    is_inside = low > -0.01 and high < 0.01
    return (
        f"`{name}` less `share`: 95 % interval of the paired difference, in points",
        "inside ±1, with lags up to 8 versions",
        f"{100 * low:+.2f} to {100 * high:+.2f}, with lags up to {lag}",
        "reached at these lags" if is_inside and lag < 8 else _verdict(is_reached=is_inside),
    )


def _settled(summary: Summary, name: str) -> Row | None:
    """Of how many tasks no temporary factor was sent: no more than their coefficients in the version that they began in."""
    method, alone = summary["methods"].get(name), summary["bytes"]["tasks"].get("eigenlorax")
    if not method or not method.get("runs") or not alone or not alone["sent"]:
        return None
    settled = count = 0
    for run in method["runs"]:
        before = 0
        for version in run["versions"]:
            for task_id in version["task_ids"]:
                most = alone["sent"] * before / summary["num_factors"]
                settled += run["sent_bytes"][task_id] <= most
                count += 1
            before = version["num_factors"]
    return (
        f"`{name}`: tasks of all seeds that needed no temporary factor, so that the subspace had settled",
        "stated",
        f"{settled} of {count}",
        "-",
    )


def _pulled(summary: Summary) -> Row | None:
    """The tasks of `make quickstart` are of this suite."""
    if summary["suite"] != "text":
        return None
    path = FOLDER.parent / "results/quickstart.json"
    found = json.loads(path.read_text())["export"]["largest_difference"]
    return (
        "a task that is pulled and exported: largest difference of plain peft's logits to ours, in `make quickstart`",
        "≤ 1e-4",
        f"{found:.2e}",
        _verdict(is_reached=found <= 1e-4),
    )


VARIANTS = ("share-random", "share-wide", "share-sparing", "share-refined")
SETTLED = ("eigenlorax", "eigenlorax-gradient", "eigenlorax-broad")
IN_ALL = {"served": "they are served", "kept": "a coordinator keeps them at most"}
SENT = ((None, 1 / 12), ("int8", 1 / 40), ("int4", 1 / 40))

Make = Callable[[Summary], Row | None]

WANTED: tuple[Make, ...] = (
    partial(_final, name="share"),
    partial(_kept, name="share"),
    partial(_again, name="lora-again"),
    *(
        partial(_bytes, name=name, precision=precision, share=share)
        for precision, share in SENT
        for name in SETTLED[1:]
    ),
    *(partial(_in_all, of=of) for of in IN_ALL),
    *(partial(_few, name=name) for name in SETTLED[:2]),
    *(partial(_async, name=name) for name in AT_ONCE),
    _pulled,
)

OF_VARIANTS: tuple[Make, ...] = (
    *(partial(_final, name=name) for name in VARIANTS),
    *(partial(_kept, name=name) for name in VARIANTS),
    partial(_again, name="pissa"),
    partial(_settled, name="share-sparing"),
    *(
        partial(_bytes, name=SETTLED[0], precision=precision, share=share)
        for precision, share in SENT
    ),
    partial(_bytes, name="random-gradient", precision=None, share=1 / 12),
)

TABLES: dict[str, Callable[[], str]] = {
    "text wanted": partial(wanted, "text"),
    "text": partial(everything, "text"),
    "images wanted": partial(wanted, "images"),
    "images": partial(everything, "images"),
    "generation wanted": partial(wanted, "generation"),
    "generation": partial(everything, "generation"),
    "images small": partial(of_title, "images-small", "accuracy by task"),
    "generation small": partial(everything, "generation-small"),
}


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text(), TABLES))

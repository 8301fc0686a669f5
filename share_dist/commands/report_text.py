"""The report on a terminal: tables that fit into 80 columns, then what the run had to reach."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from share_dist.commands.report import BYTE_COLUMNS, COLUMNS, LORA_RANKS, cell, columns_of

_OF_THE_UPDATE = {"lag", "drift"}
_NOT_ON_A_TERMINAL = {"worker", "kind"}
_LIST_HEADING = "tasks merged"


def tables_of(report: Mapping[str, Any]) -> list[Table]:
    """Tasks, their updates, versions, bytes in all."""
    return [_tasks(report), _updates(report), _versions(report), _accounts(report)]


def checks_of(report: Mapping[str, Any]) -> list[str]:
    """One line for each figure that the run had to reach, in rich's markup."""
    return [
        f"{'[green]reached[/]' if check['reached'] else '[red]not reached[/]'}: {check['what']}: "
        f"{'-' if check['found'] is None else format(check['found'], '.3g')}, "
        f"{check['bound']} {check['limit']}"
        for check in report["checks"]
    ]


def export_line(report: Mapping[str, Any]) -> str:
    """What plain peft made of the exported task."""
    export = report["export"]
    return (
        f"{export['task']} of version {export['version']} as a PEFT LoRA: the largest difference of "
        f"peft's logits to ours is {export['largest_difference']:.1e} (to the base model's "
        f"{export['largest_difference_to_base']:.2g})"
    )


def _tasks(report: Mapping[str, Any]) -> Table:
    columns = {
        field: heading
        for field, heading in columns_of(report, COLUMNS).items()
        if field not in _NOT_ON_A_TERMINAL | _OF_THE_UPDATE
    }
    lines = [[cell(field, row[field]) for field in columns] for row in report["tasks"]]
    return _table("accuracy on each task's test rows", list(columns.values()), lines)


def _updates(report: Mapping[str, Any]) -> Table:
    columns = {
        "task": COLUMNS["task"],
        **{field: heading for field, heading in COLUMNS.items() if field in _OF_THE_UPDATE},
        **BYTE_COLUMNS,
    }
    lines = [[cell(field, row[field]) for field in columns] for row in report["tasks"]]
    title = "updates: lag at the merge, drift since then, bytes"
    return _table(title, list(columns.values()), lines)


def _versions(report: Mapping[str, Any]) -> Table:
    lines = [
        (
            str(version["version"]),
            ", ".join(version["task_ids"]),
            str(version["num_factors"]),
            f"{version['mean_energy_kept']:.4f}",
            f"{version['angle']:.3f}",
            f"{version['subspace_bytes']:,}",
        )
        for version in report["versions"]
    ]
    headings = ["version", _LIST_HEADING, "k", "energy kept", "angle", "bytes"]
    return _table("versions", headings, lines)


def _accounts(report: Mapping[str, Any]) -> Table:
    by_rank = {
        rank: [each for each in report["bytes"]["accounts"] if each["lora_rank"] == rank]
        for rank in LORA_RANKS
    }
    lines = [
        (
            f"{accounts[0]['num_tasks']:,}",
            f"{accounts[0]['total']:,}",
            *(f"{account['lora_total']:,}" for account in accounts),
            *(str(account["break_even"] or "never") for account in accounts),
        )
        for accounts in zip(*by_rank.values(), strict=True)
    ]
    headings = [
        "tasks",
        "in all",
        *(f"as rank-{rank} LoRAs" for rank in by_rank),
        *(f"pays from, r={rank}" for rank in by_rank),
    ]
    return _table("bytes in all, bases and heads included", headings, lines)


def _table(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """A table as narrow as its cells allow."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for index, heading in enumerate(headings):
        is_left = index == 0 or heading == _LIST_HEADING
        table.add_column(
            _stacked(heading, max(len(line[index]) for line in lines)),
            justify="left" if is_left else "right",
            overflow="fold",
        )
    for line in lines:
        table.add_row(*line)
    return table


def _stacked(heading: str, width: int) -> str:
    """A heading on as many lines as keep it no wider than its column, whole words."""
    widest = max([width, *map(len, heading.split())])
    return "\n".join(textwrap.wrap(heading, widest, break_on_hyphens=False))

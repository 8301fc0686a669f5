"""The quickstart's report: what workers and coordinator recorded, put side by side and checked."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from share_dist.core.metrics import byte_account
from share_dist.core.values import Subspace
from share_dist.errors import WorkerError

KINDS = {
    "movies": "sentiment",
    "tweets": "sentiment",
    "amazon": "sentiment",
    "nyt": "sentiment",
    "author": "author",
    "newsgroups-rec": "topic",
    "newsgroups-sci": "topic",
    "reuters-r8": "topic",
}
"""Task of the quickstart -> what kind it is. Topic tasks leave no room above a frozen encoder."""

TASK_COUNTS = (10, 100, 1000)
"""How many tasks the bytes in all are accounted for, beside those of the run."""

LORA_RANKS = (8, 32)

COLUMNS = {
    "task": "task",
    "worker": "worker",
    "kind": "kind",
    "num_test": "test rows",
    "majority": "majority class",
    "frozen": "frozen + head",
    "learnt": "when learnt",
    "final": "final",
    "lora": "own LoRA",
    "lag": "lag",
    "drift": "drift",
}
"""Field of a task's row -> heading, in the order of the table."""

BYTE_COLUMNS = {
    "task": "task",
    "adapter_bytes": "sent, no head",
    "lora_bytes": "LoRA r=8",
    "total_bytes": "sent, with head",
    "lora_total_bytes": "LoRA + head",
}
"""The same, for bytes."""

TASK_FIELDS = (
    "num_labels",
    "num_train",
    "num_test",
    "row_seed",
    "training_seed",
    "majority",
    "frozen",
    "learnt",
    "final",
    "final_version",
    "lora",
    "lora_learning_rate",
    "base_version",
    "merged_version",
    "lag",
    "angle",
    "drift",
    "truncation",
    "adapter_bytes",
    "head_bytes",
    "lora_bytes",
    "seconds",
)
"""What a row takes over from a worker's results as it is."""

_MAY_BE_ABSENT = {"lora", "lora_learning_rate"}


def make_report(
    *,
    name: str,
    release: str,
    seconds: float,
    options: Mapping[str, Any],
    workers: Sequence[Mapping[str, Any]],
    versions: Sequence[Mapping[str, Any]],
    subspace: Subspace,
    export: Mapping[str, Any],
) -> dict[str, Any]:
    """
    Put a run's records together.

    Args:
        name: Of the run.
        release: Of share-dist.
        seconds: Wall time of the run's last part; a resumed run counts from its resumption.
        options: What the run was told.
        workers: Each worker's ``results.json``.
        versions: Every version event, as JSON.
        subspace: The final version, as served.
        export: What the process that exported a task found.

    Returns:
        JSON-able; ``checks`` holds what a run is expected to reach and whether it did.
    """
    rows = [_row(worker["worker_id"], task) for worker in workers for task in worker["tasks"]]
    summary = _summary(rows)
    return {
        "format": 1,
        "name": name,
        "release": release,
        "seconds": round(seconds, 1),
        "options": dict(options),
        "model": workers[0]["model"],
        "training": workers[0]["training"],
        "tasks": rows,
        "workers": [
            {
                "worker_id": worker["worker_id"],
                "tasks": [task["task_id"] for task in worker["tasks"]],
                "accuracy_matrix": worker["accuracy_matrix"],
                "scores": worker["scores"],
            }
            for worker in workers
        ],
        "versions": [dict(version) for version in versions],
        "bytes": _bytes(rows, subspace, int(workers[0]["training"]["pseudo_rank"])),
        "export": dict(export),
        "summary": summary,
        "checks": _checks(rows, summary, export),
    }


def _row(worker_id: str, task: Mapping[str, Any]) -> dict[str, Any]:
    _require_finished(worker_id, task)
    adapter, head = task["adapter_bytes"], task["head_bytes"]
    return {
        "task": task["task_id"],
        "worker": worker_id,
        "kind": KINDS.get(task["task_id"], task["task_type"]),
        **{field: task[field] for field in TASK_FIELDS},
        "total_bytes": adapter + head,
        "lora_total_bytes": task["lora_bytes"] + head,
        "standard_error": math.sqrt(
            max(0.0, task["final"] * (1 - task["final"])) / task["num_test"]
        ),
    }


def _require_finished(worker_id: str, task: Mapping[str, Any]) -> None:
    missing = [
        name for name in TASK_FIELDS if task.get(name) is None and name not in _MAY_BE_ABSENT
    ]
    if missing:
        raise WorkerError(
            f"task {task['task_id']!r} of worker {worker_id!r} is not finished, it has no "
            f"{', '.join(missing)}: go on with --resume"
        )


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def mean_gain(kinds: set[str], over: str) -> float | None:
        gains = [row["final"] - row[over] for row in rows if row["kind"] in kinds and row[over] is not None]  # fmt: skip
        return sum(gains) / len(gains) if gains else None

    every = {row["kind"] for row in rows}
    return {
        "mean_final": _mean([row["final"] for row in rows]),
        "mean_frozen": _mean([row["frozen"] for row in rows]),
        "mean_majority": _mean([row["majority"] for row in rows]),
        "gain_where_there_is_room": mean_gain({"sentiment", "author"}, "frozen"),
        "gain_on_topics": mean_gain({"topic"}, "frozen"),
        "gain_over_own_lora": mean_gain(every, "lora"),
        "mean_change_since_learnt": _mean([row["final"] - row["learnt"] for row in rows]),
        "worst_change_since_learnt": min(row["final"] - row["learnt"] for row in rows),
        "largest_share_of_lora_bytes": max(
            row["adapter_bytes"] / row["lora_bytes"] for row in rows
        ),
        "late_updates": {
            worker: sum(row["lag"] >= 1 for row in rows if row["worker"] == worker)
            for worker in sorted({row["worker"] for row in rows})
        },
    }


def _bytes(
    rows: Sequence[Mapping[str, Any]], subspace: Subspace, pseudo_rank: int
) -> dict[str, Any]:
    head = round(_mean([row["head_bytes"] for row in rows]))
    accounts = []
    for num_tasks in (len(rows), *TASK_COUNTS):
        for rank in LORA_RANKS:
            account = byte_account(subspace, num_tasks, pseudo_rank, head, rank)
            accounts.append({
                "num_tasks": num_tasks,
                "lora_rank": rank,
                "basis": account.basis,
                "coefficients": account.coefficients,
                "heads": account.heads,
                "total": account.total,
                "lora_total": account.lora_total,
                "break_even": account.break_even,
            })  # fmt: skip
    return {
        "sent": sum(row["total_bytes"] for row in rows),
        "sent_without_heads": sum(row["adapter_bytes"] for row in rows),
        "loras_without_heads": sum(row["lora_bytes"] for row in rows),
        "mean_head": head,
        "num_factors": subspace.num_factors,
        "pseudo_rank": pseudo_rank,
        "accounts": accounts,
    }


def _checks(
    rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], export: Mapping[str, Any]
) -> list[dict[str, Any]]:
    late = summary["late_updates"]
    return [
        _check(
            "mean gain over frozen + head, sentiment and author tasks",
            summary["gain_where_there_is_room"],
            at_least=0.02,
        ),
        _check(
            "mean gain over frozen + head, topic tasks", summary["gain_on_topics"], at_least=-0.01
        ),
        _check("mean change since learnt", summary["mean_change_since_learnt"], at_least=-0.01),
        _check(
            "share of updates that are smaller than their rank-8 LoRA",
            sum(row["adapter_bytes"] < row["lora_bytes"] for row in rows) / len(rows),
            at_least=1.0,
        ),
        _check("late updates of all workers", sum(late.values()), at_least=1),
        _check(
            "largest difference of peft's logits to ours",
            export["largest_difference"],
            at_most=1e-4,
        ),
    ]


def _check(
    what: str,
    found: float | None,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> dict[str, Any]:
    limit = at_most if at_least is None else at_least
    assert limit is not None, "a check has a limit"
    is_reached = found is not None and (found <= limit if at_least is None else found >= limit)
    return {
        "what": what,
        "found": found,
        "bound": "at most" if at_least is None else "at least",
        "limit": limit,
        "reached": is_reached,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def columns_of(report: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """Choose the columns of a table: those that no task of the run has are left out."""
    return {
        field: heading
        for field, heading in columns.items()
        if any(row[field] is not None for row in report["tasks"])
    }


def cell(field: str, value: object) -> str:
    """
    Write one field of a task's row as people read it.

    Examples:
        >>> cell("final", 0.81234), cell("adapter_bytes", 12345), cell("lora", None)
        ('0.812', '12,345', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, float) or field == "drift":
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def points(difference: float | None) -> str:
    """
    Write a difference of two accuracies in points, with its sign.

    Examples:
        >>> points(0.0396), points(-0.0016), points(None)
        ('+4.0', '-0.2', '-')
    """
    return "-" if difference is None else f"{100 * difference:+.1f}"

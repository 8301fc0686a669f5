"""Records of a quickstart that never ran: what workers and coordinator would have written."""

import json

import torch

from share_dist.commands.report import make_report
from share_dist.core.values import Basis, LayerSubspace, Subspace
from worker.results import TaskResult, WorkerResults

#  task -> labels, test rows, majority, frozen, when learnt, final, own LoRA
TASKS = {
    "north": {
        "movies": (2, 1000, 0.508, 0.752, 0.801, 0.803, 0.811),
        "author": (2, 1000, 0.549, 0.907, 0.938, 0.935, 0.941),
        "newsgroups-rec": (4, 1000, 0.254, 0.921, 0.919, 0.918, 0.915),
        "nyt": (2, 1000, 0.571, 0.701, 0.733, 0.729, 0.740),
    },
    "south": {
        "tweets": (2, 800, 0.513, 0.884, 0.921, 0.919, 0.925),
        "amazon": (2, 1000, 0.578, 0.812, 0.871, 0.868, 0.880),
        "reuters-r8": (8, 1000, 0.499, 0.957, 0.951, 0.952, 0.948),
        "newsgroups-sci": (4, 1000, 0.251, 0.894, 0.896, 0.893, 0.899),
    },
}
NAMES = [name for tasks in TASKS.values() for name in tasks]
EXPORT = {
    "task": "movies",
    "version": 8,
    "num_texts": 8,
    "largest_difference": 3.1e-6,
    "largest_logit": 2.4,
    "largest_difference_to_base": 0.83,
    "same_predictions": True,
}


def results_of(worker_id, *, with_lora=False):
    """One worker's ``results.json``, in the form that workers write."""
    tasks = []
    for index, (name, numbers) in enumerate(TASKS[worker_id].items()):
        labels, rows, majority, frozen, learnt, final, lora = numbers
        base = 2 * index
        result = TaskResult(
            task_id=name,
            task_type="text-classification",
            num_labels=labels,
            num_train=1000,
            num_test=rows,
            num_duplicates=3,
            row_seed=1,
            training_seed=2,
            majority=majority,
            frozen=frozen,
            frozen_scores={"accuracy": frozen},
            learnt=learnt,
            learnt_scores={"accuracy": learnt},
            update_id=f"update-of-{name}",
            state="merged",
            base_version=base,
            merged_version=base + 1 + (worker_id == "south"),
            lag=int(worker_id == "south" or index == 2),
            angle=0.1 * index,
            truncation=0.02,
            drift=0.4 / (index + 1),
            best_epoch=3,
            adapter_bytes=98_304 + 4_608 * index,
            head_bytes=3_080,
            lora_bytes=147_456,
            lora=lora if with_lora else None,
            lora_learning_rate=1e-3 if with_lora else None,
            seconds={"training": 31.5},
        )
        for after in range(index + 1, len(TASKS[worker_id]) + 1):
            result = result.scored(base + 2 + after, after, final, {"accuracy": final})
        tasks.append(result)
    results = WorkerResults(
        worker_id=worker_id,
        model={"path": "kit:model", "targets": ["query", "value"]},
        training={"pseudo_rank": 8, "epochs": 3, "num_temporary": 2, "max_tokens": 32},
        tasks=tuple(tasks),
    )
    return json.loads(json.dumps(results.to_dict()))


def version_events():
    """One version per task, as watchers are told."""
    return [
        {
            "version": number,
            "merged_at": f"2030-01-02T03:{number:02}:00+00:00",
            "update_ids": [f"update-of-{name}"],
            "task_ids": [name],
            "lowest_energy_kept": 1.0 - 0.012 * number,
            "mean_energy_kept": 1.0 - 0.004 * number,
            "angle": 0.0 if number == 1 else 1.5 / number,
            "num_factors": min(4 * number, 32),
            "subspace_bytes": 36_864 * min(4 * number, 32) // 4,
            "drift": dict.fromkeys(NAMES[: number - 1], 0.02 * number),
            "merge_seconds": 0.04 + 0.01 * number,
        }
        for number, name in enumerate(NAMES, start=1)
    ]


def final_subspace(num_factors=32):
    """Six layers with query and value, hidden size 384, as the quickstart's model has them."""
    side = Basis(torch.eye(384)[:, :num_factors], torch.ones(num_factors).double(), num_factors)
    layers = {
        f"encoder.layer.{index}.attention.self.{part}": LayerSubspace(side, side)
        for index in range(6)
        for part in ("query", "value")
    }
    return Subspace(layers, version=len(NAMES))


def report_of(*, with_lora=False, workers=None, export=None):
    """The report of such a run."""
    return make_report(
        name="demo",
        release="0.1.0",
        seconds=391.26,
        options={"num_factors": 32, "seed": 0, "compare": with_lora},
        workers=workers or [results_of(worker, with_lora=with_lora) for worker in TASKS],
        versions=version_events(),
        subspace=final_subspace(),
        export=EXPORT | (export or {}),
    )

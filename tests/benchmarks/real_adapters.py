"""
Real adapters for the benchmarks of the merge's quality: ten tasks of the kit, a rank-8 LoRA each.

Every adapter has its own seed: start, batches and dropout of no two are alike. They are trained once
(half a minute each) and kept as PEFT directories ``FOLDER/seed-0/movies``; what is there stays::

    python -m tests.benchmarks.real_adapters FOLDER --seeds 3
"""

import argparse
import copy
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from share_dist.adapters import LoraAdapter, load_lora
from worker.backbone import Backbone, load_backbone
from worker.baselines import LORA_RANK
from worker.evaluate import evaluate
from worker.optimizer import Trainee
from worker.prepared import FrozenBaseline, PreparedTask, frozen_baseline, prepare
from worker.sources import load_rows
from worker.stream import TaskStream, read_stream
from worker.trainer import Lesson, train

STREAM = Path(__file__).with_name("ten_tasks.toml")
SCORES = "scores.json"


def main() -> None:
    """Train what a folder lacks."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    stream = read_stream(STREAM)
    backbone = load_backbone(stream, torch.device("cpu"))
    prepared: dict[str, tuple[PreparedTask, FrozenBaseline]] = {}
    for seed in range(options.seeds):
        for task in stream.tasks:
            target = options.folder / f"seed-{seed}" / task.id
            if (target / SCORES).exists():
                continue
            if task.id not in prepared:
                rows = prepare(task, load_rows(task, stream.folder), backbone, stream.training)
                prepared[task.id] = rows, frozen_baseline(rows, backbone)
            scores = _train(stream, backbone, *prepared[task.id], seed, target)
            print(f"{target}: {scores}", flush=True)


def adapters_of(folder: Path, seed: int) -> dict[str, LoraAdapter]:
    """Read the adapters of one seed, by task, sorted."""
    found = sorted((folder / f"seed-{seed}").glob(f"*/{SCORES}"))
    if not found:
        raise SystemExit(
            f"{folder} holds no adapters of seed {seed}: "
            f"run `python -m tests.benchmarks.real_adapters {folder} --seeds {seed + 1}`"
        )
    return {path.parent.name: load_lora(path.parent) for path in found}


def seeds_of(folder: Path) -> list[int]:
    """Seeds of which a folder holds adapters."""
    found = sorted(int(path.name.removeprefix("seed-")) for path in folder.glob("seed-*"))
    if not found:
        raise SystemExit(
            f"{folder} holds no adapters: run `python -m tests.benchmarks.real_adapters {folder}`"
        )
    return found


def _train(
    stream: TaskStream,
    backbone: Backbone,
    prepared: PreparedTask,
    frozen: FrozenBaseline,
    seed: int,
    target: Path,
) -> Mapping[str, float]:
    """Train one adapter by the worker's own loop, and keep it as PEFT does."""
    from peft import LoraConfig, get_peft_model

    head = copy.deepcopy(frozen.start.head)
    own_seed = 1000 * seed + sorted(task.id for task in stream.tasks).index(prepared.task.id)
    torch.manual_seed(own_seed)
    config = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=stream.model.targets)
    adapted = get_peft_model(backbone.model, config)
    parameters = {name: each for name, each in adapted.named_parameters() if each.requires_grad}
    inside = replace(backbone, model=adapted)
    lesson = Lesson(
        prepared.task.id,
        inside,
        prepared.objective,
        prepared.fit,
        prepared.validation,
        stream.training,
        own_seed,
    )
    rates = dict.fromkeys(parameters, stream.training.learning_rate)
    try:
        train(lesson, Trainee(parameters, rates), head)
        scores = {
            "majority": prepared.simplest.main,
            "frozen": frozen.scores.main,
            "lora": evaluate(inside, prepared.objective, head, prepared.test).main,
        }
        adapted.save_pretrained(target)
    finally:
        adapted.unload()
    (target / SCORES).write_text(json.dumps(scores) + "\n")
    return scores


if __name__ == "__main__":
    main()

"""
What a task must be measured against: the frozen model with a trained head, its own LoRA.

The frozen baseline is also where learning starts: its head is the first head.
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from worker.evaluate import EncodedTestRows, evaluate
from worker.objective import Objective
from worker.optimizer import Trainee
from worker.stream import ModelSettings
from worker.trainer import Hooks, Lesson, train

LORA_RANK = 8
LORA_LEARNING_RATES = (1e-3, 2e-3, 5e-3)


@dataclass(frozen=True)
class Probe:
    """
    A head on the frozen model's features.

    Args:
        head: It, in the units of the features.
        penalty: Inverse strength that did best on the validation rows.
        validation_score: How it did there.
    """

    head: nn.Module
    penalty: float
    validation_score: float


def fit_probe(
    objective: Objective,
    fit: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    num_labels: int,
) -> Probe:
    """
    Fit a head to the frozen model, its penalty chosen on validation rows.

    Args:
        objective: What kind of head.
        fit: Features ``(units, features)`` and labels to learn from.
        validation: The same, to choose by.
        num_labels: Outputs; classes also that ``fit`` lacks.
    """
    best: Probe | None = None
    for penalty in objective.penalties:
        head = objective.fit_head(*fit, num_labels, penalty)
        score = objective.score(head, *validation)
        if best is None or score > best.validation_score:
            best = Probe(head, penalty, score)
    assert best is not None
    return best


@dataclass(frozen=True)
class LoraResult:
    """What a task's own LoRA reached."""

    score: float
    learning_rate: float
    validation_score: float


def lora_baseline(
    lesson: Lesson,
    head: nn.Module,
    test: EncodedTestRows,
    model: ModelSettings,
    hooks: Hooks | None = None,
) -> LoraResult:
    """
    Train a rank-8 LoRA of the same layers by the same loop, its learning rate chosen on the same rows.

    Args:
        lesson: The task, with no task active in its backbone.
        head: Where the head starts; left as it is.
        test: Scored once, with the learning rate that was chosen.
        model: Which layers.
        hooks: Told of every step.
    """
    best: LoraResult | None = None
    for learning_rate in LORA_LEARNING_RATES:
        tuned = copy.deepcopy(head)
        with _lora(lesson, model, learning_rate) as (inside, trainee):
            state = train(inside, trainee, tuned, hooks=hooks)
            if best is not None and state.best_score <= best.validation_score:
                continue
            score = evaluate(inside.backbone, lesson.objective, tuned, test).main
        best = LoraResult(score, learning_rate, state.best_score)
    assert best is not None
    return best


@contextmanager
def _lora(
    lesson: Lesson, model: ModelSettings, learning_rate: float
) -> Iterator[tuple[Lesson, Trainee]]:
    """The lesson's backbone with a fresh LoRA in it; taken out at the end."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=LORA_RANK,
        lora_alpha=2 * LORA_RANK,
        target_modules=model.targets,
        layers_to_transform=model.layers,
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        # peft asks transformers by a name that is going away
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(lesson.seed)
        adapted = get_peft_model(lesson.backbone.model, config)
    parameters = {name: each for name, each in adapted.named_parameters() if each.requires_grad}
    inside = replace(lesson, backbone=replace(lesson.backbone, model=adapted))
    try:
        yield inside, Trainee(parameters, dict.fromkeys(parameters, learning_rate))
    finally:
        adapted.unload()

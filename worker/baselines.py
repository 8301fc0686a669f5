"""
What a task must be measured against: the majority class, the frozen model with a trained head, its own LoRA.

The frozen baseline is also where learning starts: its head is the first head.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from worker.evaluate import EncodedTestRows, evaluate
from worker.objective import Classification
from worker.optimizer import Trainee
from worker.rows import TestRows, TrainRows
from worker.stream import ModelSettings
from worker.trainer import Hooks, Lesson, train

PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Inverse strengths of the penalty that are tried, strongest first."""

LORA_RANK = 8
LORA_LEARNING_RATES = (1e-3, 2e-3, 5e-3)


def majority_accuracy(train_rows: TrainRows, test_rows: TestRows) -> float:
    """Accuracy of always saying the most frequent class of the training rows."""
    ((majority, _),) = Counter(train_rows.labels).most_common(1)
    return test_rows.labels.count(majority) / len(test_rows)


@dataclass(frozen=True)
class Probe:
    """
    A linear head on the frozen model's features.

    Args:
        head: It, in the units of the features.
        penalty: Inverse strength that did best on the validation rows.
        validation_accuracy: How it did there.
    """

    head: nn.Linear
    penalty: float
    validation_accuracy: float


def fit_probe(
    fit: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor], num_labels: int
) -> Probe:
    """
    Fit a logistic regression, its penalty chosen on validation rows.

    Args:
        fit: Features ``(rows, features)`` and labels to learn from.
        validation: The same, to choose by.
        num_labels: Classes, also those that ``fit`` lacks.
    """
    best: Probe | None = None
    for penalty in PENALTIES:
        head = fit_head(*fit, num_labels, penalty)
        accuracy = Classification().score(head, *validation)
        if best is None or accuracy > best.validation_accuracy:
            best = Probe(head, penalty, accuracy)
    assert best is not None
    return best


def fit_head(features: Tensor, labels: Tensor, num_labels: int, penalty: float) -> nn.Linear:
    """Fit one logistic regression on standardised features, and undo the standardisation in its weights."""
    from sklearn.linear_model import LogisticRegression

    mean, spread = features.mean(0), features.std(0) + 1e-6
    scaled = ((features - mean) / spread).cpu().numpy()
    fitted = LogisticRegression(C=penalty, max_iter=500).fit(scaled, labels.numpy())
    weight = torch.zeros(num_labels, features.shape[1])
    # a class that no row has is never said
    bias = torch.full((num_labels,), -30.0)
    coefficients, intercepts = _per_class(fitted.coef_, fitted.intercept_)
    weight[fitted.classes_] = coefficients
    bias[fitted.classes_] = intercepts
    head = nn.Linear(features.shape[1], num_labels).to(features.device)
    with torch.no_grad():
        head.weight.copy_(weight.to(spread) / spread)
        head.bias.copy_(bias.to(mean) - head.weight @ mean)
    return head


def _per_class(weight: Sequence[float], bias: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Two classes share one row of scikit-learn's weights: half for, half against."""
    rows, offsets = torch.tensor(weight).float(), torch.tensor(bias).float()
    if len(rows) == 1:
        return torch.cat([-rows, rows]) / 2, torch.cat([-offsets, offsets]) / 2
    return rows, offsets


@dataclass(frozen=True)
class LoraResult:
    """What a task's own LoRA reached."""

    accuracy: float
    learning_rate: float
    validation_accuracy: float


def lora_baseline(
    lesson: Lesson,
    head: nn.Linear,
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
        tuned = nn.Linear(head.in_features, head.out_features, device=head.weight.device)
        tuned.load_state_dict(head.state_dict())
        with _lora(lesson, model, learning_rate) as (inside, trainee):
            state = train(inside, trainee, tuned, hooks=hooks)
            if best is not None and state.best_score <= best.validation_accuracy:
                continue
            accuracy = evaluate(inside.backbone, tuned, test).accuracy
        best = LoraResult(accuracy, learning_rate, state.best_score)
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

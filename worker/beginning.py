"""The beginning of a task: the values that its coefficients and temporary factors start from."""

import random
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from share_dist.adapters import InjectedModel
from worker.trainer import Lesson

GRADIENT_ROWS = 256
"""Rows from which the first gradient is taken: a few batches settle its leading directions."""


def starting_gradients(
    injected: InjectedModel, lesson: Lesson, head: nn.Module
) -> Mapping[str, Tensor] | None:
    """
    What a task of this lesson starts from: the first gradient, or None for a random start.

    Args:
        injected: The frozen model with a subspace.
        lesson: What will be learnt, and how: its setting ``start`` decides.
        head: Of the frozen model: the gradient is that of its loss.
    """
    is_wanted = lesson.settings.start == "gradient"
    return first_gradients(injected, lesson, head) if is_wanted else None


def first_gradients(
    injected: InjectedModel, lesson: Lesson, head: nn.Module
) -> Mapping[str, Tensor]:
    """
    The gradient of the loss with respect to each adapted weight, at the frozen model and without dropout.

    Returns:
        Layer -> ``(n, d)``; the mean over some rows of those to learn from, chosen by the lesson's seed.
    """
    draw = random.Random(lesson.seed)  # noqa: S311  # a choice of rows, not a secret
    rows = draw.sample(range(len(lesson.fit)), min(GRADIENT_ROWS, len(lesson.fit)))
    mass = lesson.objective.mass(lesson.fit.take(rows).labels)
    at_once = lesson.settings.batch_size
    was_trained = [each.requires_grad for each in head.parameters()]
    head.requires_grad_(requires_grad=False)
    try:
        with injected.gather_gradients() as gradients:
            for at in range(0, len(rows), at_once):
                batch = lesson.fit.take(rows[at : at + at_once])
                features = lesson.backbone.pooled(batch.encoded)
                labels = batch.labels.to(features.device)
                loss = lesson.objective.loss(head, features, labels) / mass
                torch.autograd.backward(loss)
    finally:
        for parameter, requires_grad in zip(head.parameters(), was_trained, strict=True):
            parameter.requires_grad_(requires_grad)
    return gradients

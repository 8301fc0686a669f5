"""
Keepers: the ways to go on from task to task in the same weights.

A keeper holds what is trained. Before each task it is told to begin, while the task is learnt it may add a penalty to the
loss and look at gradients, and after it remembers what must be held from then on.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from share_dist.core.gradient import leading_outside
from worker.beginning import GRADIENT_ROWS
from worker.bench.adapting import Adapted, by_peft, inside
from worker.bench.keeping import elastic_penalty, overlap, strongest
from worker.bench.methods import Keeping, Method
from worker.optimizer import Trainee
from worker.stream import ModelSettings
from worker.trainer import Lesson

ADAPTER = "default"
"""Name that `peft` gives to the one adapter of a model."""

ORTHOGONALITY = 0.5
"""Weight of the overlap in the loss, that of the paper."""

ELASTICITY = 1e4
"""Weight of the elastic penalty: a tenth of the loss on a sentence encoder; a hundred times as much lets nothing be learnt."""

FISHER_ROWS = 128
"""Rows of a task from which its Fisher information is taken, one gradient each."""

PROTECTED_ENERGY = 0.99
"""Share of a task's gradients whose directions later tasks may not use."""

SEEDS_APART = 1_000_003
"""Between the seeds of one task's start and the next one's."""

Anew = Callable[[nn.Module, int], Adapted]
"""Puts a method into a model anew, for the task of this number."""


class Keeper:
    """
    Holds nothing: the same parameters go on from task to task.

    Args:
        adapted: What is trained, before the first task.
        anew: Makes parameters of their own for a later task.
    """

    def __init__(self, adapted: Adapted, anew: Anew) -> None:
        self.adapted = adapted
        self._anew = anew

    def begin(self, lesson: Lesson, head: nn.Module) -> Lesson:
        """Prepare for the next task; its lesson, on the model that has what is trained."""
        self._lesson, self._head = self.inside(lesson), head
        return self._lesson

    def inside(self, lesson: Lesson) -> Lesson:
        """Any lesson on the model as it is now."""
        return inside(lesson, self.adapted.lesson.backbone.model)

    def penalty(self) -> Tensor | None:
        """What is added to the loss of a step."""
        return None

    def stepped(self) -> None:
        """A step was taken; parameters have its gradients still."""

    def end(self) -> None:
        """The task is learnt."""

    @property
    def num_trained(self) -> int:
        """Numbers that were trained, those of all tasks together, each once."""
        return self.adapted.num_parameters

    @property
    def num_kept(self) -> int:
        """Numbers by which the model with all tasks is told from the frozen one."""
        return self.num_trained


class _OneEach(Keeper):
    """Each task has parameters of its own, which are added to the weights before the next begins."""

    def __init__(self, adapted: Adapted, anew: Anew) -> None:
        super().__init__(adapted, anew)
        self._trained: list[int] = []
        self._kept: list[int] = []
        self._most = sum(
            shape.in_features * shape.out_features
            for shape in adapted.lesson.backbone.shapes.values()
        )

    def begin(self, lesson: Lesson, head: nn.Module) -> Lesson:
        """Add up what is learnt, and put new parameters beside it."""
        if self._trained:
            self.adapted = self._anew(self.adapted.model.merge_and_unload(), len(self._trained))
        self._kept.append(self.adapted.num_parameters)
        learnt = super().begin(lesson, head)
        self._prepare()
        self._trained.append(self.adapted.num_parameters)
        return learnt

    def _prepare(self) -> None:
        """Choose where the new parameters start."""

    @property
    def num_trained(self) -> int:
        """Of all tasks, but no more than the weights themselves have."""
        return min(sum(self._trained), self._most)

    @property
    def num_kept(self) -> int:
        """Of all tasks, but no more than the weights themselves have."""
        return min(sum(self._kept), self._most)


class Orthogonal(_OneEach):
    """A LoRA for each task, whose side A a penalty holds orthogonal to the former ones'."""

    def __init__(self, adapted: Adapted, anew: Anew) -> None:
        super().__init__(adapted, anew)
        self._earlier: dict[str, Tensor] = {}

    def penalty(self) -> Tensor | None:
        """The overlap with former tasks' sides A, over all layers."""
        if not self._earlier:
            return None
        sides = _sides_a(self.adapted)
        overlaps = [overlap(sides[name], each) for name, each in self._earlier.items()]
        return ORTHOGONALITY * torch.stack(overlaps).sum()

    def end(self) -> None:
        """Remember the sides A."""
        for name, side in _sides_a(self.adapted).items():
            earlier = self._earlier.get(name, side.new_empty(0, side.shape[1]))
            self._earlier[name] = torch.cat([earlier, side.detach()])


class Elastic(Keeper):
    """One LoRA, whose product is held the more where former tasks' likelihoods depend on it."""

    def __init__(self, adapted: Adapted, anew: Anew) -> None:
        super().__init__(adapted, anew)
        self._fisher: dict[str, Tensor] = {}
        self._anchor: dict[str, Tensor] = {}

    def penalty(self) -> Tensor | None:
        """The elastic penalty of what has changed since the last task, over all layers."""
        if not self._fisher:
            return None
        changes = {
            name: each - self._anchor[name] for name, each in _products(self.adapted).items()
        }
        penalties = [elastic_penalty(each, self._fisher[name]) for name, each in changes.items()]
        return ELASTICITY * torch.stack(penalties).sum()

    def end(self) -> None:
        """Add the task's Fisher information, of its true labels, to that of the former ones."""
        self._anchor = {name: each.detach() for name, each in _products(self.adapted).items()}
        weights, rows = _weights(self.adapted), _draw(self._lesson, FISHER_ROWS)
        for row in rows:
            gradients = weight_gradients(self._lesson, self._head, [row], weights)
            for name, gradient in gradients.items():
                share = gradient.square() / len(rows)
                self._fisher[name] = self._fisher.get(name, torch.zeros_like(share)) + share


class Projected(_OneEach):
    """A LoRA for each task, whose fixed side A lies where its gradient is largest outside of the former tasks' gradients."""

    def __init__(self, adapted: Adapted, anew: Anew) -> None:
        super().__init__(adapted, anew)
        self._protected: dict[str, Tensor] = {}
        self._moments: dict[str, Tensor] = {}

    def _prepare(self) -> None:
        lesson, draw = self._lesson, torch.Generator().manual_seed(self._lesson.seed)
        rows = _draw(lesson, GRADIENT_ROWS)
        gradients = weight_gradients(lesson, self._head, rows, _weights(self.adapted))
        for name, layer in _layers(self.adapted).items():
            side = layer.lora_A[ADAPTER].weight
            gradient = gradients[name].mT if layer.fan_in_fan_out else gradients[name]
            protected = self._protected.setdefault(name, side.new_empty(side.shape[1], 0))
            side.data = _rows_outside(gradient, protected, len(side), draw)
        self._moments = {}
        self.adapted = replace(self.adapted, trainee=_sides_b_of(self.adapted.trainee))

    def stepped(self) -> None:
        """Gather the gradient's energy along the directions of side A."""
        for name, layer in _layers(self.adapted).items():
            gradient = layer.lora_B[ADAPTER].weight.grad
            if torch.isfinite(gradient).all():
                moment = gradient.mT @ gradient
                self._moments[name] = self._moments.get(name, torch.zeros_like(moment)) + moment

    def end(self) -> None:
        """Protect the directions that the task's gradients used most."""
        for name, side in _sides_a(self.adapted).items():
            used = side.detach().mT @ strongest(self._moments[name], PROTECTED_ENERGY)
            self._protected[name] = torch.cat([self._protected[name], used], dim=1)


def mean_loss(lesson: Lesson, head: nn.Module, rows: Sequence[int]) -> Tensor:
    """The mean loss of some rows to learn from."""
    batch = lesson.fit.take(rows)
    features = lesson.backbone.pooled(batch.encoded)
    labels = batch.labels.to(features.device)
    return lesson.objective.loss(head, features, labels) / lesson.objective.mass(batch.labels)


def weight_gradients(
    lesson: Lesson, head: nn.Module, rows: Sequence[int], weights: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """
    The gradient of some rows' mean loss with respect to frozen weights, without dropout.

    Args:
        lesson: On the model that has them.
        head: Of the task.
        rows: Of those to learn from.
        weights: Name -> weight; frozen again in the end.
    """
    model, at_once = lesson.backbone.model, lesson.settings.batch_size
    was_training = model.training
    model.eval()
    for each in weights.values():
        each.requires_grad = True
    try:
        total = [torch.zeros_like(each) for each in weights.values()]
        for at in range(0, len(rows), at_once):
            part = rows[at : at + at_once]
            loss = mean_loss(lesson, head, part) * len(part) / len(rows)
            found = torch.autograd.grad(loss, list(weights.values()))
            total = [before + each for before, each in zip(total, found, strict=True)]
    finally:
        for each in weights.values():
            each.requires_grad = False
        model.train(was_training)
    return dict(zip(weights, total, strict=True))


def _rows_outside(gradient: Tensor, protected: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Where a gradient is largest outside of what is protected, as rows; zeros once nothing is left."""
    left = min(count, protected.shape[0] - protected.shape[1])
    rows = leading_outside(gradient, protected, left, draw).mT
    return torch.cat([rows, rows.new_zeros(count - left, rows.shape[1])])


def _sides_b_of(trainee: Trainee) -> Trainee:
    """What of a LoRA is trained where sides A are fixed: the change stays within their span."""
    kept = {name: each for name, each in trainee.parameters.items() if "lora_B" in name}
    return Trainee(kept, {name: trainee.learning_rates[name] for name in kept})


def _draw(lesson: Lesson, count: int) -> list[int]:
    draw = random.Random(lesson.seed)  # noqa: S311  # a choice of rows, not a secret
    return draw.sample(range(len(lesson.fit)), min(count, len(lesson.fit)))


def _layers(adapted: Adapted) -> dict[str, Any]:
    """The adapted layers that the features depend on, as `peft` has made them."""
    model = adapted.model.get_base_model()
    return {name: model.get_submodule(name) for name in adapted.lesson.backbone.shapes}


def _sides_a(adapted: Adapted) -> dict[str, Tensor]:
    return {name: each.lora_A[ADAPTER].weight for name, each in _layers(adapted).items()}


def _products(adapted: Adapted) -> dict[str, Tensor]:
    """What each layer's LoRA adds to its weight."""
    return {name: each.get_delta_weight(ADAPTER) for name, each in _layers(adapted).items()}


def _weights(adapted: Adapted) -> dict[str, nn.Parameter]:
    """The weights under the LoRAs: their gradient is that of whatever is added to them."""
    return {name: each.get_base_layer().weight for name, each in _layers(adapted).items()}


def keeper_of(method: Method, adapted: Adapted, model: ModelSettings, rate: float) -> Keeper:
    """
    The keeper of a method.

    Args:
        method: Of one adapter for all tasks.
        adapted: What it trains, before the first task.
        model: Which layers are adapted.
        rate: Learning rate.
    """
    first = adapted.lesson

    def anew(learnt: nn.Module, number: int) -> Adapted:
        # of the same seed, every task would start from the same random directions
        lesson = replace(inside(first, learnt), seed=first.seed + SEEDS_APART * number)
        return by_peft(method, lesson, model, rate)

    return KEEPERS[method.keeping](adapted, anew)


KEEPERS: Mapping[Keeping, type[Keeper]] = {
    "": Keeper,
    "orthogonal": Orthogonal,
    "elastic": Elastic,
    "projected": Projected,
    "decomposed": _OneEach,
}
"""What a method says of keeping -> who does it."""

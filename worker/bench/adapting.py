"""Adapting: a lesson's frozen model with what one method trains put into it."""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from share_dist.adapters import inject, load_lora, lora_start, subspace_from_adapters
from share_dist.adapters.lora import KEY_PREFIX
from share_dist.core.temporary import propose_temporary
from share_dist.core.values import Basis, LayerShape, LayerSubspace, Subspace
from worker.beginning import starting_gradients
from worker.bench.methods import LORA_RANK, Method
from worker.optimizer import Trainee
from worker.stream import ModelSettings
from worker.trainer import Lesson, trainee_of

TASK = "task"


@dataclass(frozen=True)
class Adapted:
    """
    What a method trains.

    Args:
        lesson: With the backbone that it is in.
        trainee: Its parameters.
        model: The adapted model, as `peft` saves it; None where there is no such.
    """

    lesson: Lesson
    trainee: Trainee
    model: Any = None

    @property
    def num_parameters(self) -> int:
        """Numbers that are trained, the head left out."""
        return sum(each.numel() for each in self.trainee.parameters.values())


@contextmanager
def adapted_by(
    method: Method,
    lesson: Lesson,
    head: nn.Module,
    model: ModelSettings,
    rate: float,
    subspace: Subspace | None = None,
) -> Iterator[Adapted]:
    """
    Put what a method trains into a lesson's model, and take it out at the end.

    Args:
        method: Of one task.
        lesson: With nothing active in its backbone.
        head: Of the frozen model, from which learning starts.
        model: Which layers are adapted.
        rate: Learning rate.
        subspace: In which the method begins, where it begins in one.
    """
    if method.peft is not None:
        yield _by_peft(method, lesson, model, rate, subspace)
    elif subspace is not None:
        with _coefficients(lesson, head, subspace, rate) as adapted:
            yield adapted
    else:
        yield _in_full(lesson, rate)


@contextmanager
def _coefficients(
    lesson: Lesson, head: nn.Module, subspace: Subspace, rate: float
) -> Iterator[Adapted]:
    settings = lesson.settings.model_copy(update={"learning_rate": rate})
    with inject(lesson.backbone.model, subspace) as injected:
        learnt = replace(lesson, settings=settings)
        injected.add_task(
            TASK,
            pseudo_rank=settings.pseudo_rank,
            num_temporary=0,
            seed=lesson.seed,
            gradients=starting_gradients(injected, learnt, head),
        )
        injected.activate(TASK)
        yield Adapted(learnt, trainee_of(injected, TASK, settings))


def _by_peft(
    method: Method, lesson: Lesson, model: ModelSettings, rate: float, subspace: Subspace | None
) -> Adapted:
    from peft import get_peft_model

    assert method.peft is not None
    layers = {"target_modules": model.targets, "layers_to_transform": model.layers}
    with torch.random.fork_rng(), warnings.catch_warnings():
        # peft asks transformers by a name that is going away
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(lesson.seed)
        # some methods change the frozen weights as well
        adapted = get_peft_model(copy.deepcopy(lesson.backbone.model), method.peft(layers))
    if subspace is not None:
        _start_in(adapted, subspace)
    parameters = {name: each for name, each in adapted.named_parameters() if each.requires_grad}
    return Adapted(_inside(lesson, adapted), _at(parameters, rate), adapted)


def _start_in(adapted: nn.Module, subspace: Subspace) -> None:
    """Give a LoRA the principal factors of a subspace as its sides A."""
    for name, factors in lora_start(subspace, LORA_RANK).factors.items():
        side_a = adapted.get_parameter(f"{KEY_PREFIX}{name}.lora_A.default.weight")
        side_a.data.copy_(factors.a.mT)


def _in_full(lesson: Lesson, rate: float) -> Adapted:
    model = copy.deepcopy(lesson.backbone.model).requires_grad_(requires_grad=True)
    return Adapted(_inside(lesson, model), _at(dict(model.named_parameters()), rate))


def _inside(lesson: Lesson, model: nn.Module) -> Lesson:
    return replace(lesson, backbone=replace(lesson.backbone, model=model))


def _at(parameters: Mapping[str, nn.Parameter], rate: float) -> Trainee:
    return Trainee(parameters, dict.fromkeys(parameters, rate))


def subspace_of_others(folders: Sequence[Path], num_factors: int) -> Subspace:
    """The subspace of adapters in these folders."""
    return subspace_from_adapters([load_lora(folder) for folder in folders], num_factors)


def random_subspace(shapes: Mapping[str, LayerShape], num_factors: int, seed: int) -> Subspace:
    """A subspace of these layers whose directions are random."""
    generator = torch.Generator().manual_seed(seed)
    return Subspace(
        {
            name: LayerSubspace(
                _random(shape.in_features, num_factors, generator),
                _random(shape.out_features, num_factors, generator),
            )
            for name, shape in shapes.items()
        }
    )


def _random(features: int, num_factors: int, generator: torch.Generator) -> Basis:
    vectors = propose_temporary(torch.zeros(features, 0), num_factors, generator)
    return Basis(vectors, torch.ones(num_factors, dtype=torch.float64), num_factors)

"""Adapting: a lesson's frozen model with what one method trains put into it."""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from share_dist.adapters import InjectedModel, LoraAdapter, inject, lora_start
from share_dist.adapters.lora import KEY_PREFIX
from share_dist.core.gradient import alignment
from share_dist.core.subspace import project, reconstruct
from share_dist.core.values import Coefficients, Subspace
from worker.beginning import FirstGradients, starting_gradients
from worker.bench.methods import LORA_RANK, Method
from worker.optimizer import Trainee
from worker.stream import ModelSettings, TrainingSettings
from worker.trainer import Lesson, trainee_of

TASK = "task"
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Adapted:
    """
    What a method trains.

    Args:
        lesson: With the backbone that it is in.
        trainee: Its parameters.
        model: The adapted model, as `peft` saves it; None where there is no such.
        is_diagonal: Whether only the diagonal of each parameter is trained.
        injected: The model with the subspace that coefficients are trained in; None where it has none.
    """

    lesson: Lesson
    trainee: Trainee
    model: Any = None
    is_diagonal: bool = False
    injected: InjectedModel | None = None

    @property
    def num_parameters(self) -> int:
        """Numbers that are trained, the head left out."""
        parameters = self.trainee.parameters.values()
        return sum(min(each.shape) if self.is_diagonal else each.numel() for each in parameters)

    @property
    def num_bytes(self) -> int:
        """Of what is kept of it, in fp32, the head left out; as `peft` saves it where that has it."""
        if self.model is None:
            return FLOAT_BYTES * self.num_parameters
        from peft import get_peft_model_state_dict

        return sum(each.nbytes for each in get_peft_model_state_dict(self.model).values())


@contextmanager
def adapted_by(
    method: Method,
    lesson: Lesson,
    head: nn.Module,
    model: ModelSettings,
    rate: float,
    subspace: Subspace | None = None,
    others: Sequence[LoraAdapter] = (),
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
        others: The adapters that it builds on.
    """
    if method.peft is not None:
        yield by_peft(method, lesson, model, rate, subspace)
    elif subspace is not None:
        with _coefficients(method, lesson, head, subspace, rate, others) as adapted:
            yield adapted
    else:
        yield _in_full(lesson, rate)


@contextmanager
def _coefficients(
    method: Method,
    lesson: Lesson,
    head: nn.Module,
    subspace: Subspace,
    rate: float,
    others: Sequence[LoraAdapter],
) -> Iterator[Adapted]:
    settings = lesson.settings.model_copy(update={"learning_rate": rate})
    with inject(lesson.backbone.model, subspace) as injected:
        learnt = replace(lesson, settings=settings)
        start = _nearest(injected, learnt, head, others) if method.is_warm else None
        injected.add_task(
            TASK,
            pseudo_rank=None if start else _num_columns(method, subspace, settings),
            num_temporary=0,
            seed=lesson.seed,
            start=start,
            gradients=starting_gradients(injected, learnt, head),
        )
        injected.activate(TASK)
        trainee = trainee_of(injected, TASK, settings)
        trained = trainee if method.form == "columns" else _between(trainee, method)
        is_diagonal = method.form == "diagonal"
        yield Adapted(learnt, trained, is_diagonal=is_diagonal, injected=injected)


def _num_columns(method: Method, subspace: Subspace, settings: TrainingSettings) -> int:
    if method.form == "columns":
        return settings.pseudo_rank
    return max(layer.a.num_factors for layer in subspace.layers.values())


def _nearest(
    injected: InjectedModel, lesson: Lesson, head: nn.Module, others: Sequence[LoraAdapter]
) -> Coefficients | None:
    """What the subspace says of the adapter that lowers the loss fastest; None where none does."""
    gradients = FirstGradients(injected, lesson, head)
    said = [project(injected.subspace, each.factors) for each in others]
    found = [alignment(gradients, reconstruct(injected.subspace, each)) for each in said]
    best = max(range(len(found)), key=found.__getitem__)
    return said[best] if found[best] > 0 else None


def _between(trainee: Trainee, method: Method) -> Trainee:
    """Train a matrix between the bases, or its diagonal: coefficients of side B, with the identity as those of side A."""
    names = [name for name in trainee.parameters if name.endswith(".b.coefficients")]
    for name, parameter in trainee.parameters.items():
        if name not in names:
            torch.nn.init.eye_(parameter)
        elif method.form == "diagonal":
            # moments of zero gradients stay zero, and so do the numbers beside the diagonal
            diagonal = torch.eye(*parameter.shape)
            parameter.register_hook(diagonal.to(parameter.device).mul)  # type: ignore[no-untyped-call]  # torch leaves it so
    return Trainee(
        {name: trainee.parameters[name] for name in names},
        {name: trainee.learning_rates[name] for name in names},
    )


def by_peft(
    method: Method,
    lesson: Lesson,
    model: ModelSettings,
    rate: float,
    subspace: Subspace | None = None,
) -> Adapted:
    """
    Put an adapter of `peft` into a copy of a lesson's model.

    Args:
        method: That `peft` has.
        lesson: Its seed decides where the adapter starts.
        model: Which layers are adapted.
        rate: Learning rate.
        subspace: Whose principal factors are its sides A, where it is a LoRA that begins in one.
    """
    from peft import get_peft_model

    assert method.peft is not None
    with torch.random.fork_rng(), warnings.catch_warnings():
        # peft asks transformers by a name that is going away
        warnings.simplefilter("ignore", FutureWarning)
        # the random matrices of VeRA are drawn anew from their seed
        warnings.filterwarnings("ignore", "Specified to not save vera_A")
        config = method.peft.make(model.targets, model.layers)
        torch.manual_seed(lesson.seed)
        # some methods change the frozen weights as well
        adapted = get_peft_model(copy.deepcopy(lesson.backbone.model), config)
    if subspace is not None:
        _start_in(adapted, subspace)
    parameters = {name: each for name, each in adapted.named_parameters() if each.requires_grad}
    return Adapted(inside(lesson, adapted), _at(parameters, rate), adapted)


def _start_in(adapted: nn.Module, subspace: Subspace) -> None:
    """Give a LoRA the principal factors of a subspace as its sides A."""
    for name, factors in lora_start(subspace, LORA_RANK).factors.items():
        side_a = adapted.get_parameter(f"{KEY_PREFIX}{name}.lora_A.default.weight")
        side_a.data.copy_(factors.a.mT)


def _in_full(lesson: Lesson, rate: float) -> Adapted:
    model = copy.deepcopy(lesson.backbone.model).requires_grad_(requires_grad=True)
    return Adapted(inside(lesson, model), _at(dict(model.named_parameters()), rate))


def inside(lesson: Lesson, model: nn.Module) -> Lesson:
    """The same lesson on another model."""
    return replace(lesson, backbone=replace(lesson.backbone, model=model))


def _at(parameters: Mapping[str, nn.Parameter], rate: float) -> Trainee:
    return Trainee(parameters, dict.fromkeys(parameters, rate))

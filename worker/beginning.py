"""The beginning of a task: the values that its coefficients and temporary factors start from."""

import gc
import math
import random
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from typing_extensions import override

from share_dist.adapters import InjectedModel
from share_dist.errors import WorkerError
from worker.trainer import Lesson

GRADIENT_ROWS = 256
"""Rows from which the first gradient is taken: a few batches settle its leading directions."""

MOST_GRADIENT_BYTES = 2**28
"""What the gradients of several layers may take at once; a single one may take more."""


_LARGEST_USABLE = 1e15
"""Entries of a gradient above this are those of a loss that overflowed."""


def starting_gradients(
    injected: InjectedModel,
    lesson: Lesson,
    head: nn.Module,
    before_step: Callable[[], None] = lambda: None,
) -> Mapping[str, Tensor] | None:
    """
    What a task of this lesson starts from: the first gradient, or None for a random start.

    Args:
        injected: The frozen model with a subspace.
        lesson: What will be learnt, and how: its setting ``start`` decides.
        head: Of the frozen model: the gradient is that of its loss.
        before_step: Called before every batch; raises to end.
    """
    is_wanted = lesson.settings.start == "gradient"
    return FirstGradients(injected, lesson, head, before_step) if is_wanted else None


class FirstGradients(Mapping[str, Tensor]):
    """
    The gradient of the loss with respect to each adapted weight, at the frozen model and without dropout.

    Layer -> ``(n, d)``; the mean over some rows of those to learn from, chosen by the lesson's seed. Those of all layers
    may take more memory than the model: they are found for as many layers at once as ``most_bytes`` hold when
    one is asked for, and forgotten when one of the others is. So ask in the order of the layers. One that
    overflowed, as in fp16 it may, says nothing: it is zero.

    Args:
        injected: The frozen model with a subspace; usable for as long as this is.
        lesson: Its rows and seed.
        head: Of the frozen model.
        before_step: Called before every batch; raises to end.
        most_bytes: For the gradients that are held.
    """

    def __init__(
        self,
        injected: InjectedModel,
        lesson: Lesson,
        head: nn.Module,
        before_step: Callable[[], None] = lambda: None,
        most_bytes: int = MOST_GRADIENT_BYTES,
    ) -> None:
        self._injected = injected
        self._lesson = lesson
        self._head = head
        self._before_step = before_step
        self._groups = _groups(injected, most_bytes)
        self._found: Mapping[str, Tensor] = {}
        self._rows_at_once = math.ceil(lesson.settings.batch_size / lesson.settings.accumulate)

    @override
    def __getitem__(self, name: str) -> Tensor:
        if name not in self._found:
            # what is held makes room first
            self._found = {}
            self._found = self._gathered(self._groups[name])
        return self._found[name]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    @override
    def __len__(self) -> int:
        return len(self._groups)

    def _gathered(self, names: tuple[str, ...]) -> Mapping[str, Tensor]:
        """Find the gradients of some layers, with fewer rows at once where the memory does not suffice."""
        while True:
            try:
                return self._try_to_gather(names)
            except torch.OutOfMemoryError as error:
                if self._rows_at_once == 1:
                    raise WorkerError(
                        f"task {self._lesson.task_id!r}: the memory does not suffice for the first gradient, not "
                        f"even of a single row ({error}): set start = 'random', lower max_tokens, or free "
                        "memory that other processes hold"
                    ) from error
                self._rows_at_once = self._rows_at_once // 2
            # only out here does nothing refer to the tensors of the failed try
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _try_to_gather(self, names: tuple[str, ...]) -> Mapping[str, Tensor]:
        lesson, head = self._lesson, self._head
        draw = random.Random(lesson.seed)  # noqa: S311  # a choice of rows, not a secret
        rows = draw.sample(range(len(lesson.fit)), min(GRADIENT_ROWS, len(lesson.fit)))
        mass = lesson.objective.mass(lesson.fit.take(rows).labels)
        was_trained = [each.requires_grad for each in head.parameters()]
        head.requires_grad_(requires_grad=False)
        try:
            # a compiled model would be compiled anew for each group of layers
            with (
                torch.compiler.set_stance("force_eager"),
                self._injected.gather_gradients(names) as gradients,
            ):
                for at in range(0, len(rows), self._rows_at_once):
                    self._before_step()
                    batch = lesson.fit.take(rows[at : at + self._rows_at_once])
                    features = lesson.backbone.pooled(batch.encoded)
                    labels = batch.labels.to(features.device)
                    loss = lesson.objective.loss(head, features, labels) / mass
                    # not where these rows do not come to these layers
                    if loss.requires_grad:
                        torch.autograd.backward(loss)
        finally:
            for parameter, requires_grad in zip(head.parameters(), was_trained, strict=True):
                parameter.requires_grad_(requires_grad)
        return {name: _usable(gradient) for name, gradient in gradients.items()}


def _usable(gradient: Tensor) -> Tensor:
    is_usable = bool(gradient.abs().amax() < _LARGEST_USABLE)
    return gradient if is_usable else torch.zeros_like(gradient)


def _groups(injected: InjectedModel, most_bytes: int) -> dict[str, tuple[str, ...]]:
    """Part the layers, in their order, into groups whose gradients fit together; each layer's group."""
    groups: list[list[str]] = []
    left = 0
    for name, shape in injected.subspace.shapes.items():
        needed = 4 * shape.in_features * shape.out_features
        if not groups or needed > left:
            groups.append([])
            left = most_bytes
        groups[-1].append(name)
        left -= needed
    return {name: tuple(group) for group in groups for name in group}

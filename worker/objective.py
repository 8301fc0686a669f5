"""Objectives: what a head computes from features, what is minimised, what is scored."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from share_dist.core.values import Head
from share_dist.errors import StreamError
from worker.stream import TaskType


@dataclass(frozen=True)
class EncodedRows:
    """Prepared inputs with their labels."""

    encoded: Sequence[Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def lengths(self) -> list[int]:
        """Length of every row, for batches of like lengths."""
        return [len(each) for each in self.encoded]

    def take(self, rows: Sequence[int]) -> "EncodedRows":
        """These rows, in this order."""
        return EncodedRows([self.encoded[row] for row in rows], self.labels[list(rows)])


class Objective(Protocol):
    """One kind of task, on top of whatever the frozen model computes."""

    def loss(self, head: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
        """What is minimised, a weighted sum: over some of a batch's rows or all of them."""
        ...

    def mass(self, labels: Tensor) -> float:
        """What a whole batch's sum is divided by: the sum of its weights."""
        ...

    def score(self, head: nn.Module, features: Tensor, labels: Tensor) -> float:
        """How good it is; more is better."""
        ...

    def standard_error(self, score: float, num_rows: int) -> float:
        """How far a score on so many rows is from the truth, typically."""
        ...


class Classification:
    """
    Cross-entropy of a linear head; scored by accuracy.

    Args:
        class_weights: Of every class in the loss; None: all are equal.
    """

    def __init__(self, class_weights: Tensor | None = None) -> None:
        self._weights = class_weights

    def loss(self, head: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
        """Summed cross-entropy."""
        weights = None if self._weights is None else self._weights.to(features.device)
        return nn.functional.cross_entropy(head(features), labels, weights, reduction="sum")

    def mass(self, labels: Tensor) -> float:
        """Summed weights of the labels' classes."""
        return len(labels) if self._weights is None else float(self._weights[labels].sum())

    @torch.no_grad()
    def score(self, head: nn.Module, features: Tensor, labels: Tensor) -> float:
        """Accuracy."""
        right = predict(head, features) == labels
        return float(right.float().mean())

    def standard_error(self, score: float, num_rows: int) -> float:
        """That of a share of so many rows."""
        return math.sqrt(score * (1 - score) / max(1, num_rows))


def class_weights(
    wanted: Literal["balanced"] | list[float] | None, labels: Tensor, num_labels: int
) -> Tensor | None:
    """
    Find the weight of every class in the loss.

    Args:
        wanted: ``"balanced"``: the inverse of a class's share, so that all classes
            together weigh what they weighed; else as given.
        labels: Of the rows to learn from.
        num_labels: Classes, also those that no row has.

    Raises:
        StreamError: Weights were given for another number of classes.
    """
    if wanted is None:
        return None
    if wanted == "balanced":
        counts = torch.bincount(labels, minlength=num_labels)
        return len(labels) / (num_labels * counts.clamp(min=1).float())
    if len(wanted) != num_labels:
        raise StreamError(
            f"class_weights has {len(wanted)} weights for {num_labels} classes: give one for each, "
            "in the order of the classes"
        )
    return torch.tensor(wanted)


@torch.no_grad()
def predict(head: nn.Module, features: Tensor) -> Tensor:
    """The most likely class of every row, on the CPU."""
    predicted: Tensor = head(features).argmax(-1).cpu()
    return predicted


def pack_head(head: nn.Linear, task_type: TaskType, label_names: tuple[str, ...]) -> Head:
    """A linear head as it travels with its task."""
    return Head(
        {name: tensor.detach().cpu().clone() for name, tensor in head.named_parameters()},
        task_type=task_type,
        num_labels=head.out_features,
        label_names=label_names,
    )


def unpack_head(head: Head, device: torch.device) -> nn.Linear:
    """A linear head as it came with its task."""
    weight, bias = head.tensors["weight"], head.tensors["bias"]
    linear = nn.Linear(weight.shape[1], weight.shape[0], device=device)
    linear.load_state_dict({"weight": weight, "bias": bias})
    return linear

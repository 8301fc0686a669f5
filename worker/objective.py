"""
Objectives: what a head computes from features, what is minimised, what is scored.

Features and labels come in units: a row of a classification or regression is one,
every labelled token of a row is one. Labels of tokens are ``(rows, tokens)`` with
``IGNORED`` where a token is no unit; features are ``(units, features)``, in the
order of rows and tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from share_dist.core.values import Head
from worker.stream import TaskType

IGNORED = -100
"""Label of a token that is no unit."""

PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Inverse strengths of the penalty that are tried for a first head, strongest first."""


def units(labels: Tensor) -> Tensor:
    """Labels of all units, one after another."""
    return labels if labels.ndim == 1 else labels[labels != IGNORED]


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


@dataclass(frozen=True)
class Scores:
    """
    Scores of one head on one set of test rows.

    Args:
        metric: Name of the one that tasks are compared by; more is better.
        values: All of them, by name.
    """

    metric: str
    values: Mapping[str, float]

    @property
    def main(self) -> float:
        """The one that tasks are compared by."""
        return self.values[self.metric]

    def to_dict(self) -> dict[str, float]:
        """As they are sent and saved."""
        return dict(self.values)


class Objective(Protocol):
    """One kind of task, on top of whatever the frozen model computes."""

    penalties: tuple[float, ...]
    """Which are tried for a first head."""

    def loss(self, head: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
        """What is minimised, a weighted sum over units: of some of a batch's rows or of all."""
        ...

    def mass(self, labels: Tensor) -> float:
        """What a whole batch's sum is divided by: the sum of its weights."""
        ...

    def score(self, head: nn.Module, features: Tensor, labels: Tensor) -> float:
        """How good it is, for choosing between heads or epochs; more is better."""
        ...

    def standard_error(self, score: float, labels: Tensor) -> float:
        """How far a score on rows with these labels is from the truth, typically."""
        ...

    def scores(self, head: nn.Module, features: Tensor, labels: Tensor) -> Scores:
        """All that is said of it."""
        ...

    def simplest(self, train_labels: Tensor, test_labels: Tensor) -> Scores:
        """Scores of saying the same of every unit, whatever the input."""
        ...

    def fit_head(
        self, features: Tensor, labels: Tensor, num_labels: int, penalty: float
    ) -> nn.Module:
        """A head of the frozen model, from which learning starts."""
        ...


def error_of_share(share: float, num_rows: float) -> float:
    """Standard error of a share of so many rows."""
    return math.sqrt(share * (1 - share) / max(1, num_rows))


def error_of_correlation(correlation: float, num_rows: float) -> float:
    """Standard error of a correlation over so many rows."""
    return (1 - correlation**2) / math.sqrt(max(1, num_rows - 1))


def pack_head(head: nn.Module, task_type: TaskType, label_names: tuple[str, ...]) -> Head:
    """A head as it travels with its task; one that belongs to the frozen model has no tensors."""
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in head.named_parameters()}
    return Head(
        tensors,
        task_type=task_type,
        num_labels=len(tensors["weight"]) if tensors else 0,
        label_names=label_names,
    )


def unpack_head(head: Head, backbone: Any) -> nn.Module:
    """
    A head as it came with its task.

    Args:
        head: As it came.
        backbone: Where it is put; its own head over the vocabulary where the task brought none.
    """
    if not head.tensors:
        vocabulary: nn.Module = backbone.vocabulary
        return vocabulary
    weight, bias = head.tensors["weight"], head.tensors["bias"]
    linear = nn.Linear(weight.shape[1], weight.shape[0], device=backbone.device)
    linear.load_state_dict({"weight": weight, "bias": bias})
    return linear

"""Objectives: what a head computes from features, what is minimised, what is scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from share_dist.core.values import Head
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
        """What is minimised, a mean over rows."""
        ...

    def score(self, head: nn.Module, features: Tensor, labels: Tensor) -> float:
        """How good it is; more is better."""
        ...


class Classification:
    """Cross-entropy of a linear head; scored by accuracy."""

    def loss(self, head: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return nn.functional.cross_entropy(head(features), labels)

    @torch.no_grad()
    def score(self, head: nn.Module, features: Tensor, labels: Tensor) -> float:
        """Accuracy."""
        right = predict(head, features) == labels
        return float(right.float().mean())


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

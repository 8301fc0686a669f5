"""Scores of a task stream from its accuracy matrix, and honest byte accounting."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from share_dist.core.values import LayerShape, Subspace, TaskUpdate
from share_dist.errors import ShapeMismatch


@dataclass(frozen=True)
class StreamScores:
    """
    What an accuracy matrix says about a stream of ``T`` tasks.

    Args:
        average_accuracy: ACC; mean over tasks of the accuracy after the last one.
        backward_transfer: BWT; mean of final less when learnt, over all but the
            last task. Negative is forgetting.
        forward_transfer: FWT; mean of the accuracy on a task just before it is
            learnt less its baseline; None where it was not measured.
        forgetting: Mean of the best accuracy before the last task was learnt less the final one,
            over all but the last task; negative where tasks gained.
        learning_accuracy: Mean of the accuracies when learnt.

    Source:
        Lopez-Paz and Ranzato, 2017 (ACC, BWT, FWT); Chaudhry et al., 2018 (forgetting).
    """

    average_accuracy: float
    backward_transfer: float
    forward_transfer: float | None
    forgetting: float
    learning_accuracy: float


def stream_scores(
    matrix: Sequence[Sequence[float | None]], baselines: Sequence[float] | None = None
) -> StreamScores:
    """
    Compute the scores of one task stream.

    Args:
        matrix: ``R[i][j]``, the accuracy on task ``j`` after learning task ``i``;
            None or NaN where it was not measured. The diagonal and the last row must be.
        baselines: Accuracy on each task without learning anything, for FWT.

    Raises:
        ShapeMismatch: The matrix is not square, or lacks its diagonal or last row.

    Examples:
        >>> scores = stream_scores([[0.8, None], [0.7, 0.9]])
        >>> round(scores.average_accuracy, 3), round(scores.backward_transfer, 3)
        (0.8, -0.1)
    """
    rows = [[math.nan if value is None else float(value) for value in row] for row in matrix]
    num_tasks = len(rows)
    if num_tasks == 0 or any(len(row) != num_tasks for row in rows):
        raise ShapeMismatch(
            f"an accuracy matrix is square and not empty, got rows of {[len(row) for row in rows]}"
        )
    learnt, final = [rows[task][task] for task in range(num_tasks)], rows[-1]
    if any(math.isnan(value) for value in (*learnt, *final)):
        raise ShapeMismatch("an accuracy matrix needs its diagonal and its last row measured")
    best = [
        max(row[task] for row in rows[task:-1] if not math.isnan(row[task]))
        for task in range(num_tasks - 1)
    ]
    lost = [high - last for high, last in zip(best, final[:-1], strict=True)]
    changes = [after - before for after, before in zip(final[:-1], learnt[:-1], strict=True)]
    return StreamScores(
        average_accuracy=_mean(final),
        backward_transfer=_mean(changes) if changes else 0.0,
        forward_transfer=_forward_transfer(rows, baselines),
        forgetting=_mean(lost) if lost else 0.0,
        learning_accuracy=_mean(learnt),
    )


def _forward_transfer(
    rows: Sequence[Sequence[float]], baselines: Sequence[float] | None
) -> float | None:
    ahead = [rows[task - 1][task] for task in range(1, len(rows))]
    if baselines is None or not ahead or any(math.isnan(value) for value in ahead):
        return None
    return _mean([value - base for value, base in zip(ahead, baselines[1:], strict=True)])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True, slots=True)
class UpdateBytes:
    """Tensor bytes of one update: what is merged, and the head that travels with it."""

    adapter: int
    head: int

    @property
    def total(self) -> int:
        """Both."""
        return self.adapter + self.head


def update_bytes(update: TaskUpdate) -> UpdateBytes:
    """Count the tensor bytes of an update as it is sent."""
    adapter = sum(
        tensor.numel() * tensor.element_size()
        for layer in update.layers.values()
        for _, side in layer
        for tensor in (side.coefficients, side.temporary, side.temporary_coefficients)
    )
    head = sum(tensor.numel() * tensor.element_size() for tensor in update.head.tensors.values())
    return UpdateBytes(adapter, head)


def lora_bytes(shapes: Mapping[str, LayerShape], rank: int, itemsize: int = 4) -> int:
    """
    Count the bytes of a LoRA of the same layers: ``r (d + n)`` numbers a layer.

    Examples:
        >>> lora_bytes({"q": LayerShape(384, 384)}, rank=8)
        24576
    """
    return sum(rank * sum(shape) * itemsize for shape in shapes.values())


def coefficient_bytes(subspace: Subspace, pseudo_rank: int, itemsize: int = 4) -> int:
    """Count the bytes that one task keeps in a subspace: ``p (k_a + k_b)`` numbers a layer."""
    return sum(
        pseudo_rank * basis.num_factors * itemsize
        for layer in subspace.layers.values()
        for _, basis in layer
    )


def basis_bytes(subspace: Subspace, itemsize: int = 4) -> int:
    """Count the bytes of all principal factors: ``d k_a + n k_b`` numbers a layer."""
    return sum(
        basis.features * basis.num_factors * itemsize
        for layer in subspace.layers.values()
        for _, basis in layer
    )


@dataclass(frozen=True)
class ByteAccount:
    """
    What ``num_tasks`` tasks cost in all: the bases once, then coefficients and heads.

    Args:
        num_tasks: ``N``.
        basis: Bytes of all principal factors, paid once.
        coefficients: Bytes of the coefficients of all ``N`` tasks.
        heads: Bytes of the heads of all ``N`` tasks.
        lora: Bytes of ``N`` LoRAs of the same layers, without heads.
        lora_rank: Their rank.
        break_even: Smallest ``N`` from which bases and coefficients together
            are fewer bytes than the LoRAs (heads cost the same in both); None
            if a task's coefficients alone are not.
    """

    num_tasks: int
    basis: int
    coefficients: int
    heads: int
    lora: int
    lora_rank: int
    break_even: int | None

    @property
    def total(self) -> int:
        """Bases, coefficients and heads."""
        return self.basis + self.coefficients + self.heads

    @property
    def lora_total(self) -> int:
        """LoRAs and the same heads."""
        return self.lora + self.heads


def byte_account(
    subspace: Subspace,
    num_tasks: int,
    pseudo_rank: int,
    head_bytes: int = 0,
    lora_rank: int = 8,
    itemsize: int = 4,
) -> ByteAccount:
    """
    Account for ``num_tasks`` tasks in one subspace, against as many LoRAs.

    Args:
        subspace: The version that holds them.
        num_tasks: ``N``.
        pseudo_rank: ``p``.
        head_bytes: Bytes of one task's head.
        lora_rank: Rank of the LoRAs to compare with.
        itemsize: Bytes per number, in both.

    Examples:
        One layer of 384 x 384, k = 16, p = 8: 49,152 bytes of bases, and 1,024
        instead of 24,576 bytes per task.

        >>> import torch
        >>> from share_dist.core.values import Basis, LayerSubspace
        >>> side = Basis(torch.eye(384)[:, :16], torch.ones(16, dtype=torch.float64), 16)
        >>> account = byte_account(Subspace({"q": LayerSubspace(side, side)}), 10, pseudo_rank=8)
        >>> account.total, account.lora_total, account.break_even
        (59392, 245760, 3)
    """
    basis = basis_bytes(subspace, itemsize)
    per_task = coefficient_bytes(subspace, pseudo_rank, itemsize)
    per_lora = lora_bytes(subspace.shapes, lora_rank, itemsize)
    saved = per_lora - per_task
    return ByteAccount(
        num_tasks=num_tasks,
        basis=basis,
        coefficients=per_task * num_tasks,
        heads=head_bytes * num_tasks,
        lora=per_lora * num_tasks,
        lora_rank=lora_rank,
        break_even=basis // saved + 1 if saved > 0 else None,
    )

"""Scores against hand-computed ones, and bytes against the formula."""

import math

import pytest
import torch

from share_dist.core.metrics import (
    basis_bytes,
    byte_account,
    coefficient_bytes,
    lora_bytes,
    stream_scores,
    update_bytes,
)
from share_dist.core.subspace import subspace_from_factors, update_from_factors
from share_dist.core.values import Head, TaskUpdate
from share_dist.errors import ShapeMismatch
from tests.core.adapters import SHAPES, random_factors


def test_scores_of_a_stream_are_those_computed_by_hand():
    """ACC, BWT, FWT, forgetting and learning accuracy of a matrix of three tasks."""
    matrix = [[0.8, 0.5, 0.3], [0.9, 0.7, 0.4], [0.6, 0.7, 0.9]]
    scores = stream_scores(matrix, baselines=[0.5, 0.4, 0.3])
    assert scores.average_accuracy == pytest.approx((0.6 + 0.7 + 0.9) / 3)
    assert scores.backward_transfer == pytest.approx((0.6 - 0.8 + 0.7 - 0.7) / 2)
    assert scores.forward_transfer == pytest.approx((0.5 - 0.4 + 0.4 - 0.3) / 2)
    assert scores.forgetting == pytest.approx((0.9 - 0.6 + 0.7 - 0.7) / 2)
    assert scores.learning_accuracy == pytest.approx((0.8 + 0.7 + 0.9) / 3)


def test_what_was_not_measured_is_left_out():
    """None and NaN above the diagonal are no accuracies; FWT is then not given."""
    scores = stream_scores([[0.8, None], [0.7, 0.9]], baselines=[0.5, 0.5])
    assert scores.forward_transfer is None
    assert stream_scores([[0.8, math.nan], [0.7, 0.9]]).forgetting == pytest.approx(0.1)


def test_what_a_task_gains_later_is_negative_forgetting():
    """The last row is no former best, and one task alone forgets nothing."""
    assert stream_scores([[0.8, None], [0.9, 0.7]]).forgetting == pytest.approx(-0.1)
    assert stream_scores([[0.8]]).forgetting == 0.0


@pytest.mark.parametrize("matrix", [[], [[0.5, 0.5]], [[0.5, 0.1], [None, 0.5]], [[None]]])
def test_a_matrix_that_says_too_little_is_refused(matrix):
    """Not square, empty, or without diagonal or last row."""
    with pytest.raises(ShapeMismatch, match="accuracy matrix"):
        stream_scores(matrix)


def test_bytes_are_those_of_the_formulas():
    """P15: d k + n k for the bases, p (k_a + k_b) for a task, r (d + n) for a LoRA, heads on top."""
    adapters = [random_factors(seed, dtype=torch.float32) for seed in range(2)]
    subspace = subspace_from_factors(adapters, num_factors=6)
    features = sum(sum(shape) for shape in SHAPES.values())
    assert basis_bytes(subspace) == 4 * 6 * features
    assert coefficient_bytes(subspace, pseudo_rank=5) == 4 * 5 * (6 + 6) * len(SHAPES)
    assert lora_bytes(SHAPES, rank=8) == 4 * 8 * features
    account = byte_account(subspace, num_tasks=10, pseudo_rank=5, head_bytes=100)
    assert account.total == basis_bytes(subspace) + 10 * (coefficient_bytes(subspace, 5) + 100)
    assert account.lora_total == 10 * (lora_bytes(SHAPES, 8) + 100)


def test_break_even_is_the_first_number_of_tasks_that_pays():
    """P15: at the stated N the total is below the LoRAs', at N - 1 it is not."""
    subspace = subspace_from_factors([random_factors(seed, dtype=torch.float32) for seed in range(4)], num_factors=12)  # fmt: skip
    n = byte_account(subspace, 1, pseudo_rank=2).break_even
    assert n > 1
    for num_tasks, pays in ((n - 1, False), (n, True)):
        account = byte_account(subspace, num_tasks, pseudo_rank=2)
        assert (account.total < account.lora_total) == pays
    assert byte_account(subspace, 1, pseudo_rank=1000).break_even is None


def test_an_update_counts_what_it_sends():
    """Coefficients, temporary factors and the head, each once."""
    subspace = subspace_from_factors([random_factors(0, dtype=torch.float32)], num_factors=3)
    bare = update_from_factors(subspace, random_factors(1, dtype=torch.float32), "t")
    head = Head({"weight": torch.zeros(2, 24), "bias": torch.zeros(2)})
    update = TaskUpdate("u", "t", 1, bare.layers, head=head)
    counted = update_bytes(update)
    assert counted.head == 4 * (2 * 24 + 2)
    assert counted.adapter == 4 * sum(
        3 * 4 + shape.features(side) * 4 + 4 * 4 for shape in SHAPES.values() for side in ("a", "b")
    )
    assert counted.total == counted.adapter + counted.head

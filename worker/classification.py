"""Classification, of rows or of tokens: a linear head, cross-entropy, accuracy, macro-F1 and the correlation of Matthews."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from share_dist.errors import StreamError
from worker.objective import PENALTIES, Scores, error_of_correlation, error_of_share, units
from worker.stream import ClassMetric

MOST_FITTED = 10_000
"""A first head is fitted to at most so many units, evenly taken."""


class Classification:
    """
    Cross-entropy of a linear head; scored by accuracy, or by the correlation of Matthews.

    Weights of classes hold wherever something is chosen: in the loss, in the first head, and in the
    score by which its penalty and the epoch are chosen. Who has them balanced chooses by the mean
    of the classes' recalls: plain accuracy on few rare rows would choose what the loss works against.
    The scores that are reported are not weighted, and compare with every other task's.

    Args:
        class_weights: Of every class; None: all are equal.
        metric: By which score tasks are compared and epochs are chosen.
    """

    penalties: tuple[float, ...] = PENALTIES

    def __init__(
        self, class_weights: Tensor | None = None, metric: ClassMetric = "accuracy"
    ) -> None:
        self._weights = class_weights
        self._metric = metric

    def loss(self, head: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
        """Summed cross-entropy."""
        weights = None if self._weights is None else self._weights.to(features.device)
        return nn.functional.cross_entropy(head(features), units(labels), weights, reduction="sum")

    def mass(self, labels: Tensor) -> float:
        """Summed weights of the labels' classes."""
        found = units(labels)
        return max(1, len(found)) if self._weights is None else float(self._weights[found].sum())

    @torch.no_grad()
    def score(self, head: nn.Module, features: Tensor, labels: Tensor) -> float:
        """Accuracy or correlation, every unit by the weight of its class."""
        found, predicted = units(labels), predict(head, features)
        weights = self._weights_of(found)
        if self._metric == "matthews":
            return _matthews(predicted, found, weights)
        return float(((predicted == found) * weights).sum() / weights.sum())

    def standard_error(self, score: float, labels: Tensor) -> float:
        """That of a share, or a correlation, of so many rows; unequal weights tell less than equal ones (Kish)."""
        weights = self._weights_of(units(labels))
        alike = float(weights.sum() ** 2 / (len(weights) * weights.square().sum()))
        error_of = error_of_correlation if self._metric == "matthews" else error_of_share
        return error_of(score, len(labels) * alike)

    def _weights_of(self, found: Tensor) -> Tensor:
        return torch.ones(len(found)) if self._weights is None else self._weights[found]

    def scores(self, head: nn.Module, features: Tensor, labels: Tensor) -> Scores:
        """Accuracy, F1 as the mean over classes, and the correlation where it is asked for."""
        return self._scores(predict(head, features), units(labels))

    def simplest(self, train_labels: Tensor, test_labels: Tensor) -> Scores:
        """Of always saying the most frequent class."""
        ((majority, _),) = Counter(units(train_labels).tolist()).most_common(1)
        found = units(test_labels)
        return self._scores(torch.full_like(found, majority), found)

    def _scores(self, predicted: Tensor, labels: Tensor) -> Scores:
        from sklearn.metrics import f1_score

        values = {
            "accuracy": float((predicted == labels).float().mean()),
            "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
        }
        if self._metric == "matthews":
            values["matthews"] = _matthews(predicted, labels)
        return Scores(self._metric, values)

    def fit_head(
        self, features: Tensor, labels: Tensor, num_labels: int, penalty: float
    ) -> nn.Linear:
        """Fit one logistic regression on standardised features, and undo the standardisation in its weights."""
        from sklearn.linear_model import LogisticRegression

        every = max(1, -(-len(labels) // MOST_FITTED))
        features, labels = features[::every], labels[::every]
        mean, spread = features.mean(0), features.std(0) + 1e-6
        scaled = ((features - mean) / spread).cpu().numpy()
        weights = self._weights_of(labels).numpy()
        fitted = LogisticRegression(C=penalty, max_iter=500).fit(scaled, labels.numpy(), weights)
        weight = torch.zeros(num_labels, features.shape[1])
        # a class that no row has is never said
        bias = torch.full((num_labels,), -30.0)
        coefficients, intercepts = _per_class(fitted.coef_, fitted.intercept_)
        weight[fitted.classes_] = coefficients
        bias[fitted.classes_] = intercepts
        head = nn.Linear(features.shape[1], num_labels).to(features.device)
        with torch.no_grad():
            head.weight.copy_(weight.to(spread) / spread)
            head.bias.copy_(bias.to(mean) - head.weight @ mean)
        return head


def _per_class(weight: Sequence[float], bias: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Two classes share one row of scikit-learn's weights: half for, half against."""
    rows, offsets = torch.tensor(weight).float(), torch.tensor(bias).float()
    if len(rows) == 1:
        return torch.cat([-rows, rows]) / 2, torch.cat([-offsets, offsets]) / 2
    return rows, offsets


def _matthews(predicted: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Zero where either does not vary."""
    from sklearn.metrics import matthews_corrcoef

    if any(len(set(each.tolist())) < 2 for each in (predicted, labels)):
        return 0.0
    return float(matthews_corrcoef(labels, predicted, sample_weight=weights))


@torch.no_grad()
def predict(head: nn.Module, features: Tensor) -> Tensor:
    """The most likely class of every unit, on the CPU."""
    predicted: Tensor = head(features).argmax(-1).cpu()
    return predicted


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
    found = units(labels)
    if wanted == "balanced":
        counts = torch.bincount(found, minlength=num_labels)
        return len(found) / (num_labels * counts.clamp(min=1).float())
    if len(wanted) != num_labels:
        raise StreamError(
            f"class_weights has {len(wanted)} weights for {num_labels} classes: give one for each, "
            "in the order of the classes"
        )
    return torch.tensor(wanted)

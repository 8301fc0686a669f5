"""Regression: one number per row, mean squared error, correlations."""

import torch
from torch import Tensor, nn

from worker.objective import PENALTIES, Scores, error_of_correlation


class Regression:
    """
    Squared error of a linear head with one output; scored by Pearson's correlation.

    Args:
        variance: Of the labels that are learnt from, by which the error is divided,
            so that the unit of the labels does not matter.
    """

    penalties: tuple[float, ...] = PENALTIES

    def __init__(self, variance: float) -> None:
        self._variance = variance or 1.0

    def loss(self, head: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
        """Summed squared error."""
        errors: Tensor = head(features).squeeze(-1) - labels
        return errors.square().sum() / self._variance

    def mass(self, labels: Tensor) -> float:
        """Rows."""
        return len(labels)

    @torch.no_grad()
    def score(self, head: nn.Module, features: Tensor, labels: Tensor) -> float:
        """Pearson's correlation."""
        return _pearson(head(features).squeeze(-1).cpu(), labels)

    def standard_error(self, score: float, labels: Tensor) -> float:
        """That of a correlation over so many rows."""
        return error_of_correlation(score, len(labels))

    @torch.no_grad()
    def scores(self, head: nn.Module, features: Tensor, labels: Tensor) -> Scores:
        """Correlations of values and of ranks, and the mean squared error."""
        return _scores(head(features).squeeze(-1).cpu(), labels)

    def simplest(self, train_labels: Tensor, test_labels: Tensor) -> Scores:
        """Of always saying the mean, which correlates with nothing."""
        return _scores(train_labels.mean().expand(len(test_labels)), test_labels)

    def fit_head(
        self,
        features: Tensor,
        labels: Tensor,
        num_labels: int,
        penalty: float,
    ) -> nn.Linear:
        """Fit one ridge regression on standardised features, and undo the standardisation in its weights."""
        from sklearn.linear_model import Ridge

        mean, spread = features.mean(0), features.std(0) + 1e-6
        centre, scale = labels.mean(), labels.std() + 1e-12
        scaled = ((features - mean) / spread).cpu().numpy()
        fitted = Ridge(alpha=1 / penalty).fit(scaled, ((labels - centre) / scale).numpy())
        head = nn.Linear(features.shape[1], num_labels).to(features.device)
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(fitted.coef_)[None].to(spread) * scale / spread)
            head.bias.copy_(float(centre + scale * float(fitted.intercept_)) - head.weight @ mean)
        return head


def _scores(predicted: Tensor, labels: Tensor) -> Scores:
    return Scores(
        "pearson",
        {
            "pearson": _pearson(predicted, labels),
            "spearman": _pearson(_ranks(predicted), _ranks(labels)),
            "mse": float((predicted - labels).square().mean()),
        },
    )


def _pearson(predicted: Tensor, labels: Tensor) -> float:
    """Zero where either does not vary."""
    centred = [each.double() - each.double().mean() for each in (predicted, labels)]
    lengths = float(centred[0].norm() * centred[1].norm())
    return float(centred[0] @ centred[1]) / lengths if lengths > 1e-12 else 0.0


def _ranks(values: Tensor) -> Tensor:
    """Ranks, ties sharing their mean."""
    _, places, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: Tensor = (last - (counts.double() - 1) / 2)[places]
    return ranks

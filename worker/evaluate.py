"""Evaluation: scores on test rows, and what they say about the whole stream."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from share_dist.core.metrics import StreamScores, stream_scores
from worker.backbone import Backbone
from worker.objective import predict


@dataclass(frozen=True)
class EncodedTestRows:
    """Prepared test rows: not what :func:`worker.trainer.train` takes."""

    encoded: Sequence[Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.encoded)


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one head on one set of test rows, each from 0 to 1."""

    accuracy: float
    macro_f1: float

    def to_dict(self) -> dict[str, float]:
        """As they are sent and saved."""
        return {"accuracy": self.accuracy, "macro_f1": self.macro_f1}


def evaluate(backbone: Backbone, head: nn.Module, test: EncodedTestRows) -> Scores:
    """Score whatever task is active in the backbone."""
    return score_features(head, backbone.features(test.encoded), test.labels)


def score_features(head: nn.Module, features: Tensor, labels: Tensor) -> Scores:
    """Score a head on features that are already there."""
    from sklearn.metrics import f1_score

    predicted = predict(head, features)
    return Scores(
        accuracy=float((predicted == labels).float().mean()),
        macro_f1=float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
    )


def scores_of_stream(
    matrix: Sequence[Sequence[float | None]], baselines: Sequence[float]
) -> StreamScores | None:
    """
    What a worker's accuracy matrix says; None while no task is finished.

    Args:
        matrix: ``R[i][j]``, accuracy on task ``j`` after learning task ``i``.
        baselines: Accuracy of the frozen model with a trained head.
    """
    return stream_scores(matrix, baselines) if matrix else None

"""Evaluation: scores on test rows, and what they say about the whole stream."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from share_dist.core.metrics import StreamScores, stream_scores
from worker.backbone import Backbone
from worker.objective import Objective, Scores


@dataclass(frozen=True)
class EncodedTestRows:
    """Prepared test rows: not what :func:`worker.trainer.train` takes."""

    encoded: Sequence[Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.encoded)


def evaluate(
    backbone: Backbone, objective: Objective, head: nn.Module, test: EncodedTestRows
) -> Scores:
    """Score whatever task is active in the backbone."""
    return objective.scores(head, backbone.features(test.encoded), test.labels)


def scores_of_stream(
    matrix: Sequence[Sequence[float | None]], baselines: Sequence[float]
) -> StreamScores | None:
    """
    What a worker's accuracy matrix says; None while no task is finished.

    Args:
        matrix: ``R[i][j]``, score on task ``j`` after learning task ``i``.
        baselines: Score of the frozen model with a trained head.
    """
    return stream_scores(matrix, baselines) if matrix else None

"""A prepared task: its rows encoded once, with the features that the frozen model has for them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.backbone import Backbone
from worker.baselines import Probe, fit_head, fit_probe, majority_accuracy
from worker.evaluate import EncodedTestRows, Scores, score_features
from worker.objective import EncodedRows, class_weights
from worker.rows import DrawnRows
from worker.stream import Task, TrainingSettings


@dataclass(frozen=True)
class PreparedTask:
    """
    Everything about a task that does not depend on any version.

    Args:
        task: Its description.
        label_names: Names of its classes.
        fit: Rows to learn from.
        validation: Training rows set aside to choose by.
        test: Rows to score on.
        num_duplicates: Rows that were left out because another says the same.
        majority: Accuracy of the most frequent class.
        class_weights: Of every class in the loss; None: all are equal.
    """

    task: Task
    label_names: tuple[str, ...]
    fit: EncodedRows
    validation: EncodedRows
    test: EncodedTestRows
    num_duplicates: int
    majority: float
    class_weights: Tensor | None = None

    @property
    def num_labels(self) -> int:
        """Classes."""
        return len(self.label_names)

    @property
    def num_train(self) -> int:
        """Training rows, those set aside included."""
        return len(self.fit) + len(self.validation)


@dataclass(frozen=True)
class FrozenBaseline:
    """
    The frozen model with a trained head.

    Args:
        start: Head of the rows to learn from only: where learning starts, so
            that the validation rows stay unseen.
        scores: On the test rows, of a head of all training rows.
    """

    start: Probe
    scores: Scores


def prepare(
    task: Task, rows: DrawnRows, backbone: Backbone, settings: TrainingSettings
) -> PreparedTask:
    """Encode a task's rows, and set some training rows aside."""
    fit, validation = rows.train.split(settings.validation_fraction, settings.seed)
    encode = backbone.modality.encode
    labels = torch.tensor(fit.labels)
    return PreparedTask(
        task=task,
        label_names=rows.label_names,
        fit=EncodedRows(encode(fit.inputs), labels),
        validation=EncodedRows(encode(validation.inputs), torch.tensor(validation.labels)),
        test=EncodedTestRows(encode(rows.test.inputs), torch.tensor(rows.test.labels)),
        num_duplicates=rows.num_duplicates,
        majority=majority_accuracy(rows.train, rows.test),
        class_weights=class_weights(task.class_weights, labels, len(rows.label_names)),
    )


def frozen_baseline(prepared: PreparedTask, backbone: Backbone) -> FrozenBaseline:
    """
    Train heads on the frozen model, with no task active in it.

    The penalty is chosen on the validation rows; the baseline's own head is
    then fitted to all training rows, so that it lacks nothing.
    """
    fit = _features(prepared.fit, backbone)
    validation = _features(prepared.validation, backbone)
    start = fit_probe(fit, validation, prepared.num_labels)
    both = (torch.cat([fit[0], validation[0]]), torch.cat([fit[1], validation[1]]))
    head = fit_head(*both, prepared.num_labels, start.penalty)
    features = backbone.features(prepared.test.encoded)
    return FrozenBaseline(start, score_features(head, features, prepared.test.labels))


def _features(rows: EncodedRows, backbone: Backbone) -> tuple[Tensor, Tensor]:
    return backbone.features(rows.encoded), rows.labels

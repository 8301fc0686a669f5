"""A prepared task: its rows encoded once, with the features that the frozen model has for them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.backbone import Backbone
from worker.baselines import Probe, fit_probe
from worker.causal import CausalLanguage
from worker.classification import Classification, class_weights
from worker.evaluate import EncodedTestRows
from worker.objective import IGNORED, EncodedRows, Objective, Scores, units
from worker.regression import Regression
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
        simplest: Scores of saying the same of every row: the most frequent class
            or token, or the mean.
        objective: What its head computes, and what is minimised and scored.
    """

    task: Task
    label_names: tuple[str, ...]
    fit: EncodedRows
    validation: EncodedRows
    test: EncodedTestRows
    num_duplicates: int
    simplest: Scores
    objective: Objective

    @property
    def num_labels(self) -> int:
        """Outputs of its head: classes, or one number."""
        return len(self.label_names) or 1

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
    """
    Encode a task's rows, and set some training rows aside.

    Raises:
        StreamError: Class weights were given for another number of classes.
    """
    fit_rows, validation_rows = rows.train.split(settings.validation_fraction, settings.seed)
    encode = backbone.modality.encode_labelled
    fit = EncodedRows(*encode(fit_rows.inputs, fit_rows.labels))
    validation = EncodedRows(*encode(validation_rows.inputs, validation_rows.labels))
    test = EncodedTestRows(*encode(rows.test.inputs, rows.test.labels))
    objective = _objective(task, backbone, fit.labels, len(rows.label_names))
    train_labels = _together(fit.labels, validation.labels)
    return PreparedTask(
        task=task,
        label_names=rows.label_names,
        fit=fit,
        validation=validation,
        test=test,
        num_duplicates=rows.num_duplicates,
        simplest=objective.simplest(train_labels, test.labels),
        objective=objective,
    )


def _together(first: Tensor, second: Tensor) -> Tensor:
    """Labels of all rows; those of tokens padded to the longest."""
    if first.ndim == 1:
        return torch.cat([first, second])
    return torch.nn.utils.rnn.pad_sequence(
        [*first, *second], batch_first=True, padding_value=IGNORED
    )


def _objective(task: Task, backbone: Backbone, labels: Tensor, num_labels: int) -> Objective:
    if task.type == "text-regression":
        return Regression(float(labels.var()))
    if task.type == "causal-lm":
        assert backbone.vocabulary is not None
        assert task.metric != "matthews"
        return CausalLanguage(backbone.vocabulary, task.metric)
    weights = class_weights(task.class_weights, labels, num_labels)
    return Classification(weights, "matthews" if task.metric == "matthews" else "accuracy")


def frozen_baseline(prepared: PreparedTask, backbone: Backbone) -> FrozenBaseline:
    """
    Train heads on the frozen model, with no task active in it.

    The penalty is chosen on the validation rows; the baseline's own head is
    then fitted to all training rows, so that it lacks nothing.
    """
    objective, num_labels = prepared.objective, prepared.num_labels
    rows = prepared.fit, prepared.validation
    (fit, validation) = (backbone.features(each.encoded) for each in rows)
    of_fit, of_validation = (units(each.labels) for each in rows)
    start = fit_probe(
        objective, (fit, of_fit), (validation, prepared.validation.labels), num_labels
    )
    both = torch.cat([fit, validation]), torch.cat([of_fit, of_validation])
    head = objective.fit_head(*both, num_labels, start.penalty)
    features = backbone.features(prepared.test.encoded)
    return FrozenBaseline(start, objective.scores(head, features, prepared.test.labels))

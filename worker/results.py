"""Results: what became of every task of one worker, saved after each of its steps."""

import json
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from share_dist.files import write_file
from worker.evaluate import scores_of_stream

FILE_NAME = "results.json"


class ScoredVersion(BaseModel):
    """
    A task's score under one version.

    ``after`` counts the worker's tasks that were learnt by then, this one included.
    """

    model_config = ConfigDict(frozen=True, validate_by_name=True, validate_by_alias=True)

    version: int
    after: int
    # release 0.1 knew accuracies only
    score: float = Field(validation_alias=AliasChoices("score", "accuracy"))
    scores: dict[str, float] = {}


class TaskResult(BaseModel):
    """
    What became of one task.

    Scores are on its test rows, by ``metric``, of which more is better; those that
    end in ``_scores`` are all that there are. ``majority`` is that of saying the same
    of every row, whatever it is: the most frequent class or token, or the mean;
    ``frozen`` of the frozen model with a trained head, ``learnt`` when training
    ended, ``history`` under later versions as the coordinator serves them, ``lora``
    of the task's own rank-8 LoRA where that was asked for. ``lag``, ``angle``,
    ``truncation`` and ``drift`` are the coordinator's. ``validation`` is the best score on the task's validation rows.
    """

    model_config = ConfigDict(frozen=True)

    task_id: str
    task_type: str
    num_labels: int
    num_train: int
    num_test: int
    num_duplicates: int
    row_seed: int
    training_seed: int
    metric: str = "accuracy"
    majority: float
    majority_scores: dict[str, float] = {}
    frozen: float
    frozen_scores: dict[str, float] = {}
    learnt: float | None = None
    learnt_scores: dict[str, float] = {}
    history: tuple[ScoredVersion, ...] = ()
    final: float | None = None
    final_version: int | None = None
    update_id: str = ""
    state: str = ""
    base_version: int | None = None
    merged_version: int | None = None
    lag: int | None = None
    angle: float | None = None
    truncation: float | None = None
    drift: float | None = None
    best_epoch: int | None = None
    validation: float | None = None
    adapter_bytes: int | None = None
    head_bytes: int | None = None
    lora_bytes: int
    lora: float | None = None
    lora_learning_rate: float | None = None
    seconds: dict[str, float] = {}

    def scored(
        self, version: int, after: int, score: float, scores: dict[str, float]
    ) -> "TaskResult":
        """The same with one more score, which is now the final one."""
        entry = ScoredVersion(version=version, after=after, score=score, scores=scores)
        return self.model_copy(
            update={
                "history": (*self.history, entry),
                "final": score,
                "final_version": version,
            }
        )

    def score_after(self, num_learnt: int) -> float | None:
        """Score once so many of the worker's tasks were learnt."""
        known = [each.score for each in self.history if each.after <= num_learnt]
        return known[-1] if known else self.learnt


class WorkerResults(BaseModel):
    """What became of all tasks of one worker, in the order of its stream."""

    model_config = ConfigDict(frozen=True)

    format: int = 1
    worker_id: str
    model: dict[str, Any]
    training: dict[str, Any]
    tasks: tuple[TaskResult, ...] = ()

    def task(self, task_id: str) -> TaskResult | None:
        """The result of one task, if it was begun."""
        return next((each for each in self.tasks if each.task_id == task_id), None)

    def with_task(self, result: TaskResult) -> "WorkerResults":
        """The same with one task's result added or replaced."""
        tasks = tuple(result if each.task_id == result.task_id else each for each in self.tasks)
        if self.task(result.task_id) is None:
            tasks = (*tasks, result)
        return self.model_copy(update={"tasks": tasks})

    def accuracy_matrix(self) -> list[list[float | None]]:
        """
        ``R[i][j]``, score on task ``j`` after learning task ``i``; the last row is final.

        Tasks that are not learnt yet are left out.
        """
        learnt = [each for each in self.tasks if each.learnt is not None]
        rows: list[list[float | None]] = [
            [
                each.learnt if j == i else each.score_after(i + 1) if j < i else None
                for j, each in enumerate(learnt)
            ]
            for i in range(len(learnt))
        ]
        if rows:
            rows[-1] = [each.learnt if each.final is None else each.final for each in learnt]
        return rows

    def to_dict(self) -> dict[str, Any]:
        """As it is saved: with the accuracy matrix and what it says."""
        matrix = self.accuracy_matrix()
        learnt = [each for each in self.tasks if each.learnt is not None]
        scores = scores_of_stream(matrix, [each.frozen for each in learnt])
        return {
            **self.model_dump(mode="json"),
            "accuracy_matrix": matrix,
            "scores": None if scores is None else vars(scores),
        }

    def save(self, workdir: Path) -> None:
        """Write ``results.json``, whole or not at all."""
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        write_file(workdir / FILE_NAME, text.encode())

    @staticmethod
    def load(workdir: Path) -> "WorkerResults | None":
        """Read ``results.json``, if there is one."""
        path = workdir / FILE_NAME
        if not path.is_file():
            return None
        fields = json.loads(path.read_text(encoding="utf-8"))
        return WorkerResults(
            **{name: fields[name] for name in WorkerResults.model_fields if name in fields}
        )

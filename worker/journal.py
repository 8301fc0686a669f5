"""The journal: what a worker notes of its tasks, on disk after every entry, and tells as events."""

import threading
import time
from pathlib import Path

from share_dist.core.metrics import update_bytes
from share_dist.core.values import TaskUpdate
from share_dist.errors import StreamError
from share_dist.wire.records import TaskSummary
from worker.disk import Disk
from worker.objective import Scores
from worker.progress import Emit
from worker.results import TaskResult, WorkerResults
from worker.stream import TaskStream
from worker.training_state import TrainingState


class Journal:
    """
    The results of one worker; what notes and asks may be another thread than the loop's.

    Args:
        stream: Whose results.
        workdir: Where ``results.json`` lies.
        emit: Told of what happens.
        disk: Writes the results.
        resume: Whether earlier results in the folder are gone on from.

    Raises:
        StreamError: There are earlier results, and ``resume`` is not set.
    """

    def __init__(
        self, stream: TaskStream, workdir: Path, emit: Emit, disk: Disk, *, resume: bool
    ) -> None:
        self.emit = emit
        self._disk = disk
        self._workdir = workdir
        self._lock = threading.RLock()
        self._task_ids = {task.id for task in stream.tasks}
        earlier = WorkerResults.load(workdir)
        if earlier is not None and not resume:
            raise StreamError(
                f"{workdir} holds {len(earlier.tasks)} tasks of an earlier run: "
                "go on with --resume, or use another --workdir",
                path=str(workdir),
            )
        self.results = earlier or WorkerResults(
            worker_id=stream.worker_id,
            model=stream.model.model_dump(mode="json"),
            training=stream.training.model_dump(mode="json"),
        )

    @property
    def learnt_ids(self) -> set[str]:
        """Tasks of the stream whose training has ended."""
        learnt = {each.task_id for each in self.results.tasks if each.learnt is not None}
        return learnt & self._task_ids

    def of(self, task_id: str) -> TaskResult:
        """What is noted of a task that was begun."""
        result = self.results.task(task_id)
        assert result is not None
        return result

    def put(self, result: TaskResult) -> None:
        """Note a task's result, in place of an earlier one."""
        with self._lock:
            self.results = self.results.with_task(result)
            self._disk.insist(lambda: self.results.save(self._workdir))

    def amend(self, task_id: str, **fields: object) -> None:
        """Note more of a task."""
        with self._lock:
            self.put(self.of(task_id).model_copy(update=fields))

    def note_learnt(
        self, update: TaskUpdate, scores: Scores, state: TrainingState, seconds: dict[str, float]
    ) -> None:
        """Training of a task has ended with this update."""
        size = update_bytes(update)
        self.amend(
            update.task_id,
            learnt=scores.main,
            learnt_scores=scores.to_dict(),
            update_id=update.update_id,
            base_version=update.base_version,
            best_epoch=state.best_epoch,
            validation=state.best_score,
            adapter_bytes=size.adapter,
            head_bytes=size.head,
            seconds=seconds,
        )

    def note_refined(self, update: TaskUpdate) -> None:
        """A task that was pushed is sent once more."""
        size = update_bytes(update)
        with self._lock:
            held = self.of(update.task_id)
            self.amend(
                update.task_id,
                adapter_bytes=(held.adapter_bytes or 0) + size.adapter,
                head_bytes=(held.head_bytes or 0) + size.head,
            )

    def note_merged(self, summary: TaskSummary) -> None:
        """What the coordinator says of a task that it has merged."""
        self.amend(
            summary.task_id,
            state=summary.state.value,
            merged_version=summary.merged_version,
            lag=summary.lag,
            angle=summary.angle,
            truncation=summary.truncation,
            drift=summary.cumulative_drift,
        )

    def note_scored(self, task_id: str, version: int, num_learnt: int, scores: Scores) -> None:
        """A task's score under a version, when so many tasks of the worker were learnt."""
        with self._lock:
            result = self.of(task_id)
            self.put(result.scored(version, num_learnt, scores.main, scores.to_dict()))


class Due:
    """
    Whether a time has passed since it began.

    Args:
        seconds: How long.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.begin()

    def begin(self) -> None:
        """Count from now."""
        self._begun = time.monotonic()

    def is_over(self) -> bool:
        """Whether it has passed."""
        return time.monotonic() - self._begun >= self._seconds


class Laps:
    """Seconds between the steps of one task."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def end(self, name: str) -> None:
        """Name what was done since the last lap."""
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now

"""
Reporting: what an actor tells of its training to TensorBoard, or to any other reporter that `transformers` knows.

Each task is a training run of its own, which begins anew where a worker resumes it. Its scalars are
those of ``task_progressed`` (``train/loss``, ``train/lag`` and so on), at the task's own steps, and at its end
the score on the test rows (``test/accuracy`` or what its type has).
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from share_dist.errors import ConfigError
from worker.progress import Emit, WorkerEvent
from worker.stream import TaskStream

SCALARS = ("loss", "lag", "version", "samples", "seconds_per_step", "eta_seconds")
"""Fields of ``task_progressed`` that are told."""

FOLDER = "reports"


class Reporters:
    """
    The reporters of one actor.

    One that fails is left out from then on: training does not end with it.

    Args:
        names: As ``transformers`` knows them: ``tensorboard``, ``mlflow``, ``wandb`` and so on.
        stream: What is learnt; its settings are told with each run.
        workdir: The worker's own folder; files of reporters go into ``reports`` in it.
        emit: Told of a reporter that failed.

    Raises:
        ConfigError: A name is not known, or the package behind it is not installed.
    """

    def __init__(
        self,
        names: Sequence[str],
        stream: TaskStream,
        workdir: Path,
        emit: Emit,
    ) -> None:
        self._callbacks = {name: _callback(name) for name in names}
        self._arguments = _arguments(stream, workdir / FOLDER)
        self._emit = emit
        self._worker_id = stream.worker_id
        self._task_id: str | None = None
        self._step = 0
        # reentrant: that a reporter failed is an event, too
        self._lock = threading.RLock()

    def take(self, event: Mapping[str, Any]) -> None:
        """Tell of an event; from any thread."""
        with self._lock:
            match WorkerEvent(event["event"]):
                case WorkerEvent.TASK_STARTED:
                    self._begin(event["task_id"])
                case WorkerEvent.TASK_PROGRESSED:
                    self._step = event["step"]
                    self._call("on_log", logs={name: event[name] for name in SCALARS})
                case WorkerEvent.TASK_LEARNT:
                    self._call("on_log", logs={f"test_{event['metric']}": event["score"]})
                    self._end()
                case WorkerEvent.STOPPED | WorkerEvent.FINISHED:
                    self._end()
                case _:
                    pass

    def _begin(self, task_id: str) -> None:
        self._end()
        self._task_id, self._step = task_id, 0
        self._call("on_train_begin")

    def _end(self) -> None:
        if self._task_id is not None:
            self._call("on_train_end")
        self._task_id = None

    def _call(self, method: str, **said: Any) -> None:
        from transformers import TrainerControl, TrainerState

        # what `transformers` calls trials are several trainings in one process
        state = TrainerState(
            global_step=self._step, is_hyper_param_search=True, trial_name=self._task_id
        )
        for name, callback in list(self._callbacks.items()):
            # a reporter may have taken the name away
            self._arguments.run_name = self._worker_id
            try:
                getattr(callback, method)(
                    self._arguments, state, TrainerControl(), model=None, **said
                )
            except Exception as error:  # noqa: BLE001  # a service that is away must not end training
                del self._callbacks[name]
                reason = f"{type(error).__name__}: {error}"
                self._emit(WorkerEvent.REPORTER_FAILED, reporter=name, reason=reason)


def _callback(name: str) -> Any:
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    try:
        (kind,) = get_reporting_integration_callbacks([name])  # type: ignore[no-untyped-call]  # transformers leaves it so
        return kind()
    except (ValueError, ImportError, RuntimeError) as error:
        raise _cannot_report(name, error) from error


def _arguments(stream: TaskStream, folder: Path) -> Any:
    """What reporters ask of a training, with the stream's settings for its parameters."""
    from transformers import TrainingArguments

    told = {"worker_id": stream.worker_id, **stream.training.model_dump(mode="json")}

    class Arguments(TrainingArguments):
        def to_dict(self) -> dict[str, Any]:
            return dict(told)

    try:
        return Arguments(output_dir=str(folder), report_to="none", use_cpu=True)
    except ImportError as error:
        raise _cannot_report("accelerate", error) from error


def _cannot_report(name: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"report_to cannot be followed, {name!r} is not to be had ({error}): "
        "`pip install 'share-dist[reporting]'` brings TensorBoard; every other reporter has a package "
        "of its own",
        key="report_to",
    )

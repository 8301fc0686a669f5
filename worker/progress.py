"""The catalogue of events that a worker emits while it works."""

import enum
from collections.abc import Callable
from typing import Any, TypeAlias


class WorkerEvent(str, enum.Enum):
    """What happened; every event also carries ``worker_id``, ``seconds`` since the start and ``time``, seconds since 1970."""

    LOADED = "worker_loaded"
    """The actor's process has its model: ``pid``, ``node``, ``import_seconds``, ``model_seconds``."""
    METRICS_SERVED = "metrics_served"
    """Prometheus may read this actor: ``address``."""
    REPORTER_FAILED = "reporter_failed"
    """It is told nothing more; training goes on: ``reporter``, ``reason``."""
    STARTED = "worker_started"
    """``num_tasks``, ``version``, ``device``, ``num_threads``."""
    TASK_STARTED = "task_started"
    """``task_id``, ``task_index`` from 1, ``num_tasks``, ``base_version``, ``num_train``, ``num_test``, ``resumed_epochs``, ``resumed_batches``."""
    BASELINE_SCORED = "baseline_scored"
    """``task_id``, ``metric``, ``majority``, ``frozen``."""
    TASK_PROGRESSED = "task_progressed"
    """
    Every few steps: ``task_id``, ``step``, ``num_steps``, ``loss``, ``version``, ``lag`` behind the newest
    known, ``seconds_per_step``, ``eta_seconds``, and since this process began the task: ``steps``, ``samples``.
    """
    MEMORY_SHORT = "memory_short"
    """Fewer rows go through the model at once, with the same gradient: ``task_id``, ``step``, ``rows_at_once``."""
    ROLLED_BACK = "rolled_back"
    """A loss was not finite: ``task_id``, ``step``, ``back_to_step``, ``rate_share`` left, ``rollbacks`` so far."""
    MOVED = "task_moved"
    """Training goes on in a newer version: ``task_id``, ``base_version`` before, ``version``, ``epochs_done``."""
    DISK_FULL = "disk_full"
    """No room for checkpoints and results; free some, and the worker goes on by itself: ``path``, ``free_bytes``."""
    DISK_FREED = "disk_freed"
    """There is room again: ``path``, ``free_bytes``."""
    TASK_LEARNT = "task_learnt"
    """``task_id``, ``metric``, ``score``, ``best_epoch``."""
    UPDATE_PUSHED = "update_pushed"
    """``task_id``, ``update_id``, ``base_version``, ``state``."""
    UPDATE_SET_ASIDE = "update_set_aside"
    """The coordinator has it and does not merge it until a person lets it, or an operator took it out: ``task_id``, ``update_id``, ``state``, ``reason``."""
    UPDATE_LOST = "update_lost"
    """The coordinator no longer knows it, and it will be pushed again: ``task_id``, ``update_id``."""
    PUSH_POSTPONED = "push_postponed"
    """The coordinator answers and takes no update for now: ``task_id``, ``reason``."""
    COORDINATOR_AWAY = "coordinator_away"
    """Nobody answers; training goes on: ``since``, ``num_waiting`` updates, ``reason``."""
    COORDINATOR_BACK = "coordinator_back"
    """It answers again: ``away_seconds``, ``num_waiting`` updates."""
    MERGE_AWAITED = "merge_awaited"
    """All is learnt and pushed, and final scores wait for the merge of ``num_pending`` updates."""
    BASE_UNCHECKED = "base_unchecked"
    """An update of release 0.1 names its base version without a digest: ``task_id``, ``base_version``."""
    BASE_REFUSED = "base_refused"
    """The coordinator no longer has what an update was trained on: ``task_id``, ``base_version``, ``reason``."""
    VERSION_FOLLOWED = "version_followed"
    """``version``, ``task_ids`` (own tasks in it)."""
    TASK_RESCORED = "task_rescored"
    """``task_id``, ``version``, ``metric``, ``score``, ``lag``, ``drift``."""
    TASK_REFINED = "task_refined"
    """Trained once more in the version that has it: ``task_id``, ``version``, ``metric``, ``before`` and ``after`` on validation rows (null where training diverged), ``is_pushed``."""
    LEASE_RENEWED = "lease_renewed"
    """The lease had ended and was taken anew: ``lease_epoch``."""
    LORA_SCORED = "lora_scored"
    """``task_id``, ``metric``, ``score``, ``learning_rate``."""
    FINISHED = "worker_finished"
    """All tasks of the stream are learnt: ``num_tasks``, ``version``."""
    STOPPED = "worker_stopped"
    """Told to stop; ``--resume`` goes on."""


Emit: TypeAlias = Callable[..., None]
"""Takes a :class:`WorkerEvent`, then its fields by name."""


def silent(_event: WorkerEvent, **_fields: Any) -> None:
    """Tell nobody."""

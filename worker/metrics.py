"""
The catalogue of one actor's Prometheus metrics: ours begin with ``share_dist_worker_``, the process's with ``process_``.

They are made of the actor's events (:mod:`worker.progress`) and of nothing else.
"""

import threading
from collections.abc import Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector

from worker.progress import WorkerEvent

_GAUGES: Final = {
    "tasks": "Tasks of the stream.",
    "task_index": "Which of them is in hand, from 1; 0 before the first.",
    "task_steps": "Steps that the task in hand takes in all.",
    "task_step": "Where training is in them.",
    "loss": "Of the last step that was told of.",
    "seconds_per_step": "Mean over the task in hand, since this process began or resumed it.",
    "eta_seconds": "Until the task in hand is learnt, at this pace.",
    "version": "The version that the worker holds.",
    "lag": "Versions that have come to be since that one.",
    "updates_waiting": "Updates that this process has learnt and the coordinator has not acknowledged.",
    "coordinator_away": "1 while the coordinator does not answer, else 0.",
}

_COUNTERS: Final = {
    "steps": "Steps of training, those that were rolled back included.",
    "samples": "Rows that were trained on, each as often as it was.",
    "updates_pushed": "Updates that the coordinator has acknowledged.",
    "updates_set_aside": "Updates that it has and does not merge until a person lets it.",
    "updates_lost": "Updates that it no longer knew, and that were pushed again.",
    "tasks_learnt": "Tasks whose training has ended.",
    "rollbacks": "Returns to the last good state, because a loss was not finite.",
    "leases_renewed": "Leases that had ended and were taken anew.",
}

_COUNTED: Final = {
    WorkerEvent.UPDATE_PUSHED: "updates_pushed",
    WorkerEvent.UPDATE_SET_ASIDE: "updates_set_aside",
    WorkerEvent.UPDATE_LOST: "updates_lost",
    WorkerEvent.TASK_LEARNT: "tasks_learnt",
    WorkerEvent.ROLLED_BACK: "rollbacks",
    WorkerEvent.LEASE_RENEWED: "leases_renewed",
}


class ActorMetrics:
    """
    All metrics of one actor, in a registry of their own; each has the label ``worker_id``.

    Args:
        worker_id: Whose.
    """

    def __init__(self, worker_id: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        labels = {"labelnames": ["worker_id"], "registry": self.registry}
        self._gauges = {
            name: Gauge(f"share_dist_worker_{name}", said, **labels).labels(worker_id)  # type: ignore[arg-type]
            for name, said in _GAUGES.items()
        }
        self._counters = {
            name: Counter(f"share_dist_worker_{name}", said, **labels).labels(worker_id)  # type: ignore[arg-type]
            for name, said in _COUNTERS.items()
        }
        self._lock = threading.Lock()
        self._waiting: set[str] = set()
        self._taken = {"steps": 0, "samples": 0}

    def take(self, event: Mapping[str, Any]) -> None:
        """Count an event in; from any thread."""
        with self._lock:
            kind = WorkerEvent(event["event"])
            if kind in _COUNTED:
                self._counters[_COUNTED[kind]].inc()
            self._follow(kind, event)
            self._gauges["updates_waiting"].set(len(self._waiting))

    def _follow(self, kind: WorkerEvent, event: Mapping[str, Any]) -> None:
        match kind:
            case WorkerEvent.STARTED:
                self._set(tasks=event["num_tasks"], version=event["version"])
            case WorkerEvent.TASK_STARTED:
                self._taken = dict.fromkeys(self._taken, 0)
                self._set(task_index=event["task_index"], version=event["base_version"])
            case WorkerEvent.TASK_PROGRESSED:
                self._step(event)
            case WorkerEvent.MOVED | WorkerEvent.VERSION_FOLLOWED:
                self._set(version=event["version"], lag=0)
            case WorkerEvent.TASK_LEARNT:
                self._waiting.add(event["task_id"])
                self._set(eta_seconds=0)
            case WorkerEvent.UPDATE_LOST:
                self._waiting.add(event["task_id"])
            case WorkerEvent.UPDATE_PUSHED:
                self._waiting.discard(event["task_id"])
            case WorkerEvent.COORDINATOR_AWAY | WorkerEvent.COORDINATOR_BACK:
                self._set(coordinator_away=kind is WorkerEvent.COORDINATOR_AWAY)
            case _:
                pass

    def _step(self, event: Mapping[str, Any]) -> None:
        same = ("loss", "seconds_per_step", "eta_seconds", "version", "lag")
        self._set(task_step=event["step"], task_steps=event["num_steps"])
        self._set(**{name: event[name] for name in same})
        for name, before in self._taken.items():
            self._counters[name].inc(event[name] - before)
        self._taken = {name: event[name] for name in self._taken}

    def _set(self, **values: float) -> None:
        for name, value in values.items():
            self._gauges[name].set(value)

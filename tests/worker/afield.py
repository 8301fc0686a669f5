"""A coordinator at an address where it is now and then, and a worker that is told when to do what."""

import os
import socket
import threading
from collections import Counter

from share_dist.client import RetryPolicy, ShareClient
from share_dist.wire.records import UpdateState
from tests.coordinator.support import CoordinatorProcess
from worker.loop import LoopOptions, TaskLoop
from worker.progress import WorkerEvent


def shorten_leases():
    """In the coordinator's process."""
    os.environ["SHARE_DIST_LEASE_SECONDS"] = "2"


class Coordinator:
    """One address, at which there is a coordinator now and then."""

    def __init__(self, folder):
        self.store = folder / "store"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._process = None

    def start(self):
        flags = ("--listen", self.address, "--num-factors", "32")
        self._process = CoordinatorProcess(self.store, *flags, prepare=shorten_leases)
        assert self._process.ready, self._process.stderr

    def kill(self):
        if self._process is not None:
            self._process.__exit__()
            self._process = None

    def ask(self, **options):
        return ShareClient(self.address, **options)

    def merged(self):
        """How often each update was merged, and which task's it was last."""
        with self.ask() as client, client.watch(after_version=0) as watch:
            events = [next(watch) for _ in range(client.status().current_version)]
            tasks = client.tasks()
        assert {each.state for each in tasks} <= {UpdateState.MERGED}
        times = Counter(update_id for event in events for update_id in event.update_ids)
        return times, {each.task_id: each.update_id for each in tasks}


class Worker:
    """A loop, what it tells, and what a test does at some event."""

    def __init__(self, stream, backbone, address, workdir):
        self.parts = stream, backbone
        self.address, self.workdir = address, workdir
        self.told = []
        self.at = {}
        self.stopped = threading.Event()

    def emit(self, event, **fields):
        self.told.append((event, fields))
        if (act := self.at.pop((event, fields.get("task_id")), None)) is not None:
            act()

    def named(self, event):
        return [fields for name, fields in self.told if name is event]

    def learn(self, *, resume=False, rescores=True, **options):
        """Run and rescore, as an actor does."""
        client = ShareClient(
            self.address, timeout_seconds=1.0, retry=RetryPolicy(0.05, 0.2), **options
        )
        with client:
            loop = TaskLoop(
                *self.parts, client, self.workdir, LoopOptions(resume=resume), self.emit, self.stopped.is_set
            )  # fmt: skip
            loop.run()
            return loop.rescore() if rescores else loop.results

    def in_background(self, **options):
        thread = threading.Thread(target=self.learn, kwargs=options)
        thread.start()
        return thread


def check_all_is_merged_once(coordinator, worker, num_updates=3):
    times, tasks = coordinator.merged()
    assert len(times) == num_updates
    assert set(times.values()) == {1}
    assert sorted(tasks) == ["food", "mood", "motion"]
    assert set(tasks.values()) <= set(times)
    pushed = [each["update_id"] for each in worker.named(WorkerEvent.UPDATE_PUSHED)]
    assert set(tasks.values()) <= set(pushed)

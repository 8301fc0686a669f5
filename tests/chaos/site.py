"""What the faults hit: a Ray cluster of several nodes on this machine, a coordinator, and `worker run` with its actors."""

import json
import os
import secrets
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import Self

from share_dist.client import ShareClient
from share_dist.commands.processes import Child, share_dist_command
from share_dist.errors import ShareError
from tests.chaos.streams import WORKERS
from tests.system.support import Coordinator, descendants, has_ended

NODES = 2
ACTORS_PER_NODE = 2
_NODE = {"object_store_memory": 80_000_000}


class Nodes:
    """A head that runs no actor, and nodes that do, each of which can be lost."""

    def __init__(self) -> None:
        # before the first import of Ray, which reads it there and then
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        head = {**_NODE, "num_cpus": 0, "include_dashboard": False}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self._nodes: list[Any] = []
        for _ in range(NODES):
            self._nodes.append(self._add())

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def kill(self, number: int) -> None:
        """End a node and all that runs on it, as when its power is cut."""
        self._cluster.remove_node(self._nodes[number], allow_graceful=False)

    def raylet(self, number: int) -> int:
        """The process that all of a node's actors are below."""
        return int(self._nodes[number].all_processes["raylet"][0].process.pid)

    def replace(self, number: int) -> None:
        """Start a node in the place of one that was lost."""
        self._nodes[number] = self._add()

    def close(self) -> None:
        """End all of it."""
        self._cluster.shutdown()

    def _add(self) -> Any:
        return self._cluster.add_node(**_NODE, num_cpus=ACTORS_PER_NODE)


class Site:
    """
    One run: a fresh store, the workers' streams, and what they tell.

    Args:
        folder: Its own.
        nodes: Where actors run.
        streams: Stream files.
    """

    def __init__(self, folder: Path, nodes: Nodes, streams: Sequence[Path]) -> None:
        self.folder = folder
        self.nodes = nodes
        self._streams = streams
        self.log = folder / "events.jsonl"
        self.coordinator = Coordinator(folder)
        self._workers: Child

    def __enter__(self) -> Self:
        self.coordinator.start()
        flags = ("--coordinator", self.coordinator.address, "--workdir", self.folder / "work")
        self._workers = Child(
            "the workers",
            share_dist_command(
                *("worker", "run", *self._streams, *flags, "--json"),
                *("--ray-address", self.nodes.address),
            ),
            log=self.log,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.interrupt()
        if not self._workers.wait(60):
            self._workers.stop()
        self.coordinator.__exit__()

    @property
    def exit_code(self) -> int | None:
        """Of the workers' command; None while it runs."""
        return self._workers.exit_code

    @property
    def last_words(self) -> str:
        """The end of what the workers said."""
        return self._workers.last_words()

    def events(self) -> list[dict[str, Any]]:
        """All that actors told, oldest first."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [json.loads(each) for each in lines if each.startswith("{") and each.endswith("}")]

    def actor(self, worker_id: str) -> int | None:
        """The process of a worker's actor, if it runs."""
        told = [each for each in self.events() if each["event"] == "worker_loaded"]
        pids = [each["pid"] for each in told if each["worker_id"] == worker_id]
        return pids[-1] if pids and not has_ended(pids[-1]) else None

    def kill_actor(self, worker_id: str) -> bool:
        """End an actor; False where none runs."""
        pid = self.actor(worker_id)
        if pid is None:
            return False
        os.kill(pid, signal.SIGKILL)
        return True

    def workers_on(self, number: int) -> set[str]:
        """Whose actors run on a node."""
        below = set(descendants(self.nodes.raylet(number)))
        return {each for each in WORKERS if self.actor(each) in below}

    def num_merged(self) -> int | None:
        """How many tasks are merged; None while nobody answers."""
        try:
            with ShareClient(self.coordinator.address, timeout_seconds=2.0) as client:
                return client.status().num_tasks
        except ShareError:
            return None

    def results(self) -> dict[str, Mapping[str, Any]]:
        """What workers noted of each task."""
        found: dict[str, Mapping[str, Any]] = {}
        for path in (self.folder / "work").glob("*/results.json"):
            found |= {each["task_id"]: each for each in json.loads(path.read_text())["tasks"]}
        return found

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until the workers have ended; whether they have."""
        return self._workers.wait(seconds)


def end_all() -> list[str]:
    """Kill what is left below this process; what that was."""
    left = descendants(os.getpid())
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    return sorted(left.values())

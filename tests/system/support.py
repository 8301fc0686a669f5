"""A coordinator and workers as processes of their own, to be killed and started again."""

import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from typing_extensions import Self

from share_dist.client import ShareClient
from share_dist.commands.processes import Child, share_dist_command, wait_for_file
from share_dist.wire.records import TaskSummary, UpdateState, VersionEvent

REPOSITORY = Path(__file__).parents[2]

TOPICS = ("mood", "food", "motion")


def wait_until(is_so: Callable[[], Any], what: str, seconds: float = 240.0) -> None:
    """Wait for what will surely come; the limit only ends a test that has failed."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"{what} did not come in {seconds:.0f} s"
        time.sleep(0.02)


class Coordinator:
    """
    A coordinator that is always started on the same store and the same port.

    Args:
        folder: For log and port file.
        store: In the folder unless it is said.
        environment: Added to this process's.
    """

    def __init__(
        self, folder: Path, store: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self._folder = folder
        self.store = store or folder / "store"
        self.log = folder / "coordinator.log"
        self._environment = {"OMP_NUM_THREADS": "1", **(environment or {})}
        self._listen = "127.0.0.1:0"
        self._child: Child

    @property
    def address(self) -> str:
        return self._listen

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.stop()

    def start(self, fault: str = "") -> None:
        """Start it; with a fault, it kills itself where that says."""
        port_file = self._folder / "coordinator.port"
        port_file.unlink(missing_ok=True)
        arguments: tuple[object, ...] = (
            *("coordinator", "serve", "--store", self.store),
            *("--listen", self._listen, "--port-file", port_file, "--log-format", "json"),
        )
        environment = {"SHARE_DIST_FAULT": f"{fault}:kill" if fault else "", **self._environment}
        self._child = Child(
            "the coordinator",
            share_dist_command(*arguments),
            log=self.log,
            environment=environment,
        )
        self._listen = f"127.0.0.1:{wait_for_file(port_file, self._child, seconds=120)}"

    def stop(self) -> int | None:
        """Ask it to stop; return the exit code."""
        self._child.stop()
        return self._child.exit_code

    def kill(self) -> None:
        """End it as ``kill -9`` does."""
        os.kill(self._child.pid, signal.SIGKILL)
        self.wait_killed()

    def wait_killed(self) -> None:
        """Wait until it has died of a SIGKILL, its own or ours."""
        wait_until(lambda: self._child.exit_code is not None, "the end of the coordinator")
        assert self._child.exit_code == -signal.SIGKILL, self._child.last_words()

    def wait_for_version(self, version: int) -> None:
        """Wait until it has merged so often."""
        with ShareClient(self.address) as client:
            wait_until(lambda: client.status().current_version >= version, f"version {version}")

    def history(self) -> tuple[list[VersionEvent], list[TaskSummary]]:
        """Every version from the first, and every task."""
        with ShareClient(self.address) as client:
            current = client.status().current_version
            with client.watch(after_version=0) as watch:
                return [next(watch) for _ in range(current)], client.tasks()


class Workers:
    """
    ``share-dist worker run`` on two streams, in a folder that can be gone on in.

    Args:
        folder: For streams, gates, checkpoints and the log.
        model: The frozen model's folder.
        address: Of the coordinator.
        gated: Tasks that wait for ``open``.
        epochs: Of every task.
    """

    WORKER_IDS = ("north", "south")

    def __init__(
        self, folder: Path, model: Path, address: str, gated: tuple[str, ...], epochs: int = 2
    ) -> None:
        self._folder = folder
        self._address = address
        self._streams = [
            self._write_stream(worker_id, model, gated, epochs) for worker_id in self.WORKER_IDS
        ]
        self._child: Child

    @property
    def task_ids(self) -> list[str]:
        """All tasks of both streams."""
        return [f"{worker_id}-{topic}" for worker_id in self.WORKER_IDS for topic in TOPICS]

    @property
    def log(self) -> Path:
        return self._folder / "workers.log"

    @property
    def pid(self) -> int:
        """The driver's process id."""
        return self._child.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.stop()

    def start(self, *flags: str) -> None:
        """Start the driver."""
        command = share_dist_command(
            *("worker", "run", *self._streams, "--coordinator", self._address),
            *("--workdir", self._folder / "work", "--json", *flags),
        )
        environment = {"PYTHONPATH": str(REPOSITORY), "RAY_AUTH_MODE": "token"}
        self._child = Child("the workers", command, log=self.log, environment=environment)

    def wait(self) -> int | None:
        """Wait for the driver's end."""
        self._child.wait(600)
        return self._child.exit_code

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._child.interrupt()

    def open(self, task_id: str) -> None:
        """Let a task be loaded."""
        self._gate(task_id).touch()

    def loading_pid(self, task_id: str, other_than: int = 0) -> int:
        """Wait until an actor loads a task, and say which process it is."""
        path = self._gate(task_id).with_suffix(".pid")

        def pid() -> int:
            return int((path.read_text() if path.exists() else "") or 0)

        wait_until(
            lambda: pid() not in {0, other_than} or self._child.exit_code is not None, task_id
        )
        assert self._child.exit_code is None, self._child.last_words()
        return pid()

    def wait_for_file(self, task_id: str, name: str) -> None:
        """Wait until a task's checkpoint has a file."""
        worker_id = task_id.partition("-")[0]
        path = self._folder / "work" / worker_id / "tasks" / task_id / name
        wait_until(path.exists, f"{name} of {task_id}")

    def acknowledged(self) -> list[str]:
        """Ids of the updates that a worker has a receipt for, as its checkpoints and its events say."""
        receipts = (self._folder / "work").glob("*/tasks/*/receipt.json")
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        events = [json.loads(line) for line in lines]
        return [
            *(json.loads(receipt.read_text())["update_id"] for receipt in receipts),
            *(each["update_id"] for each in events if each["event"] == "update_pushed"),
        ]

    def results(self) -> dict[str, dict[str, Any]]:
        """What the workers noted of each task."""
        found = {}
        for worker_id in self.WORKER_IDS:
            path = self._folder / "work" / worker_id / "results.json"
            found |= {each["task_id"]: each for each in json.loads(path.read_text())["tasks"]}
        return found

    def _gate(self, task_id: str) -> Path:
        return self._folder / f"{task_id}.open"

    def _write_stream(
        self, worker_id: str, model: Path, gated: tuple[str, ...], epochs: int
    ) -> Path:
        tasks = "".join(
            f"""
[[task]]
id = "{worker_id}-{topic}"
type = "text-classification"
source = {{ entry_point = "tests.system.rows:gated", arguments = {{ topic = "{topic}", gate = "{self._gate(f"{worker_id}-{topic}")}" }} }}
max_train = 96
max_test = 48
"""
            for topic in TOPICS
        )
        for topic in TOPICS:
            if f"{worker_id}-{topic}" not in gated:
                self.open(f"{worker_id}-{topic}")
        path = self._folder / f"{worker_id}.toml"
        path.write_text(
            f"""
worker_id = "{worker_id}"
[model]
path = "{model}"
targets = ["query", "value"]
[training]
epochs = {epochs}
batch_size = 16
num_temporary = 2
validation_fraction = 0.2
{tasks}"""
        )
        return path


def check_all_is_merged_once(coordinator: Coordinator, workers: Workers) -> None:
    """Every task and every acknowledged update is in exactly one version, and scored under the last."""
    versions, tasks = coordinator.history()
    merged = Counter(update_id for version in versions for update_id in version.update_ids)
    assert set(merged.values()) == {1}
    assert set(workers.acknowledged()) == set(merged)
    assert sorted(task.task_id for task in tasks) == sorted(workers.task_ids)
    assert {task.state for task in tasks} == {UpdateState.MERGED}
    assert {task.update_id for task in tasks} == set(merged)
    results = workers.results()
    assert sorted(results) == sorted(workers.task_ids)
    assert {each["final_version"] for each in results.values()} == {len(versions)}
    assert {each["state"] for each in results.values()} == {"merged"}


def has_ended(pid: int) -> bool:
    """Whether a process is gone; one that nobody has waited for counts as gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def descendants(pid: int) -> dict[int, str]:
    """Every process below one, with its command line."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            stat = (path / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(path.name)] = int(stat.rpartition(")")[2].split()[1])
    below: set[int] = {pid}
    while grown := {child for child, parent in parents.items() if parent in below} - below:
        below |= grown
    return {each: _command_line(each) for each in below - {pid}}


def actors_below(pid: int) -> list[int]:
    """The worker actors' processes below one, by the title that Ray gives them."""
    return [each for each, line in descendants(pid).items() if re.match(r"ray::\w*RayActor", line)]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""

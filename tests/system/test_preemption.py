"""A machine is taken back: SIGTERM to the command, or to an actor, costs no step."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from share_dist.adapters.files import read_tensors
from share_dist.client import ShareClient
from share_dist.errors import ExitCode
from tests.coordinator.support import CoordinatorProcess, wait_until
from tests.worker import toys

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

GRACE_SECONDS = 30
"""What cluster managers leave between SIGTERM and SIGKILL."""

EPOCHS, STEPS_PER_EPOCH = 100, 5
"""A step takes 20 ms, so that ten seconds are left to be stopped in after the first steps were seen."""


class Command:
    """`worker run`, with its events as they come."""

    def __init__(self, stream: Path, address: str, workdir: Path, *options: str) -> None:
        self.log = workdir.parent / "events.jsonl"
        command = [sys.executable, "-m", "share_dist", "worker", "run", str(stream), "--json"]
        command += ["--coordinator", address, "--workdir", str(workdir), *options]
        with self.log.open("w") as output:
            self.process = subprocess.Popen(command, stdout=output)

    def events(self) -> list[dict]:
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def wait_for_step(self, step: int) -> None:
        wait_until(lambda: any(each.get("step", 0) >= step for each in self.events()), 300)

    def actor(self) -> int:
        """The process of the actor: below the command, and named by Ray."""
        parents, names = {}, {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                stat = (entry / "stat").read_text()
                names[int(entry.name)] = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
        found = [pid for pid, name in names.items() if name.startswith(b"ray::_RayActor")]
        (pid,) = [each for each in found if self._is_above(each, parents)]
        return pid

    def _is_above(self, pid: int, parents: dict[int, int]) -> bool:
        while pid > 1:
            if pid == self.process.pid:
                return True
            pid = parents.get(pid, 0)
        return False


@pytest.fixture
def coordinator(tmp_path):
    with CoordinatorProcess(tmp_path / "store") as process:
        yield process


@pytest.mark.parametrize("victim", ["command", "actor"])
def test_sigterm_keeps_the_last_step(coordinator, tmp_path, victim):
    """Within the grace time the command ends with 143, its last step kept, and --resume ends the stream."""
    stream = tmp_path / "north.toml"
    text = toys.stream_text(toys.make_model(tmp_path / "model"), "north", ("mood",))
    stream.write_text(text.replace("epochs = 2", f"epochs = {EPOCHS}"))
    workdir = tmp_path / "work"
    first = Command(stream, coordinator.address, workdir)
    first.wait_for_step(5)
    os.kill(first.process.pid if victim == "command" else first.actor(), signal.SIGTERM)
    assert first.process.wait(GRACE_SECONDS) == ExitCode.TERMINATED
    assert "worker_stopped" in [each["event"] for each in first.events()]
    path = workdir / "north/tasks/mood/epoch.safetensors"
    kept = json.loads(read_tensors(path)[1]["epoch"])
    last = max(each["step"] for each in first.events() if each["event"] == "task_progressed")
    assert kept["epochs_done"] * STEPS_PER_EPOCH + kept["batches_done"] >= last
    again = Command(stream, coordinator.address, workdir, "--resume")
    assert again.process.wait(300) == ExitCode.OK
    started = next(each for each in again.events() if each["event"] == "task_started")
    assert started["resumed_epochs"] == kept["epochs_done"]
    assert started["resumed_batches"] == kept["batches_done"]
    with ShareClient(coordinator.address) as client:
        assert [each.task_id for each in client.tasks()] == ["mood"]

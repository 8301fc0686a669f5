"""Sources that load rows with processes of their own, while the channel to the coordinator is open."""

import subprocess
import sys

import pytest

from tests.coordinator.support import CoordinatorProcess

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

SCRIPT = """
import multiprocessing, sys
from torch.utils.data import DataLoader
from share_dist.client import ShareClient
from worker.actor import WorkerActor, WorkerConfig
from worker.loop import LoopOptions

if __name__ == "__main__":
    actor = WorkerActor(WorkerConfig("none.toml", sys.argv[1], ".", LoopOptions(), 1))
    actor.own_process()
    with ShareClient(sys.argv[1]) as client:
        before = client.status().current_version
        rows = [row for batch in DataLoader(range(8), batch_size=2, num_workers=2) for row in batch.tolist()]
        after = client.status().current_version
    print(multiprocessing.get_start_method(), rows, before, after)
"""


def test_a_loader_with_processes_does_not_hang_beside_a_channel(tmp_path):
    """In an actor's process a DataLoader with two workers spawns them, and the channel goes on working."""
    script = tmp_path / "load.py"
    script.write_text(SCRIPT)
    with CoordinatorProcess(tmp_path / "store") as coordinator:
        done = subprocess.run(
            [sys.executable, str(script), coordinator.address],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert done.stdout.split("\n")[-2] == f"spawn {list(range(8))} 0 0", done.stderr

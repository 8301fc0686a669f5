"""The quickstart itself, on its real model and data: interrupted, resumed, and shot at twice meanwhile."""

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from typing_extensions import Self

from share_dist.client import ShareClient
from share_dist.commands.processes import Child, share_dist_command
from tests.system.support import actors_below, descendants, has_ended, wait_until

pytestmark = [pytest.mark.system, pytest.mark.kit, pytest.mark.timeout(1800)]

NUM_TASKS = 8
INTERRUPTED = 130


class Quickstart:
    """``share-dist quickstart`` as a process, with its screen in a file."""

    def __init__(self, runs: Path, *flags: str) -> None:
        command = share_dist_command("quickstart", "--runs", runs, "--name", "shot", *flags)
        self.screen = runs / f"screen{len(flags)}.log"
        self.root = runs / "shot"
        self._child = Child("the quickstart", command, log=self.screen)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.stop()

    @property
    def pid(self) -> int:
        return self._child.pid

    def coordinator(self) -> tuple[str, int]:
        """Address and process of the coordinator, once the screen says them."""
        pattern = re.compile(r"coordinator on (\S+), process (\d+)")
        self._wait_until(lambda: pattern.search(self.screen.read_text()), "the coordinator")
        found = pattern.search(self.screen.read_text())
        assert found is not None
        return found[1], int(found[2])

    def wait_for_version(self, address: str, version: int) -> None:
        """Wait until so much has been merged."""
        with ShareClient(address, timeout_seconds=120) as client:
            self._wait_until(
                lambda: client.status().current_version >= version, f"version {version}"
            )

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._child.interrupt()

    def wait(self) -> int | None:
        """Wait for its end."""
        self._child.wait(1500)
        return self._child.exit_code

    def _wait_until(self, is_so: Callable[[], object], what: str) -> None:
        wait_until(lambda: self._child.exit_code is not None or is_so(), what, 900)
        assert self._child.exit_code is None, self.screen.read_text()


def test_the_quickstart_survives(tmp_path):
    """Interrupted early and resumed, with coordinator and one actor killed, it ends well with all 8 tasks, each merged once."""
    with Quickstart(tmp_path) as first:
        address, _ = first.coordinator()
        first.wait_for_version(address, 1)
        below = descendants(first.pid)
        first.interrupt()
        assert first.wait() == INTERRUPTED, first.screen.read_text()
        wait_until(lambda: all(map(has_ended, below)), "the end of all that it started")
    with Quickstart(tmp_path, "--resume") as resumed:
        address, coordinator = resumed.coordinator()
        resumed.wait_for_version(address, 3)
        os.kill(coordinator, signal.SIGKILL)
        resumed.wait_for_version(address, 5)
        os.kill(actors_below(resumed.pid)[0], signal.SIGKILL)
        assert resumed.wait() == 0, resumed.screen.read_text()
        assert "killed by signal 9" in resumed.screen.read_text()
        report = json.loads((resumed.root / "report.json").read_text())
    assert len({task["task"] for task in report["tasks"]}) == NUM_TASKS
    assert all(task["final_version"] == len(report["versions"]) for task in report["tasks"])
    merged = Counter(each for version in report["versions"] for each in version["update_ids"])
    assert set(merged.values()) == {1}
    receipts = resumed.root.glob("workers/*/tasks/*/receipt.json")
    assert {json.loads(path.read_text())["update_id"] for path in receipts} == set(merged)
    assert report["export"]["largest_difference"] < 1e-4
    assert (resumed.root / "report.html").stat().st_size > 10_000

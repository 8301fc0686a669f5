"""Rows for the workers of system tests: an entry point at which a test can hold a task back."""

import os
import time
from pathlib import Path

from tests.worker import toys
from worker.rows import RawTask


def gated(topic: str, gate: str) -> RawTask:
    """Say which process loads the task, and wait until the test opens the gate."""
    path = Path(gate)
    path.with_suffix(".pid").write_text(str(os.getpid()))
    while not path.exists():
        time.sleep(0.05)
    return RawTask(toys.sentences(topic, 160, seed=1))

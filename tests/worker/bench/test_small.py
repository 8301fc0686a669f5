"""The small form of the text suite on the real kit, by the command that a person runs. The first to need the kit fetches it."""

import json
import os
import subprocess
import sys

import pytest

from share_dist.commands.kit import fetch_kit, kit_folder
from worker.bench.methods import METHODS
from worker.bench.suite import read_suite

pytestmark = [pytest.mark.kit, pytest.mark.timeout(900)]


def test_the_small_form_of_the_text_suite_runs(tmp_path):
    """One command computes every cell: real tasks, real weights, a real coordinator, and a report of all methods."""
    fetch_kit(kit_folder())
    small = read_suite("text", list(METHODS)).small()
    command = [sys.executable, "-m", "share_dist", "bench", "learn", "text", "--small"]
    ended = subprocess.run(
        [*command, "--output", str(tmp_path / "out"), "--jobs", "1", "--json"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    summary = json.loads(ended.stdout)
    assert summary["missing"] == 0
    assert summary["methods"].keys() == set(small.settings.methods)
    for name, method in summary["methods"].items():
        ((mean,)) = method["by_seed"]
        assert mean > 0.4, name
        assert method["tasks"].keys() == set(small.task_ids)
    last = summary["methods"]["share"]["runs"][0]["versions"][-1]
    assert last["version"] == len(small.task_ids)
    assert (tmp_path / "out" / "report.html").read_text().count("<svg") >= 3

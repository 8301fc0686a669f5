"""The learning benchmark's small form on the real model and real tasks, as the README prints it."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.system


def test_the_small_form_measures_every_method(tmp_path):
    """Every cell has an outcome, each method beats the majority class on average, and the report holds all of them."""
    command = [sys.executable, "-m", "share_dist", "bench", "learn", "text", "--small", "--json"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    summary = json.loads(ended.stdout)
    assert summary["missing"] == 0
    methods = summary["methods"]
    majority = sum(methods["frozen"]["majority"].values()) / len(summary["order"])
    for name, method in methods.items():
        assert method["by_seed"][0] > majority, name
    page = (tmp_path / "runs" / "bench" / "text-small" / "report.html").read_text()
    assert all(name in page for name in methods)

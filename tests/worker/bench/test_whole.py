"""A whole benchmark of small things, as a person runs it: processes, a coordinator, a report."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.coordinator.support import wait_until


@pytest.fixture
def command():
    """What runs `share-dist bench`."""
    return lambda *arguments: [sys.executable, "-m", "share_dist", "bench", *map(str, arguments)]


@pytest.fixture
def run(tmp_path, command):
    """Run `share-dist bench`; its standard output."""

    def run(*arguments, interrupt_when=None):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(
            command(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=tmp_path,
        )
        if interrupt_when is not None:
            wait_until(interrupt_when, 600)
            process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=600)
        return process.returncode, stdout, stderr

    return run


def outcomes(folder):
    return {path: path.read_bytes() for path in folder.rglob("cells/**/*.json")}


@pytest.mark.system
def test_a_benchmark_goes_on_where_it_was_interrupted(make_suite, run, tmp_path):
    """Ctrl-C keeps what is done and says what goes on; the second run computes only what is missing, and a third nothing."""
    suite = make_suite("frozen", "lora", "eigenlorax", "share", training="pseudo_rank = 2")
    path, folder = suite.stream.path, tmp_path / "out"
    told = ("learn", path, "--output", folder, "--seeds", 1, "--jobs", 1)
    code, _, stderr = run(*told, interrupt_when=lambda: len(outcomes(folder)) >= 4)
    assert code == 130, stderr
    assert "the same command goes on" in stderr
    kept = outcomes(folder)

    code, stdout, stderr = run(*told, "--json")
    assert code == 0, stderr
    after = outcomes(folder)
    assert kept.items() <= after.items()
    summary = json.loads(stdout)
    assert summary["missing"] == 0
    for name in ("frozen", "lora", "eigenlorax", "share"):
        assert len(summary["methods"][name]["by_seed"]) == 1
    share = summary["methods"]["share"]
    assert share["runs"][0]["versions"][-1]["version"] == 3
    assert share["task_free"]["rows"]["by_seed"] == [3 * 48]
    assert share["task_free"]["choice"]["mean"] > 0.7
    tasks = summary["bytes"]["tasks"]["share"]
    assert 0 < tasks["served"] < tasks["kept"] < tasks["sent"] < tasks["wire"]
    assert tasks["pulled"] > 0
    assert "<svg" in (folder / "report.html").read_text()

    code, _, stderr = run(*told)
    assert code == 0, stderr
    assert outcomes(folder) == after


def descendants(pid):
    """Processes below one, as far as /proc tells."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.system
def test_a_benchmark_that_is_killed_leaves_no_process(make_suite, command, tmp_path):
    """SIGKILL of the command ends those that compute, too: a second run does not compute beside them."""
    path, folder = make_suite("frozen", "lora").stream.path, tmp_path / "out"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        command("learn", path, "--output", folder, "--jobs", 2), env=environment, cwd=tmp_path
    ) as process:
        wait_until(lambda: outcomes(folder), 600)
        below = descendants(process.pid)
        assert len(below) >= 3
        process.kill()
    wait_until(lambda: not any(map(is_alive, below)), 60)


def test_a_report_computes_nothing(make_suite, run, tmp_path):
    """Of a benchmark that was not begun it says how to begin."""
    path = make_suite("frozen").stream.path
    code, _, stderr = run("report", path, "--output", tmp_path / "none")
    assert code != 0
    assert "share-dist bench learn" in stderr
    code, stdout, _ = run("suites")
    assert code == 0
    assert "text" in stdout

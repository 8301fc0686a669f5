"""Child processes: watched over, stopped, and never left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from share_dist.commands.processes import Child, share_dist_command, wait_for_file
from share_dist.errors import WorkerError


def python(code):
    return [sys.executable, "-c", code]


STUBBORN = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).write_text("ready")
time.sleep(600)
"""

CIVIL = """
import pathlib, signal, sys, time
def end(*_):
    print("interrupted", flush=True)
    sys.exit(3)
signal.signal(signal.SIGINT, end)
pathlib.Path(sys.argv[1]).write_text("ready")
time.sleep(600)
"""

PARENT = """
import sys, time
from pathlib import Path
from share_dist.commands.processes import Child
child = Child("child", [sys.executable, "-c", "import time; time.sleep(600)"])
Path(sys.argv[1]).write_text(str(child.pid))
time.sleep(600)
"""


def is_alive(pid):
    """Whether a process runs; one that ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def start(tmp_path):
    """Start children, and end them when the test is over."""
    children = []

    def start(code, *arguments, log=None):
        command = [*python(code), *(str(argument) for argument in arguments)]
        children.append(Child("the child", command, log=log))
        return children[-1]

    yield start
    for child in children:
        child.stop(grace_seconds=0)


def test_a_child_writes_its_log_and_tells_its_end(start, tmp_path):
    """Both outputs go to the log, whose end is told; the exit code is the child's."""
    code = "import sys; print('\\n'.join(map(str, range(40)))); sys.exit('at last')"
    child = start(code, log=tmp_path / "log")
    assert child.wait(60)
    assert child.exit_code == 1
    words = child.last_words(lines=5).splitlines()
    assert words[-1] in {"39", "at last"}
    assert len(words) == 5
    assert "at last" in (tmp_path / "log").read_text()


def test_without_a_log_there_are_no_last_words(start):
    """A child that shares the parent's output has nothing to read back."""
    child = start("pass")
    assert child.wait(60)
    assert child.last_words() == ""


def test_an_interrupted_child_ends_in_its_own_way(start, tmp_path):
    """``interrupt`` is Ctrl-C: the child may still tidy up."""
    child = start(CIVIL, tmp_path / "ready", log=tmp_path / "log")
    assert wait_for_file(tmp_path / "ready", child, seconds=60) == "ready"
    assert not child.wait(0.01)
    child.interrupt()
    assert child.wait(60)
    assert (child.exit_code, child.last_words()) == (3, "interrupted")


def test_a_child_that_will_not_end_is_killed(start, tmp_path):
    """``stop`` asks first, then does not."""
    child = start(STUBBORN, tmp_path / "ready")
    wait_for_file(tmp_path / "ready", child, seconds=60)
    child.stop(grace_seconds=0.1)
    assert child.exit_code == -signal.SIGKILL
    child.stop()
    child.interrupt()


def test_a_child_that_ends_before_it_is_ready_is_told_with_its_log(start, tmp_path):
    """Whoever waits learns the exit code, where the log is and how it ends."""
    child = start("raise SystemExit('no port left')", log=tmp_path / "log")
    with pytest.raises(WorkerError, match=r"the child ended with 1 .*log.*\n.*no port left"):
        wait_for_file(tmp_path / "ready", child, seconds=60)


def test_a_child_that_is_never_ready_is_told_too(start, tmp_path):
    """Waiting has an end; an empty file is not ready yet."""
    (tmp_path / "ready").write_text("")
    child = start("import time; time.sleep(600)", log=tmp_path / "log")
    with pytest.raises(WorkerError, match=r"was not ready after 0 s; its log is .*log"):
        wait_for_file(tmp_path / "ready", child, seconds=0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of a parent's death")
def test_a_child_ends_with_its_parent_even_by_kill_9(tmp_path):
    """A parent that is killed leaves nobody behind."""
    parent = subprocess.Popen([*python(PARENT), str(tmp_path / "pid")])
    try:
        give_up = time.monotonic() + 60
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < give_up
            time.sleep(0.02)
        child = int((tmp_path / "pid").read_text())
        assert is_alive(child)
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    while is_alive(child):
        assert time.monotonic() < give_up, "the child outlived its parent"
        time.sleep(0.02)


def test_commands_run_in_this_interpreter():
    """Another share-dist is this one: same Python, same packages."""
    done = subprocess.run(
        share_dist_command("--version"), capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("share-dist ")

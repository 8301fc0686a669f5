"""The quickstart's own part: its folder, its coordinator, its way to stop."""

import io
import json
import os
import signal

import pytest
import typer
from rich.console import Console

from share_dist.client import ShareClient
from share_dist.commands import quickstart
from share_dist.commands.quickstart import Coordinator, RunFolder
from share_dist.errors import ConfigError, WorkerError
from tests.commands.conftest import share_dist

OPTIONS = {"num_factors": 8, "seed": 5, "compare": False}


@pytest.fixture
def say():
    return Console(file=io.StringIO(), width=200)


def said(console):
    return console.file.getvalue()


def test_a_new_run_has_streams_with_its_seed(tmp_path):
    """The stream files lie in the run's folder, seeded, and name four tasks each."""
    folder = RunFolder(tmp_path / "run")
    assert folder.prepare(OPTIONS, resume=False) == OPTIONS
    for stream in folder.streams:
        text = stream.read_text()
        assert "seed = 5" in text
        assert text.count("[[task]]") == 4
    assert json.loads(folder.options.read_text()) == OPTIONS


def test_a_folder_that_holds_something_is_not_begun_again(tmp_path):
    """A run is never written over: three ways out are named."""
    folder = RunFolder(tmp_path)
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ConfigError, match=r"--resume, name another by --name, or remove"):
        folder.prepare(OPTIONS, resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_only_a_run_can_be_resumed(tmp_path):
    """--resume where there is nothing says so; the command ends with 2 before it fetches anything."""
    with pytest.raises(ConfigError, match="no run in"):
        RunFolder(tmp_path / "absent").prepare(OPTIONS, resume=True)
    ended = share_dist("quickstart", "--runs", tmp_path, "--resume", "--json")
    assert (ended.code, ended.json["key"]) == (2, "resume")
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_keeps_what_it_was_told(tmp_path):
    """Seed and k are those of the beginning, others are refused; --compare may be added."""
    folder = RunFolder(tmp_path)
    folder.prepare(OPTIONS, resume=False)
    asked = {"num_factors": None, "seed": None, "compare": True}
    assert folder.prepare(asked, resume=True) == OPTIONS | {"compare": True}
    with pytest.raises(ConfigError, match="begun with seed 5, now 6 is asked"):
        folder.prepare(asked | {"seed": 6}, resume=True)


def test_results_that_cannot_be_read_are_told_with_their_place(tmp_path):
    """A worker without results is named by its file."""
    with pytest.raises(WorkerError, match=r"north/results\.json cannot be read.*--resume"):
        quickstart._results(RunFolder(tmp_path), "north")


def test_a_killed_coordinator_comes_back_on_the_same_port(tmp_path, say):
    """A real process that meets kill -9 is started again, same address, same store, and it answers."""
    coordinator = Coordinator(RunFolder(tmp_path), num_factors=4)
    try:
        address, pid = coordinator.address, coordinator.pid
        coordinator.keep_alive(say)
        assert coordinator.pid == pid
        os.kill(pid, signal.SIGKILL)
        coordinator._child.wait(60)
        coordinator.keep_alive(say)
        assert coordinator.pid != pid
        assert coordinator.address == address
        assert "was killed by signal 9; starting it again" in said(say)
        with ShareClient(address) as client:
            assert client.status().current_version == 0
    finally:
        coordinator.stop()
    assert coordinator._child.exit_code == 0
    with pytest.raises(WorkerError, match=r"the coordinator ended with 0; its log is .*coordinator\.log"):  # fmt: skip
        coordinator.keep_alive(say)


def test_a_coordinator_that_cannot_start_is_told_with_its_log(tmp_path):
    """A store that is a file: the letter ends with the coordinator's own."""
    (tmp_path / "store").write_text("")
    with pytest.raises(WorkerError, match=r"(?s)the coordinator ended with \d+ before it was ready.*store"):  # fmt: skip
        Coordinator(RunFolder(tmp_path), num_factors=4)


class Alive:
    """A coordinator that needs no care."""

    address = "127.0.0.1:1"

    def __init__(self, ready=None):
        self._ready = ready

    def keep_alive(self, say):
        if self._ready is not None and self._ready.exists():
            raise KeyboardInterrupt


def worker_that(monkeypatch, code):
    """Put a script into the place of ``worker run``."""
    monkeypatch.setattr(
        quickstart, "share_dist_command", lambda *arguments: [quickstart.sys.executable, "-c", code]
    )


def learn(folder, coordinator, say):
    quickstart._learn(folder, coordinator, {}, say, compare=False)


def test_ctrl_c_stops_the_workers_cleanly_and_says_how_to_go_on(tmp_path, say, monkeypatch):
    """Workers get the interrupt and time to write; the command that resumes is printed; 130."""
    code = (
        "import signal, sys, time, pathlib\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "def end(*_):\n"
        "    (folder / 'tidy').write_text(''); sys.exit(130)\n"
        "signal.signal(signal.SIGINT, end)\n"
        "(folder / 'ready').write_text('')\n"
        "time.sleep(600)\n"
    )
    worker_that(monkeypatch, code)
    with pytest.raises(typer.Exit) as ended:
        learn(RunFolder(tmp_path), Alive(tmp_path / "ready"), say)
    assert ended.value.exit_code == 130
    assert (tmp_path / "tidy").exists()
    expected = f"share-dist quickstart --runs {tmp_path.parent} --name {tmp_path.name} --resume"
    assert expected in said(say).replace("\n", "")


def test_killed_workers_are_started_again(tmp_path, say, monkeypatch):
    """A signal is weather: the second start ends well, and the run with it."""
    code = (
        "import os, pathlib, signal\n"
        f"mark = pathlib.Path({str(tmp_path / 'mark')!r})\n"
        "if not mark.exists():\n"
        "    mark.write_text(''); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    worker_that(monkeypatch, code)
    learn(RunFolder(tmp_path), Alive(), say)
    assert said(say).count("killed by signal 9; starting them again") == 1


def test_workers_that_give_up_end_the_run(tmp_path, say, monkeypatch):
    """An exit code of their own is no weather: it is told, and nothing is tried again."""
    worker_that(monkeypatch, "import sys; sys.exit(5)")
    with pytest.raises(WorkerError, match="ended with 5"):
        learn(RunFolder(tmp_path), Alive(), say)


def test_workers_that_are_killed_for_ever_end_the_run(tmp_path, say, monkeypatch):
    """Starting again has an end."""
    monkeypatch.setattr(quickstart, "RESTARTS", 1)
    worker_that(monkeypatch, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(WorkerError, match="killed 2 times"):
        learn(RunFolder(tmp_path), Alive(), say)

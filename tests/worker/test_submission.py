"""`share-dist worker submit`: what is sent, what comes back, and how it ends."""

import json
import shlex
from pathlib import Path

import pytest

from share_dist.errors import ConfigError, ExitCode, StreamError, UnknownTask, WorkerError
from tests.commands.conftest import share_dist
from tests.worker import toys
from worker import submission
from worker.stream import read_stream
from worker.submission import Submission, SubmitRequest, entrypoint, error_of, staged


@pytest.fixture
def streams(tmp_path, model_folder):
    """Two stream files, the second without a worker_id, and private rows beside them."""
    north = tmp_path / "north.toml"
    north.write_text(toys.stream_text(model_folder, "north", ("mood",)))
    south = tmp_path / "south.toml"
    south.write_text(toys.stream_text(model_folder, "", ("food",)))
    (tmp_path / "rows.csv").write_text("a private row")
    return north, south


class FakeJobs:
    """A cluster that says given lines and ends in a given state."""

    message = "it ended"

    def __init__(self, lines, status, interrupted_at=None):
        self.lines, self.status, self.interrupted_at = list(lines), status, interrupted_at
        self.entrypoint, self.files, self.stopped = "", {}, False

    def submit_job(self, entrypoint, runtime_env):
        root = Path(runtime_env["working_dir"])
        self.entrypoint = entrypoint
        self.files = {
            str(path.relative_to(root)): path.read_text()
            for path in root.rglob("*")
            if path.is_file()
        }
        return "job-1"

    async def tail_job_logs(self, job):
        text = "".join(f"{line}\n" for line in self.lines)
        # pieces break in the middle of lines
        for start in range(0, len(text), 7):
            if start == self.interrupted_at:
                self.interrupted_at = None
                raise KeyboardInterrupt
            yield text[start : start + 7]

    def stop_job(self, job):
        self.stopped = True

    def get_job_status(self, job):
        return self.status

    def get_job_info(self, job):
        return self


@pytest.fixture
def send(streams, monkeypatch):
    """Submits both streams to a cluster that behaves as given."""

    def run(jobs, *flags, changes=()):
        monkeypatch.setattr(submission, "_connect", lambda request: jobs)
        request = SubmitRequest(streams, "http://nowhere", "", changes, flags)
        return Submission(request, as_json=True).run()

    return run


def event(worker_id):
    return json.dumps({"event": "worker_started", "worker_id": worker_id, "seconds": 1.0, "version": 0})  # fmt: skip


def test_only_stream_files_are_sent(streams):
    """What lies beside them stays where it is; a worker that is named by its file keeps its name."""
    read = [read_stream(path) for path in streams]
    with staged(read) as folder:
        there = sorted(path for path in folder.rglob("*") if path.is_file())
        again = [read_stream(path).worker_id for path in there]
    assert [path.name for path in there] == ["north.toml", "south.toml"]
    assert again == ["north", "south"]
    assert not folder.exists()


def test_the_head_runs_the_streams_with_the_flags(streams):
    """Words stay words, and a path from the home on stays the cluster's user's home."""
    read = [read_stream(path) for path in streams]
    line = entrypoint(read, ["--workdir", "~/work of mine", "--ca", "~/ca.crt"])
    assert "--workdir ~/'work of mine' --ca ~/ca.crt" in line
    assert shlex.split(line)[:6] == ["exec", "share-dist", "worker", "run", "streams/0/north.toml", "streams/1/south.toml"]  # fmt: skip


def test_changes_travel_with_the_job(send):
    """They are said to the head as they were said here; what cannot be used is refused before anything is sent."""
    jobs = FakeJobs([], "SUCCEEDED")
    assert send(jobs, "--resume", changes=("training.epochs=5", "model.layers=[0, 1]")) == 0
    words = shlex.split(jobs.entrypoint)
    assert words[-5:] == ["--set", "training.epochs=5", "--set", "model.layers=[0, 1]", "--resume"]
    unused = FakeJobs([], "SUCCEEDED")
    with pytest.raises(StreamError, match=r"training\.epochs: .*got 'many'"):
        send(unused, changes=("training.epochs=many",))
    assert not unused.entrypoint


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (("path = ", 'path = "models/small"'), "model.path"),
        (("source = ", 'source = { dataset = "rows", data_files = { train = "rows.csv" } }'), "data_files.train"),
        (("source = ", 'source = { dataset = "rows.csv" }'), "source.dataset"),
    ],
    ids=["model", "file", "data set"],
)  # fmt: skip
def test_a_path_beside_the_stream_is_refused(streams, given, word):
    """Nothing beside it is sent, so it would mean nothing there: the error names the key."""
    begins, instead = given
    lines = [instead if line.startswith(begins) else line for line in streams[0].read_text().splitlines()]  # fmt: skip
    streams[0].write_text("\n".join(lines))
    with pytest.raises(StreamError, match=word):
        submission.require_portable(read_stream(streams[0]))


def test_events_come_back_as_they_are(send, capsys):
    """Every event once and whole, whatever pieces the log comes in; other lines do not disturb."""
    jobs = FakeJobs([event("north"), "some other line", event("south")], "SUCCEEDED")
    assert send(jobs) == ExitCode.OK
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["worker_id"] for each in shown] == ["north", "south"]
    assert jobs.entrypoint.startswith("exec share-dist worker run")


def test_an_error_of_the_cluster_is_an_error_here(send):
    """The class, the message and the facts are those that the worker there ended with."""
    said = {"error": "StreamError", "message": "no rows here", "path": "north.toml", "task_id": "mood"}  # fmt: skip
    with pytest.raises(StreamError, match="no rows here") as raised:
        send(FakeJobs([json.dumps(said)], "FAILED"))
    assert raised.value.task_id == "mood"


def test_a_job_that_failed_without_a_word_says_its_last_lines(send):
    """A traceback, or what the shell said: the end of it is in the error."""
    with pytest.raises(WorkerError, match=r"(?s)it ended.*not found"):
        send(FakeJobs(["share-dist: not found"], "FAILED"))


def test_ctrl_c_stops_the_job_and_keeps_listening(send, capsys):
    """The job is told to stop, what it still says is shown once, and the exit code is that of Ctrl-C."""
    jobs = FakeJobs([event("north"), event("south")], "STOPPED", interrupted_at=105)
    assert send(jobs) == ExitCode.INTERRUPTED
    assert jobs.stopped
    shown = [json.loads(line)["worker_id"] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["north", "south"]


def test_a_way_that_is_lost_leaves_the_job_alone(send):
    """The error says that it goes on, and how to hear of it."""

    class Cut(FakeJobs):
        async def tail_job_logs(self, job):
            yield "{"
            raise RuntimeError("the connection was closed")

    jobs = Cut([], "RUNNING")
    with pytest.raises(WorkerError, match="job-1 goes on"):
        send(jobs)
    assert not jobs.stopped


def test_an_error_of_a_newer_release_is_still_an_error():
    """A class that is not known here becomes the general one, with its message."""
    assert type(error_of({"error": "Unheard", "message": "m"})) is WorkerError
    assert type(error_of({"error": "UnknownTask", "message": "m"})) is UnknownTask


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "--cluster or --dashboard"),
        (("--cluster", "a", "--dashboard", "b"), "--cluster or --dashboard"),
        (("--dashboard", "http://127.0.0.1:1"), "--coordinator"),
        (("--cluster", "/nowhere/cluster.yaml"), "cluster init"),
        (
            ("--dashboard", "http://127.0.0.1:1", "--coordinator", "a:1", "--ray-token-file", "/nowhere"),
            "/nowhere cannot be read",
        ),
    ],
)  # fmt: skip
def test_what_leads_to_no_cluster_is_said(streams, arguments, word):
    """With exit code 2 and what to give."""
    ended = share_dist("worker", "submit", streams[0], *arguments)
    assert (ended.code, word in ended.text) == (ExitCode.USAGE, True), ended.text


def test_a_yaml_of_somebody_else_is_refused(streams, tmp_path):
    """A cluster that was not planned here lacks what has to be known of it."""
    path = tmp_path / "cluster.yaml"
    path.write_text("cluster_name: other\nprovider: {type: local}\n")
    ended = share_dist("worker", "submit", streams[0], "--cluster", path)
    assert (ended.code, "is not as `share-dist cluster init` writes it" in ended.text) == (2, True)


def test_an_address_without_a_cluster_says_so(streams):
    """Nobody answers there: which address, and that it was about jobs."""
    with pytest.raises(ConfigError, match=r"no Ray cluster takes jobs at http://127\.0\.0\.1:9"):
        Submission(SubmitRequest(streams, "http://127.0.0.1:9", "", (), ())).run()

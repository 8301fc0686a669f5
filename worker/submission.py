"""Submission: streams sent to a cluster as a job of Ray, whose events come back."""

import asyncio
import json
import logging
import shlex
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from share_dist import errors
from share_dist.errors import ConfigError, ExitCode, ShareError, StreamError, WorkerError
from share_dist.launching.known import head_of, read_cluster
from share_dist.launching.plan import DASHBOARD_PORT
from share_dist.launching.shell import Shell
from worker.backbone import KIT_PREFIX
from worker.display import ProgressDisplay
from worker.stream import DatasetSource, TaskStream, read_stream

_LAST_LINES = 20
_PACKAGING = "_private.runtime_env.packaging"


@dataclass(frozen=True)
class SubmitRequest:
    """
    What ``worker submit`` was asked for.

    Args:
        streams: Stream files on this machine; only they are sent, and no row of a task.
        dashboard: URL of the cluster's dashboard, as this machine reaches it.
        token: Of Ray; empty where it asks for none.
        changes: ``section.key=value``, of all streams.
        flags: Of ``worker run`` on the cluster's head.
    """

    streams: tuple[Path, ...]
    dashboard: str
    token: str
    changes: tuple[str, ...]
    flags: tuple[str, ...]


@dataclass
class Submission:
    """
    One job: sent, followed to its end, and stopped by Ctrl-C.

    Args:
        request: What to run.
        as_json: Print events as JSON lines instead of a live table.
    """

    request: SubmitRequest
    as_json: bool = False
    _error: ShareError | None = None
    _num_taken: int = 0
    _last: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST_LINES))

    def run(self) -> ExitCode:
        """
        Send the job and follow it.

        Returns:
            The exit code: 0, or 130 after Ctrl-C.

        Raises:
            ShareError: What ended the job, as the cluster's own ``worker run`` said it.
        """
        changes = self.request.changes
        streams = [require_portable(read_stream(path, changes)) for path in self.request.streams]
        client = _connect(self.request)
        with (
            staged(streams) as folder,
            ProgressDisplay([each.worker_id for each in streams], as_json=self.as_json) as display,
        ):
            job = client.submit_job(
                entrypoint=entrypoint(streams, (*_set_flags(changes), *self.request.flags)),
                runtime_env={"working_dir": str(folder)},
            )
            display.say(f"job {job} runs on the cluster; Ctrl-C stops it")
            return self._follow(client, job, display)

    def _follow(self, client: Any, job: str, display: ProgressDisplay) -> ExitCode:
        try:
            asyncio.run(self._tail(client, job, display))
        except KeyboardInterrupt:
            display.say("stopping; the work in hand is kept")
            client.stop_job(job)
            # once more Ctrl-C leaves it to end by itself
            asyncio.run(self._tail(client, job, display))
        except (OSError, RuntimeError) as error:
            raise WorkerError(
                f"the way to the cluster was lost ({error}); job {job} goes on: `ray job logs {job}` on "
                "the head tells of it, and the same command with --resume goes on once it has ended"
            ) from error
        status = str(client.get_job_status(job))
        if status == "STOPPED":
            display.say("stopped; --resume goes on")
            return ExitCode.INTERRUPTED
        if status == "SUCCEEDED":
            return ExitCode.OK
        if self._error is not None:
            raise self._error
        said = client.get_job_info(job).message or ""
        lines = "\n".join(self._last)
        raise WorkerError(
            f"job {job} ended as {status}: {said}\nIts last lines:\n{lines}\nAll of them: "
            f"`ray job logs {job}` on the head"
        )

    async def _tail(self, client: Any, job: str, display: ProgressDisplay) -> None:
        # a log is told from its beginning each time
        line, rest, known = 0, "", self._num_taken
        async for piece in client.tail_job_logs(job):
            *lines, rest = (rest + piece).split("\n")
            for said in lines:
                line += 1
                if line > known:
                    self._num_taken = line
                    self._take(said, display)
        self._take(rest, display)

    def _take(self, line: str, display: ProgressDisplay) -> None:
        said = _parsed(line)
        if "event" in said:
            display.show([said])
        elif "error" in said:
            self._error = error_of(said)
        elif line.strip():
            self._last.append(line)


@contextmanager
def reached(
    cluster: Path | None,
    dashboard: str | None,
    token_file: Path | None,
    own: Mapping[str, str | None],
) -> Iterator[tuple[str, str, dict[str, str]]]:
    """
    Reach a cluster's dashboard for a while.

    Args:
        cluster: Its YAML; the way is ssh, and the token lies beside it.
        dashboard: Instead, the dashboard's URL.
        token_file: With it, the file with Ray's token.
        own: What of coordinator, ca, certificate and key was said.

    Returns:
        The dashboard's URL, the token, and ``own`` with the cluster's where nothing was said.

    Raises:
        ConfigError: Neither was given or both, a file cannot be read, or ssh does not get there.
    """
    said = {name: value for name, value in own.items() if value is not None}
    if (cluster is None) == (dashboard is None):
        raise ConfigError(
            "it is not clear which cluster: give --cluster or --dashboard, one of them",
            key="cluster",
        )
    if cluster is None:
        if "coordinator" not in said:
            raise ConfigError(
                "--coordinator is missing: give host:port, as the cluster's machines reach it",
                key="coordinator",
            )
        yield str(dashboard), _read_token(token_file) if token_file else "", said
        return
    known = read_cluster(cluster)
    kept = {"ca": "ca.crt", "certificate": "nodes.crt", "key": "nodes.key"}
    defaults = {"coordinator": known.coordinator}
    defaults |= {name: known.node_file(file) for name, file in kept.items()}
    token = _read_token(known.token)
    shell = Shell(known.ssh_user, known.ssh_key)
    with shell.port(head_of(known), DASHBOARD_PORT) as port:
        yield f"http://127.0.0.1:{port}", token, defaults | said


def _read_token(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): it has Ray's token, without which the cluster takes "
            "no job",
            key="ray_token_file",
        ) from error


def entrypoint(streams: Sequence[TaskStream], flags: Sequence[str]) -> str:
    """Return the command that the head runs, on the streams as they are staged."""
    files = [_place(index, stream) for index, stream in enumerate(streams)]
    return " ".join(
        (
            "exec share-dist worker run",
            *(shlex.quote(name) for name in files),
            "--ray-address auto --json",
            *(_quoted(flag) for flag in flags),
        )
    )


def _set_flags(changes: Sequence[str]) -> list[str]:
    return [part for change in changes for part in ("--set", change)]


def _quoted(flag: str) -> str:
    # a path from the user's home on is the cluster's user's, whose shell says where that is
    return f"~/{shlex.quote(flag[2:])}" if flag.startswith("~/") else shlex.quote(flag)


@contextmanager
def staged(streams: Sequence[TaskStream]) -> Iterator[Path]:
    """Copy the stream files, and nothing that lies beside them, into a folder for a while."""
    with tempfile.TemporaryDirectory(prefix="share-dist-") as name:
        folder = Path(name)
        for index, stream in enumerate(streams):
            place = folder / _place(index, stream)
            place.parent.mkdir(parents=True)
            shutil.copyfile(stream.path, place)
        yield folder


def _place(index: int, stream: TaskStream) -> str:
    # a worker may be named by its file
    return f"streams/{index}/{stream.path.name}"


def require_portable(stream: TaskStream) -> TaskStream:
    """
    Return a stream that means the same on another machine.

    Raises:
        StreamError: A path is relative to the stream's file, beside which nothing is sent.
    """
    paths = {"model.path": stream.model.path.removeprefix(KIT_PREFIX) and stream.model.path}
    for task in stream.tasks:
        source = task.source
        if not isinstance(source, DatasetSource) or source.package:
            continue
        files = source.data_files or {}
        paths |= {f"{task.id}.source.data_files.{name}": path for name, path in files.items()}
        if not files and (stream.folder / source.dataset).exists():
            paths[f"{task.id}.source.dataset"] = source.dataset
    for key, path in paths.items():
        if path and not path.startswith(KIT_PREFIX) and not Path(path).is_absolute():
            raise StreamError(
                f"{stream.path}: {key} is {path!r}, relative to this file, and only the file itself is "
                "sent: no row leaves its machine. Put the data on the cluster's machines and write "
                "where, from / on",
                path=str(stream.path),
            )
    return stream


def error_of(said: dict[str, Any]) -> ShareError:
    """
    Return the error that another ``share-dist`` has told of with ``--json``.

    Examples:
        >>> error_of({"error": "StreamError", "message": "no rows", "path": "a.toml"}).path
        'a.toml'
    """
    kind = getattr(errors, str(said["error"]), WorkerError)
    details = {name: said[name] for name in kind.fields if said.get(name) is not None}
    error: ShareError = kind(str(said.get("message", "")), **details)
    return error


def _parsed(line: str) -> dict[str, Any]:
    if not line.startswith("{"):
        return {}
    try:
        said = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return said if isinstance(said, dict) else {}


def _connect(request: SubmitRequest) -> Any:
    from ray.job_submission import JobSubmissionClient

    for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", _PACKAGING):
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)
    headers = {"Authorization": f"Bearer {request.token}"} if request.token else None
    try:
        return JobSubmissionClient(request.dashboard, headers=headers)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"no Ray cluster takes jobs at {request.dashboard}: {error}", key="dashboard"
        ) from error

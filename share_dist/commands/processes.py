"""Child processes that a command starts, watches over and never leaves behind."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, final

from share_dist.errors import WorkerError

_PR_SET_PDEATHSIG = 1


def share_dist_command(*arguments: object) -> list[str]:
    """Make the command line of another `share-dist`, in this interpreter."""
    return [sys.executable, "-m", "share_dist", *(str(argument) for argument in arguments)]


@final
class Child:
    """
    A process of its own session: Ctrl-C in the terminal reaches it only through its parent.

    Args:
        name: What to call it in messages.
        command: Its command line.
        log: File that its output is appended to; None for the parent's own.
        stdout: Where its output goes when there is no log.
        environment: Added to the parent's.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path | None = None,
        stdout: IO[str] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self.command = command
        self.log = log
        output = log.open("ab") if log is not None else stdout
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own command line
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if log is not None else None,
                env=os.environ | (environment or {}),
                start_new_session=True,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - started before any thread
            )
        finally:
            if log is not None and output is not None:
                output.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; below zero when a signal ended it."""
        return self._process.poll()

    def wait(self, seconds: float) -> bool:
        """Wait for its end at most so long; tell whether it has ended."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def interrupt(self) -> None:
        """Ask it to stop, as Ctrl-C does."""
        if self.exit_code is None:
            self._process.send_signal(signal.SIGINT)

    def stop(self, grace_seconds: float = 30.0) -> None:
        """Ask it to end, and kill it when it does not in time."""
        if self.exit_code is None:
            self._process.terminate()
            if not self.wait(grace_seconds):
                self._process.kill()
                self._process.wait()

    def last_words(self, lines: int = 15) -> str:
        """The end of its log."""
        if self.log is None or not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def wait_for_file(path: Path, child: Child, seconds: float) -> str:
    """
    Wait until a child has written a file, and read it.

    Raises:
        WorkerError: The child ended before, or took too long.
    """
    give_up = time.monotonic() + seconds
    while not (path.exists() and path.read_text().strip()):
        if child.exit_code is not None:
            raise WorkerError(
                f"{child.name} ended with {child.exit_code} before it was ready; "
                f"its log is {child.log}, and ends with:\n{child.last_words()}"
            )
        if time.monotonic() > give_up:
            raise WorkerError(
                f"{child.name} was not ready after {seconds:.0f} s; its log is {child.log}"
            )
        time.sleep(0.05)
    return path.read_text().strip()


def end_with_parent() -> None:
    """Let this process get SIGTERM when its parent ends: one that is killed cannot stop its children. On Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

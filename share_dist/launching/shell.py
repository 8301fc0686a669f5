"""Shells on a cluster's machines, and ports of theirs on this one, over ssh."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from share_dist.errors import ConfigError

CONNECT_SECONDS = 10

_FORWARD_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Shell:
    """
    How a cluster's machines are logged in to: as ``ray up`` does it, and never with a question.

    Args:
        user: Who logs in.
        key: With which private key; None for ssh's own choice.
    """

    user: str
    key: Path | None

    def command(self, host: str, *arguments: str) -> list[str]:
        """
        Make the command line of ssh to a host.

        Raises:
            ConfigError: There is no ssh here.
        """
        if shutil.which("ssh") is None:
            raise ConfigError(
                "ssh is not installed here, and is the way to the machines: install OpenSSH's client",
                key="cluster",
            )
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "ConnectTimeout": str(CONNECT_SECONDS),
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "3",
            "ExitOnForwardFailure": "yes",
        }
        said = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        own = ["-i", str(self.key), "-o", "IdentitiesOnly=yes"] if self.key else []
        return ["ssh", *own, *said, f"{self.user}@{host}", *arguments]

    def run(
        self, host: str, command: str, given: str, seconds: float
    ) -> "subprocess.CompletedProcess[str]":
        """
        Run a command there.

        Args:
            host: Where.
            command: For the shell of the user.
            given: What it reads.
            seconds: How long it may take; one that takes longer ends with 124.
        """
        try:
            return subprocess.run(  # noqa: S603 - our own command line
                self.command(host, command),
                input=given,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            said = f"no answer in {seconds:.0f} s"
            return subprocess.CompletedProcess([], 124, "", said)

    @contextmanager
    def port(self, host: str, port: int, at: str = "127.0.0.1") -> Iterator[int]:
        """
        Have a port of a machine on this one's loopback.

        Args:
            host: The machine that is logged in to.
            port: The port.
            at: Address that it listens on, as that machine says it.

        Raises:
            ConfigError: ssh does not get there.
        """
        own = _free_port()
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(  # noqa: S603 - our own command line
                self.command(host, "-N", "-L", f"127.0.0.1:{own}:{at}:{port}"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                # Ctrl-C ends what goes over this port first
                start_new_session=True,
            )
            try:
                if not _opens(own, process):
                    said.seek(0)
                    raise ConfigError(
                        f"ssh to {self.user}@{host} gives no way to its port {port}: "
                        f"{said.read().strip() or 'it took too long'}; `share-dist doctor --cluster` "
                        "says more",
                        key="cluster",
                    )
                yield own
            finally:
                process.terminate()
                process.wait()


def _opens(port: int, process: "subprocess.Popen[bytes]") -> bool:
    give_up = time.monotonic() + _FORWARD_SECONDS
    while process.poll() is None and time.monotonic() < give_up:
        with socket.socket() as caller:
            if caller.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.05)
    return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])

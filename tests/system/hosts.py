"""
Machines inside this one: own process spaces, own homes, own sshd, and where it may be own addresses.

```
        switch (a bridge in a network of its own)
    ┌──────────┼───────────┬───────────┐
 launcher     head      worker      worker         10.77.0.10, .11, .12, .13
                                                   or, on loopback, 127.0.0.10 ... with sshd on 2222
```

All that is mounted, routed and started lives in namespaces, so that it ends with its processes,
and those end with this one.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

from typing_extensions import Self

Form: TypeAlias = Literal["namespaces", "loopback"]

REPOSITORY = Path(__file__).parents[2]
SSH_PORT = 2222
LAUNCHER = 0

_PR_SET_PDEATHSIG = 1
_NEEDED = ("unshare", "nsenter", "ip", "sshd", "ssh", "ssh-keygen", "rsync", "pgrep", "setsid")
_PATH = (
    f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

# Everything in here happens in the namespaces of one machine. The shared folder is looked at
# through a private /tmp; HOME has one name everywhere, and is each machine's own.
_INIT = """
set -e
mount --make-rprivate /
mount -t proc proc /proc
mkdir -p {own}/home/.ssh
mount -t tmpfs tmpfs /run && mkdir /run/sshd
at=0; for kept in {kept}; do at=$((at + 1)); mkdir -p /run/kept$at && mount --bind $kept /run/kept$at; done
mount -t tmpfs -o mode=1777 tmpfs /tmp
at=0; for kept in {kept}; do at=$((at + 1)); mkdir -p $kept && mount --move /run/kept$at $kept; done
mount -t tmpfs -o mode=1777,size=1g tmpfs /dev/shm
mkdir -p {shared}/home && mount --bind {own}/home {shared}/home
sed 's#^root:.*#root:x:0:0:root:{shared}/home:/bin/bash#' /etc/passwd >{own}/passwd
mount --bind {own}/passwd /etc/passwd
mount --bind {own}/hosts /etc/hosts
hostname {name}
sshd=$(PATH={path} command -v sshd)
"$sshd" -D -E {own}/sshd.log -p {port} {listen} -h {shared}/host_key -o UsePAM=no -o PidFile=none \
  -o SetEnv=PYTHONPATH={repository} -o PermitRootLogin=prohibit-password -o StrictModes=no -o AuthorizedKeysFile={shared}/id.pub &
touch {own}/ready
# orphans are waited for, as the first process of a machine does
while :; do wait || true; sleep 0.2; done
"""


def _kept(shared: Path) -> list[Path]:
    """Folders that every machine sees where they are, also below its own /tmp."""
    own = [each for each in (REPOSITORY, Path(sys.prefix)) if each.is_relative_to("/tmp")]
    apart = [
        each
        for each in own
        if not any(each != other and each.is_relative_to(other) for other in own)
    ]
    return [shared, *dict.fromkeys(apart)]


def missing() -> list[str]:
    """Programs that machines are made of and that are not here."""
    return [name for name in _NEEDED if shutil.which(name, path=_PATH) is None]


@cache
def form() -> Form | None:
    """What this machine allows: machines with addresses of their own, or on loopback, or none."""
    if missing() or os.geteuid() != 0:
        return None
    own = "mount --make-rprivate / && mount -t tmpfs tmpfs /run && mount -t proc proc /proc"
    wired = f"{own} && ip link add one type veth peer name two && ip link add three type bridge"
    if _can("--net", wired):
        return "namespaces"
    return "loopback" if _can("", own) else None


def _can(more: str, script: str) -> bool:
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc"]
    ended = subprocess.run(
        [*command, *more.split(), "bash", "-c", script],
        capture_output=True,
        env={"PATH": _PATH},
        check=False,
    )
    return ended.returncode == 0


class Hosts:
    """
    So many machines beside a launcher, which is number 0.

    Args:
        folder: That all of them see.
        count: Machines that sshd runs on, the launcher not among them.
        form: How they are made.
    """

    def __init__(self, folder: Path, count: int, form: Form) -> None:
        self.folder, self.form = folder, form
        self._processes: list[subprocess.Popen[bytes]] = []
        network = "10.77.0" if form == "namespaces" else "127.0.0"
        self.addresses = [f"{network}.{10 + index}" for index in range(count + 1)]

    @property
    def key(self) -> Path:
        """The private key that every machine lets in."""
        return self.folder / "id"

    def __enter__(self) -> Self:
        for name in ("id", "host_key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name],
                check=True,
            )
        if self.form == "namespaces":
            switch = self._start("unshare", "--net", "--fork", "--kill-child", "sleep", "infinity")
            self._switch = _child_of(switch)
            self._ip(self._switch, "link add br0 type bridge")
            self._ip(self._switch, "link set br0 up")
        for index in range(len(self.addresses)):
            self._boot(index)
        return self

    def __exit__(self, *_: object) -> None:
        # a machine's first process takes all others along
        for process in self._processes:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def run(
        self, index: int, command: str, seconds: float = 120.0, check: bool = True
    ) -> "subprocess.CompletedProcess[str]":
        """Run a shell's command line on a machine, as its user after a login."""
        ended = subprocess.run(
            self.command(index, command),
            capture_output=True,
            text=True,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
            env={"PATH": _PATH},
            check=False,
        )
        if check:
            assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
        return ended

    def command(self, index: int, command: str) -> list[str]:
        """The command line, on this machine, of one on another."""
        inside = ["--net"] if self.form == "namespaces" else []
        enter = ["nsenter", "-t", str(_child_of(self._machine(index))), "--pid", "--mount", "--uts"]
        # what is tested is what runs there, whatever is installed
        variables = [
            f"HOME={self.folder}/home",
            f"PATH={_PATH}",
            f"PYTHONPATH={REPOSITORY}",
            "LANG=C.UTF-8",
        ]
        return [*enter, "--ipc", *inside, "env", "-i", *variables, "bash", "-c", f"cd; {command}"]

    def processes(self, index: int) -> list[str]:
        """Command lines of all that runs on a machine, but for its first process and sshd."""
        listed = self.run(index, "ps -eo args --no-headers").stdout.splitlines()
        ours = (
            "bash -c",
            "ps -eo",
            "/usr/sbin/sshd",
            "sshd:",
            "sleep 0.2",
            "bash " + str(self.folder),
        )
        return [line for line in listed if not line.startswith(ours)]  # fmt: skip

    def cut(self, index: int) -> None:
        """Pull a machine's cable."""
        self._ip(self._switch, f"link set port{index} down")

    def heal(self, index: int) -> None:
        """Put it back."""
        self._ip(self._switch, f"link set port{index} up")

    def _machine(self, index: int) -> "subprocess.Popen[bytes]":
        return self._processes[index + (self.form == "namespaces")]

    def _boot(self, index: int) -> None:
        own = self.folder / f"host{index}"
        (own / "home/.ssh").mkdir(parents=True)
        # Ray has no word for a port of ssh; ssh itself has
        ports = f"Host 127.0.0.*\n  Port {SSH_PORT}\n" if self.form == "loopback" else ""
        (own / "home/.ssh/config").write_text(ports)
        (own / "hosts").write_text(
            "127.0.0.1 localhost\n"
            + "".join(f"{address} host{at}\n" for at, address in enumerate(self.addresses))
        )
        has_net = self.form == "namespaces"
        init = own / "init.sh"
        init.write_text(
            _INIT.format(
                own=own,
                shared=self.folder,
                kept=" ".join(map(str, _kept(self.folder))),
                repository=REPOSITORY,
                name=f"host{index}",
                path=_PATH,
                port=22 if has_net else SSH_PORT,
                listen="" if has_net else f"-o ListenAddress={self.addresses[index]}",
            )
        )
        spaces = ["--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc"]
        started = self._start("unshare", *spaces, *(["--net"] if has_net else []), "bash", init)
        inside = _child_of(started)
        if has_net:
            self._wire(index, inside)
        _wait_for(own / "ready", started, own / "init.log")

    def _wire(self, index: int, inside: int) -> None:
        port, address = f"port{index}", self.addresses[index]
        self._ip(self._switch, f"link add {port} type veth peer name eth0 netns {inside}")
        self._ip(self._switch, f"link set {port} master br0 up")
        self._ip(inside, "link set lo up")
        self._ip(inside, f"addr add {address}/24 dev eth0")
        self._ip(inside, "link set eth0 up")
        # nobody answers there: Ray finds a machine's own address by its default route
        self._ip(inside, "route add default via 10.77.0.1")

    def _ip(self, pid: int, command: str) -> None:
        enter = ["nsenter", "-t", str(pid), "--net", "ip", *command.split()]
        subprocess.run(enter, check=True, env={"PATH": _PATH})

    def _start(self, *command: object) -> "subprocess.Popen[bytes]":
        log = self.folder / f"machine{len(self._processes)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(each) for each in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"PATH": _PATH},
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - it makes one call of the system
            )
        self._processes.append(process)
        return process


def _child_of(process: "subprocess.Popen[bytes]") -> int:
    """The one process that ``unshare`` started in the new space."""
    deadline = time.monotonic() + 20
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (found := children.read_text().split()):
        assert process.poll() is None, process.args
        assert time.monotonic() < deadline, process.args
        time.sleep(0.01)
    return int(found[0])


def _wait_for(path: Path, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert process.poll() is None, log
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

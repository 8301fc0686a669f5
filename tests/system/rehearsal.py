"""
A cluster rehearsed on one machine: three machines inside it, and a shell on a fourth that launches.

`python -m tests.system.rehearsal` opens the shell. With `--write` it types what a newcomer types
who follows `deploy/README.md`, and writes what was printed into that page.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.deploy.examples import DEPLOY
from tests.system import hosts
from tests.system.cluster import write_stream
from tests.system.hosts import LAUNCHER, REPOSITORY, Hosts
from tests.worker import toys

PAGE = DEPLOY / "README.md"
NUM_MACHINES = 3

TYPED = (
    "share-dist cluster init --target local --head {1} --worker {2} --worker {3} --ssh-user root --ssh-key ~/.ssh/id --environment {environment} --output north --name north",
    "share-dist doctor --cluster north/cluster.yaml",
    "ray up -y --no-config-cache north/cluster.yaml",
    "share-dist doctor --cluster north/cluster.yaml --wait 120",
    "share-dist worker submit north.toml south.toml --cluster north/cluster.yaml",
    "share-dist tasks -c {1}:50551 --ca north/ca.crt --certificate north/operator.crt --key north/operator.key",
    "ray down -y north/cluster.yaml",
)
"""What a newcomer types; numbers stand for the addresses of head and workers."""

_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")

_NOISE = re.compile(
    r"^(Shared connection|Warning: Permanently added|bash: .*\.bashrc|sending incremental|total size|sent \d|id -> |\./$|\s*$)|load average|"
    r"node_provider\.py|VINFO|INFO (updater|cli_output_helpers|usage_lib|command_runner)"
)
"""Lines of `ray up` and `ray down` that are about its own steps and say nothing to a reader."""


def main() -> None:
    """Open the shell, or write the transcript."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--form", choices=("loopback", "namespaces"), default="loopback")
    parser.add_argument("--write", action="store_true", help="write the transcript into the page")
    asked = parser.parse_args()
    if missing := hosts.missing():
        sys.exit(f"{', '.join(missing)} missing: install openssh-server, iproute2 and rsync")
    if hosts.form() is None:
        sys.exit("this machine allows no process spaces of one's own: be root, outside a container")
    with (
        tempfile.TemporaryDirectory(prefix="rehearsal-") as name,
        Hosts(Path(name), NUM_MACHINES, asked.form) as machines,
    ):
        _furnish(machines)
        if asked.write:
            _write(_transcript(machines))
        else:
            print(f"the head is {machines.addresses[1]}, the workers {', '.join(machines.addresses[2:])}; exit ends all")  # fmt: skip
            subprocess.run(machines.command(LAUNCHER, "exec bash -i"), check=False)


def _furnish(machines: Hosts) -> None:
    """Give the launcher a key, and two streams whose rows and model every machine sees."""
    home = machines.folder / f"host{LAUNCHER}/home"
    (home / ".ssh/id").symlink_to(machines.key)
    model = toys.make_model(machines.folder / "model")
    for worker_id, topic in (("north", "mood"), ("south", "food")):
        write_stream(machines.folder, model, worker_id, topic).rename(home / f"{worker_id}.toml")


def _transcript(machines: Hosts) -> str:
    addresses, parts = machines.addresses, []
    for line in TYPED:
        typed = line.format(*addresses, environment=Path(sys.executable).parents[1])
        ended = subprocess.run(
            machines.command(LAUNCHER, f"COLUMNS=150 {typed} 2>&1"),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        said = [_told(each, machines) for each in ended.stdout.splitlines()]
        shown = [each for each in said if not _NOISE.search(each)]
        print("\n".join(shown))
        parts += [f"launcher$ {_told(typed, machines)}", *shown]
        assert ended.returncode == 0, ended.stdout
    return "\n".join(parts)


def _told(line: str, machines: Hosts) -> str:
    """A line without colours, and with the names that the paths would have elsewhere."""
    names = {
        str(machines.folder / "home"): "~",
        str(machines.folder): "/rehearsal",
        str(Path(sys.executable).parents[1]): "/opt/share-dist",
        str(REPOSITORY): "/opt",
    }
    for path, name in names.items():
        line = line.replace(path, name)
    return _ESCAPES.sub("", line).rstrip()


def _write(transcript: str) -> None:
    block = re.compile(r"(<!-- transcript -->\n).*?(<!-- end of transcript -->)", re.DOTALL)
    text, count = block.subn(lambda found: f"{found[1]}```\n{transcript}\n```\n{found[2]}", PAGE.read_text())  # fmt: skip
    assert count == 1, f"{PAGE} has {count} places for a transcript"
    PAGE.write_text(text)


if __name__ == "__main__":
    main()

"""A cluster on machines inside this one, started by `ray up` with what `cluster init` wrote."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.system import hosts
from tests.system.hosts import LAUNCHER, Hosts
from tests.worker import toys

NAME = "share-dist"
HEAD = 1
ENVIRONMENT = Path(sys.executable).parents[1]


class RayUp:
    """
    What a person does on the machine that launches, and what is then on the others.

    Args:
        machines: The launcher, the head, the workers.
    """

    def __init__(self, machines: Hosts) -> None:
        self.hosts = machines
        self.folder = machines.folder / "cluster"
        self.yaml = self.folder / "cluster.yaml"

    @property
    def workers(self) -> list[int]:
        return list(range(HEAD + 1, len(self.hosts.addresses)))

    @property
    def address(self) -> str:
        """Of the coordinator."""
        return f"{self.hosts.addresses[HEAD]}:50551"

    @property
    def shown(self) -> str:
        """The flags of a command that asks the coordinator, as its operator."""
        files = f"--ca {self.folder}/ca.crt --certificate {self.folder}/operator.crt"
        return f"-c {self.address} {files} --key {self.folder}/operator.key"

    def launcher(self, command: str, seconds: float = 300.0, check: bool = True) -> Any:
        """Type a command on the launcher."""
        return self.hosts.run(LAUNCHER, command, seconds, check=check)

    def json(self, command: str) -> Any:
        """What a command says to a program."""
        ended = self.launcher(f"{command} --json", check=False)
        assert ended.stdout, ended.stderr
        return json.loads(ended.stdout)

    def init(self) -> None:
        """Write the files."""
        workers = " ".join(f"--worker {self.hosts.addresses[index]}" for index in self.workers)
        self.launcher(
            f"share-dist cluster init --target local --head {self.hosts.addresses[HEAD]} {workers} "
            f"--ssh-user root --ssh-key {self.hosts.key} --output {self.folder} "
            f"--environment {ENVIRONMENT}"
        )

    def up(self) -> None:
        """Start the cluster, and wait for its workers."""
        self.launcher(f"ray up -y --no-config-cache {self.yaml}")
        wanted = {self.hosts.addresses[index] for index in (HEAD, *self.workers)}
        wait_until(lambda: self.alive() == wanted, f"all of {sorted(wanted)}")

    def alive(self) -> set[str]:
        """Machines that Ray's head counts."""
        script = f". ~/.share-dist/{NAME}/nodes/env.sh && ray list nodes --format json --limit 1000"
        ended = self.hosts.run(HEAD, script, check=False)
        if ended.returncode:
            return set()
        listed = json.loads(ended.stdout)
        return {each["node_ip"] for each in listed if each["state"] == "ALIVE"}

    def down(self) -> None:
        """End the cluster, and wait until nothing of it runs anywhere."""
        self.launcher(f"ray down -y {self.yaml}")
        wait_until(lambda: not any(self.left().values()), "the end of all processes", self.left)

    def left(self) -> dict[int, list[str]]:
        """What runs on each machine of the cluster."""
        return {index: self.hosts.processes(index) for index in (HEAD, *self.workers)}


@contextmanager
def ray_up(folder: Path, num_workers: int, form: hosts.Form) -> Iterator[RayUp]:
    """Machines for a while, with a cluster that is planned and not yet started."""
    with Hosts(folder, num_workers + 1, form) as machines:
        cluster = RayUp(machines)
        cluster.init()
        yield cluster


def require_form() -> hosts.Form:
    """
    How machines can be made here.

    Where they could be made and a program is missing the test fails; where this machine forbids
    them it says that it did not run.
    """
    if missing := hosts.missing():
        pytest.fail(f"not run: {', '.join(missing)} missing; `make system-packages` as root")
    found = hosts.form()
    if found is None:
        pytest.skip(
            "NOT RUN: this machine allows no process spaces of one's own (or this is not root)"
        )
    return found


def write_stream(folder: Path, model: Path, worker_id: str, topic: str, training: str = "") -> Path:
    """A small real stream whose rows lie on disk, where every machine has them under one path."""
    text = toys.stream_text(model, worker_id, (topic,), training)
    rows = toys.sentences(topic, 160, seed=1)
    datasets.Dataset.from_dict(
        {"text": [row[0] for row in rows], "label": [row[1] for row in rows]}
    ).save_to_disk(folder / topic)
    source = f'entry_point = "tests.worker.toys:topic", arguments = {{ name = "{topic}" }}'
    path = folder / f"{worker_id}.toml"
    path.write_text(text.replace(source, f'dataset = "{folder / topic}"'))
    return path


def wait_until(
    is_so: Callable[[], Any],
    what: str,
    seen: Callable[[], object] = lambda: "",
    seconds: float = 240.0,
) -> None:
    """Wait for what will surely come; the limit only ends a test that has failed."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"{what} did not come in {seconds:.0f} s: {seen()}"
        time.sleep(0.5)

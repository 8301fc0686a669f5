"""`share-dist cluster`: the files by which a cluster is launched."""

import os
import platform
import stat
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from share_dist.commands.console import JsonOption, show
from share_dist.commands.files import PRIVATE, PUBLIC, write_whole
from share_dist.errors import ConfigError
from share_dist.launching import plan as plans
from share_dist.launching.plan import Pins, Plan, Target

app = typer.Typer(
    help="Write what launches a cluster.", no_args_is_help=True, rich_markup_mode=None
)

_EXECUTABLE: Final = 0o755
_LARGEST_CLUSTER: Final = 10_000

_INSTANCES: Final = {
    ("aws", True): ("m7i.xlarge", "g5.xlarge"),
    ("aws", False): ("m7i.xlarge", "m7i.2xlarge"),
    ("gcp", True): ("n2-standard-4", "g2-standard-8"),
    ("gcp", False): ("n2-standard-4", "n2-standard-8"),
}
"""Cloud, whether workers have accelerators -> machine types of the head and of a worker."""


@app.callback()
def _group() -> None:
    """Write what launches a cluster."""


@app.command()
def init(
    target: Annotated[str | None, typer.Option("--target", help="local (given hosts), aws, gcp, kuberay, compose or systemd.", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Folder for the files. [default: NAME]", show_default=False)] = None,
    name: Annotated[str, typer.Option("--name", help="What the cluster is called.")] = "share-dist",
    head: Annotated[str | None, typer.Option("--head", help="local, systemd: host of the head and the coordinator, as the workers reach it.", show_default=False)] = None,
    worker: Annotated[list[str] | None, typer.Option("--worker", help="local: host of a worker; once for each. None: the head works.", show_default=False)] = None,
    num_workers: Annotated[int | None, typer.Option("--num-workers", min=1, max=_LARGEST_CLUSTER, help="Elsewhere: how many workers, one worker for each accelerator. [default: 2]", show_default=False)] = None,
    gpus: Annotated[int, typer.Option("--gpus", min=0, max=64, help="Accelerators of each worker's machine; 0 for none, or for what Ray finds.")] = 0,
    ssh_user: Annotated[str | None, typer.Option("--ssh-user", help="local, aws, gcp: who logs in.", show_default=False)] = None,
    ssh_key: Annotated[Path | None, typer.Option("--ssh-key", help="local: private key of that user.", show_default=False)] = None,
    store: Annotated[str | None, typer.Option("--store", help="Folder of the coordinator's store, on its machine. [default: ~/share-dist-store; systemd: /var/lib/NAME]", show_default=False)] = None,
    environment: Annotated[str | None, typer.Option("--environment", help="A Python environment that every machine has already. [default: one is made; systemd: /opt/share-dist]", show_default=False)] = None,
    package: Annotated[str | None, typer.Option("--package", help="What pip installs as share-dist there. [default: this release]", show_default=False)] = None,
    region: Annotated[str | None, typer.Option("--region", help="aws: region, such as eu-west-1; gcp: zone, such as europe-west1-b.", show_default=False)] = None,
    project: Annotated[str | None, typer.Option("--project", help="gcp: project.", show_default=False)] = None,
    instance: Annotated[str | None, typer.Option("--instance", help="aws, gcp: machine type of a worker.", show_default=False)] = None,
    head_instance: Annotated[str | None, typer.Option("--head-instance", help="aws, gcp: machine type of the head.", show_default=False)] = None,
    image: Annotated[str | None, typer.Option("--image", help="kuberay, compose: name of the image that is built from the Dockerfile. [default: NAME:RELEASE]", show_default=False)] = None,
    port: Annotated[int, typer.Option("--port", min=1024, max=65535, help="That the coordinator listens on.")] = plans.COORDINATOR_PORT,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there; authority and token stay.")] = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """
    Write the files that launch a cluster, with this machine's versions of Python, Ray and share-dist.

    What is missing is asked for, on a terminal. Ray's token, the keys and the certificates
    are made along with them, in files that only you may read; ca.key stays on this machine.
    """
    answers = _Answers(as_json=as_json)
    target = answers.of(target, "target", f"Where shall it run ({', '.join(plans.TARGETS)})?")
    if target not in plans.TARGETS:
        raise ConfigError(
            f"{target!r} is no target: give --target as one of {', '.join(plans.TARGETS)}",
            key="target",
        )
    given: dict[str, Any] = {
        "head": head,
        "workers": worker,
        "num_workers": num_workers,
        "ssh_user": ssh_user,
        "ssh_key": ssh_key,
        "store": store,
        "environment": environment,
        "package": package,
        "region": region,
        "project": project,
        "instance": instance,
        "head_instance": head_instance,
        "image": image,
    }
    folder = (output or Path(name)).expanduser().resolve()
    plan = _plan(target, plans.require_name(name), folder, gpus, port, given, answers)
    written = _write(plan, folder, force=force)
    told = {"target": target, "folder": folder, "coordinator": plan.address, "files": written}
    show(told, as_json=as_json, table=lambda: _told(plan, folder, written))


class _Answers:
    """What was not said is asked for, where somebody can answer."""

    def __init__(self, *, as_json: bool) -> None:
        self._can_ask = not as_json and sys.stdin.isatty()

    def of(self, given: Any, key: str, question: str, default: str | None = None) -> str:
        if given is not None:
            return str(given)
        if self._can_ask:
            return str(typer.prompt(question, default=default, err=True)).strip()
        if default is not None:
            return default
        raise ConfigError(
            f"--{key.replace('_', '-')} is missing, and nobody is here to be asked: {question}",
            key=key,
        )


def _plan(
    target: Target,
    name: str,
    folder: Path,
    gpus: int,
    port: int,
    given: dict[str, Any],
    answers: _Answers,
) -> Plan:
    _require_meant(target, given)
    common: dict[str, Any] = {
        "target": target,
        "name": name,
        "pins": own_pins(),
        "folder": plans.require_path(str(folder), "output"),
        "gpus": gpus,
        "port": port,
        "package": plans.require_word(given["package"], "package") if given["package"] else "",
        "environment": (
            plans.require_path(given["environment"], "environment") if given["environment"] else ""
        ),
        "store": plans.require_path(given["store"] or "~/share-dist-store", "store"),
    }
    common |= _OF_TARGET[target](target, name, gpus, given, answers)
    return Plan(**common)


def _local(
    target: Target, name: str, gpus: int, given: dict[str, Any], answers: _Answers
) -> dict[str, Any]:
    del target, name, gpus
    head = plans.require_host(
        answers.of(given["head"], "head", "Host of the head and the coordinator?"), "head"
    )
    workers = given["workers"]
    if workers is None:
        workers = answers.of(
            None, "worker", "Hosts of the workers, with spaces between (none: the head works)?", ""
        ).split()
    workers = plans.require_hosts(head, workers)
    user = plans.require_user(answers.of(given["ssh_user"], "ssh_user", "Who logs in there?"))
    key = Path(answers.of(given["ssh_key"], "ssh_key", "File of that user's private key?"))
    return {
        "head": head,
        "workers": workers,
        "num_workers": len(workers),
        "ssh_user": user,
        "ssh_key": str(_require_key(key.expanduser().absolute())),
    }


def _cloud(
    target: Target, name: str, gpus: int, given: dict[str, Any], answers: _Answers
) -> dict[str, Any]:
    question = "Which zone?" if target == "gcp" else "Which region?"
    region = plans.require_word(answers.of(given["region"], "region", question), "region")
    if target == "gcp" and region.count("-") != 2:
        raise ConfigError(
            f"{region!r} is no zone of gcp: give --region such as europe-west1-b", key="region"
        )
    project = (
        plans.require_word(answers.of(given["project"], "project", "Which project?"), "project")
        if target == "gcp"
        else ""
    )
    head_instance, instance = _INSTANCES[target, bool(gpus)]
    return {
        # the machines' addresses are not known yet: each is told the head's under this name
        "head": f"coordinator.{name}.internal",
        "num_workers": given["num_workers"] or 2,
        "ssh_user": plans.require_user(given["ssh_user"] or "ubuntu"),
        "region": region,
        "project": project,
        "instance": plans.require_word(given["instance"] or instance, "instance"),
        "head_instance": plans.require_word(
            given["head_instance"] or head_instance, "head_instance"
        ),
    }


def _containers(
    target: Target, name: str, gpus: int, given: dict[str, Any], answers: _Answers
) -> dict[str, Any]:
    del gpus, answers
    return {
        "head": f"{name}-coordinator" if target == "kuberay" else "coordinator",
        "num_workers": given["num_workers"] or 2,
        "image": plans.require_word(given["image"] or f"{name}:{version('share-dist')}", "image"),
    }


def _systemd(
    target: Target, name: str, gpus: int, given: dict[str, Any], answers: _Answers
) -> dict[str, Any]:
    del target, gpus
    question = "Host of the coordinator, as the workers reach it?"
    store = given["store"] or f"/var/lib/{name}"
    if Path(store).parent != Path("/var/lib"):
        raise ConfigError(
            f"{store} is no folder that systemd keeps for a service: give --store /var/lib/NAME",
            key="store",
        )
    return {
        "head": plans.require_host(answers.of(given["head"], "head", question), "head"),
        "store": store,
        "environment": plans.require_path(given["environment"] or "/opt/share-dist", "environment"),
    }


_OF_TARGET: Final = {
    "local": _local,
    "aws": _cloud,
    "gcp": _cloud,
    "kuberay": _containers,
    "compose": _containers,
    "systemd": _systemd,
}

_MEANT: Final[dict[str, frozenset[str]]] = {
    "local": frozenset({"head", "workers", "ssh_user", "ssh_key", "store", "environment", "package"}),
    "aws": frozenset({"num_workers", "ssh_user", "store", "environment", "package", "region", "instance", "head_instance"}),
    "gcp": frozenset({"num_workers", "ssh_user", "store", "environment", "package", "region", "project", "instance", "head_instance"}),
    "kuberay": frozenset({"num_workers", "package", "image"}),
    "compose": frozenset({"num_workers", "package", "image"}),
    "systemd": frozenset({"head", "store", "environment"}),
}  # fmt: skip
"""Target -> what can be said of it."""


def _require_meant(target: Target, given: dict[str, Any]) -> None:
    for key, value in given.items():
        if value is not None and key not in _MEANT[target]:
            flag = "worker" if key == "workers" else key
            raise ConfigError(
                f"--{flag.replace('_', '-')} says nothing of {target}: leave it out", key=flag
            )


def own_pins() -> Pins:
    """
    Return the versions of this machine.

    Raises:
        ConfigError: Ray is not here, so that its version cannot be pinned.
    """
    try:
        ray = version("ray")
    except PackageNotFoundError as error:
        raise ConfigError(
            "Ray is not installed here, and machines must have the version that submits: "
            "pip install 'share-dist[worker]'",
            key="ray",
        ) from error
    return Pins(
        platform.python_version(), ray, version("torch").partition("+")[0], version("share-dist")
    )


def _require_key(path: Path) -> Path:
    try:
        text = path.read_text(encoding="ascii")
        mode = stat.S_IMODE(path.stat().st_mode)
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(
            f"{path} cannot be read ({said}): give --ssh-key the private key with which "
            "you log in to the machines",
            key="ssh_key",
        ) from error
    if "PRIVATE KEY-----" not in text:
        raise ConfigError(
            f"{path} is no private key, which has a line with PRIVATE KEY-----: give --ssh-key, "
            "not its .pub",
            key="ssh_key",
        )
    if mode & 0o077:
        raise ConfigError(
            f"{path} can be read by others ({mode:o}), and ssh does not use such a key: "
            f"chmod 600 {path}",
            key="ssh_key",
        )
    return path


# --- writing ------------------------------------------------------------------------------------


def _write(plan: Plan, folder: Path, *, force: bool) -> list[str]:
    from share_dist import certificates
    from share_dist.launching.render import render
    from share_dist.launching.secrets import KEPT, PUBLIC_ENDS, make_secrets

    texts = render(plan)
    if plan.target == "compose":
        texts[".env"] = f"SHARE_DIST_USER={os.getuid()}\n"
    try:
        there = {name: (folder / name).read_bytes() for name in KEPT if (folder / name).exists()}
        made = make_secrets(plan, there, certificates.now())
        _require_free(folder, [*texts, *made], force=force)
        for name, content in made.items():
            public = name.endswith(PUBLIC_ENDS)
            _put(folder, name, content, mode=PUBLIC if public else PRIVATE)
        for name, text in texts.items():
            _put(folder, name, text.encode(), mode=_EXECUTABLE if name.endswith(".sh") else PUBLIC)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror}): give another --output", key="output"
        ) from error
    return sorted({*texts, *made})


def _require_free(folder: Path, names: list[str], *, force: bool) -> None:
    there = sorted(name for name in names if (folder / name).exists())
    if there and not force:
        raise ConfigError(
            f"{folder} has {len(there)} of these files already, {there[0]} among them: choose another "
            "--output, or replace them with --force",
            key="force",
        )


def _put(folder: Path, name: str, content: bytes, *, mode: int) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(path, content, mode=mode)


_NEXT: Final = {
    "local": "ray up -y --no-config-cache {folder}/cluster.yaml",
    "aws": "ray up -y {folder}/cluster.yaml",
    "gcp": "ray up -y {folder}/cluster.yaml",
    "kuberay": "docker build -t {image} {folder}, push it, then kubectl apply -k {folder}",
    "compose": "put streams into {folder}/streams, then docker compose --project-directory {folder} up -d --build",
    "systemd": "copy the units to /etc/systemd/system and the rest to /etc/share-dist, as deploy/README.md says",
}


def _told(plan: Plan, folder: Path, written: list[str]) -> str:
    then = _NEXT[plan.target].format(folder=folder, image=plan.image)
    return "\n".join(
        [
            *(f"  {folder / name}" for name in written),
            f"coordinator: {plan.address}",
            f"next: {then}",
        ]
    )

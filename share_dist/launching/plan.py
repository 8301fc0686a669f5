"""The plan: what a cluster is made of, checked before anything is written."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from share_dist.errors import ConfigError

Target: TypeAlias = Literal["local", "aws", "gcp", "kuberay", "compose", "systemd"]

TARGETS: Final[tuple[Target, ...]] = get_args(Target)

CLOUDS: Final = ("aws", "gcp")
RAY_UP: Final = ("local", *CLOUDS)
"""Targets that ``ray up`` starts."""

COORDINATOR_PORT: Final = 50551
GCS_PORT: Final = 6379
DASHBOARD_PORT: Final = 8265

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_HOST_PART = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]*")
_MAX_HOSTS = 10_000


@dataclass(frozen=True, slots=True)
class Pins:
    """
    The versions that every machine must have: those of the machine that submits.

    Args:
        python: With its patch level: Ray refuses any other.
        ray: Of Ray.
        torch: Of torch, without the part that names the build.
        release: Of share-dist.
    """

    python: str
    ray: str
    torch: str
    release: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    What a cluster is made of.

    Args:
        target: Where it runs.
        name: What it is called; files on the machines and objects in Kubernetes carry it.
        pins: The versions on every machine.
        folder: Where its files are, as the submitting machine says it.
        store: Folder of the coordinator's store, on its machine.
        head: Host of the head and the coordinator; for clouds and containers the name that
            the coordinator's certificate is for.
        workers: Hosts of the workers; empty where they are not known by name.
        num_workers: How many there are.
        gpus: Accelerators of each worker.
        ssh_user: Who logs in.
        ssh_key: Private key of that user, on the submitting machine.
        environment: A Python environment that every machine has already; empty to make one.
        package: What is installed as share-dist; empty for the pinned release.
        region: Of a cloud; on gcp with the zone behind it.
        project: On gcp.
        instance: Machine type of a worker.
        head_instance: Machine type of the head.
        image: Of the containers.
        port: That the coordinator listens on.
    """

    target: Target
    name: str
    pins: Pins
    folder: str
    store: str
    head: str
    workers: tuple[str, ...] = ()
    num_workers: int = 0
    gpus: int = 0
    ssh_user: str = ""
    ssh_key: str = ""
    environment: str = ""
    package: str = ""
    region: str = ""
    project: str = ""
    instance: str = ""
    head_instance: str = ""
    image: str = ""
    port: int = COORDINATOR_PORT

    @property
    def on_node(self) -> str:
        """Folder of the cluster's files on every machine, in the home of its user."""
        return f".share-dist/{self.name}"

    @property
    def address(self) -> str:
        """``host:port`` by which workers call the coordinator."""
        host = f"[{self.head}]" if ":" in self.head else self.head
        return f"{host}:{self.port}"


def require_name(name: str) -> str:
    """
    Return the name of a cluster.

    Raises:
        ConfigError: It cannot stand in a file name, a host name and an object of Kubernetes.

    Examples:
        >>> require_name("north-1")
        'north-1'
    """
    if _NAME.fullmatch(name):
        return name
    raise ConfigError(
        f"{name!r} is no name of a cluster: give --name as lower-case letters, digits and hyphens, a "
        "letter first, 40 at most",
        key="name",
    )


def require_host(host: str, key: str) -> str:
    """
    Return a host: an address, or a name.

    Raises:
        ConfigError: It is neither.

    Examples:
        >>> require_host("10.0.0.7", "head"), require_host("gpu-1.example.org", "head")
        ('10.0.0.7', 'gpu-1.example.org')
    """
    if _is_address(host) or _is_host_name(host):
        return host
    raise ConfigError(
        f"{host!r} is no host: give --{key} an address such as 10.0.0.7 or a name such as "
        "gpu-1.example.org, without user, port or scheme",
        key=key,
    )


def require_hosts(head: str, workers: Sequence[str]) -> tuple[str, ...]:
    """
    Return the workers' hosts, each of them one, and none of them the head.

    Raises:
        ConfigError: One is no host, or is there twice, or there are too many.
    """
    if len(workers) > _MAX_HOSTS:
        raise ConfigError(
            f"{len(workers):,} workers are more than {_MAX_HOSTS:,}: make several clusters",
            key="worker",
        )
    seen = {require_host(head, "head").lower(): "the head"}
    for worker in workers:
        place = require_host(worker, "worker").lower()
        if place in seen:
            raise ConfigError(
                f"{worker} is a worker and already {seen[place]}: name each machine once; the head "
                "works too where there is no other",
                key="worker",
            )
        seen[place] = "a worker"
    return tuple(workers)


def require_user(user: str) -> str:
    """
    Return the user who logs in.

    Raises:
        ConfigError: No system has users of such a name.
    """
    if _USER.fullmatch(user):
        return user
    raise ConfigError(f"{user!r} is no user: give --ssh-user such as ubuntu", key="ssh_user")


def require_word(value: str, key: str) -> str:
    """
    Return what stands in a command or a manifest as one word.

    Raises:
        ConfigError: It is empty, or has characters that a shell would read.
    """
    if _WORD.fullmatch(value):
        return value
    raise ConfigError(
        f"{value!r} cannot be --{key.replace('_', '-')}: letters, digits and . _ / : @ + - are what "
        "it may have",
        key=key,
    )


def require_path(path: str, key: str) -> str:
    """
    Return a path on another machine.

    Raises:
        ConfigError: It is relative, has characters that a shell would read, or lies where Ray
            keeps and clears its own files.

    Examples:
        >>> require_path("/var/lib/share-dist", "store"), require_path("~/store", "store")
        ('/var/lib/share-dist', '~/store')
    """
    if not re.fullmatch(r"(~|)(/[A-Za-z0-9._@+-]+)+", path) or ".." in path.split("/"):
        raise ConfigError(
            f"{path!r} is no path on another machine: give --{key} from / or ~/ on, of letters, "
            "digits and . _ @ + -",
            key=key,
        )
    if f"{path}/".startswith(("/tmp/ray/", "~/.ray/")):  # noqa: S108 - Ray's own folder
        raise ConfigError(
            f"{path} is Ray's own folder, which Ray clears: give another --{key}", key=key
        )
    return path


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_host_name(host: str) -> bool:
    parts = host.split(".")
    # four numbers that are no address are a mistyped address, not a name
    return (
        len(host) <= 253
        and all(_HOST_PART.fullmatch(part) for part in parts)
        and not parts[-1].isdigit()
    )

"""A cluster that was planned, as its YAML tells of it."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from share_dist.errors import ConfigError
from share_dist.launching.nodes import NODES, TOKEN
from share_dist.launching.plan import Pins

_ASK_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class KnownCluster:
    """
    What ``share-dist`` has to know of a cluster.

    Args:
        path: Of its YAML.
        name: What it is called.
        head: Host of the head, as this machine reaches it; empty for a cloud's.
        workers: Hosts of the workers; empty for a cloud's.
        num_workers: How many there are to be.
        ssh_user: Who logs in.
        ssh_key: With which key; None for the one that Ray keeps.
        coordinator: ``host:port`` by which workers call it.
        folder: Where the cluster's files are on this machine.
        on_node: Where they are on its machines.
        environment: Of Python, there.
        gcs_port: That Ray's head listens on.
        gpus: Accelerators of each worker, 0 where it was not said.
        pins: The versions that every machine must have.
    """

    path: Path
    name: str
    head: str
    workers: tuple[str, ...]
    num_workers: int
    ssh_user: str
    ssh_key: Path | None
    coordinator: str
    folder: Path
    on_node: str
    environment: str
    gcs_port: int
    gpus: int
    pins: Pins

    @property
    def token(self) -> Path:
        """The file with Ray's token, on this machine."""
        return self.folder / NODES / TOKEN

    def node_file(self, name: str) -> str:
        """Where a file of every machine is, there."""
        return f"{self.on_node}/{NODES}/{name}"


def read_cluster(path: Path) -> KnownCluster:
    """
    Read a cluster's YAML.

    Raises:
        ConfigError: It cannot be read, or `share-dist cluster init` did not write it.
    """
    import yaml

    try:
        config: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _known(path, config, config["metadata"]["share_dist"])
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}): give --cluster the cluster.yaml that "
            "`share-dist cluster init` wrote",
            key="cluster",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} is not as `share-dist cluster init` writes it ({type(error).__name__}: "
            f"{error}): write it anew with --force",
            key="cluster",
        ) from error


def _known(path: Path, config: dict[str, Any], told: dict[str, Any]) -> KnownCluster:
    provider, auth = config["provider"], config["auth"]
    key = auth.get("ssh_private_key")
    return KnownCluster(
        path=path,
        name=config["cluster_name"],
        head=provider.get("head_ip", ""),
        workers=tuple(provider.get("worker_ips", ())),
        num_workers=int(told["num_workers"]),
        ssh_user=auth["ssh_user"],
        ssh_key=Path(key).expanduser() if key else None,
        coordinator=told["coordinator"],
        folder=Path(told["folder"]).expanduser(),
        on_node=told["on_node"],
        environment=told["environment"],
        gcs_port=int(told["gcs_port"]),
        gpus=int(told["gpus"]),
        pins=Pins(str(told["python"]), str(told["ray"]), str(told["torch"]), str(told["release"])),
    )


def head_of(cluster: KnownCluster) -> str:
    """
    Return the host of the head; where it is a cloud's, Ray is asked.

    Raises:
        ConfigError: There is no head.
    """
    return cluster.head or _ask_ray(cluster, "get-head-ip")[-1]


def workers_of(cluster: KnownCluster) -> tuple[str, ...]:
    """
    Return the hosts of the workers; where they are a cloud's, Ray is asked.

    Raises:
        ConfigError: There is no cluster.
    """
    return cluster.workers if cluster.head else tuple(_ask_ray(cluster, "get-worker-ips"))


def _ask_ray(cluster: KnownCluster, question: str) -> list[str]:
    ended = subprocess.run(  # noqa: S603 - our own command line
        [sys.executable, "-m", "ray.scripts.scripts", question, str(cluster.path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_ASK_SECONDS,
        check=False,
    )
    if ended.returncode:
        raise ConfigError(
            f"`ray {question} {cluster.path}` ended with {ended.returncode}: "
            f"{ended.stderr.strip()[-500:]}; start the cluster with `ray up -y {cluster.path}`",
            key="cluster",
        )
    return ended.stdout.split()

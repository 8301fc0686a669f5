"""The image that containers share, and Docker Compose: a coordinator, and one worker per accelerator."""

from typing import Any, Final

from share_dist.launching.nodes import requirements
from share_dist.launching.plan import Plan

USER_ID: Final = 10001
"""Who runs in a container: nobody that the machine knows."""

KEYS: Final = "/run/secrets"
STORE: Final = "/var/lib/share-dist"
WORK: Final = "/work"


def dockerfile(plan: Plan) -> str:
    """Render the image's recipe, with the pinned versions."""
    quoted = " ".join(f"'{each}'" for each in requirements(plan).split())
    # KubeRay asks with wget whether a pod is well
    tools = "RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/*\n"
    return f"""\
# Coordinator and workers of cluster {plan.name}.
FROM python:{plan.pins.python}-slim
ARG USER_ID={USER_ID}
{tools if plan.target == "kuberay" else ""}RUN useradd --create-home --uid $USER_ID share-dist && install -d -o share-dist {STORE} {WORK}
RUN pip install --no-cache-dir {quoted}
USER share-dist
ENTRYPOINT ["share-dist"]
"""


def compose(plan: Plan) -> dict[str, Any]:
    """
    Return the Compose file.

    Keys are secrets that Compose mounts from files beside it. Each worker has one accelerator
    and one stream, ``streams/<number>.toml``.
    """
    workers = {f"worker-{index}": _worker(plan, index) for index in range(plan.num_workers)}
    return {
        "name": plan.name,
        "services": {"coordinator": _coordinator(plan), **workers},
        "networks": {"inside": {}},
        "volumes": {"store": {}, **{f"work-{index}": {} for index in range(plan.num_workers)}},
        "secrets": {
            f"{name.replace('.', '-')}": {"file": f"./{name}"}
            for name in (
                "ca.crt",
                "coordinator.crt",
                "coordinator.key",
                "nodes.crt",
                "nodes.key",
            )
        },
    }


def _service(plan: Plan, command: list[str], names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "image": plan.image,
        # a secret that is a file keeps its owner and mode: the user in the container is that owner
        "build": {"context": ".", "args": {"USER_ID": "${SHARE_DIST_USER}"}},
        "command": command,
        "networks": ["inside"],
        "restart": "unless-stopped",
        "init": True,
        "read_only": True,
        "tmpfs": ["/tmp"],  # noqa: S108 - of the container
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "secrets": [{"source": name.replace(".", "-"), "target": name} for name in names],
    }


def _coordinator(plan: Plan) -> dict[str, Any]:
    command = [
        *("coordinator", "serve", "--store", STORE, "--listen", f"0.0.0.0:{plan.port}"),
        *("--tls-certificate", f"{KEYS}/coordinator.crt", "--tls-key", f"{KEYS}/coordinator.key"),
        *("--tls-client-ca", f"{KEYS}/ca.crt", "--log-format", "json"),
    ]
    names = ("ca.crt", "coordinator.crt", "coordinator.key")
    probe = f"import socket; socket.create_connection(('127.0.0.1', {plan.port}), 2).close()"
    return {
        **_service(plan, command, names),
        "hostname": plan.head,
        # from this machine; another address here, once others shall reach it
        "ports": [f"127.0.0.1:{plan.port}:{plan.port}"],
        "volumes": [f"store:{STORE}"],
        "stop_grace_period": "30s",
        "healthcheck": {
            "test": ["CMD", "python", "-c", probe],
            "interval": "5s",
            "timeout": "3s",
            "start_period": "60s",
        },
    }


def _worker(plan: Plan, index: int) -> dict[str, Any]:
    command = [
        *("worker", "run", f"/streams/{index}.toml", "--coordinator", plan.address, "--resume"),
        *("--workdir", WORK, "--ca", f"{KEYS}/ca.crt"),
        *("--certificate", f"{KEYS}/nodes.crt", "--key", f"{KEYS}/nodes.key"),
    ]
    service = {
        **_service(plan, command, ("ca.crt", "nodes.crt", "nodes.key")),
        "depends_on": {"coordinator": {"condition": "service_healthy"}},
        "restart": "on-failure",
        "volumes": [f"work-{index}:{WORK}", "./streams:/streams:ro"],
        "environment": {"RAY_AUTH_MODE": "token", "HOME": WORK},
        "shm_size": "1gb",
        "stop_grace_period": "90s",
    }
    if plan.gpus:
        device = {"driver": "nvidia", "device_ids": [str(index)], "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return service

"""The cluster YAML of ``ray up``, for given hosts and for clouds."""

from typing import Any, Final

from share_dist.launching.nodes import (
    HEAD,
    NODES,
    coordinator_config,
    environment,
    head_commands,
    script,
    worker_commands,
)
from share_dist.launching.plan import CLOUDS, GCS_PORT, Plan

OWN_ADDRESS: Final = '$(set -- $SSH_CONNECTION; echo "$3")'
"""In a shell that ssh has opened: the address at which this machine was reached, and no other."""

CLOUD_ADDRESS: Final = "$(hostname -I | cut -d' ' -f1)"

_DISK_GB = 200


def cluster(plan: Plan) -> dict[str, Any]:
    """
    Return the cluster YAML.

    What ``share-dist`` itself has to know of the cluster stands under ``metadata``, which Ray
    does not read.
    """
    provider, kinds = _PROVIDERS[plan.target](plan)
    is_cloud = plan.target in CLOUDS
    own = CLOUD_ADDRESS if is_cloud else OWN_ADDRESS
    prepare = [f"bash ~/{plan.on_node}/{NODES}/prepare.sh"]
    name_of_head = f"grep -qs ' {plan.head}$' /etc/hosts || echo \"{{}} {plan.head}\" | sudo tee -a /etc/hosts >/dev/null"
    named_here = [name_of_head.format(CLOUD_ADDRESS)] if is_cloud else []
    named_there = [name_of_head.format("$RAY_HEAD_IP")] if is_cloud else []
    return {
        "cluster_name": plan.name,
        "max_workers": plan.num_workers,
        "provider": provider,
        "auth": {
            "ssh_user": plan.ssh_user,
            **({"ssh_private_key": plan.ssh_key} if plan.ssh_key else {}),
        },
        **kinds,
        "file_mounts": {
            f"~/{plan.on_node}/{part}": f"{plan.folder}/{part}" for part in (NODES, HEAD)
        },
        "setup_commands": prepare,
        "head_start_ray_commands": [*named_here, *head_commands(plan, own)],
        "worker_start_ray_commands": [
            *named_there,
            *worker_commands(plan, "" if is_cloud else own),
        ],
        "metadata": {"share_dist": known(plan)},
    }


def known(plan: Plan) -> dict[str, Any]:
    """Return what ``worker submit`` and ``doctor --cluster`` read of a cluster."""
    return {
        "coordinator": plan.address,
        "folder": plan.folder,
        "on_node": f"~/{plan.on_node}",
        "environment": plan.environment or f"~/{plan.on_node}/venv",
        "num_workers": plan.num_workers,
        "gpus": plan.gpus,
        "gcs_port": GCS_PORT,
        "python": plan.pins.python,
        "ray": plan.pins.ray,
        "torch": plan.pins.torch,
        "release": plan.pins.release,
    }


def files(plan: Plan) -> dict[str, str]:
    """Return the files beside the cluster YAML, none of them secret."""
    keys = f"{plan.on_node}/{HEAD}"
    host = "0.0.0.0" if plan.target in CLOUDS else plan.head  # noqa: S104 - a cloud's security group stands before it
    listen = f"[{host}]:{plan.port}" if ":" in host else f"{host}:{plan.port}"
    return {
        f"{NODES}/env.sh": environment(plan),
        f"{NODES}/prepare.sh": script("prepare.sh"),
        f"{NODES}/worker.sh": script("worker.sh"),
        f"{HEAD}/coordinator.sh": script("coordinator.sh"),
        f"{HEAD}/coordinator.toml": coordinator_config(plan, listen, keys),
    }


def _local(plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"type": "local", "head_ip": plan.head, "worker_ips": list(plan.workers)}, {}


def _aws(plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    disk = [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": _DISK_GB, "VolumeType": "gp3"}}]
    # a head that is stopped and not ended keeps the disk that the store is on
    return {"type": "aws", "region": plan.region, "cache_stopped_nodes": True}, _kinds(
        plan,
        {"InstanceType": plan.head_instance, "BlockDeviceMappings": disk},
        {"InstanceType": plan.instance, "BlockDeviceMappings": disk},
    )


def _gcp(plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    disk = {
        "boot": True,
        "autoDelete": True,
        "type": "PERSISTENT",
        "initializeParams": {
            "diskSizeGb": _DISK_GB,
            "sourceImage": "projects/deeplearning-platform-release/global/images/family/common-cu128-ubuntu-2204-nvidia-570",
        },
    }
    worker: dict[str, Any] = {"machineType": plan.instance, "disks": [disk]}
    if plan.gpus:
        worker["scheduling"] = [{"onHostMaintenance": "TERMINATE"}]
    return {
        "type": "gcp",
        "region": plan.region.rpartition("-")[0],
        "availability_zone": plan.region,
        "project_id": plan.project,
    }, _kinds(plan, {"machineType": plan.head_instance, "disks": [disk]}, worker)


def _kinds(plan: Plan, head: dict[str, Any], worker: dict[str, Any]) -> dict[str, Any]:
    return {
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": head, "max_workers": 0},
            "worker": {
                "resources": {"GPU": plan.gpus} if plan.gpus else {},
                "node_config": worker,
                "min_workers": plan.num_workers,
                "max_workers": plan.num_workers,
            },
        },
    }


_PROVIDERS: Final = {"local": _local, "aws": _aws, "gcp": _gcp}

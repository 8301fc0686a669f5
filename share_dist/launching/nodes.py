"""What every machine of a cluster gets: its environment, its scripts, the coordinator's configuration."""

import json
from importlib.resources import files
from typing import Final

from share_dist.launching.plan import DASHBOARD_PORT, GCS_PORT, Plan

NODES: Final = "nodes"
"""Folder of what every machine has."""

HEAD: Final = "head"
"""Folder of what only the head keeps."""

TOKEN: Final = "ray_token"  # noqa: S105 - a file's name
"""The file that holds Ray's token."""

STOP_SECONDS: Final = 90
"""How long a job that is stopped has, to end its step and keep its work."""

HEALTH: Final = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}
"""A machine that is lost is known to be after seconds, not after the minute that Ray takes by itself."""


def environment(plan: Plan) -> str:
    """
    Render ``env.sh``, which every command on a machine begins with.

    The token itself is a file beside it, which only its user may read.
    """
    here = f"$HOME/{plan.on_node}"
    place = home(plan.environment) if plan.environment else f"{here}/venv"
    values = {
        "SHARE_DIST_ENVIRONMENT": place,
        "SHARE_DIST_MAKE_ENVIRONMENT": str(int(not plan.environment)),
        "SHARE_DIST_REQUIREMENTS": requirements(plan),
        "SHARE_DIST_PYTHON": plan.pins.python,
        "SHARE_DIST_RAY": plan.pins.ray,
        "SHARE_DIST_TORCH": plan.pins.torch,
        "SHARE_DIST_RELEASE": plan.pins.release,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": f"{here}/{NODES}/{TOKEN}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_SIGNAL": "SIGINT",
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
    }
    lines = [f'export {name}="{value}"' for name, value in values.items()]
    return "\n".join(
        [
            f"# What every process of cluster {plan.name} has in its environment.",
            *lines,
            'export PATH="$SHARE_DIST_ENVIRONMENT/bin:$PATH"',
            "",
        ]
    )


def requirements(plan: Plan) -> str:
    """Return what pip installs, as one line."""
    pins = plan.pins
    package = plan.package or f"share-dist[coordinator,worker]=={pins.release}"
    cloud = {"aws": ("boto3",), "gcp": ("google-api-python-client",)}.get(plan.target, ())
    return " ".join((package, f"ray[default]=={pins.ray}", f"torch=={pins.torch}", *cloud))


def script(name: str) -> str:
    """Return one of the scripts that are copied as they are."""
    return (files("share_dist.launching.scripts") / name).read_text(encoding="utf-8")


def coordinator_config(plan: Plan, listen: str, keys: str) -> str:
    """
    Render the coordinator's configuration.

    Args:
        plan: Of the cluster.
        listen: Address that it serves on.
        keys: Folder of its certificate and key, on its machine.
    """
    values = {
        # it is started in its user's home
        "store": plan.store.removeprefix("~/"),
        "listen": listen,
        "tls_certificate": f"{keys}/coordinator.crt",
        "tls_key": f"{keys}/coordinator.key",
        "tls_client_ca": f"{keys}/ca.crt",
    }
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def head_commands(plan: Plan, own_address: str) -> list[str]:
    """
    Return what starts the head: Ray, then the coordinator.

    The head's processors are left to the coordinator where there are other machines to train on.
    """
    settings = " ".join(f"{name}={value}" for name, value in HEALTH.items())
    # Ray's second autoscaler starts one worker too few of a given list of hosts
    scaler = "RAY_enable_autoscaler_v2=0 " if plan.target == "local" else ""
    resources = " --num-cpus=0 --num-gpus=0" if plan.num_workers else ""
    begin = source(plan)
    start = (
        f"{scaler}{settings} ray start --head --node-ip-address={own_address} --port={GCS_PORT} "
        f"--dashboard-host=127.0.0.1 --dashboard-port={DASHBOARD_PORT}{resources} "
        "--autoscaling-config=~/ray_bootstrap_config.yaml"
    )
    return [
        f"{begin} && ray stop",
        f"{begin} && {start}",
        f"{begin} && bash ~/{plan.on_node}/{HEAD}/coordinator.sh start",
    ]


def worker_commands(plan: Plan, own_address: str) -> list[str]:
    """Return what starts a worker's machine, which keeps nothing of the head's."""
    gpus = f" --num-gpus={plan.gpus}" if plan.gpus else ""
    address = f" --node-ip-address={own_address}" if own_address else ""
    script_of_worker = f"bash ~/{plan.on_node}/{NODES}/worker.sh"
    return [
        f"rm -rf ~/{plan.on_node}/{HEAD}",
        # where the head is gone a machine ends its work after so long
        (
            f"{source(plan)} && RAY_gcs_rpc_server_reconnect_timeout_s=10 {script_of_worker} start "
            f"--address=$RAY_HEAD_IP:{GCS_PORT}{address}{gpus}"
        ),
    ]


def source(plan: Plan) -> str:
    """Return the command that takes the environment up."""
    return f". ~/{plan.on_node}/{NODES}/env.sh"


def home(path: str) -> str:
    """
    Return a path as a shell reads it inside quotation marks.

    Examples:
        >>> home("~/venv"), home("/opt/venv")
        ('$HOME/venv', '/opt/venv')
    """
    return f"$HOME{path[1:]}" if path.startswith("~") else path

"""Kubernetes: a coordinator that keeps its store, and a KubeRay ``RayCluster`` beside it."""

from typing import Any, Final

from share_dist.launching.containers import STORE, USER_ID
from share_dist.launching.nodes import HEALTH, STOP_SECONDS, TOKEN
from share_dist.launching.plan import DASHBOARD_PORT, GCS_PORT, Plan

KEYS: Final = "/etc/share-dist"
"""Where a pod sees its own secrets."""

_STORE_SIZE = "100Gi"
_CLIENT_PORT = 10001


def manifests(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """
    Return every manifest, by its file.

    Secrets are made by ``kubectl apply -k`` from the files that the kustomization names: no
    manifest holds one.
    """
    return {
        "kustomization.yaml": [_kustomization(plan)],
        "coordinator.yaml": [_claim(plan), _service(plan), _deployment(plan)],
        "raycluster.yaml": [_raycluster(plan), _inside_only(plan)],
    }


def _labels(plan: Plan, component: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": component, "app.kubernetes.io/instance": plan.name}


def _meta(plan: Plan, component: str) -> dict[str, Any]:
    return {"name": f"{plan.name}-{component}", "labels": _labels(plan, component)}


def _kustomization(plan: Plan) -> dict[str, Any]:
    def made(part: str, *names: str) -> dict[str, Any]:
        return {"name": f"{plan.name}-{part}", "files": list(names)}

    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": plan.name,
        "resources": ["coordinator.yaml", "raycluster.yaml"],
        "secretGenerator": [
            made("coordinator", "ca.crt", "coordinator.crt", "coordinator.key"),
            made("nodes", "ca.crt", "nodes.crt", "nodes.key", TOKEN),
        ],
        # kustomize does not look into a RayCluster for names that it would change
        "generatorOptions": {"disableNameSuffixHash": True},
    }


def _claim(plan: Plan) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _meta(plan, "store"),
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": _STORE_SIZE}},
        },
    }


def _service(plan: Plan) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": plan.head, "labels": _labels(plan, "coordinator")},
        "spec": {
            "type": "ClusterIP",
            "selector": _labels(plan, "coordinator"),
            "ports": [{"name": "grpc", "port": plan.port, "targetPort": "grpc"}],
        },
    }


def _deployment(plan: Plan) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _meta(plan, "coordinator"),
        "spec": {
            "replicas": 1,
            # a store has one owner: the old one ends before the new one starts
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": _labels(plan, "coordinator")},
            "template": {
                "metadata": {"labels": _labels(plan, "coordinator")},
                "spec": _coordinator_pod(plan),
            },
        },
    }


def _coordinator_pod(plan: Plan) -> dict[str, Any]:
    arguments = [
        *("coordinator", "serve", "--store", STORE, "--listen", f"0.0.0.0:{plan.port}"),
        *("--tls-certificate", f"{KEYS}/coordinator.crt", "--tls-key", f"{KEYS}/coordinator.key"),
        *("--tls-client-ca", f"{KEYS}/ca.crt", "--log-format", "json"),
    ]
    container = {
        **_container(plan, "coordinator", arguments),
        "ports": [{"name": "grpc", "containerPort": plan.port}],
        "readinessProbe": {"tcpSocket": {"port": "grpc"}, "periodSeconds": 5},
        "resources": {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "8Gi"}},
        "volumeMounts": [
            {"name": "keys", "mountPath": KEYS, "readOnly": True},
            {"name": "store", "mountPath": STORE},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - of the container
        ],
    }
    claim = {"claimName": f"{plan.name}-store"}
    return {
        **_pod(container),
        "terminationGracePeriodSeconds": 30,
        "volumes": [
            _secret(plan, "coordinator"),
            {"name": "store", "persistentVolumeClaim": claim},
            {"name": "tmp", "emptyDir": {}},
        ],
    }


def _raycluster(plan: Plan) -> dict[str, Any]:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": plan.name, "labels": _labels(plan, "ray")},
        "spec": {
            "rayVersion": plan.pins.ray,
            "enableInTreeAutoscaling": False,
            "headGroupSpec": {
                "serviceType": "ClusterIP",
                "rayStartParams": {
                    "num-cpus": "0",
                    "num-gpus": "0",
                    "dashboard-host": "0.0.0.0",  # noqa: S104 - the network policy stands before it
                },
                "template": _ray_template(plan, "head", cpus="2", gpus=0),
            },
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": plan.num_workers,
                    "minReplicas": plan.num_workers,
                    "maxReplicas": plan.num_workers,
                    "rayStartParams": {},
                    "template": _ray_template(plan, "worker", cpus="4", gpus=plan.gpus),
                }
            ],
        },
    }


def _ray_template(plan: Plan, kind: str, cpus: str, gpus: int) -> dict[str, Any]:
    limits = {
        "cpu": cpus,
        "memory": "16Gi",
        **({"nvidia.com/gpu": str(gpus)} if gpus else {}),
    }
    settings = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": f"{KEYS}/{TOKEN}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_SIGNAL": "SIGINT",
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
        **(HEALTH if kind == "head" else {}),
    }
    ports = {"gcs": GCS_PORT, "dashboard": DASHBOARD_PORT, "client": _CLIENT_PORT}
    container = {
        "name": f"ray-{kind}",
        "image": plan.image,
        "env": [{"name": name, "value": value} for name, value in settings.items()],
        "resources": {"requests": limits, "limits": limits},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "keys", "mountPath": KEYS, "readOnly": True},
            {"name": "ray", "mountPath": "/tmp/ray"},  # noqa: S108 - of the container
        ],
        **(
            {"ports": [{"name": name, "containerPort": port} for name, port in ports.items()]}
            if kind == "head"
            else {}
        ),
    }
    return {
        "metadata": {"labels": _labels(plan, "ray")},
        "spec": {
            **_pod(container),
            "terminationGracePeriodSeconds": STOP_SECONDS,
            "volumes": [_secret(plan, "nodes"), {"name": "ray", "emptyDir": {}}],
        },
    }


def _inside_only(plan: Plan) -> dict[str, Any]:
    """Let only the cluster's own pods reach Ray, which runs what anyone with the token sends."""
    ray = {"matchLabels": _labels(plan, "ray")}
    operator = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _meta(plan, "ray"),
        "spec": {
            "podSelector": ray,
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": ray}, operator]}],
        },
    }


def _container(plan: Plan, name: str, arguments: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "image": plan.image,
        "args": arguments,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def _pod(container: dict[str, Any]) -> dict[str, Any]:
    return {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }


def _secret(plan: Plan, part: str) -> dict[str, Any]:
    # the group of the pod's user may read it, and nobody else
    return {
        "name": "keys",
        "secret": {"secretName": f"{plan.name}-{part}", "defaultMode": 0o440},
    }

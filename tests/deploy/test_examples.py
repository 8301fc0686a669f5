"""
The examples in `deploy/` against the published schemas, as far as packages bring them.

Ray brings that of its cluster YAML, `kubernetes-validate` those of Kubernetes, `check-jsonschema`
that of Compose files. No package brings KubeRay's own: of a RayCluster the pods are checked,
and beside them the few fields that stand here.
"""

import json
import re
import shutil
import subprocess
from importlib.resources import files

import jsonschema
import kubernetes_validate
import pytest
import yaml

from share_dist.launching.render import render
from tests.deploy.examples import DEPLOY, PLANS

KUBERNETES = "1.31"


def documents(folder, name):
    return list(yaml.safe_load_all((DEPLOY / folder / name).read_text()))


@pytest.mark.parametrize("folder", PLANS)
def test_an_example_is_what_the_command_writes(folder):
    """Every file, and no other, is there as it is rendered."""
    rendered = render(PLANS[folder])
    there = {
        str(path.relative_to(DEPLOY / folder)): path.read_text()
        for path in (DEPLOY / folder).rglob("*")
        if path.is_file()
    }
    assert there == rendered, "run `python -m tests.deploy.examples` and commit"


@pytest.mark.parametrize("folder", ["local", "aws", "gcp"])
def test_ray_takes_the_cluster_yaml(folder):
    """Ray's own preparation and validation of a configuration, as `ray up` begins with."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    (config,) = documents(folder, "cluster.yaml")
    prepared = prepare_config(config)
    validate_config(prepared)
    workers = [kind for name, kind in prepared["available_node_types"].items() if name != "head"]
    assert [(kind["min_workers"], kind["max_workers"]) for kind in workers] == [(2, 2)]


@pytest.mark.parametrize("folder", ["local", "aws", "gcp"])
def test_every_ray_process_asks_for_the_token(folder):
    """Each command that starts Ray takes up the environment first, which names the mode and the file."""
    (config,) = documents(folder, "cluster.yaml")
    commands = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    starting = [command for command in commands if re.search("ray start|worker.sh start", command)]
    assert len(starting) == 2
    assert all(command.startswith(". ~/.share-dist/north/nodes/env.sh && ") for command in starting)
    environment = (DEPLOY / folder / "nodes/env.sh").read_text()
    assert 'export RAY_AUTH_MODE="token"' in environment
    assert 'export RAY_AUTH_TOKEN_PATH="$HOME/.share-dist/north/nodes/ray_token"' in environment


def test_given_hosts_are_all_started():
    """Ray's first autoscaler is asked for: the second leaves one of the given hosts out."""
    (config,) = documents("local", "cluster.yaml")
    assert "RAY_enable_autoscaler_v2=0 " in config["head_start_ray_commands"][1]


@pytest.mark.parametrize("name", ["coordinator.yaml", "raycluster.yaml"])
def test_kubernetes_takes_the_manifests(name):
    """Strictly by the schemas of Kubernetes: of a RayCluster its pods, as pods."""
    checked = 0
    for document in documents("kuberay", name):
        if document["kind"] == "RayCluster":
            for template in pod_templates(document):
                pod = {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {"name": "one", **template["metadata"]},
                    "spec": template["spec"],
                }
                kubernetes_validate.validate(pod, KUBERNETES, strict=True)
                checked += 1
        else:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
            checked += 1
    assert checked == 3


def pod_templates(cluster):
    spec = cluster["spec"]
    return [group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def test_a_raycluster_has_the_fields_that_kuberay_knows():
    """One worker for each accelerator; version, groups and parameters under the names of ray.io/v1."""
    (cluster,) = (each for each in documents("kuberay", "raycluster.yaml") if each["kind"] == "RayCluster")  # fmt: skip
    assert cluster["apiVersion"] == "ray.io/v1"
    spec = cluster["spec"]
    assert set(spec) == {"rayVersion", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"}  # fmt: skip
    assert set(spec["headGroupSpec"]) == {"serviceType", "rayStartParams", "template"}
    (group,) = spec["workerGroupSpecs"]
    assert set(group) == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}  # fmt: skip
    assert all(isinstance(value, str) for value in spec["headGroupSpec"]["rayStartParams"].values())
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_no_manifest_holds_a_secret():
    """Secrets are made from files that the kustomization names: no key and no token is in any YAML."""
    (kustomization,) = documents("kuberay", "kustomization.yaml")
    made = {each["name"]: each["files"] for each in kustomization["secretGenerator"]}
    assert made["north-nodes"] == ["ca.crt", "nodes.crt", "nodes.key", "ray_token"]
    kinds = [each["kind"] for name in ("coordinator.yaml", "raycluster.yaml") for each in documents("kuberay", name)]  # fmt: skip
    assert "Secret" not in kinds
    mounted = {
        volume["secret"]["secretName"]
        for each in documents("kuberay", "raycluster.yaml")
        if each["kind"] == "RayCluster"
        for template in pod_templates(each)
        for volume in template["spec"]["volumes"]
        if "secret" in volume
    }
    assert mounted == {"north-nodes"}


def test_compose_takes_the_file():
    """By the schema of the Compose specification; a worker has one accelerator of its own."""
    schema = json.loads(
        (files("check_jsonschema.builtin_schemas") / "vendor/compose-spec.json").read_text()
    )
    (compose,) = documents("compose", "compose.yaml")
    jsonschema.validate(compose, schema)
    devices = [
        compose["services"][f"worker-{index}"]["deploy"]["resources"]["reservations"]["devices"]
        for index in range(2)
    ]
    assert [each[0]["device_ids"] for each in devices] == [["0"], ["1"]]


SECTIONS = {
    "Unit": {"Description", "After", "Wants"},
    "Service": {
        "Type", "ExecStart", "LoadCredential", "StateDirectory", "StateDirectoryMode", "Restart",
        "RestartSec", "TimeoutStopSec", "DynamicUser", "NoNewPrivileges", "ProtectHome", "PrivateTmp",
        "ProtectKernelTunables", "ProtectKernelModules", "ProtectControlGroups", "RestrictSUIDSGID",
        "LockPersonality", "Environment", "KillSignal", "KillMode",
    },
    "Install": {"WantedBy"},
}  # fmt: skip
"""Directives of systemd.unit(5), systemd.service(5), systemd.exec(5) and systemd.kill(5)."""


@pytest.mark.parametrize("name", ["share-dist-coordinator.service", "share-dist-worker@.service"])
def test_systemd_takes_the_units(name, tmp_path):
    """Every directive is one of its section; where systemd is at hand, it looks itself."""
    path = DEPLOY / "systemd" / name
    section = ""
    for line in filter(None, path.read_text().splitlines()):
        heading = re.fullmatch(r"\[(\w+)\]", line)
        section = heading[1] if heading else section
        assert heading or line.partition("=")[0] in SECTIONS[section], line
    if shutil.which("systemd-analyze"):
        copy = tmp_path / name.replace("@", "@0")
        # it asks for the program of the unit to be there
        copy.write_text(re.sub(r"/opt/share-dist/bin/share-dist", "/bin/true", path.read_text()))
        ended = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", copy],
            capture_output=True,
            text=True,
            check=False,
        )
        assert not [line for line in ended.stderr.splitlines() if copy.name in line], ended.stderr


@pytest.mark.parametrize("script", sorted({path.name for path in DEPLOY.rglob("*.sh")}))
def test_scripts_are_shell(script):
    """Bash reads each script to its end."""
    path = next(DEPLOY.rglob(script))
    ended = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr

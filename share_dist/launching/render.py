"""Rendering: from a plan to every file that is no secret."""

from typing import Any

from share_dist.launching import containers, kubernetes, ray_cluster, systemd
from share_dist.launching.plan import RAY_UP, Plan

HEADER = (
    "# Written by `share-dist cluster init`: change what was asked for there, and write it anew.\n"
)


def render(plan: Plan) -> dict[str, str]:
    """
    Render a plan.

    Returns:
        The text of each file, by its path below the cluster's folder.
    """
    if plan.target in RAY_UP:
        return {
            "cluster.yaml": as_yaml([ray_cluster.cluster(plan)]),
            **ray_cluster.files(plan),
        }
    if plan.target == "kuberay":
        made = {name: as_yaml(found) for name, found in kubernetes.manifests(plan).items()}
        return {**made, "Dockerfile": containers.dockerfile(plan)}
    if plan.target == "compose":
        return {
            "compose.yaml": as_yaml([containers.compose(plan)]),
            "Dockerfile": containers.dockerfile(plan),
        }
    return systemd.units(plan)


def as_yaml(documents: list[dict[str, Any]]) -> str:
    """Return documents as YAML, in the order in which their keys were given."""
    import yaml

    class Plain(yaml.SafeDumper):
        """Writes what occurs twice twice."""

        def ignore_aliases(self, _: Any) -> bool:
            return True

    text = yaml.dump_all(documents, Dumper=Plain, sort_keys=False, width=200, allow_unicode=True)
    return HEADER + str(text)

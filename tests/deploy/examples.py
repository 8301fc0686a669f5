"""
The plans of the examples in `deploy/`: `python -m tests.deploy.examples` writes them anew.

Versions are fixed, so that an example changes only when what is rendered does.
"""

from dataclasses import replace
from pathlib import Path

from share_dist.launching.plan import Pins, Plan
from share_dist.launching.render import render

DEPLOY = Path(__file__).parents[2] / "deploy"

_PINS = Pins(python="3.11.7", ray="2.60.0", torch="2.13.0", release="0.1.0")

_BASE = Plan(
    target="local",
    name="north",
    pins=_PINS,
    folder="~/clusters/north",
    store="~/share-dist-store",
    head="10.0.0.10",
    num_workers=2,
    gpus=1,
)
_OVER_SSH = replace(_BASE, ssh_user="ubuntu")
_CLOUD = replace(_OVER_SSH, head="coordinator.north.internal")

PLANS = {
    "local": replace(_OVER_SSH, workers=("10.0.0.11", "10.0.0.12"), ssh_key="~/.ssh/id_ed25519"),
    "aws": replace(
        _CLOUD,
        target="aws",
        region="eu-west-1",
        instance="g5.xlarge",
        head_instance="m7i.xlarge",
    ),
    "gcp": replace(
        _CLOUD,
        target="gcp",
        region="europe-west1-b",
        project="example-project",
        instance="g2-standard-8",
        head_instance="n2-standard-4",
    ),
    "kuberay": replace(
        _BASE,
        target="kuberay",
        head="north-coordinator",
        image="registry.example.org/north:0.1.0",
    ),
    "compose": replace(_BASE, target="compose", head="coordinator", image="north:0.1.0"),
    "systemd": replace(
        _BASE, target="systemd", store="/var/lib/north", environment="/opt/share-dist"
    ),
}
"""Folder below `deploy/` -> the plan that its files are rendered from."""


def main() -> None:
    """Write every example anew."""
    for folder, plan in PLANS.items():
        for name, text in render(plan).items():
            path = DEPLOY / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


if __name__ == "__main__":
    main()

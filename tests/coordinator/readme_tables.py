"""The tables of the coordinator's README: `python -m tests.coordinator.readme_tables` writes them."""

import ast
import enum
import inspect
import itertools
import textwrap
from pathlib import Path

from prometheus_client import CollectorRegistry

import coordinator
from coordinator import faults
from coordinator.metrics import Metrics
from share_dist.telemetry import Event
from tests.house.readme_tables import table, with_tables

README = Path(coordinator.__file__).with_name("README.md")


def catalogue(kind: type[enum.Enum]) -> str:
    """Every event of a catalogue, with the words below it."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    said = {
        node.targets[0].id: " ".join(following.value.value.split())
        for node, following in itertools.pairwise(definition.body)
        if isinstance(node, ast.Assign)
    }
    rows = [(f"`{event.value}`", said[event.name].replace("``", "`")) for event in kind]
    return table(["event", "when, and with which fields"], rows)


def families(registry: CollectorRegistry) -> str:
    """Every metric of a registry."""
    found = sorted(registry.collect(), key=lambda family: family.name)
    rows = [(f"`{family.name}`", family.type, family.documentation) for family in found]
    return table(["metric", "kind", "meaning"], rows)


def events() -> str:
    """Every event that a program logs."""
    return catalogue(Event)


def metrics() -> str:
    """Every metric that a coordinator serves."""
    return families(Metrics().registry)


def fault_points() -> str:
    """Every point at which the process can be killed."""
    return "\n".join(f"{i}. `{point}`" for i, point in enumerate(faults.POINTS, 1))


TABLES = {"events": events, "metrics": metrics, "faults": fault_points}


def written(text: str) -> str:
    """A README's text with every table made anew."""
    return with_tables(text, TABLES)


if __name__ == "__main__":
    README.write_text(written(README.read_text()))

"""The Grafana dashboard shows metrics that exist, each in a place of its own."""

import itertools
import json
import re
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from coordinator.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana/coordinator.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
}
FUNCTIONS = {
    "histogram_quantile", "increase", "label_values", "rate", "sum", "time", "by",
}  # fmt: skip


def existing():
    """Every sample's name -> the labels that its family is declared with."""
    found = {}
    for collector in list(Metrics().registry._collector_to_names):
        for family in collector.collect():
            labels = set(
                getattr(family, "_labelnames", ()) or getattr(collector, "_labelnames", ())
            )
            for suffix in SUFFIXES[family.type]:
                found[family.name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    return found


EXISTING = existing()


def expressions():
    for panel in PANELS:
        for target in panel["targets"]:
            yield pytest.param(target["expr"], target["legendFormat"], id=panel["title"])


def metrics_in(expression):
    """The names of metrics in an expression: what is neither function, label nor text."""
    bare = re.sub(r"by \([^)]*\)", "by", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    return {name for name in re.findall(r"[a-zA-Z_:][\w:]*", bare) if name not in FUNCTIONS}


@pytest.mark.parametrize(("expression", "legend"), list(expressions()))
def test_every_expression_names_metrics_that_exist(expression, legend):
    """No panel is empty for ever: its metrics are the catalogue's, and so are its labels."""
    names = metrics_in(expression)
    assert names
    assert names <= EXISTING.keys()
    known = set.union(*(EXISTING[name] for name in names)) | {"instance", "job"}
    for labels in re.findall(r"\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)\s*[=!]", labels)) <= known
    for labels in re.findall(r"by \(([^)]*)\)", expression):
        assert {label.strip() for label in labels.split(",")} <= known
    assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= known


def test_every_metric_of_ours_is_shown():
    """What is counted is looked at: no metric of the catalogue is missing on the dashboard."""
    shown = {name for parameter in expressions() for name in metrics_in(parameter.values[0])}
    families = {
        re.sub(r"_(total|bucket|sum|count)$", "", name)
        for name in EXISTING
        if name.startswith("share_dist_")
    }
    assert families <= {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in shown}


def test_the_expressions_are_whole():
    """Brackets are closed, and only variables of the dashboard are used."""
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    for parameter in expressions():
        expression = parameter.values[0]
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing)
        used = set(re.findall(r"\$\{?(\w+)", expression)) - {"__rate_interval"}
        assert used <= variables


def test_the_panels_have_places_of_their_own():
    """Ids are unique, nothing overlaps, nothing stands beyond the 24 columns; each says what it is."""
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["title"]
    for panel in PANELS:
        assert panel["description"].endswith(".")
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    for one, other in itertools.combinations(DASHBOARD["panels"], 2):
        a, b = one["gridPos"], other["gridPos"]
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, (one["title"], other["title"])


def test_prometheus_reads_what_is_served():
    """The text format of the metrics is one that Prometheus parses, every family with its help."""
    families = list(text_string_to_metric_families(generate_latest(Metrics().registry).decode()))
    assert families
    assert all(family.documentation for family in families)

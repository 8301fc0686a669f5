"""The report's page: complete, self-contained, and safe whatever a task is called."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest

from share_dist.commands.report_figures import FIGURES, draw
from share_dist.commands.report_page import render_page
from tests.commands.results import NAMES, TASKS, report_of, results_of


class Page(HTMLParser):
    """Elements with their attributes, and the text between them."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def html():
    return render_page(report_of(with_lora=True))


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_nothing_is_fetched_and_nothing_runs(html, page):
    """No script, no style sheet, no image or link to anywhere: the file alone is the report."""
    assert not {tag for tag, _ in page.elements} & {"script", "link", "img", "iframe", "object"}
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert not re.search(r"url\((?!#)|@import", html)


def test_every_task_worker_and_version_is_told(page):
    """Nothing of the run is left out of the tables."""
    for name in (*NAMES, *TASKS):
        assert name in page.text
    report = report_of()
    for version in report["versions"]:
        assert f"{version['subspace_bytes']:,}" in page.text
    for check in report["checks"]:
        assert check["what"] in page.text


def test_every_figure_is_there_and_is_well_formed(page):
    """Five figures, each an SVG that a strict parser takes."""
    assert sum(tag == "svg" for tag, _ in page.elements) == len(FIGURES) == 5
    report = report_of()
    for name in FIGURES:
        assert ET.fromstring(draw(name, report)).tag.endswith("svg")


def test_what_was_not_reached_is_said():
    """A missed figure stands in red words, beside those that were reached."""
    text = Page(render_page(report_of(export={"largest_difference": 0.5}))).text
    assert text.count("not reached") == 1
    assert "at most 0.0001" in text


def test_without_a_comparison_its_column_and_marks_are_gone(page):
    """`own LoRA` is shown only where it was trained."""
    assert "own LoRA" in page.text
    assert "own LoRA" not in Page(render_page(report_of())).text


def test_names_are_text_whatever_they_hold():
    """A task that is called like a tag stays text, in tables and in figures."""
    workers = [results_of(worker) for worker in TASKS]
    workers[0]["tasks"][0]["task_id"] = "<script>x</script>"
    html = render_page(report_of(workers=workers))
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_one_worker_is_enough():
    """A run with a single worker has a report as well."""
    page = Page(render_page(report_of(workers=[results_of("north")])))
    assert "4 tasks, learnt on one worker into" in page.text

"""Every exit code has its section in errors.md, and every error its line there."""

import ast
import re
from pathlib import Path

import pytest

from share_dist import errors
from share_dist.errors import ExitCode

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "share_dist/errors.md").read_text()
SOURCES = [
    path
    for package in ("share_dist", "coordinator", "worker")
    for path in (ROOT / package).rglob("*.py")
    if "pb" not in path.parts
]
ENDING = {"Exit", "exit", "_exit", "SystemExit"}


def sections():
    """Exit code -> title and text of its section."""
    parts = re.split(r"^## (\d+) (.+)$", PAGE, flags=re.MULTILINE)[1:]
    return {int(n): (title, text) for n, title, text in zip(*[iter(parts)] * 3, strict=True)}


def raised():
    """Every error that is raised as itself, and is no umbrella over others."""
    umbrella = errors.ShareError.no_status_reason
    kinds = (getattr(errors, name) for name in errors.__all__)
    return [
        kind
        for kind in kinds
        if kind.status or (kind.no_status_reason != umbrella and not kind.__subclasses__())
    ]


def test_every_exit_code_has_its_section():
    """The page has one section per code, under its own name, and one line each in the table."""
    assert {code: title for code, (title, _) in sections().items()} == {
        int(code): code.name for code in ExitCode
    }
    listed = re.findall(r"^\| \[(\d+)\]\(#([\w-]+)\) \| (\w+) \|", PAGE, flags=re.MULTILINE)
    assert [(int(n), anchor, name) for n, anchor, name in listed] == [
        (int(code), f"{int(code)}-{code.name.lower()}", code.name) for code in ExitCode
    ]


@pytest.mark.parametrize("code", ExitCode, ids=lambda code: code.name)
def test_a_section_teaches(code):
    """Each section says what happened, how to find out more, and what to do, in this order."""
    _, text = sections()[code]
    asked = ("**What happened.**", "**How to find out more.**", "**What to do.**")
    places = [text.find(question) for question in asked]
    assert -1 not in places
    assert places == sorted(places)


def test_every_error_stands_in_the_section_of_its_exit_code():
    """Each class has one line with its remedy, where its exit code is; no other class is named."""
    written = {
        code: set(re.findall(r"^\| `(\w+)` \| \w.+ \|$", text, flags=re.MULTILINE))
        for code, (_, text) in sections().items()
    }
    expected = {int(code): set() for code in ExitCode}
    for kind in raised():
        expected[kind.exit_code].add(kind.__name__)
    assert written == expected


def endings(tree):
    """The first arguments of calls that end a process."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name in ENDING:
                yield node.args[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_program_ends_with_a_number_of_its_own(path):
    """A process ends with an ExitCode or with an error's own, never with a literal."""
    literals = [
        ast.unparse(node)
        for node in endings(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
    ]
    assert literals == []


def test_every_exit_code_is_used():
    """No code is documented with which nothing ends."""
    used = set(re.findall(r"ExitCode\.([A-Z]+)", "".join(path.read_text() for path in SOURCES)))
    assert used == {code.name for code in ExitCode}

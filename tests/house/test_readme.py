"""The README says what the code does: its tables, its commands and its files."""

import json
import re

import pytest
import typer.main

import share_dist
from share_dist.cli import app
from tests.house.readme_tables import README, ROOT, TABLES, block

TEXT = README.read_text()
BLOCKS = re.findall(r"^```\w*\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_what_the_code_says(name):
    """Commands, RPCs, errors, configuration and public names are written from the code."""
    found = block(name).search(TEXT)
    assert found, f"the README has no table {name!r}"
    assert found[1] == TABLES[name](), "run `python -m tests.house.readme_tables` and commit"


def test_every_command_that_is_shown_exists():
    """Each `share-dist ...` in a code block names a command and options that it has."""
    root = typer.main.get_command(app)
    shown = re.findall(r"^(?:\$ )?share-dist ([^\n#]+)", "".join(BLOCKS), flags=re.MULTILINE)
    assert shown
    for line in shown:
        command, words = root, line.replace("\\", " ").split()
        while words and hasattr(command, "commands") and not words[0].startswith("-"):
            assert words[0] in command.commands, f"share-dist {line}"
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}  # fmt: skip
        used = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert used <= known | {"--help"}, f"share-dist {line}"


def test_every_make_target_that_is_shown_exists():
    """Each `make ...` of the README and of CONTRIBUTING is a target."""
    targets = set(
        re.findall(r"^([a-z-]+(?: [a-z-]+)*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    )
    targets = {name for line in targets for name in line.split()}
    for text in (TEXT, (ROOT / "CONTRIBUTING.md").read_text()):
        for name in re.findall(r"^(?:\$ )?make ([a-z-]+)", text, flags=re.MULTILINE):
            assert name in targets


def test_every_link_to_a_file_leads_somewhere():
    """Relative links of all Markdown files point at files that are there."""
    for page in [README, *ROOT.glob("*/*.md"), *ROOT.glob("*.md")]:
        if ".venv" in page.parts:
            continue
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_public_names_are_complete():
    """Every name in ``__all__`` can be had, has a docstring, and nothing unknown can be had."""
    for name in share_dist.__all__:
        assert getattr(share_dist, name).__doc__
    assert set(share_dist.__all__) <= set(dir(share_dist))
    with pytest.raises(AttributeError, match="no attribute 'surprise'"):
        _ = share_dist.surprise


def test_figures_name_the_output_that_they_come_from():
    """The quickstart's table in the README is that of the committed report."""
    report = json.loads((ROOT / "tests/benchmarks/results/quickstart.json").read_text())
    for row in report["tasks"]:
        line = re.search(rf"^\| {re.escape(row['task'])} .*$", TEXT, flags=re.MULTILINE)
        assert line, row["task"]
        for field in ("majority", "frozen", "learnt", "final"):
            assert f"{row[field]:.3f}" in line[0], (row["task"], field)

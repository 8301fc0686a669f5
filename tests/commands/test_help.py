"""`--help` teaches: every command says what it does, every option what it is for."""

import importlib.metadata

import pytest
import typer

from share_dist.cli import app
from tests.commands.conftest import share_dist


def commands(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield pytest.param(command, (*path, name), id=" ".join((*path, name)))


COMMANDS = list(commands(typer.main.get_command(app)))
OURS = [
    "quickstart", "status", "tasks", "pull", "push", "watch", "export", "import", "inspect",
    "kit fetch", "coordinator serve", "worker run",
]  # fmt: skip


def test_every_command_is_there():
    """The command line has its commands, those of the two programs included."""
    assert set(OURS) <= {parameters.id for parameters in COMMANDS}


@pytest.mark.parametrize(("command", "path"), COMMANDS)
def test_every_option_has_a_help(command, path):
    """A command, and each of its arguments and options, has a sentence that ends as one."""
    assert command.help, path
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{path}: {parameter.name}"


@pytest.mark.parametrize(("command", "path"), COMMANDS)
def test_every_command_speaks_json(command, path):
    """Scripts can read any command."""
    assert "--json" in [name for parameter in command.params for name in parameter.opts], path


@pytest.mark.parametrize(("command", "path"), COMMANDS)
def test_every_help_can_be_shown(command, path):
    """`--help` ends well and shows the options."""
    ended = share_dist(*path, "--help")
    assert ended.code == 0
    assert "--json" in ended.stdout


def test_the_version_is_the_release():
    """`--version` prints the installed release and nothing else."""
    ended = share_dist("--version")
    assert (ended.code, ended.stdout) == (0, f"share-dist {importlib.metadata.version('share-dist')}\n")  # fmt: skip

"""What every command shares: exit codes, letters, JSON."""

import enum
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import pytest
import typer

from share_dist import errors
from share_dist.commands.connection import Connection
from share_dist.commands.console import jsonable, rows, run, show, writing
from share_dist.errors import ConfigError, ShareError
from tests.commands.conftest import share_dist


def app_that(raises):
    """A command line whose one command fails."""
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    def fail(as_json: bool = typer.Option(False, "--json")):
        raise raises

    return app


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ShareError("it broke"), 1),
        (errors.ConfigError("bad key", key="store"), 2),
        (errors.RankTooLarge("too many", asked=9, largest=4), 1),
        (errors.ChecksumMismatch("damaged"), 1),
        (errors.VersionInFuture("not yet", version=9, current_version=4), 1),
        (errors.UnknownTask("no such task", task_id="a"), 1),
        (errors.StoreLocked("another has it", pid=7), 3),
        (errors.DeadlineExceeded("too slow", seconds=2.0), 4),
        (errors.TrainingDiverged("NaN", step=3), 5),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ShareError) else str(value),
)
def test_every_family_of_errors_has_its_exit_code(capsys, error, code):
    """An error ends a command with its family's code; people read its letter, scripts its fields."""
    with pytest.raises(SystemExit) as ended:
        run(app_that(error), [])
    told = capsys.readouterr()
    assert ended.value.code == code
    assert told.out == ""
    assert told.err == f"{type(error).__name__}: {error.message}\n"

    with pytest.raises(SystemExit) as ended:
        run(app_that(error), ["--json"])
    told = capsys.readouterr()
    assert ended.value.code == code
    assert json.loads(told.out) == {
        "error": type(error).__name__,
        "message": error.message,
        **error.details,
    }
    assert told.err == ""


@pytest.mark.parametrize(
    ("package", "extra"),
    [("ray", "worker"), ("sqlalchemy.orm", "coordinator"), ("matplotlib.figure", "quickstart")],
)
def test_a_missing_package_names_the_extra_that_brings_it(capsys, package, extra):
    """Where a package is missing, the letter is the command that installs it."""
    with pytest.raises(SystemExit) as ended:
        run(app_that(ModuleNotFoundError("no module", name=package)), [])
    assert ended.value.code == 2
    assert f"pip install 'share-dist[{extra}]'" in capsys.readouterr().err


def test_a_package_of_nobody_is_a_bug_and_shows_itself():
    """A module that no extra brings is missing by our own mistake: nothing hides it."""
    with pytest.raises(ModuleNotFoundError, match="share_dist_nothing"):
        run(app_that(ModuleNotFoundError("share_dist_nothing", name="share_dist_nothing")), [])


def test_wrong_arguments_are_usage_for_people_and_json_for_scripts():
    """A misspelt option ends with 2; with --json it is an error like any other."""
    ended = share_dist("status", "--nope")
    assert (ended.code, ended.stdout) == (2, "")
    assert "Usage:" in ended.stderr
    assert "--nope" in ended.stderr
    ended = share_dist("status", "--nope", "--json")
    assert (ended.code, ended.stderr) == (2, "")
    assert ended.json["error"] == "ConfigError"
    assert "--nope" in ended.json["message"]


def test_ctrl_c_ends_with_130_and_no_word(capsys):
    """An interrupt is no error: shells know 130."""
    with pytest.raises(SystemExit) as ended:
        run(app_that(KeyboardInterrupt()), [])
    assert ended.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_command_chooses_its_exit_code():
    """``typer.Exit`` goes through unchanged, as the interrupted quickstart needs."""
    with pytest.raises(SystemExit) as ended:
        run(app_that(typer.Exit(7)), [])
    assert ended.value.code == 7


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True, slots=True)
class Record:
    colour: Colour
    when: datetime
    places: tuple[Path, ...]
    drift: dict[int, float]


def test_jsonable_takes_whatever_records_hold():
    """Enums, times, paths and non-numbers become what json.dumps takes, keys become text."""
    record = Record(
        Colour.RED,
        datetime(2030, 1, 2, tzinfo=timezone.utc),
        (Path("a"), Path("b")),
        {1: math.inf, 2: 0.5},
    )
    assert json.loads(json.dumps(jsonable(record))) == {
        "colour": "red",
        "when": "2030-01-02T00:00:00+00:00",
        "places": ["a", "b"],
        "drift": {"1": None, "2": 0.5},
    }


def test_tables_write_numbers_as_people_read_them(capsys):
    """Thousands are parted, fractions are short, nothing is a dash, brackets are text."""
    lines = [("cats [3]", 1234567, 0.123456, None)]
    show(None, as_json=False, table=lambda: rows("tasks", ("task", "bytes", "drift", "lag"), lines))
    told = capsys.readouterr().out
    assert told.splitlines()[0].strip() == "tasks"
    assert told.split()[-5:] == ["cats", "[3]", "1,234,567", "0.1235", "-"]


def test_what_cannot_be_written_is_a_letter(tmp_path):
    """The operating system's refusal names the place and its reason."""
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "x"
    refused = pytest.raises(ConfigError, match=r"Not a directory.*choose another --output")
    with refused, writing(place):
        place.mkdir(parents=True)


@pytest.mark.parametrize("address", ["localhost", "two words:1", ""])
def test_what_is_no_address_is_refused_at_once(address):
    """A mistyped address fails before anything is tried."""
    with pytest.raises(ConfigError, match="is no address"), Connection(address).client():
        pass


HEAVY = ("torch", "grpc", "ray", "numpy", "transformers", "peft", "sqlalchemy", "matplotlib")


def test_help_needs_nothing_heavy():
    """`share-dist --help` stays quick: no command's machinery is imported before it is used."""
    code = f"import sys, share_dist.cli; print(*(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

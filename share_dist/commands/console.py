"""What every command shares: JSON or tables, files written or a letter why not, exit codes."""

import enum
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from share_dist.errors import ConfigError, ExitCode, ShareError

JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", help="Print JSON on standard output, for scripts; an error is JSON as well."
    ),
]

YesOption = Annotated[
    bool, typer.Option("--yes", "-y", help="Do it without asking; needed where nobody can answer.")
]

WIDTH_OF_FILES = 160
"""Columns of a table that goes to a file or a pipe, where no terminal says how many there are."""

EXTRAS = {
    "cryptography": "certs",
    "alembic": "coordinator",
    "fsspec": "coordinator",
    "psycopg": "postgres",
    "sqlalchemy": "coordinator",
    "prometheus_client": "coordinator",
    "jinja2": "coordinator",
    "starlette": "coordinator",
    "uvicorn": "coordinator",
    "grpc_health": "coordinator",
    "grpc_reflection": "coordinator",
    "ray": "worker",
    "yaml": "worker",
    "transformers": "worker",
    "datasets": "worker",
    "sklearn": "worker",
    "huggingface_hub": "hub",
    "peft": "quickstart",
    "matplotlib": "quickstart",
}
"""Package that may be missing -> the extra of share-dist that brings it."""

# the base of all errors in arguments, of which typer exports this subclass only
_UsageError: type[Any] = typer.BadParameter.__mro__[1]


def show(value: Any, *, as_json: bool, table: Callable[[], Table | str]) -> None:
    """Print a value as JSON, or for people as ``table()`` renders it."""
    if as_json:
        typer.echo(json.dumps(jsonable(value)))
        return
    rendered = table()
    if isinstance(rendered, str):
        typer.echo(rendered)
    else:
        make_console().print(rendered)


def confirm(what: str, *, yes: bool, as_json: bool) -> None:
    """
    Ask before something that cannot simply be undone.

    Args:
        what: What will be done, as a verb and its objects.
        yes: It was answered already.
        as_json: A program reads, which cannot answer.

    Raises:
        ConfigError: Nobody is there to be asked.
        typer.Abort: The answer was no.
    """
    if yes:
        return
    if as_json or not sys.stdin.isatty():
        raise ConfigError(
            f"this would {what}, and nobody is here to be asked: say --yes if it shall be done",
            key="yes",
        )
    typer.confirm(f"This will {what}. Go on?", abort=True, err=True)


def rows(title: str, columns: Sequence[str], lines: Iterable[Sequence[object]]) -> Table:
    """Make a table whose cells are written as people read numbers, numbers to the right."""
    lines = list(lines)
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.show_header = any(columns)
    for index, column in enumerate(columns):
        is_number = bool(lines) and all(isinstance(line[index], (int, float)) for line in lines)
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for line in lines:
        table.add_row(*(_cell(cell) for cell in line))
    return table


def make_console() -> Console:
    """Make a console that knows how wide its lines may be, also where nobody looks."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH_OF_FILES
    return console


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("[", r"\[")


def jsonable(value: Any) -> Any:
    """
    Turn a record into what ``json.dumps`` takes.

    Numbers that JSON has no word for become null.

    Examples:
        >>> jsonable({"path": Path("a"), "loss": math.nan, "ids": (1, 2)})
        {'path': 'a', 'loss': None, 'ids': [1, 2]}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: jsonable(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [jsonable(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextmanager
def writing(path: Path, option: str = "output") -> Iterator[None]:
    """
    Write to where ``--output`` says, or another option.

    Raises:
        ConfigError: The operating system refuses; says why.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror or error}): choose another --{option}",
            key=option,
        ) from error


def run(app: typer.Typer, arguments: Sequence[str] | None = None) -> None:
    """
    Run a command line and end the process; what goes wrong becomes a message and an exit code.

    Args:
        app: The commands.
        arguments: Instead of this process's own.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code = app(arguments, standalone_mode=False)
    except ShareError as error:
        sys.exit(_tell(error, arguments))
    except ModuleNotFoundError as error:
        sys.exit(_tell(_missing_extra(error), arguments))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(ExitCode.INTERRUPTED)
    except _UsageError as error:
        sys.exit(_tell_usage(error, arguments))
    sys.exit(code or 0)


def _missing_extra(error: ModuleNotFoundError) -> ConfigError:
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        raise error
    return ConfigError(
        f"this command needs {package}, which is not installed: "
        f"pip install 'share-dist[{EXTRAS[package]}]'",
        key=package,
    )


def _tell(error: ShareError, arguments: Sequence[str]) -> int:
    name = type(error).__name__
    if "--json" in arguments:
        typer.echo(json.dumps({"error": name, "message": error.message, **jsonable(error.details)}))
    else:
        typer.echo(f"{typer.style(name, fg='red', bold=True)}: {error.message}", err=True)
    return error.exit_code


def _tell_usage(error: Any, arguments: Sequence[str]) -> int:
    """Say what is wrong with the arguments: for people with the usage, for scripts as any error."""
    if "--json" in arguments:
        return _tell(ConfigError(f"{error.format_message().rstrip('.')}: see --help"), arguments)
    error.show()
    return int(error.exit_code)

"""What every command shares: options, JSON or tables, errors as letters, exit codes."""

import enum
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from share_dist.errors import ConfigError, ShareError

DEFAULT_ADDRESS = "127.0.0.1:50551"

AddressOption = Annotated[
    str,
    typer.Option(
        "--coordinator",
        "-c",
        envvar="SHARE_DIST_COORDINATOR",
        help="Where the coordinator listens, host:port.",
        rich_help_panel="Connection",
    ),
]
TimeoutOption = Annotated[
    float,
    typer.Option(
        "--timeout",
        min=0.1,
        help="Seconds until a call gives up, retries included.",
        rich_help_panel="Connection",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]

EXTRAS = {
    "sqlalchemy": "coordinator",
    "prometheus_client": "coordinator",
    "grpc_health": "coordinator",
    "grpc_reflection": "coordinator",
    "ray": "worker",
    "transformers": "worker",
    "datasets": "worker",
    "sklearn": "worker",
    "peft": "quickstart",
    "jinja2": "quickstart",
    "matplotlib": "quickstart",
}
"""Package that may be missing -> the extra of share-dist that brings it."""


def show(value: Any, *, as_json: bool, table: Callable[[], Table | str]) -> None:
    """Print a value as JSON, or for people as ``table()`` renders it."""
    if as_json:
        typer.echo(json.dumps(jsonable(value)))
    else:
        Console().print(table())


def rows(title: str, columns: Sequence[str], lines: Iterable[Sequence[object]]) -> Table:
    """Make a table whose cells are written as people read numbers."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for line in lines:
        table.add_row(*(_cell(cell) for cell in line))
    return table


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


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


def run(app: Callable[[], object]) -> None:
    """Run the command line; an error of ours becomes its message and its exit code."""
    try:
        app()
    except ShareError as error:
        _tell(error)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        missing = ConfigError(
            f"this command needs {package}, which is not installed: "
            f"pip install 'share-dist[{EXTRAS[package]}]'",
            key=package,
        )
        _tell(missing)
        sys.exit(missing.exit_code)


def _tell(error: ShareError) -> None:
    name = type(error).__name__
    if "--json" in sys.argv:
        typer.echo(json.dumps({"error": name, "message": error.message, **jsonable(error.details)}))
    else:
        Console(stderr=True, highlight=False).print(f"[bold red]{name}[/]: ", end="")
        typer.echo(error.message, err=True)

"""Views that are drawn anew every few seconds, until Ctrl-C."""

import itertools
import json
import time
from collections.abc import Callable
from typing import Annotated, TypeVar

import typer
from rich.console import RenderableType
from rich.live import Live
from rich.text import Text

from share_dist.commands.console import jsonable, make_console
from share_dist.errors import TransportError

FoundT = TypeVar("FoundT")

EveryOption = Annotated[
    float, typer.Option("--every", min=0.2, help="Seconds from one look to the next.")
]
CountOption = Annotated[
    int | None,
    typer.Option(
        "--count",
        min=1,
        help="Stop after so many looks. [default: go on until Ctrl-C]",
        show_default=False,
    ),
]


def show_live(
    read: Callable[[], FoundT],
    draw: Callable[[FoundT], RenderableType],
    *,
    every: float,
    count: int | None,
    as_json: bool,
) -> None:
    """
    Read and draw again and again; as JSON, one line for each look.

    A coordinator that does not answer for a while is said so and asked again.

    Args:
        read: Asks the coordinator.
        draw: Makes what people see.
        every: Seconds between two looks.
        count: Looks in all; None for no end.
        as_json: For programs.
    """
    looks = itertools.count() if count is None else range(count)
    with Live(console=make_console(), auto_refresh=False, transient=False) as display:
        for look in looks:
            if look:
                time.sleep(every)
            try:
                found = read()
            except TransportError as error:
                if as_json:
                    raise
                display.update(Text(error.message, style="red"), refresh=True)
                continue
            if as_json:
                typer.echo(json.dumps(jsonable(found)))
            else:
                display.update(draw(found), refresh=True)

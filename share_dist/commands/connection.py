"""How a command reaches a coordinator, and how long it tries."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from share_dist.errors import ConfigError

if TYPE_CHECKING:
    from share_dist.client import ShareClient

DEFAULT_ADDRESS = "127.0.0.1:50551"
DEFAULT_TIMEOUT_SECONDS = 60.0

FIRST_ANSWER_SECONDS = 5.0
"""How long a command waits for the first answer when it was not told: most often, an address
at which nothing answers is mistyped."""

AddressOption = Annotated[
    str,
    typer.Option(
        "--coordinator",
        "-c",
        envvar="SHARE_DIST_COORDINATOR",
        help="Where the coordinator listens, host:port.",
    ),
]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        min=0.1,
        help=f"Seconds that a call may take, retries included. [default: "
        f"{DEFAULT_TIMEOUT_SECONDS:.0f}, and {FIRST_ANSWER_SECONDS:.0f} for the first answer]",
        show_default=False,
    ),
]


@contextmanager
def connect(address: str, timeout: float | None) -> Iterator["ShareClient"]:
    """
    Connect to a coordinator that answers.

    Raises:
        ConfigError: The address is none.
        CoordinatorUnreachable: Nobody answers there.
    """
    from share_dist.client import ShareClient

    if ":" not in address or address.split() != [address]:
        raise ConfigError(
            f"{address!r} is no address: give --coordinator as host:port, such as "
            f"{DEFAULT_ADDRESS}",
            key="coordinator",
        )
    with ShareClient(address, timeout_seconds=timeout or FIRST_ANSWER_SECONDS) as client:
        client.status()
        client.timeout_seconds = timeout or DEFAULT_TIMEOUT_SECONDS
        yield client

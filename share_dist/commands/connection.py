"""How a command reaches a coordinator: where it is, what it is shown, how long it may take."""

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from share_dist.errors import ConfigError
from share_dist.wire.records import DEFAULT_SUBSPACE

if TYPE_CHECKING:
    from share_dist.client import Credentials, ShareClient
    from share_dist.client.admin import AdminClient

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
SubspaceOption = Annotated[
    str,
    typer.Option(
        "--subspace",
        envvar="SHARE_DIST_SUBSPACE",
        help="Which of the coordinator's named subspaces.",
    ),
]
CaOption = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        envvar="SHARE_DIST_CA",
        help="Speak TLS, and trust coordinators whose certificate comes from these authorities.",
        show_default=False,
    ),
]
CertificateOption = Annotated[
    Path | None,
    typer.Option(
        "--certificate",
        envvar="SHARE_DIST_CERTIFICATE",
        help="Certificate that says who you are.",
        show_default=False,
    ),
]
KeyOption = Annotated[
    Path | None,
    typer.Option(
        "--key",
        envvar="SHARE_DIST_KEY",
        help="Private key of --certificate.",
        show_default=False,
    ),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        envvar="SHARE_DIST_TOKEN_FILE",
        help="File with a token that says who you are; SHARE_DIST_TOKEN holds the token itself.",
        show_default=False,
    ),
]
PlainTokenOption = Annotated[
    bool,
    typer.Option(
        "--insecure", help="Send a token also unencrypted to another machine, where it can be read."
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


@dataclass(frozen=True)
class Connection:
    """
    What was said about how to reach a coordinator.

    Args:
        address: ``host:port``.
        subspace: Which named one.
        timeout: Seconds that a call may take; None when nothing was said.
        ca: See ``Credentials``, as for the fields below.
        certificate: The client's own.
        key: Of the certificate.
        token_file: Holds a token.
        insecure: A token may travel unencrypted.
    """

    address: str = DEFAULT_ADDRESS
    subspace: str = DEFAULT_SUBSPACE
    timeout: float | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token_file: Path | None = None
    insecure: bool = False

    @property
    def credentials(self) -> "Credentials":
        """
        What the coordinator is shown.

        Raises:
            ConfigError: A certificate without its key, or a key without its certificate.
        """
        # before grpc is imported: its own words about a handshake would stand beside ours
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
        from share_dist.client import Credentials

        shown = Credentials(
            self.ca, self.certificate, self.key, self.token_file, insecure=self.insecure
        )
        return shown.with_token_of(os.environ)

    @contextmanager
    def client(self) -> Iterator["ShareClient"]:
        """
        Connect to a coordinator that answers.

        Raises:
            ConfigError: The address is none.
            CoordinatorUnreachable: Nobody answers there.
        """
        arguments = self._arguments()
        from share_dist.client import ShareClient

        with ShareClient(self.address, **arguments) as client:
            client.status()
            client.timeout_seconds = self.timeout or DEFAULT_TIMEOUT_SECONDS
            yield client

    @contextmanager
    def admin(self) -> Iterator["AdminClient"]:
        """
        Connect for an administrator, to a coordinator that answers.

        Raises:
            ConfigError: The address is none.
            CoordinatorUnreachable: Nobody answers there.
        """
        arguments = self._arguments()
        from share_dist.client.admin import AdminClient

        with AdminClient(self.address, **arguments) as client:
            # which subspaces there are may be asked by anyone
            client.subspaces()
            client.timeout_seconds = self.timeout or DEFAULT_TIMEOUT_SECONDS
            yield client

    def _arguments(self) -> dict[str, Any]:
        self.require_address()
        return {
            "timeout_seconds": self.timeout or FIRST_ANSWER_SECONDS,
            "credentials": self.credentials,
            "subspace": self.subspace,
        }

    def require_address(self) -> None:
        """
        Raise unless the address has the form of one.

        Raises:
            ConfigError: It has not.
        """
        if ":" not in self.address or self.address.split() != [self.address]:
            raise ConfigError(
                f"{self.address!r} is no address: give --coordinator as host:port, such as "
                f"{DEFAULT_ADDRESS}",
                key="coordinator",
            )


DEFAULT_CONNECTION: Final = Connection()
"""What holds where nothing was said."""

_OPTIONS: Final[dict[str, tuple[Any, Any]]] = {
    "address": (AddressOption, DEFAULT_ADDRESS),
    "subspace": (SubspaceOption, DEFAULT_SUBSPACE),
    "timeout": (TimeoutOption, None),
    "ca": (CaOption, None),
    "certificate": (CertificateOption, None),
    "key": (KeyOption, None),
    "token_file": (TokenFileOption, None),
    "insecure": (PlainTokenOption, False),
}


def connecting(command: Callable[..., None]) -> Callable[..., None]:
    """
    Give a command the options by which a coordinator is reached.

    The command takes them as one argument, ``connection: Connection``; on the command line
    they stand where that argument stands.
    """
    signature = inspect.signature(command)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in _OPTIONS.items()
    ]
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
        parameters += options if name == "connection" else own

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> None:
        reached = {name: arguments.pop(name) for name in _OPTIONS}
        command(connection=Connection(**reached), **arguments)

    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapper

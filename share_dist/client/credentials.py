"""
What a client shows to a coordinator, and how it makes sure whom it talks to.

Files are named, not held: a worker on another machine reads its own, and one that is
replaced is read again. No secret stands in a ``repr``, a log line or an error.
"""

import ipaddress
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import grpc
from typing_extensions import override

from share_dist.errors import ConfigError
from share_dist.wire.options import CHANNEL_OPTIONS

TOKEN_VARIABLE: Final = "SHARE_DIST_TOKEN"  # noqa: S105 - a name, no secret
"""Environment variable that holds a token."""

_MAX_TOKEN_CHARACTERS: Final = 1000


@dataclass(frozen=True)
class Credentials:
    """
    Who a client is, and which authority it trusts.

    Args:
        ca: Certificates of the authorities that a coordinator's certificate may come from.
            With it, or with a certificate of its own, a client speaks TLS.
        certificate: The client's own certificate, followed by those between it and its authority.
        key: The private key of ``certificate``.
        token_file: File that holds a token; read again when it has changed.
        token: The token itself, instead of a file.
        insecure: Send a token also where it can be read on the way.

    Raises:
        ConfigError: A certificate without its key, or a key without its certificate.

    Examples:
        >>> Credentials(token="sd_1_secret")
        Credentials(ca=None, certificate=None, key=None, token_file=None, insecure=False)
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token_file: Path | None = None
    token: str = field(default="", repr=False)
    insecure: bool = False

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            given, missing = ("key", "certificate") if self.key else ("certificate", "key")
            raise ConfigError(
                f"a {given} was given and no {missing}: one proves the other, so give both",
                key=missing,
            )

    def with_token_of(self, environment: Mapping[str, str]) -> "Credentials":
        """Return these with the token of ``SHARE_DIST_TOKEN``, unless they have one."""
        if self.token or self.token_file:
            return self
        return replace(self, token=environment.get(TOKEN_VARIABLE, "").strip())

    def portable(self) -> "Credentials":
        """Return these for another process of this user: whole paths, and no secret itself."""
        paths = {name: getattr(self, name) for name in ("ca", "certificate", "key", "token_file")}
        whole = {name: path.resolve() for name, path in paths.items() if path is not None}
        return replace(self, token="", **whole)

    @property
    def is_encrypted(self) -> bool:
        """Whether these speak TLS."""
        return self.ca is not None or self.certificate is not None

    def channel(self, address: str) -> grpc.Channel:
        """
        Open a channel that shows these to a coordinator with every call.

        Args:
            address: ``host:port``.

        Raises:
            ConfigError: A file cannot be read, or a token would travel where others can read it.
        """
        if self.is_encrypted:
            channel = grpc.secure_channel(address, self._tls(), options=CHANNEL_OPTIONS)
        else:
            channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        if not (self.token or self.token_file):
            return channel
        self._require_private(address)
        bearer = _Bearer(self)
        bearer.token()
        return grpc.intercept_channel(channel, bearer)

    def read_token(self) -> str:
        """
        Return the token; empty when there is none.

        Raises:
            ConfigError: The file cannot be read, or holds no token.
        """
        if self.token_file is None:
            return _require_token(self.token, "the token") if self.token else ""
        return _require_token(
            _read(self.token_file, "token_file").decode(errors="replace").strip(),
            str(self.token_file),
        )

    def _tls(self) -> grpc.ChannelCredentials:
        pems = [_read_pem(getattr(self, name), name) for name in ("ca", "key", "certificate")]
        if self.certificate is not None:
            _require_pair(self.certificate, self.key)
        return grpc.ssl_channel_credentials(*pems)

    def _require_private(self, address: str) -> None:
        if self.is_encrypted or self.insecure or is_local(address):
            return
        raise ConfigError(
            f"a token would travel to {address} unencrypted, and whoever sees it can use it: give --ca "
            "with the certificate of the coordinator's authority, reach it through a tunnel, or say "
            "--insecure if the network itself is trusted",
            key="token",
        )


class _Bearer(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[misc]
    grpc.UnaryStreamClientInterceptor,  # type: ignore[misc]
    grpc.StreamUnaryClientInterceptor,  # type: ignore[misc]
    grpc.StreamStreamClientInterceptor,  # type: ignore[misc]
):
    """Adds a token to every call."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._stamp: object = None
        self._token = ""

    def token(self) -> str:
        """The token as it is now."""
        path = self._credentials.token_file
        stamp = _stamp_of(path) if path else ""
        # while a file is away, as in the middle of its replacement, what it held counts
        if not self._token or stamp not in {None, self._stamp}:
            self._token, self._stamp = self._credentials.read_token(), stamp
        return self._token

    def _send(self, continuation: Any, details: Any, request: Any) -> Any:
        metadata = [*(details.metadata or ()), ("authorization", f"Bearer {self.token()}")]
        return continuation(_WithMetadata(details, metadata), request)

    @override
    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return self._send(continuation, details, request)

    @override
    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return self._send(continuation, details, request)

    @override
    def intercept_stream_unary(self, continuation: Any, details: Any, requests: Any) -> Any:
        return self._send(continuation, details, requests)

    @override
    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return self._send(continuation, details, requests)


class _WithMetadata(grpc.ClientCallDetails):  # type: ignore[misc]
    """A call as it was, but for its metadata."""

    def __init__(self, details: Any, metadata: list[tuple[str, str]]) -> None:
        self.method = details.method
        self.timeout = details.timeout
        self.metadata = metadata
        self.credentials = details.credentials
        self.wait_for_ready = getattr(details, "wait_for_ready", None)
        self.compression = getattr(details, "compression", None)


def is_local(address: str) -> bool:
    """
    Tell whether an address stays on this machine.

    Examples:
        >>> is_local("127.0.0.1:50551"), is_local("[::1]:7"), is_local("unix:/run/sd.sock")
        (True, True, True)
        >>> is_local("10.0.0.1:50551")
        False
    """
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.rpartition(":")[0].rpartition("/")[2].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_pem(path: Path | None, key: str) -> bytes | None:
    if path is None:
        return None
    pem = _read(path, key)
    if b"-----BEGIN " not in pem:
        raise ConfigError(
            f"{path} is no PEM file, which has a line with -----BEGIN: give --{key} as "
            "`share-dist certs` writes it",
            key=key,
        )
    return pem


def _require_pair(certificate: Path, key: Path | None) -> None:
    """Raise unless a key is a certificate's own: gRPC would blame the other end."""
    try:
        # a key that asks for a password gets none, rather than a prompt
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        reason = (error.reason or "not readable").lower().replace("_", " ")
        raise ConfigError(
            f"{certificate} and {key} cannot be used together ({reason}): give --certificate and "
            "--key as `share-dist certs client` made them, the key without a password",
            key="key",
        ) from error


def _read(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}): give another --{key.replace('_', '-')}, or "
            "let this user read it",
            key=key,
        ) from error


def _require_token(token: str, where: str) -> str:
    # what follows "Bearer " is printable ASCII without space, or gRPC refuses the whole call
    if token and len(token) <= _MAX_TOKEN_CHARACTERS and token.isascii() and token.isprintable() and " " not in token:  # fmt: skip
        return token
    raise ConfigError(
        f"{where} holds no token: one line was expected, as `share-dist tokens create` prints it",
        key="token",
    )


def _stamp_of(path: Path) -> object:
    """What changes when a file is replaced; None while it is away."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino

"""
What a coordinator shows in the handshake, and whom it trusts: files that may change while it runs.

Each new connection looks at the files. What was replaced as a whole counts from then on; a
half-written or mismatched pair is said once in the log, and what counted before still does.
"""

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from structlog.typing import FilteringBoundLogger

from coordinator.clock import Clock
from coordinator.config import CoordinatorConfig
from share_dist.errors import ConfigError
from share_dist.telemetry import Event

WARN_DAYS = 14
"""A certificate that ends within so many days is warned about."""


@dataclass(frozen=True, slots=True)
class _Material:
    """The files' contents."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None


def add_port(
    server: grpc.aio.Server, config: CoordinatorConfig, log: FilteringBoundLogger, clock: Clock
) -> int:
    """
    Let a server listen, with TLS if it was told to.

    Returns:
        The port.

    Raises:
        ConfigError: The files of TLS cannot be used, or the address cannot be listened on.
    """
    credentials = _Files(config, log, clock).credentials() if config.tls_certificate else None
    try:
        if credentials is None:
            return int(server.add_insecure_port(config.listen))
        return int(server.add_secure_port(config.listen, credentials))
    except RuntimeError as error:
        raise ConfigError(
            f"cannot listen on {config.listen}: another program may have the port; choose another, "
            "or port 0",
            key="listen",
        ) from error


class _Files:
    """Reads the files whenever they have changed."""

    def __init__(self, config: CoordinatorConfig, log: FilteringBoundLogger, clock: Clock) -> None:
        assert config.tls_certificate, "a coordinator without a certificate speaks no TLS"
        assert config.tls_key, "its configuration was checked"
        self._certificate = config.tls_certificate
        self._key = config.tls_key
        self._client_ca = config.tls_client_ca
        self._log = log
        self._clock = clock
        self._stamp: object = None

    def credentials(self) -> grpc.ServerCredentials:
        """
        Return credentials that follow the files.

        Raises:
            ConfigError: They cannot be used as they are.
        """
        self._stamp = self._stamp_now()
        first = _configuration(self._read())
        self._warn()
        return grpc.dynamic_ssl_server_credentials(
            first, self._changed, require_client_authentication=self._client_ca is not None
        )

    def _changed(self) -> Any:
        """For each new connection, in a thread of gRPC: what counts from now on; None for what did."""
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        try:
            configuration = _configuration(self._read())
        except ConfigError as error:
            self._log.error(Event.TLS_KEPT.value, reason=error.message)
            return None
        self._log.info(
            Event.TLS_RELOADED.value,
            certificate=str(self._certificate),
            days_left=round(self._days_left(), 1),
        )
        self._warn()
        return configuration

    def _read(self) -> _Material:
        from share_dist.certificates import describe, require_pair

        material = _Material(
            _read(self._certificate, "tls_certificate"),
            _read(self._key, "tls_key"),
            _read(self._client_ca, "tls_client_ca") if self._client_ca else None,
        )
        try:
            require_pair(material.certificate, material.key)
            if material.client_ca is not None:
                describe(material.client_ca)
        except ConfigError as error:
            raise ConfigError(
                f"TLS cannot use {self._certificate} with {self._key}"
                f"{f' and {self._client_ca}' if self._client_ca else ''}: {error.message}",
                key="tls_certificate",
            ) from error
        return material

    def _stamp_now(self) -> object:
        paths = (self._certificate, self._key, self._client_ca)
        return tuple(_stamp_of(path) for path in paths if path is not None)

    def _days_left(self) -> float:
        from share_dist.certificates import describe

        return describe(self._certificate.read_bytes()).days_left(self._clock.now())

    def _warn(self) -> None:
        if self._key.stat().st_mode & stat.S_IRWXO:
            self._log.warning(
                Event.TLS_WARNING.value,
                reason=f"{self._key} is open to every user of this machine: chmod 600 {self._key}",
            )
        days_left = self._days_left()
        if days_left < WARN_DAYS:
            ends = f"ends in {days_left:.1f} days" if days_left > 0 else "has expired"
            self._log.warning(
                Event.TLS_WARNING.value,
                reason=f"{self._certificate} {ends}: renew it with `share-dist certs renew`",
            )


def _configuration(material: _Material) -> Any:
    return grpc.ssl_server_certificate_configuration(
        [(material.key, material.certificate)], root_certificates=material.client_ca
    )


def _read(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}): give another {key}, or let this user read it",
            key=key,
        ) from error


def _stamp_of(path: Path) -> object:
    """What changes when a file is replaced; None while it is away."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino

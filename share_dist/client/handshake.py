"""
Why a connection does not come about: a second look, with a TLS of its own.

gRPC says UNAVAILABLE for a coordinator that is away and for one that is there and does
not agree to talk. The first passes by itself, the second does not, and only the
handshake tells them apart.
"""

import contextlib
import socket
import ssl
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from share_dist.client.credentials import Credentials
from share_dist.errors import NotAuthenticated, ShareError, UntrustedCoordinator

LOOK_SECONDS = 1.0
"""How long a look may take."""

_GREETING: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""What an HTTP/2 client says first; the other end answers with its settings."""

_AGAIN_AFTER_SECONDS = 0.2


def explain(
    address: str, credentials: Credentials, seconds: float = LOOK_SECONDS
) -> ShareError | None:
    """
    Look why a coordinator did not answer.

    Args:
        address: ``host:port``.
        credentials: What the client shows.
        seconds: How long each of at most three looks may take.

    Returns:
        What will not pass by itself; None where trying again may help.
    """
    host, _, port = address.rpartition(":")
    host = host.rpartition("/")[2].strip("[]")
    if not host or not port.isdecimal():
        return None
    place = (host, int(port))
    try:
        if credentials.is_encrypted:
            return _explain_tls(address, place, credentials, seconds)
        return _explain_plain(address, place, seconds)
    except OSError:
        return None


def _explain_tls(
    address: str, place: tuple[str, int], credentials: Credentials, seconds: float
) -> ShareError | None:
    try:
        if not _hangs_up(place, _context(credentials), seconds):
            return None
        # a coordinator that ends at this moment hangs up, too: once more
        time.sleep(_AGAIN_AFTER_SECONDS)
        if not _hangs_up(place, _context(credentials), seconds):
            return None
    except ssl.SSLCertVerificationError as error:
        return UntrustedCoordinator(
            f"{address} did not prove to be the coordinator: {error.verify_message}. "
            f"{_remedy(error)}",
            address=address,
            reason=error.verify_message,
        )
    except ssl.SSLEOFError:
        # something on the way that has no coordinator behind it at this moment
        return None
    except ssl.SSLError as error:
        reason = (error.reason or "no answer").lower().replace("_", " ")
        return UntrustedCoordinator(
            f"{address} does not speak TLS as this client does ({reason}): see that the coordinator "
            "has --tls-certificate, or drop --ca and --certificate",
            address=address,
            reason=reason,
        )
    return _refused(address, credentials)


def _explain_plain(address: str, place: tuple[str, int], seconds: float) -> ShareError | None:
    if not _hangs_up(place, None, seconds):
        return None
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    try:
        _hangs_up(place, unverified, seconds)
    except ssl.SSLError as error:
        # an alert is an answer in TLS as well
        if "ALERT" not in (error.reason or ""):
            return None
    return UntrustedCoordinator(
        f"{address} speaks TLS, and this client was given no authority to trust: give --ca with the "
        "certificate of the coordinator's authority",
        address=address,
        reason="the coordinator speaks TLS",
    )


def _hangs_up(place: tuple[str, int], context: ssl.SSLContext | None, seconds: float) -> bool:
    """Greet as gRPC does; whether the other end then ends the connection without a word."""
    with contextlib.ExitStack() as closing:
        connection = closing.enter_context(socket.create_connection(place, timeout=seconds))
        if context is not None:
            connection = closing.enter_context(
                context.wrap_socket(connection, server_hostname=place[0])
            )
        try:
            connection.sendall(_GREETING)
            return not connection.recv(1)
        except (ConnectionResetError, BrokenPipeError):
            return True
        except TimeoutError:
            return False


def _context(credentials: Credentials) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=credentials.ca)
    context.set_alpn_protocols(["h2"])
    if credentials.certificate is not None:
        context.load_cert_chain(credentials.certificate, credentials.key)
    return context


def _remedy(error: ssl.SSLCertVerificationError) -> str:
    if "expired" in error.verify_message or "not yet valid" in error.verify_message:
        return "Renew it there with `share-dist certs renew`, or set the clocks right"
    if "ostname mismatch" in error.verify_message or "IP address mismatch" in error.verify_message:
        return "Use a name that its certificate has, or make it one with this name"
    return "Give --ca with the certificate of the authority that its certificate comes from"


def _refused(address: str, credentials: Credentials) -> NotAuthenticated:
    """The coordinator ended the connection after it had seen what we show, and says no more."""
    if credentials.certificate is None:
        return NotAuthenticated(
            f"{address} asks for a client certificate, and none was given: give --certificate and "
            "--key, as `share-dist certs client` makes them",
            presented="no certificate",
        )
    return NotAuthenticated(
        f"{address} does not take the certificate {credentials.certificate}: "
        f"{_own_fault(credentials.certificate)}",
        presented=f"certificate {credentials.certificate}",
    )


def _own_fault(certificate: Path) -> str:
    ended = _ended_at(certificate)
    if ended is not None and ended < datetime.now(timezone.utc):
        return f"it expired at {ended.isoformat()}. Renew it with `share-dist certs renew`"
    return (
        "it comes from another authority than the coordinator's --tls-client-ca, has expired, or is "
        "none for clients; the coordinator's audit log has the reason under handshake_refused"
    )


def _ended_at(certificate: Path) -> datetime | None:
    try:
        from cryptography import x509
    except ModuleNotFoundError:  # an extra: a plain client does without
        return None
    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc

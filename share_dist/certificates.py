"""
Certificates of a small authority: who a coordinator is, who a client is and what it may be.

A client's certificate names it in a URI, ``urn:share-dist:<role>:<name>``; a coordinator's
names the hosts that it is reached at. Keys are of the curve P-256. Needs ``cryptography``,
which the extra ``certs`` brings.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Final, NamedTuple, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPrivateKeyTypes,
    CertificatePublicKeyTypes,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from share_dist.errors import ConfigError
from share_dist.identity import URN, Identity, identity_of

BACKDATED: Final = timedelta(minutes=5)
"""Certificates hold from so long ago, for machines whose clocks are late."""


class Issued(NamedTuple):
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class Described:
    """
    What a certificate says.

    Args:
        subject: Its common name.
        identity: Who it is for a coordinator; None for one that is no client's.
        hosts: Names and addresses of a coordinator.
        is_authority: Whether it signs others.
        not_before: Holds from here ...
        not_after: ... to here.
        issuer: Common name of its authority.
        serial: Its number, hexadecimal.
    """

    subject: str
    identity: Identity | None
    hosts: tuple[str, ...]
    is_authority: bool
    not_before: datetime
    not_after: datetime
    issuer: str
    serial: str

    def days_left(self, now: datetime) -> float:
        """Days until it ends; below zero once it has."""
        return (self.not_after - now) / timedelta(days=1)


def make_authority(name: str, valid: timedelta, now: datetime) -> Issued:
    """
    Make an authority: a certificate that signs others, signed by itself.

    Args:
        name: Its common name.
        valid: How long it holds.
        now: From when.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    builder = _begin(subject, subject, key.public_key(), now, valid)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs=True), critical=True)
    certificate = _finish(builder, key.public_key(), key)
    return Issued(_pem(certificate), _key_pem(key))


def make_server(hosts: Sequence[str], authority: Issued, valid: timedelta, now: datetime) -> Issued:
    """
    Make the certificate of a coordinator.

    Args:
        hosts: Names and addresses by which clients reach it.
        authority: Signs it.
        valid: How long it holds.
        now: From when.

    Raises:
        ConfigError: There is no host, or one can be none.
    """
    if not hosts:
        raise ConfigError("name the hosts by which the coordinator is reached", key="hosts")
    names = x509.SubjectAlternativeName([_host(host) for host in hosts])
    return _issue(hosts[0][:64], names, ExtendedKeyUsageOID.SERVER_AUTH, authority, valid, now)


def make_client(identity: Identity, authority: Issued, valid: timedelta, now: datetime) -> Issued:
    """
    Make the certificate of a client.

    Args:
        identity: Who it is.
        authority: Signs it.
        valid: How long it holds.
        now: From when.
    """
    uri = x509.UniformResourceIdentifier(f"{URN}:{identity.role}:{identity.name}")
    names = x509.SubjectAlternativeName([uri])
    purpose = ExtendedKeyUsageOID.CLIENT_AUTH
    return _issue(identity.name[:64], names, purpose, authority, valid, now)


def renew(certificate: bytes, key: bytes, authority: Issued, now: datetime) -> bytes:
    """
    Make a certificate again, for the same key and for as long as it held before.

    Raises:
        ConfigError: It is an authority's, or the key is not its own.
    """
    old = _read(certificate)
    own_key = _read_key(key)
    if describe(certificate).is_authority:
        raise ConfigError(
            "an authority is not renewed, for all certificates name it: make a new one, and let "
            "coordinator and clients trust both for a while (put both into one file)",
            key="certificate",
        )
    require_pair(certificate, key)
    valid = old.not_valid_after_utc - old.not_valid_before_utc - BACKDATED
    builder = _begin(old.subject, _read(authority.certificate).subject, old.public_key(), now, valid)  # fmt: skip
    for kind in (x509.BasicConstraints, x509.SubjectAlternativeName, x509.ExtendedKeyUsage, x509.KeyUsage):  # fmt: skip
        extension = old.extensions.get_extension_for_class(kind)
        builder = builder.add_extension(extension.value, critical=extension.critical)
    return _pem(_finish(builder, own_key.public_key(), _authority_key(authority)))


def describe(certificate: bytes) -> Described:
    """
    Say what a certificate says; of several in one file, what the first one does.

    Raises:
        ConfigError: It is no certificate.
    """
    read = _read(certificate)
    return Described(
        subject=_common_name(read.subject),
        identity=identity_of(_alternatives(read, x509.UniformResourceIdentifier)),
        hosts=(*_alternatives(read, x509.DNSName), *_alternatives(read, x509.IPAddress)),
        is_authority=_is_authority(read),
        not_before=read.not_valid_before_utc,
        not_after=read.not_valid_after_utc,
        issuer=_common_name(read.issuer),
        serial=f"{read.serial_number:x}",
    )


def require_pair(certificate: bytes, key: bytes) -> None:
    """
    Raise unless a private key is a certificate's own.

    Raises:
        ConfigError: It is another one's, or one of the two cannot be read.
    """
    if _read(certificate).public_key() != _read_key(key).public_key():
        raise ConfigError(
            "the private key is not the certificate's own: give the two that were made together",
            key="key",
        )


def _issue(
    subject: str,
    names: x509.SubjectAlternativeName,
    purpose: x509.ObjectIdentifier,
    authority: Issued,
    valid: timedelta,
    now: datetime,
) -> Issued:
    signer = _read(authority.certificate)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _begin(_name(subject), signer.subject, key.public_key(), now, valid)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)  # fmt: skip
    builder = builder.add_extension(names, critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    builder = builder.add_extension(_usage(signs=False), critical=True)
    return Issued(
        _pem(_finish(builder, key.public_key(), _authority_key(authority))), _key_pem(key)
    )


def _begin(
    subject: x509.Name,
    issuer: x509.Name,
    key: CertificatePublicKeyTypes,
    now: datetime,
    valid: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + valid)
    )


def _finish(
    builder: x509.CertificateBuilder,
    own: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    own_id = x509.SubjectKeyIdentifier.from_public_key(own)
    signer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    builder = builder.add_extension(own_id, critical=False)
    builder = builder.add_extension(signer_id, critical=False)
    return builder.sign(cast("CertificateIssuerPrivateKeyTypes", signer), hashes.SHA256())


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    if re.fullmatch(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?", host):
        return x509.DNSName(host)
    raise ConfigError(
        f"{host[:100]!r} is no host: give a name or an address without a port, such as "
        "coordinator.example.org or 10.0.0.7",
        key="hosts",
    )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def _alternatives(
    certificate: x509.Certificate,
    kind: type[x509.UniformResourceIdentifier] | type[x509.DNSName] | type[x509.IPAddress],
) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(value) for value in found.value.get_values_for_type(kind))


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _read(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ConfigError(f"this is no certificate in PEM: {error}", key="certificate") from error


def _read_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        return cast(
            "ec.EllipticCurvePrivateKey", serialization.load_pem_private_key(pem, password=None)
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(
            "this is no private key in PEM, or one that needs a password: give an unencrypted one "
            "that only its user may read",
            key="key",
        ) from error


def _authority_key(authority: Issued) -> ec.EllipticCurvePrivateKey:
    require_pair(authority.certificate, authority.key)
    return _read_key(authority.key)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def now() -> datetime:
    """Return this machine's time."""
    return datetime.now(timezone.utc)

"""Who a principal is: what it may be called, and how a certificate names it."""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from share_dist.errors import ConfigError
from share_dist.wire.records import ROLES, Role

URN: Final = "urn:share-dist"

NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}")
"""What a principal is called: it stands in certificates, file names and the audit log."""


RESERVED: Final = frozenset({"coordinator", "local", "unknown"})
"""Who nobody can be called: the audit log means others by these."""


class Identity(NamedTuple):
    """Who a client's certificate says it is, and the most that it may be."""

    name: str
    role: Role


def require_name(name: str) -> str:
    """
    Return a principal's name.

    Raises:
        ConfigError: It is too long, has characters that no name has, or means somebody else.

    Examples:
        >>> require_name("north@example.org")
        'north@example.org'
    """
    if NAME_PATTERN.fullmatch(name) and name not in RESERVED:
        return name
    raise ConfigError(
        f"{name[:100]!r} is no name: give 1 to 100 letters, digits and . _ @ + -, beginning with a "
        f"letter or a digit, and none of {', '.join(sorted(RESERVED))}",
        key="name",
    )


def require_role(role: str) -> Role:
    """
    Return a role.

    Raises:
        ConfigError: There is none of this name.
    """
    if role in ROLES:
        return role
    raise ConfigError(
        f"there is no role {role[:100]!r}: choose one of {', '.join(ROLES)}", key="role"
    )


def identity_of(uris: Sequence[str]) -> Identity | None:
    """
    Read who a certificate's URIs name; None where none of them is ours, or where two are.

    Examples:
        >>> identity_of(["https://example.org", "urn:share-dist:worker:north"])
        Identity(name='north', role='worker')
    """
    ours = [uri for uri in uris if uri.startswith(f"{URN}:")]
    if len(ours) != 1:
        return None
    role, _, name = ours[0][len(URN) + 1 :].partition(":")
    if role not in ROLES or not NAME_PATTERN.fullmatch(name) or name in RESERVED:
        return None
    return Identity(name, role)

"""
Who calls, and what they may do.

| a coordinator with | who calls is | and may |
| --- | --- | --- |
| neither certificates nor tokens | ``local``: whoever reaches it | everything |
| ``tls_client_ca`` | whom the client's certificate names | what it says, everywhere |
| tokens | whom the token was made for | what it was made for |

A token that is shown counts before a certificate. ``roles`` of a named subspace narrows what
either says: who is not in that table may do nothing there.
"""

import hashlib
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final, Literal, Protocol

from coordinator.clock import Clock
from coordinator.config import CoordinatorConfig
from coordinator.refusals import UNKNOWN, Refusals
from coordinator.store.base import Catalog
from share_dist.errors import (
    AccessError,
    LeaseExpired,
    NotAuthenticated,
    NotPermitted,
    ShareError,
    UpdateConflict,
)
from share_dist.identity import identity_of
from share_dist.wire.records import ROLES, Role, Token

TOKEN_PREFIX: Final = "sd"  # noqa: S105 - what tokens begin with
EVERY_SUBSPACE: Final = "*"

MAX_TOKEN_CHARACTERS = 200

_PEER_URI = "peer_uri"
_PEER_CERTIFICATE = "x509_pem_cert"


@dataclass(frozen=True, slots=True)
class Principal:
    """
    Who calls, and how that is known.

    Args:
        name: Who.
        how: By what.
        most: The most that this credential allows.
        subspaces: Where it counts.
        token_id: Of the token that was shown.
        not_after: When the credential ends.
    """

    name: str
    how: Literal["local", "token", "certificate"]
    most: Role = "reader"
    subspaces: tuple[str, ...] = (EVERY_SUBSPACE,)
    token_id: str = ""
    not_after: datetime | None = None


LOCAL: Final = Principal("local", "local", most="admin")
"""Everybody, where nobody has to say who they are."""


class CallContext(Protocol):
    """What gRPC knows of a call."""

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]] | None:
        """Keys and values that came with the call."""

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """What the handshake found out."""

    def peer(self) -> str:
        """Where the call comes from."""


class Access:
    """
    Knows every token, and reads every certificate.

    Args:
        config: Which credentials are asked for, and the roles of each named subspace.
        catalog: Keeps the tokens; this process is the only one that changes them.
        clock: The time.
        refusals: Told of every one who was not let in.
    """

    def __init__(
        self, config: CoordinatorConfig, catalog: Catalog, clock: Clock, refusals: Refusals
    ) -> None:
        self.refusals = refusals
        self._config = config
        self._catalog = catalog
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = {token.token_id: token for token in catalog.tokens()}
        self._proven: dict[str, str] = {}
        self._seen_seconds = catalog.seen_seconds()
        self._roles = {name: config.subspace(name).roles for name in config.names}

    # --- who --------------------------------------------------------------------------------

    def identify(self, context: CallContext) -> Principal:
        """
        Say who makes a call.

        Raises:
            NotAuthenticated: What was presented, and why it does not count.
        """
        if not self._config.is_authenticated:
            return LOCAL
        shown = [
            str(value)
            for key, value in context.invocation_metadata() or ()
            if key == "authorization"
        ]
        if shown:
            return self.identify_token(_bearer(shown), context.peer())
        if self._config.needs_token:
            raise _no_token()
        return self._identify_certificate(context.auth_context())

    def identify_token(self, token: str, _peer: str = "") -> Principal:
        """
        Say who a token speaks for.

        Raises:
            NotAuthenticated: There is none, or it is unknown, expired or revoked.
        """
        if not self._config.is_authenticated:
            return LOCAL
        if not token:
            raise _no_token()
        found = self._find(token)
        principal = Principal(
            found.principal, "token", found.role, found.subspaces, found.token_id, found.expires_at
        )
        self.require_still(principal)
        return principal

    def require_still(self, principal: Principal) -> None:
        """
        Raise once the credential of a principal has ended, also in the middle of a long call.

        Raises:
            NotAuthenticated: It has expired or was revoked.
        """
        what = f"token {principal.token_id}" if principal.token_id else "the certificate"
        if principal.token_id:
            revoked_at = self._tokens[principal.token_id].revoked_at
            if revoked_at is not None:
                raise NotAuthenticated(
                    f"{what} of {principal.name} was revoked at {revoked_at.isoformat()}: ask an "
                    "administrator for another",
                    presented=what,
                )
        if principal.not_after is None:
            return
        # a certificate ends by today's clock, as in the handshake before it
        seen_seconds = self.seen_seconds if principal.token_id else self._clock.unix_seconds()
        if principal.not_after.timestamp() <= seen_seconds:
            raise NotAuthenticated(
                f"{what} of {principal.name} expired at {principal.not_after.isoformat()}: get a "
                "new one, or see whether the clocks are right",
                presented=what,
            )

    @property
    def seen_seconds(self) -> float:
        """The latest time that was ever seen here, seconds since 1970: it does not go back with a clock."""
        with self._lock:
            self._seen_seconds = max(self._seen_seconds, self._clock.unix_seconds())
            return self._seen_seconds

    def remember(self, token: Token) -> None:
        """Know a token as it is now: new, or revoked; it counts so from the next call on."""
        with self._lock:
            self._tokens[token.token_id] = token

    # --- what -------------------------------------------------------------------------------

    def role(self, principal: Principal, subspace: str) -> Role | None:
        """Say what a principal may do in a subspace; None for nothing."""
        if principal.how == "local":
            return principal.most
        if not {EVERY_SUBSPACE, subspace} & set(principal.subspaces):
            return None
        listed = self._roles.get(subspace, self._config.roles)
        if not listed:
            return principal.most
        role = listed.get(principal.name)
        return None if role is None else min(role, principal.most, key=ROLES.index)

    def require(self, principal: Principal, subspace: str, needed: Role) -> None:
        """
        Raise unless a principal has a role in a subspace.

        Raises:
            NotPermitted: It has a lesser one, or none.
        """
        held = self.role(principal, subspace)
        if held is not None and ROLES.index(held) >= ROLES.index(needed):
            return
        raise NotPermitted(
            f"{principal.name} is {f'a {held}' if held else 'nobody'} in subspace {subspace!r}, and "
            f"this needs the role {needed}: ask an administrator for it",
            principal=principal.name,
            held=held or "",
            needed=needed,
        )

    def require_admin(self, principal: Principal, subspaces: Collection[str]) -> None:
        """
        Raise unless a principal is an administrator of all of these subspaces.

        Raises:
            NotPermitted: It is not; of ``*`` only one whose credential counts everywhere is.
        """
        is_everywhere = principal.most == "admin" and EVERY_SUBSPACE in principal.subspaces
        for subspace in subspaces:
            if subspace != EVERY_SUBSPACE:
                self.require(principal, subspace, "admin")
            elif not is_everywhere:
                raise NotPermitted(
                    f"{principal.name} is no administrator of every subspace, which this needs: ask one, "
                    "or, for a token, name subspaces of which it is one",
                    principal=principal.name,
                    held=principal.most,
                    needed="admin",
                )

    def owner(self, principal: Principal, worker_id: str) -> str:
        """Say in whose name a worker pushes."""
        return worker_id if principal.how == "local" else principal.name

    def note_refusal(self, context: CallContext, rpc: str, error: ShareError) -> None:
        """Have the audit log told of a refusal after which somebody may ask who that was."""
        if not _is_of_interest(error):
            return
        try:
            name = self.identify(context).name
        except NotAuthenticated:
            name = UNKNOWN
        detail = f"{type(error).__name__}: {error.message}"
        self.refusals.add(
            "access_refused", peer=context.peer(), detail=detail, principal=name, subject=rpc
        )

    def note_refused_push(
        self, principal: Principal, peer: str, subspace: str, update_id: str, digest: str, error: ShareError
    ) -> None:  # fmt: skip
        """Have the audit log told of a push that was refused, unless ``note_refusal`` tells of it."""
        if not _is_of_interest(error):
            self.refusals.add_push(
                peer=peer,
                detail=f"{type(error).__name__}: {error.message}",
                principal=principal.name,
                subspace=subspace,
                update_id=update_id,
                digest=digest,
            )

    # --- inside -----------------------------------------------------------------------------

    def _find(self, secret: str) -> Token:
        """Return the token of a secret; only one whose secret was proven is known without the catalog."""
        token_id = token_id_of(secret)
        if token_id not in self._tokens:
            raise NotAuthenticated(
                "the token that was shown is not known here: it was made at another coordinator, or "
                "is none. Ask an administrator for one",
                presented="unknown token",
            )
        digest = digest_of(secret)
        if self._proven.get(token_id) != digest:
            found = self._catalog.find_token(digest)
            if found is None or found.token_id != token_id:
                raise NotAuthenticated(
                    f"the secret of token {token_id} is another one: copy it whole, as it was printed "
                    "when the token was made, or ask an administrator for a new one",
                    presented=f"token {token_id}",
                )
            with self._lock:
                self._proven[token_id] = digest
        return self._tokens[token_id]

    def _identify_certificate(self, shown: Mapping[str, Sequence[bytes]]) -> Principal:
        uris = [uri.decode(errors="replace") for uri in shown.get(_PEER_URI, ())]
        identity = identity_of(uris)
        if identity is None:
            raise NotAuthenticated(
                "the client's certificate names nobody: it needs exactly one URI "
                "urn:share-dist:<role>:<name>, as `share-dist certs client` puts into it",
                presented="certificate",
            )
        ends_at = _end_of(shown.get(_PEER_CERTIFICATE, (b"",))[0])
        principal = Principal(identity.name, "certificate", identity.role, not_after=ends_at)
        # a connection may outlive the certificate that it began with
        self.require_still(principal)
        return principal


def _is_of_interest(error: ShareError) -> bool:
    """Whether an error is one after which somebody may ask who that was."""
    is_late_twin = isinstance(error, LeaseExpired) and error.current_epoch != error.lease_epoch
    return is_late_twin or isinstance(error, (AccessError, UpdateConflict))


def token_id_of(secret: str) -> str:
    """
    Read the id in a token; empty when it has not the form of one.

    Examples:
        >>> token_id_of("sd_4f2a_kX9")
        '4f2a'
    """
    prefix, _, rest = secret.partition("_")
    token_id, _, _ = rest.partition("_")
    return token_id if prefix == TOKEN_PREFIX and len(secret) <= MAX_TOKEN_CHARACTERS else ""


def digest_of(secret: str) -> str:
    """Return what is kept of a token; with 256 random bits it needs neither salt nor stretching."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _bearer(shown: Sequence[str]) -> str:
    scheme, _, token = shown[0].partition(" ")
    if len(shown) > 1 or scheme.lower() != "bearer":
        raise NotAuthenticated(
            "an authorization was shown that is no single bearer token: send "
            "`authorization: Bearer <token>` once",
            presented="authorization",
        )
    return token.strip()


def _no_token() -> NotAuthenticated:
    return NotAuthenticated(
        "this coordinator asks for a token, and none was shown: get one from an administrator "
        "(`share-dist tokens create`), then give --token-file or set SHARE_DIST_TOKEN",
        presented="no token",
    )


@lru_cache(maxsize=1024)
def _end_of(certificate: bytes) -> datetime | None:
    from share_dist.certificates import describe

    return describe(certificate).not_after if certificate else None

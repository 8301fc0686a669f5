"""What an administrator does with tokens: make one, list them, end one."""

import asyncio
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import NamedTuple

from coordinator.access import EVERY_SUBSPACE, TOKEN_PREFIX, Principal, digest_of
from coordinator.lineages import MAX_NAME_CHARACTERS
from coordinator.state import Coordinator
from coordinator.store.base import TokenRecord
from share_dist.errors import ConfigError, NotPermitted, UnknownToken
from share_dist.identity import require_name, require_role
from share_dist.wire.records import Token, TokenRequest

MAX_SUBSPACES = 100
MAX_VALID_SECONDS = 100 * 365 * 86400


class NewToken(NamedTuple):
    """A token as it is kept, and its secret, which is said once and kept nowhere."""

    record: TokenRecord
    secret: str


def new_token(request: TokenRequest, now: datetime) -> NewToken:
    """
    Make a token with 256 random bits.

    Args:
        request: Which one.
        now: From when it counts.

    Raises:
        ConfigError: It asks for what no token can be.
    """
    valid_seconds = request.valid_seconds
    _require_subspaces(request.subspaces)
    if not 0 <= valid_seconds <= MAX_VALID_SECONDS:
        raise ConfigError(
            f"a token cannot hold for {valid_seconds} s: give 0 for no end, or at most "
            f"{MAX_VALID_SECONDS} s",
            key="valid_seconds",
        )
    token_id = secrets.token_hex(6)
    secret = f"{TOKEN_PREFIX}_{token_id}_{secrets.token_urlsafe(32)}"
    token = Token(
        token_id=token_id,
        principal=require_name(request.principal),
        role=require_role(request.role),
        subspaces=tuple(dict.fromkeys(request.subspaces)),
        created_at=now,
        expires_at=now + timedelta(seconds=valid_seconds) if valid_seconds else None,
    )
    return NewToken(TokenRecord(token, digest_of(secret)), secret)


async def create_token(
    coordinator: Coordinator, principal: Principal, request: TokenRequest
) -> tuple[Token, str]:
    """
    Make a token that speaks for somebody.

    Returns:
        The token and its secret.

    Raises:
        NotPermitted: The caller is no administrator of all its subspaces.
        ConfigError: It asks for what no token can be.
    """
    made = new_token(request, coordinator.clock.now())
    token = made.record.token
    coordinator.access.require_admin(principal, token.subspaces)
    _require_future(token, coordinator.access.seen_seconds)
    await asyncio.to_thread(coordinator.catalog.add_token, made.record, by=principal.name)
    coordinator.access.remember(token)
    return token, made.secret


def _require_future(token: Token, seen_seconds: float) -> None:
    """Raise where a token would have ended by the latest time that was seen: it would never count."""
    ends_at = token.expires_at
    if ends_at is None or ends_at.timestamp() > seen_seconds:
        return
    seen_at = datetime.fromtimestamp(seen_seconds, timezone.utc)
    raise ConfigError(
        f"the token would end at {ends_at.isoformat()}, and {seen_at.isoformat()} has been seen here "
        "already: the coordinator's clock was set back. Put it right, or ask for a token that lasts "
        "beyond then, or for one without an end",
        key="valid_seconds",
    )


async def list_tokens(coordinator: Coordinator, principal: Principal) -> tuple[Token, ...]:
    """
    Return every token of whose subspaces the caller is an administrator, oldest first.

    Raises:
        NotPermitted: The caller is no administrator anywhere.
    """
    _require_admin_somewhere(principal)
    tokens = await asyncio.to_thread(coordinator.catalog.tokens)
    return tuple(token for token in tokens if _may_manage(coordinator, principal, token))


async def revoke_token(coordinator: Coordinator, principal: Principal, token_id: str) -> Token:
    """
    End a token; the next call that shows it is refused, and watches that began with it end.

    Raises:
        UnknownToken: There is none of this id, or none that the caller may end.
        NotPermitted: The caller is no administrator anywhere.
    """
    known = {token.token_id: token for token in await list_tokens(coordinator, principal)}
    if token_id not in known:
        raise UnknownToken(
            f"there is no token {token_id[:100]!r} here that you may end: `share-dist tokens list` "
            "shows them",
            token_id=token_id[:100],
        )
    at = coordinator.clock.now()
    revoke = coordinator.catalog.revoke_token
    token = await asyncio.to_thread(revoke, token_id, at=at, by=principal.name)
    coordinator.access.remember(token)
    return token


def _require_admin_somewhere(principal: Principal) -> None:
    if principal.most == "admin":
        return
    raise NotPermitted(
        f"{principal.name} is a {principal.most}, and tokens are an administrator's: ask one",
        principal=principal.name,
        held=principal.most,
        needed="admin",
    )


def _may_manage(coordinator: Coordinator, principal: Principal, token: Token) -> bool:
    try:
        coordinator.access.require_admin(principal, token.subspaces)
    except NotPermitted:
        return False
    return True


def _require_subspaces(subspaces: Sequence[str]) -> None:
    for name in subspaces:
        if name != EVERY_SUBSPACE and not (
            0 < len(name) <= MAX_NAME_CHARACTERS and name.isprintable() and " " not in name
        ):
            raise ConfigError(f"{name[:100]!r} is no name of a subspace", key="subspaces")
    if not 1 <= len(subspaces) <= MAX_SUBSPACES:
        raise ConfigError(
            f"a token counts in 1 to {MAX_SUBSPACES} subspaces, asked were {len(subspaces)}: name "
            f"them, or {EVERY_SUBSPACE} for every one",
            key="subspaces",
        )

"""
``share-dist tokens``: who may come in with which token.

It stands with the coordinator and not with the other commands because the first token is
made where nobody can be asked yet: in the store itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from share_dist.commands.connection import DEFAULT_CONNECTION, Connection, connecting
from share_dist.commands.console import JsonOption, rows, show, writing
from share_dist.commands.files import PRIVATE, write_whole
from share_dist.errors import ConfigError
from share_dist.identity import require_name, require_role
from share_dist.wire.records import TokenRequest

if TYPE_CHECKING:
    from rich.table import Table

    from coordinator.store.base import Catalog
    from share_dist.wire.records import Token

EVERY: Final = "*"
COLUMNS: Final = ("token", "who", "role", "subspaces", "made at", "until", "revoked at")

BY: Final = "store"
"""The principal of what is done to a store while no coordinator runs."""

app = typer.Typer(
    help="Make, list and end the tokens by which callers say who they are.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store", help="Work on this store itself, while no coordinator runs on it: a folder or URL."
    ),
]  # fmt: skip
BlobsOption = Annotated[
    str | None, typer.Option("--blobs", help="With --store: where its large tensors are.")
]


@app.command()
@connecting
def create(
    principal: Annotated[
        str, typer.Argument(help="Whom it speaks for: a person, a team, a node.")
    ],
    role: Annotated[
        str, typer.Option("--role", help="What it allows: reader, worker or admin.")
    ] = "worker",
    days: Annotated[
        float, typer.Option("--days", min=0, help="How long it counts; 0 means until it is revoked.")
    ] = 90,
    also: Annotated[
        list[str] | None,
        typer.Option("--also", help="Another named subspace where it counts, beside --subspace."),
    ] = None,
    everywhere: Annotated[
        bool, typer.Option("--every-subspace", help="It counts in every named subspace.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write it to this new file, which only you can read, instead of printing it."),
    ] = None,
    store: StoreOption = None,
    blobs: BlobsOption = None,
    connection: Connection = DEFAULT_CONNECTION,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """
    Make a token. Its secret is said once, here: the coordinator keeps a digest of it only.

    The first one, an administrator's, is made with --store before the coordinator starts.
    """
    _require_new(output)
    subspaces = (EVERY,) if everywhere else (connection.subspace, *(also or ()))
    request = TokenRequest(
        require_name(principal), require_role(role), subspaces, round(days * 86400)
    )
    if store is None:
        with connection.admin() as client:
            token, secret = client.create_token(request)
    else:
        token, secret = _create_in(store, blobs, request)
    if output is not None:
        with writing(output):
            write_whole(output, f"{secret}\n".encode(), mode=PRIVATE)
    told = {"token": token, **({"path": output} if output else {"secret": secret})}
    show(told, as_json=as_json, table=lambda: str(output) if output else secret)


@app.command("list")
@connecting
def list_(
    store: StoreOption = None,
    blobs: BlobsOption = None,
    connection: Connection = DEFAULT_CONNECTION,
    as_json: JsonOption = False,
) -> None:
    """List every token that was ever made, without its secret."""
    if store is None:
        with connection.admin() as client:
            tokens = tuple(client.tokens())
    else:
        with _opened(store, blobs) as catalog:
            tokens = catalog.tokens()
    show(tokens, as_json=as_json, table=lambda: _table(tokens))


@app.command()
@connecting
def revoke(
    token_id: Annotated[str, typer.Argument(help="Which, as `share-dist tokens list` shows it.")],
    store: StoreOption = None,
    blobs: BlobsOption = None,
    connection: Connection = DEFAULT_CONNECTION,
    as_json: JsonOption = False,
) -> None:
    """End a token: the next call that shows it is refused."""
    if store is None:
        with connection.admin() as client:
            token = client.revoke_token(token_id)
    else:
        with _opened(store, blobs) as catalog:
            token = catalog.revoke_token(token_id, at=datetime.now(timezone.utc), by=BY)
    show(
        token,
        as_json=as_json,
        table=lambda: f"token {token.token_id} of {token.principal} no longer counts",
    )


def _create_in(store: str, blobs: str | None, request: TokenRequest) -> "tuple[Token, str]":
    from coordinator.administration_tokens import new_token

    made = new_token(request, datetime.now(timezone.utc))
    with _opened(store, blobs) as catalog:
        catalog.add_token(made.record, by=BY)
    return made.record.token, made.secret


@contextmanager
def _opened(store: str, blobs: str | None) -> "Iterator[Catalog]":
    from coordinator.store import open_catalog

    catalog = open_catalog(store, blobs=blobs)
    try:
        yield catalog
    finally:
        catalog.close()


def _require_new(output: Path | None) -> None:
    """Refuse before a token is made whose secret would then be lost."""
    if output is None:
        return
    if output.exists() or not output.parent.is_dir():
        what = "is there already" if output.exists() else "lies in no folder that is there"
        raise ConfigError(f"{output} {what}: name another --output", key="output")


def _table(tokens: "Sequence[Token]") -> "Table | str":
    if not tokens:
        return "there are no tokens"
    return rows("tokens", COLUMNS, [_line(token) for token in tokens])


def _line(token: "Token") -> tuple[object, ...]:
    return (
        token.token_id,
        token.principal,
        token.role,
        ", ".join(token.subspaces),
        token.created_at.isoformat(timespec="minutes"),
        token.expires_at.isoformat(timespec="minutes") if token.expires_at else None,
        token.revoked_at.isoformat(timespec="minutes") if token.revoked_at else None,
    )

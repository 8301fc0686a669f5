"""`share-dist certs`: a small authority, and the certificates of coordinator and clients."""

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from share_dist.commands.console import JsonOption, rows, show
from share_dist.commands.files import PRIVATE, PUBLIC, write_whole
from share_dist.errors import ConfigError
from share_dist.identity import Identity, require_name, require_role

if TYPE_CHECKING:
    from rich.table import Table

    from share_dist.certificates import Described, Issued

AUTHORITY: Final = "ca"
"""What the authority's files are called."""

WARN_DAYS: Final = 14
"""A certificate that ends within so many days is warned about."""

app = typer.Typer(
    help="Make the certificates by which coordinator and clients know each other.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

FolderOption = Annotated[
    Path, typer.Option("--folder", help="Where the authority's files are and new ones go.")
]
DaysOption = Annotated[int, typer.Option("--days", min=1, max=36500, help="How long it holds.")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Replace files that are there; who had them must get new ones.")
]  # fmt: skip


@app.command()
def init(
    folder: FolderOption = Path("certs"),
    name: Annotated[
        str, typer.Option("--name", help="What the authority is called.")
    ] = "share-dist",
    days: DaysOption = 3650,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """
    Make an authority: ca.crt, which everybody may have, and ca.key, which nobody else may.

    Keep ca.key away from the coordinator: it is needed only to make and renew certificates.
    """
    from share_dist import certificates

    issued = certificates.make_authority(name, timedelta(days=days), certificates.now())
    _show(_write(folder, AUTHORITY, issued, force=force), as_json=as_json)


@app.command()
def server(
    hosts: Annotated[
        list[str], typer.Argument(help="Names and addresses by which clients reach it.")
    ],
    folder: FolderOption = Path("certs"),
    name: Annotated[
        str, typer.Option("--name", help="What its files are called, without their ends.")
    ] = "server",
    days: DaysOption = 365,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """
    Make a coordinator's certificate, for the hosts by which clients reach it.

    serve takes it as --tls-certificate and --tls-key.
    """
    from share_dist import certificates

    _require_own_file(name)
    now = certificates.now()
    issued = certificates.make_server(hosts, _authority(folder), timedelta(days=days), now)
    _show(_write(folder, name, issued, force=force), as_json=as_json)


@app.command()
def client(
    name: Annotated[str, typer.Argument(help="Who it is for: a person, a team, a node.")],
    role: Annotated[
        str, typer.Option("--role", help="The most that it may be: reader, worker or admin.")
    ] = "worker",
    folder: FolderOption = Path("certs"),
    days: DaysOption = 90,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """
    Make a client's certificate, which says its name and its role.

    Commands take it as --certificate and --key, beside --ca with the ca.crt.
    """
    from share_dist import certificates

    _require_own_file(name)
    identity = Identity(require_name(name), require_role(role))
    now = certificates.now()
    issued = certificates.make_client(identity, _authority(folder), timedelta(days=days), now)
    _show(_write(folder, name, issued, force=force), as_json=as_json)


@app.command("show")
def show_(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Certificates. [default: all in --folder]")
    ] = None,
    folder: FolderOption = Path("certs"),
    as_json: JsonOption = False,
) -> None:
    """Show whose certificates they are, what they allow, and how long they hold."""
    found = files or sorted(folder.glob("*.crt"))
    if not found:
        raise ConfigError(
            f"there is no certificate in {folder}: name files, or give another --folder",
            key="folder",
        )
    described = [_describe(path) for path in found]
    show(described, as_json=as_json, table=lambda: _table(described))


@app.command()
def renew(
    files: Annotated[list[Path], typer.Argument(help="Certificates; each key lies beside its own.")],
    folder: FolderOption = Path("certs"),
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """
    Make certificates anew from today, for the same key, names and role, and as long as before.

    A coordinator that runs takes its new one up by itself, from the next connection on.
    """
    from share_dist import certificates

    authority = _authority(folder)
    renewed = {
        path: certificates.renew(
            _read(path), _read(path.with_suffix(".key")), authority, certificates.now()
        )
        for path in files
    }
    for path, certificate in renewed.items():
        _replace(path, certificate, mode=PUBLIC)
    described = [_describe(path) for path in renewed]
    show(described, as_json=as_json, table=lambda: _table(described))


def _authority(folder: Path) -> "Issued":
    from share_dist.certificates import Issued

    certificate, key = folder / f"{AUTHORITY}.crt", folder / f"{AUTHORITY}.key"
    for path in (certificate, key):
        if not path.exists():
            raise ConfigError(
                f"{path} is not there: make an authority with `share-dist certs init`, or give "
                "the --folder of yours",
                key="folder",
            )
    return Issued(_read(certificate), _read(key))


def _require_own_file(name: str) -> None:
    if require_name(name) == AUTHORITY:
        raise ConfigError(
            f"{name!r} is what the authority's own files are called: choose another name",
            key="name",
        )


def _write(folder: Path, name: str, issued: "Issued", *, force: bool) -> Path:
    """Write a pair; the key first, so that no certificate is ever without its own."""
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    there = [str(path) for path in (certificate, key) if path.exists()]
    if there and not force:
        raise ConfigError(
            f"{' and '.join(there)} {'are' if len(there) > 1 else 'is'} there already: renew with "
            "`share-dist certs renew`, choose another name, or replace with --force",
            key="force",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise _unwritable(folder, error) from error
    _replace(key, issued.key, mode=PRIVATE)
    _replace(certificate, issued.certificate, mode=PUBLIC)
    return certificate


def _replace(path: Path, content: bytes, *, mode: int) -> None:
    try:
        write_whole(path, content, mode=mode)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{path} cannot be written ({error.strerror}): give another --folder", key="folder"
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}): name a file that this user may read",
            key="files",
        ) from error


def _describe(path: Path) -> dict[str, Any]:
    from share_dist import certificates

    try:
        found = certificates.describe(_read(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", key="files") from error
    key = path.with_suffix(".key")
    days_left = found.days_left(certificates.now())
    return {
        "path": path,
        "kind": _kind(found),
        "name": found.identity.name if found.identity else found.subject,
        "role": found.identity.role if found.identity else None,
        "hosts": list(found.hosts),
        "issuer": found.issuer,
        "serial": found.serial,
        "not_before": found.not_before,
        "not_after": found.not_after,
        "days_left": round(days_left, 1),
        "warnings": _warnings(days_left, key),
    }


def _kind(found: "Described") -> str:
    if found.is_authority:
        return "authority"
    return "client" if found.identity else "coordinator"


def _warnings(days_left: float, key: Path) -> list[str]:
    warnings = []
    if days_left <= 0:
        warnings.append("has expired: renew it")
    elif days_left < WARN_DAYS:
        warnings.append("ends soon: renew it")
    if key.exists() and key.stat().st_mode & 0o077:
        warnings.append(f"{key} can be read by others: chmod 600 {key}")
    return warnings


def _show(path: Path, *, as_json: bool) -> None:
    described = _describe(path)
    show(described, as_json=as_json, table=lambda: _table([described]))


def _table(described: list[dict[str, Any]]) -> "Table":
    lines = [
        (
            str(each["path"]),
            each["kind"],
            each["name"],
            each["role"] or ", ".join(each["hosts"]) or None,
            each["issuer"],
            each["not_after"].date().isoformat(),
            each["days_left"],
            "; ".join(each["warnings"]) or None,
        )
        for each in described
    ]
    columns = ("file", "kind", "name", "role or hosts", "issuer", "until", "days left", "to do")
    return rows("certificates", columns, lines)

"""`share-dist rollback`, `compact` and `remove`: what an administrator does to a subspace."""

from typing import TYPE_CHECKING, Annotated

import typer

from share_dist.commands.connection import DEFAULT_CONNECTION, Connection, connecting
from share_dist.commands.console import JsonOption, YesOption, confirm, show

if TYPE_CHECKING:
    from share_dist.wire.records import Compaction

ReasonOption = Annotated[
    str, typer.Option("--reason", help="Why; kept in the audit log, and told to whom it concerns.")
]


@connecting
def rollback(
    version: Annotated[int, typer.Argument(min=0, help="The version to go back to.")],
    reason: ReasonOption = "",
    yes: YesOption = False,
    connection: Connection = DEFAULT_CONNECTION,
    as_json: JsonOption = False,
) -> None:
    """
    Make a new version with the content of an old one.

    Nothing is lost: the versions between stay in the lineage, and updates that were
    merged since can be let in again with `share-dist updates replay`. Needs the role
    admin.
    """
    with connection.admin() as client:
        confirm(
            f"make the content of version {version} of {connection.subspace!r} current again, "
            f"and take back what was merged after it",
            yes=yes,
            as_json=as_json,
        )
        event = client.rollback(version, reason)
    show(
        event,
        as_json=as_json,
        table=lambda: (
            f"version {event.version} has the content of version {event.content_version}; "
            "workers take it up by themselves"
        ),
    )


@connecting
def compact(
    keep: Annotated[int, typer.Option("--keep", min=1, help="Keep the newest so many versions.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would go, and what stays and why.")
    ] = False,
    yes: YesOption = False,
    connection: Connection = DEFAULT_CONNECTION,
    as_json: JsonOption = False,
) -> None:
    """
    Let go of the tensors of old versions.

    Their lines in the lineage stay. What was merged and then replaced, rolled back or
    dropped loses its payload with the last version that holds it, and with its base version
    can no longer be replayed. Beyond the newest, versions stay that somebody still
    needs: an update that waits or was set aside, a worker that trains on one, a watcher
    that is behind. Needs the role admin.
    """
    with connection.admin() as client:
        planned = client.compact(keep, dry_run=True)
        if (planned.versions or planned.num_updates) and not dry_run:
            confirm(_planned(planned), yes=yes, as_json=as_json)
            planned = client.compact(keep, dry_run=False)
    show(planned, as_json=as_json, table=lambda: _compaction(planned, is_done=not dry_run))


@connecting
def remove(
    task: Annotated[str, typer.Argument(help="The task.")],
    reason: ReasonOption = "",
    worker: Annotated[
        str,
        typer.Option("--worker", help="Who asks, where the coordinator authenticates nobody."),
    ] = "",
    yes: YesOption = False,
    connection: Connection = DEFAULT_CONNECTION,
    as_json: JsonOption = False,
) -> None:
    """
    Take a task out of the subspace and out of every later merge.

    Old versions still contain it until they are compacted. Says a bound of what may be
    left of it: 0 when nothing was ever truncated. Needs the role admin, or to own the
    task.
    """
    with connection.admin() as client:
        confirm(f"take {task!r} out of {connection.subspace!r}", yes=yes, as_json=as_json)
        removal = client.remove_task(task, reason, worker_id=worker)
    show(
        removal,
        as_json=as_json,
        table=lambda: (
            f"version {removal.event.version} is without {task!r}; at most "
            f"{removal.residue_bound:.3g} of its "
            "energy may be left, relative to its own"
        ),
    )


def _planned(planned: "Compaction") -> str:
    return (
        f"let go of {_what(planned)}, at most {planned.freed_bytes:,} bytes: less where what stays "
        "shares their content"
    )


def _what(done: "Compaction") -> str:
    versions, updates = done.versions, done.num_updates
    of_versions = f"{len(versions):,} versions, {versions[0]} to {versions[-1]}" if versions else ""
    of_updates = f"payloads of {updates:,} updates" if updates else ""
    return ", and ".join(filter(None, (of_versions, of_updates)))


def _compaction(done: "Compaction", *, is_done: bool) -> str:
    if not done.versions and not done.num_updates:
        said = ["nothing can go"]
    elif is_done:
        said = [f"gone: {_what(done)}; {done.freed_bytes:,} bytes are free"]
    else:
        said = [f"would {_planned(done)}"]
    kept = [f"  version {version} stays: {reason}" for version, reason in done.kept.items()]
    return "\n".join([*said, f"first version: {done.first_version}", *kept])

"""`share-dist pull`: a subspace, or one task in it, as a file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from share_dist.commands.connection import DEFAULT_CONNECTION, Connection, connecting
from share_dist.commands.console import JsonOption, show, writing
from share_dist.errors import ConfigError

if TYPE_CHECKING:
    from share_dist.client import ShareClient


@connecting
def pull(
    output: Annotated[Path, typer.Option("--output", "-o", help="Safetensors file to write; one that is there is replaced.")],
    task: Annotated[str | None, typer.Option("--task", help="Pull this task's coefficients and head instead of the subspace.")] = None,
    version: Annotated[int | None, typer.Option("--version", min=0, help="Version of the subspace. [default: the newest]")] = None,
    connection: Connection = DEFAULT_CONNECTION,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """
    Pull the subspace, or one task, into a safetensors file.

    `share-dist inspect` shows what is in it; in Python, load_subspace and load_task read it.
    """
    if task is not None and version is not None:
        raise ConfigError(
            "a task is told in the newest version only: drop --version", key="version"
        )
    with connection.client() as client:
        facts = _pull_subspace(client, version, output) if task is None else _pull_task(client, task, output)  # fmt: skip
    found = {"path": output, "file_bytes": output.stat().st_size, **facts}
    what = "the subspace" if task is None else f"task {task!r}"
    show(
        found,
        as_json=as_json,
        table=lambda: (
            f"{output}: {what} in version {found['version']}, {found['file_bytes']:,} bytes"
        ),
    )


def _pull_subspace(client: "ShareClient", version: int | None, output: Path) -> dict[str, Any]:
    from share_dist.adapters import save_subspace

    subspace = client.pull(version)
    assert subspace is not None, "nothing was held, so something came"
    with writing(output):
        save_subspace(output, subspace)
    return {
        "version": subspace.version,
        "num_factors": subspace.num_factors,
        "num_layers": len(subspace.layers),
    }


def _pull_task(client: "ShareClient", task: str, output: Path) -> dict[str, Any]:
    from share_dist.adapters import save_task

    pulled = client.pull_task(task)
    with writing(output):
        save_task(output, pulled.coefficients, pulled.head)
    return {
        "version": pulled.coefficients.version,
        "task": task,
        "num_layers": len(pulled.coefficients.layers),
        "head_tensors": list(pulled.head.tensors),
    }

"""Lives: an actor that is lost is started again for as long as it gets any further."""

import json
from pathlib import Path
from typing import Final

from share_dist.errors import WorkerError
from share_dist.files import write_file

MOST_LIVES: Final = 10
"""Starts at the same place after which it is the place, not the machine."""

_FILE = "lives.json"


def begin_life(workdir: Path) -> None:
    """
    Note that a process takes up the work of one that was lost.

    Args:
        workdir: The worker's own folder.

    Raises:
        WorkerError: So many were lost without a checkpoint more that another will not help.
    """
    place, count = _newest_checkpoint(workdir), 1
    path = workdir / _FILE
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        count += before["count"] if before["place"] == place else 0
    if count > MOST_LIVES:
        raise WorkerError(
            f"the actor of {workdir} was lost {count} times without keeping one checkpoint more: look into "
            "its machine's log for a process that was killed for want of memory, or for a crash; then "
            f"--resume, with a smaller batch or checkpoint_minutes, and {path} deleted"
        )
    write_file(path, json.dumps({"place": place, "count": count}).encode())


def _newest_checkpoint(workdir: Path) -> int:
    """When a checkpoint was last kept, in nanoseconds; 0 before the first."""
    kept = workdir.glob("tasks/*/*.*")
    return max((path.stat().st_mtime_ns for path in kept), default=0)

"""
Named points at which a test may end this process as ``kill -9`` would.

Nothing happens unless the environment says ``SHARE_DIST_FAULT=<point>:kill``.
The durability tests start a real coordinator so, let it die at each point,
start it again and look at what is there.

There is a point before and after every write, fsync, rename, commit and unlink.
Where two steps touch, one point stands between them: what is after the write of a
blob is before its fsync, what is before its rename is after its fsync.
"""

import os
import signal
from typing import Final

VARIABLE: Final = "SHARE_DIST_FAULT"

POINTS: Final = (
    "before-owner-row",
    "before-owner-commit",
    "after-owner-commit",
    "before-change-commit",
    "after-change-commit",
    "before-update-blob-write",
    "after-update-blob-write",
    "before-update-blob-rename",
    "after-update-blob-rename",
    "after-update-blob-folder-sync",
    "before-update-rows",
    "after-update-small-blob",
    "after-update-row",
    "before-update-commit",
    "after-update-commit",
    "before-reply",
    "before-merge-blob-write",
    "after-merge-blob-write",
    "before-merge-blob-rename",
    "after-merge-blob-rename",
    "after-merge-blob-folder-sync",
    "before-merge-rows",
    "after-merge-small-blob",
    "after-merge-version-row",
    "after-merge-update-rows",
    "before-merge-commit",
    "after-merge-commit",
    "before-broadcast",
    "before-compaction-rows",
    "after-compaction-rows",
    "before-compaction-commit",
    "after-compaction-commit",
    "before-compaction-unlink",
    "after-compaction-unlink",
)
"""
In the order in which one update passes them, from the opening of the store on.

``owner`` is the lease of the store, ``change`` everything small: a registration, a state, a
token. ``*-small-blob`` is passed by payloads inside the database only, ``*-blob-*`` by those in
files only, and ``*-unlink`` by those in files that a compaction lets go of.
"""


def reach(point: str) -> None:
    """
    Pass a named point; die there if the environment says so.

    Args:
        point: One of ``POINTS``.
    """
    assert point in POINTS, point
    if os.environ.get(VARIABLE) == f"{point}:kill":
        os.kill(os.getpid(), signal.SIGKILL)

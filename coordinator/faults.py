"""
Named points at which a test may end this process as ``kill -9`` would.

Nothing happens unless the environment says ``SHARE_DIST_FAULT=<point>:kill``.
The durability tests start a real coordinator so, let it die at each point,
start it again and look at what is there.
"""

import os
import signal
from typing import Final

VARIABLE: Final = "SHARE_DIST_FAULT"

POINTS: Final = (
    "before-update-blob-rename",
    "after-update-blob-rename",
    "before-update-commit",
    "after-update-commit",
    "before-reply",
    "before-merge-blob-rename",
    "after-merge-blob-rename",
    "before-merge-commit",
    "after-merge-commit",
    "before-broadcast",
)
"""In the order in which one update passes them."""


def reach(point: str) -> None:
    """
    Pass a named point; die there if the environment says so.

    Args:
        point: One of ``POINTS``.
    """
    assert point in POINTS, point
    if os.environ.get(VARIABLE) == f"{point}:kill":
        os.kill(os.getpid(), signal.SIGKILL)

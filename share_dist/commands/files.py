"""Files that are there whole or not at all, and that nobody else can read while they are written."""

import os
import tempfile
from pathlib import Path

PRIVATE = 0o600
PUBLIC = 0o644


def write_whole(path: Path, content: bytes, *, mode: int) -> None:
    """
    Put a file in its place as a whole.

    Args:
        path: Where; what is there is replaced.
        content: What it holds.
        mode: Who may read it, from the first byte on.

    Raises:
        OSError: The operating system refuses; nothing has changed.
    """
    descriptor, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(unfinished).replace(path)
    except OSError:
        Path(unfinished).unlink(missing_ok=True)
        raise

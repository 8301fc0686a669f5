"""The disk: what a worker does while there is no room on it."""

import errno
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from share_dist.errors import WorkerError
from worker.progress import Emit, WorkerEvent

RETRY_SECONDS = 1.0

_FULL = {errno.ENOSPC, errno.EDQUOT}


class Disk:
    """
    Writes files for a worker, and outlasts a disk that is full.

    ```
    keep     no room: left out, and told; training goes on, a later state is kept
    insist   no room: told, and tried again until there is room; then training goes on
    ```

    No file is ever half written: each appears whole or not at all.

    Args:
        folder: The worker's own.
        emit: Told when there is no room, and when there is room again.
        should_stop: Asked while it waits.
    """

    def __init__(self, folder: Path, emit: Emit, should_stop: Callable[[], bool]) -> None:
        self._folder = folder
        self._emit = emit
        self._should_stop = should_stop
        self._is_full = False
        self._lock = threading.Lock()

    def keep(self, write: Callable[[], None]) -> bool:
        """
        Write what a later write replaces; False where there was no room for it.

        Raises:
            WorkerError: The folder cannot be written to for another reason.
        """
        try:
            write()
        except OSError as error:
            self._require_full(error)
            return False
        self._tell(is_full=False)
        return True

    def insist(self, write: Callable[[], None]) -> None:
        """
        Write what must not be lost, as soon as there is room for it.

        Raises:
            WorkerError: The worker was told to stop before there was room, or the
                folder cannot be written to for another reason.
        """
        while not self.keep(write):
            if self._should_stop():
                raise WorkerError(
                    f"stopped while {self._folder} had no room ({self._free_bytes:,} bytes free), and "
                    "the last result is not kept: free some, and go on with --resume"
                )
            threading.Event().wait(RETRY_SECONDS)

    @property
    def _free_bytes(self) -> int:
        there = next(each for each in (self._folder, *self._folder.parents) if each.is_dir())
        return shutil.disk_usage(there).free

    def _require_full(self, error: OSError) -> None:
        if error.errno not in _FULL:
            raise WorkerError(
                f"{self._folder} cannot be written to ({error.strerror}): give this user the right to, "
                "or use another --workdir"
            ) from error
        self._tell(is_full=True)

    def _tell(self, *, is_full: bool) -> None:
        with self._lock:
            if is_full == self._is_full:
                return
            self._is_full = is_full
        event = WorkerEvent.DISK_FULL if is_full else WorkerEvent.DISK_FREED
        self._emit(event, path=str(self._folder), free_bytes=self._free_bytes)

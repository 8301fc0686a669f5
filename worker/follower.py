"""The follower: a thread that watches versions, so that the loop can ask what has been merged."""

import threading
import time
from collections.abc import Callable
from types import TracebackType

from typing_extensions import Self

from share_dist.errors import ShareError, TransportError
from worker.ports import Coordinator, VersionWatch

_LOOK_SECONDS = 0.2


class Follower:
    """
    Knows the newest version and every update that a version has taken in.

    A coordinator that is gone is waited for: it may be restarting, and the
    loop's own calls will tell when it is gone for too long.

    Args:
        coordinator: Whom to watch.
        after_version: The version that the worker holds.
        on_version: Told of every version that comes to be, in this thread.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        after_version: int,
        on_version: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.newest_version = after_version
        self._merged: set[str] = set()
        self._changed = threading.Condition()
        self._error: ShareError | None = None
        self._coordinator = coordinator
        self._on_version = on_version
        self._stopped = threading.Event()
        self._watch: VersionWatch = coordinator.watch(after_version=after_version)
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._watch.close()
        self._thread.join()

    def wait_for(
        self, update_id: str, seconds: float, should_stop: Callable[[], bool] = lambda: False
    ) -> bool:
        """
        Wait until a version has taken an update in.

        Returns:
            Whether one has, within the time.

        Raises:
            ShareError: What ended the watch, before such a version came.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            while update_id not in self._merged:
                if self._error is not None:
                    raise self._error
                if time.monotonic() >= deadline or should_stop():
                    return False
                self._changed.wait(_LOOK_SECONDS)
        return True

    def _run(self) -> None:
        while self._error is None and not self._stopped.is_set():
            try:
                self._follow()
            except TransportError:  # noqa: PERF203  # once per cut, not once per version
                self._watch = self._coordinator.watch(after_version=self.newest_version)
            except ShareError as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()

    def _follow(self) -> None:
        for event in self._watch:
            with self._changed:
                self.newest_version = event.version
                self._merged.update(event.update_ids)
                self._changed.notify_all()
            self._on_version(event.version)

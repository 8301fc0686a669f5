"""The prefetch: a newer version is at hand when training comes to where it can go on in it."""

import threading
from collections.abc import Callable
from types import TracebackType

from typing_extensions import Self

from share_dist.core.values import Subspace
from share_dist.errors import ShareError


class Prefetch:
    """
    Pulls a version in a thread of its own as soon as it is told of one, and holds at most one.

    While one waits to be taken nothing is pulled, however many versions come to be: a worker whose
    epochs are long pulls once an epoch. What cannot be pulled is left out; the next version is another chance.

    Args:
        pull: Gets the newest version.
        version: What the worker holds.
    """

    def __init__(self, pull: Callable[[], Subspace], version: int) -> None:
        self._pull = pull
        self._held = version
        self._told = version
        self._ready: Subspace | None = None
        self._is_over = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        # one that is in the middle of a pull ends with it: nobody waits for that

    def tell(self, version: int) -> None:
        """Say that a version has come to be."""
        with self._changed:
            self._told = version
            self._changed.notify_all()

    def take(self, held_version: int) -> Subspace | None:
        """
        Take what was pulled; never waits.

        Args:
            held_version: What the worker holds by now.

        Returns:
            A version newer than that, if one is at hand.
        """
        with self._changed:
            ready, self._ready = self._ready, None
            self._held = max(self._held, held_version)
            self._changed.notify_all()
        return ready if ready is not None and ready.version > held_version else None

    def _run(self) -> None:
        while self._is_due():
            told = self._told
            try:
                pulled = self._pull()
            except ShareError:
                pulled = None
            with self._changed:
                self._held = max(self._held, told if pulled is None else pulled.version)
                self._ready = pulled

    def _is_due(self) -> bool:
        """Wait until there is something to pull; False at the end."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_over or (self._ready is None and self._told > self._held)
            )
            return not self._is_over

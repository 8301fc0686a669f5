"""The crew: threads that work beside the loop, and whose errors are the loop's."""

import threading
from collections.abc import Callable


class Crew:
    """
    Threads that run until their work returns.

    Args:
        works: Name -> what the thread does.
    """

    def __init__(self, **works: Callable[[], None]) -> None:
        self._errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
            for name, work in works.items()
        ]

    def start(self) -> None:
        """Let them work."""
        for thread in self._threads:
            thread.start()

    def check(self) -> None:
        """Raise what ended one of them, if anything did."""
        if self._errors:
            raise self._errors[0]

    def join(self, seconds: float) -> None:
        """Wait for their end, yet no longer than this for each: one may be in the middle of a call."""
        for thread in self._threads:
            thread.join(seconds)

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  # raised by check, in the loop's thread
            self._errors.append(error)

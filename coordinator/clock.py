"""Where the coordinator reads the time, so that everything else can take it as an argument."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone


@dataclass(frozen=True, slots=True)
class Clock:
    """
    Two clocks.

    Args:
        unix_seconds: For what is written down and compared across restarts.
        monotonic_seconds: For what lasts; never jumps.
    """

    unix_seconds: Callable[[], float] = time.time
    monotonic_seconds: Callable[[], float] = time.monotonic

    def now(self) -> datetime:
        """Return the time to write down."""
        return datetime.fromtimestamp(self.unix_seconds(), timezone.utc)

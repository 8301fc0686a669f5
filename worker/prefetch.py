"""The prefetch: a newer version is at hand when the worker comes to where it can go on in it."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from share_dist.core.values import Subspace
from share_dist.errors import UnknownTask, VersionError
from share_dist.wire.records import PulledTask
from worker.contact import Contact

_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Edition:
    """
    What a worker is told of one version.

    Args:
        subspace: The version.
        tasks: The worker's own tasks that it holds, by id.
        num_pending: How many of the worker's updates wait to be merged.
        update_ids: The updates that the coordinator knew of.
    """

    subspace: Subspace
    tasks: Mapping[str, PulledTask] = field(default_factory=dict)
    num_pending: int = 0
    update_ids: frozenset[str] = frozenset()


class Prefetch:
    """
    Pulls an edition in a thread of its own as soon as one is due, and holds the newest.

    While one waits to be taken no other is pulled, however many versions come to be: a worker whose
    epochs are long pulls once an epoch.

    Args:
        contact: Through which is asked.
        pull: Gets the newest edition.

    Attributes:
        told_version: The newest version that it was told of.
    """

    def __init__(self, contact: Contact, pull: Callable[[], Edition]) -> None:
        self._contact = contact
        self._pull = pull
        self.told_version = 0
        self._edition: Edition
        self._is_taken = True
        self._num_asked = 0
        self._num_answered = 0
        self._wished = 0
        self._is_over = False
        self._changed = threading.Condition()

    def begin(self, edition: Edition) -> None:
        """Hold what the worker begins with."""
        self._edition, self.told_version = edition, edition.subspace.version

    def close(self) -> None:
        """Let ``run`` end."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def tell(self, version: int) -> None:
        """Say which version is the newest."""
        with self._changed:
            self.told_version = version
            if version != self._edition.subspace.version:
                self._ask()

    def ask(self) -> int:
        """Have the newest edition pulled, whatever is held; the number of this wish."""
        with self._changed:
            self._wished = self._ask()
            return self._wished

    def take(self) -> Edition:
        """The newest edition that is at hand; never waits."""
        with self._changed:
            self._is_taken = True
            self._changed.notify_all()
            return self._edition

    def fetch(self, check: Callable[[], None]) -> Edition:
        """
        Wait for the newest edition as of now.

        Args:
            check: Called now and then while it waits; raises to wait no longer.
        """
        number = self.ask()
        while not self._wait_for(lambda: self._num_answered >= number, _LOOK_SECONDS):
            check()
        return self.take()

    def wait_told(self, seconds: float) -> None:
        """Wait until a newer edition is due, yet no longer than this."""
        self._wait_for(lambda: self._num_asked > self._num_answered, seconds)

    def run(self) -> None:
        """Pull until closed."""
        while self._wait_for(self._is_due) and not self._is_over:
            number = self._num_asked
            # a task may be removed, and a version compacted, between two calls
            pulled = self._contact.insist(self._pull, also=(VersionError, UnknownTask))
            with self._changed:
                self._edition, self._is_taken, self._num_answered = pulled, False, number
                self._changed.notify_all()

    def _ask(self) -> int:
        self._num_asked += 1
        self._changed.notify_all()
        return self._num_asked

    def _is_due(self) -> bool:
        is_wanted = self._is_taken or self._wished > self._num_answered
        return self._is_over or (is_wanted and self._num_asked > self._num_answered)

    def _wait_for(self, is_so: Callable[[], bool], seconds: float | None = None) -> bool:
        with self._changed:
            return self._changed.wait_for(is_so, seconds)

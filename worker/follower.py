"""The follower: watches versions as they come to be."""

from collections.abc import Callable

from share_dist.core.values import Subspace
from share_dist.errors import VersionError
from worker.contact import PASSING, Contact
from worker.ports import Coordinator, VersionWatch


class Follower:
    """
    Tells of every version, through cuts, restarts, and a coordinator that knows other ones.

    ```
    holds 7            the store is restored from a backup of version 4
    after 7            refused: there is no 7, or another one
    after the current  told at once that there is one, then of 5, 6, ...
    ```

    Args:
        contact: Through which is asked.
        coordinator: Whom to watch.
        on_version: Told of every version that comes to be, in this thread.
        on_other: Told when the coordinator's versions are not those that were watched.
    """

    def __init__(
        self,
        contact: Contact,
        coordinator: Coordinator,
        on_version: Callable[[int], None],
        on_other: Callable[[], object],
    ) -> None:
        self._contact = contact
        self._coordinator = coordinator
        self._on_version = on_version
        self._on_other = on_other
        self._watch: VersionWatch | None = None

    def close(self) -> None:
        """Let ``run`` end, once the contact is closed."""
        if self._watch is not None:
            self._watch.close()

    def run(self, held: Subspace) -> None:
        """
        Watch until closed.

        Args:
            held: The version that the worker holds.
        """
        self._watch = self._coordinator.watch(after_version=held.version, after_digest=held.digest)
        attempt = 0
        while not self._contact.is_closed:
            try:
                for event in self._watch:
                    attempt = 0
                    self._on_version(event.version)
            except PASSING as error:  # noqa: PERF203  # once a cut, not once a version
                self._contact.pause(attempt, error)
                attempt += 1
            except VersionError:
                self._watch = self._contact.insist(self._coordinator.watch)
                self._on_other()

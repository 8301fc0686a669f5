"""The named subspaces that a coordinator serves: opened at the start, made on demand, ended together."""

import asyncio
import difflib
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from coordinator.store.base import Catalog, Store
from share_dist.errors import ConfigError, UnknownSubspace
from share_dist.wire.records import DEFAULT_SUBSPACE


class Runnable(Protocol):
    """What merges for one named subspace."""

    async def run(self) -> None:
        """Merge until told to stop."""

    def stop(self) -> None:
        """End ``run`` after the merge in hand."""


class Serving(Protocol):
    """What this module needs to know of a lineage."""

    @property
    def writer(self) -> Runnable:
        """What merges for it."""


LineageT = TypeVar("LineageT", bound=Serving)

MAX_NAME_CHARACTERS = 100


class Lineages(Generic[LineageT]):
    """
    Every lineage by name, each with its writer running.

    Args:
        catalog: Where their stores come from.
        compose: Makes the parts of one from its store.
        note_end: Told of a writer that has ended, well or not.
    """

    def __init__(
        self,
        catalog: Catalog,
        compose: Callable[[Store], LineageT],
        note_end: Callable[[asyncio.Task[None]], None],
    ) -> None:
        self._catalog = catalog
        self._compose = compose
        self._note_end = note_end
        self._lineages: dict[str, LineageT] = {}
        self._writing: dict[str, asyncio.Task[None]] = {}
        self._making = asyncio.Lock()

    def get(self, name: str) -> LineageT:
        """
        Return the lineage of a name; the default one for an empty name.

        Raises:
            UnknownSubspace: There is none of this name.
        """
        name = name or DEFAULT_SUBSPACE
        if name in self._lineages:
            return self._lineages[name]
        nearest = difflib.get_close_matches(name[:MAX_NAME_CHARACTERS], self._lineages, n=3)
        raise UnknownSubspace(
            f"there is no subspace {name[:MAX_NAME_CHARACTERS]!r} here, "
            f"{f'near are {nearest}' if nearest else f'there are {sorted(self._lineages)[:10]}'}: "
            "an administrator makes a new one by registering a worker under its name",
            subspace=name[:MAX_NAME_CHARACTERS],
            nearest=", ".join(nearest),
        )

    def all(self) -> tuple[LineageT, ...]:
        """Return every lineage, by name."""
        return tuple(lineage for _, lineage in sorted(self._lineages.items()))

    async def open(self, name: str, *, by: str) -> LineageT:
        """
        Return the lineage of a name, made if there is none, with its writer running.

        Raises:
            ConfigError: The name is too long, or has characters that no name has.
        """
        async with self._making:
            if name not in self._lineages:
                _require_name(name)
                store = await asyncio.to_thread(self._catalog.create, name, by=by)
                lineage = await asyncio.to_thread(self._compose, store)
                writing = asyncio.create_task(lineage.writer.run(), name=f"writer of {name}")
                writing.add_done_callback(self._note_end)
                self._lineages[name], self._writing[name] = lineage, writing
            return self._lineages[name]

    async def stop(self) -> None:
        """Finish every merge in hand; a writer that failed has been told of already."""
        for lineage in self._lineages.values():
            lineage.writer.stop()
        if self._writing:
            await asyncio.wait(self._writing.values())


def _require_name(name: str) -> None:
    is_known = name.isprintable() and not any(character.isspace() for character in name)
    if not (is_known and 0 < len(name) <= MAX_NAME_CHARACTERS and "/" not in name):
        raise ConfigError(
            f"a subspace cannot be called {name[:MAX_NAME_CHARACTERS]!r}: give 1 to "
            f"{MAX_NAME_CHARACTERS} printable characters without space and slash",
            key="subspace",
        )

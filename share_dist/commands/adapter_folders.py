"""Adapters that are to become one subspace: where they lie, and each read as it is wanted."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from share_dist.errors import ConfigError, NotFinite, ShapeMismatch, SubspaceError, UpdateRefused

if TYPE_CHECKING:
    from share_dist.adapters import LoraAdapter
    from share_dist.core.values import Subspace


class AdapterReader:
    """
    Reads adapters one at a time, as often as wanted, and lets none pass that does not fit the first.

    Args:
        folders: Task -> directory; the first that can be read says which layers there are.
        same_base: Different names of base models are no error.
        skips: Leaves out what does not fit, and goes on.

    Attributes:
        left_out: Task -> why it does not fit.
    """

    def __init__(self, folders: Mapping[str, Path], *, same_base: bool, skips: bool) -> None:
        self.folders = folders
        self._same_base = same_base
        self._skips = skips
        self._empty: Subspace | None = None
        self._base: tuple[str, Path] | None = None
        self.left_out: dict[str, str] = {}

    def read(self, names: Sequence[str]) -> "Iterator[tuple[str, LoraAdapter]]":
        """
        Yield name and adapter.

        Args:
            names: Of which, in this order.

        Raises:
            AdapterFormatError: A folder cannot be read.
            NotFinite: A tensor holds NaN or infinity; names the folder.
            ShapeMismatch: Layers or their features are not those of the first; names the folder.
            UpdateRefused: It changes nothing in some layer; names the folder.
            ConfigError: It belongs to another base model.
        """
        for name in names:
            if name in self.left_out:
                continue
            try:
                adapter = self._read(self.folders[name])
            except (SubspaceError, ConfigError) as error:
                if not self._skips:
                    raise
                self.left_out[name] = error.message
            else:
                yield name, adapter

    def last_that_fit(self, count: int) -> list[str]:
        """
        The last so many that fit the first of all; fewer where no more do.

        Raises:
            SubspaceError: As `read`.
            ConfigError: As `read`.
        """
        if not count:
            return []
        first = next((name for name, _ in self.read(list(self.folders))), None)
        others = [name for name in reversed(list(self.folders)) if name != first]
        return list(islice((name for name, _ in self.read(others)), count))

    def require_most_fit(self) -> None:
        """
        Refuse to go on with fewer adapters than are left out: then the first is the odd one, or the hub's door is shut.

        Raises:
            ConfigError: It is so; names what was left out last.
        """
        count = len(self.folders.keys() | self.left_out.keys())
        if 2 * len(self.left_out) > count:
            name, why = next(reversed(self.left_out.items()))
            raise ConfigError(
                f"{len(self.left_out)} of {count} adapters were left out, such as {name} ({why}): the first that can "
                "be read says which layers all have, so put another first, or leave those out yourself",
                key="adapters",
            )

    def _read(self, folder: Path) -> "LoraAdapter":
        from share_dist.commands.base_model import rename_layers
        from share_dist.core.subspace import check_layers
        from share_dist.core.values import Subspace

        with _naming(folder):
            adapter = _load(folder)
            empty = self._empty or Subspace.empty({layer: pair.shape for layer, pair in adapter.factors.items()})  # fmt: skip
            adapter = rename_layers(adapter, empty.layers)
            check_layers(empty, adapter.factors)
            _require_changes(adapter)
        found = adapter.metadata.get("base_model")
        if found and self._base and not self._same_base:
            _require_base(self._base, (found, folder))
        self._empty = empty
        self._base = self._base or ((found, folder) if found else None)
        return adapter


def _load(folder: Path) -> "LoraAdapter":
    from share_dist.adapters import load_lora

    return load_lora(folder)


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Say of which folder an error is that knows layers only."""
    try:
        yield
    except (NotFinite, ShapeMismatch, UpdateRefused) as error:
        raise type(error)(f"{folder}: {error.message}", **error.details) from error


def _require_changes(adapter: "LoraAdapter") -> None:
    for layer, pair in adapter.factors.items():
        if not (pair.a.any() and pair.b.any()):
            raise UpdateRefused(
                f"the adapter changes nothing in layer {layer!r}: leave it out, or train it there",
                reason="norm",
            )


def _require_base(first: tuple[str, Path], found: tuple[str, Path]) -> None:
    if first[0] != found[0]:
        raise ConfigError(
            f"{first[1]} was trained on {first[0]!r}, {found[1]} on {found[0]!r}: adapters of one "
            "subspace share one base model; leave one out, or say --same-base if it is one "
            "model under two names",
            key="adapters",
        )


def find_adapters(given: Sequence[Path]) -> dict[str, Path]:
    """
    Find the PEFT directories that are meant: task -> folder, in the order given, sorted within one.

    Raises:
        ConfigError: A folder holds none, or two would become one task.
    """
    folders: dict[str, Path] = {}
    for path in given:
        for found in _within(path):
            name = found.resolve().name
            if name in folders:
                raise ConfigError(
                    f"{folders[name]} and {found} would both become the task {name!r}: rename one",
                    key="adapters",
                )
            folders[name] = found
    return folders


def _within(path: Path) -> list[Path]:
    from share_dist.adapters.diffusers_lora import WEIGHTS_FILE
    from share_dist.adapters.lora import CONFIG_FILE, is_lora

    if is_lora(path):
        return [path]
    found = sorted(each for each in path.iterdir() if is_lora(each))
    if not found:
        raise ConfigError(
            f"{path} holds no adapters: neither it nor a folder in it has an {CONFIG_FILE} "
            f"or a {WEIGHTS_FILE}; give directories that PEFT or diffusers wrote, or a folder of such directories",
            key="adapters",
        )
    return found

"""The shelf: the last versions that a worker pulled, on its disk, for when nobody can be asked."""

from pathlib import Path

from share_dist.adapters import load_subspace, save_subspace
from share_dist.core.values import Fingerprint, Subspace
from share_dist.errors import AdapterFormatError
from worker.disk import Disk

KEPT = 3
"""One that is trained in, one that is at hand, and one that the last checkpoint may still be of."""


class Shelf:
    """
    Keeps versions in files, the newest few.

    Args:
        workdir: The worker's own folder.
        disk: Writes them; one that finds no room is left out.
        fingerprint: Of the model that they are for.
    """

    def __init__(self, workdir: Path, disk: Disk, fingerprint: Fingerprint) -> None:
        self._folder = workdir / "versions"
        self._disk = disk
        self._fingerprint = fingerprint

    def keep(self, subspace: Subspace) -> None:
        """Keep a version, and let go of the oldest."""
        path = self._folder / f"{subspace.version}-{subspace.digest[:16]}.safetensors"

        def write() -> None:
            self._folder.mkdir(parents=True, exist_ok=True)
            save_subspace(path, subspace)

        if not path.exists() and self._disk.keep(write):
            for old in self._paths()[KEPT:]:
                old.unlink()

    def newest(self) -> Subspace | None:
        """The version that was kept last, if there is one for this model."""
        return next(filter(None, map(self._load, self._paths())), None)

    def find(self, version: int, digest: str) -> Subspace | None:
        """
        A version, if it is kept.

        Args:
            version: Its number.
            digest: Of its content; empty: any content will do.
        """
        for path in self._paths():
            if path.name.startswith(f"{version}-{digest[:16]}"):
                return self._load(path)
        return None

    def _paths(self) -> list[Path]:
        """Newest first."""
        paths = self._folder.glob("*.safetensors")
        return sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)

    def _load(self, path: Path) -> Subspace | None:
        """What a file holds; None where that is no version of this model: it can be pulled again."""
        try:
            found = load_subspace(path)
        except AdapterFormatError:
            return None
        is_fit = (found.shapes, found.metric) == (
            self._fingerprint.layers,
            self._fingerprint.metric,
        )
        return found if is_fit else None

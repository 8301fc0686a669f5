"""Cells: the pieces of a learning benchmark, each computed once and kept as a file."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from share_dist.files import write_file


@dataclass(frozen=True)
class Cell:
    """
    One piece of work.

    Args:
        method: By which method.
        seed: Of starts, batches and dropout, and of the order of tasks.
        task_id: Of one task; empty: of the whole stream.
        rate: Learning rate; None: that of the suite.
        rows: Most training rows; None: those of the suite.
        is_curve: Whether it is scored along the way, after the suite's numbers of steps, instead of in the end.
    """

    method: str
    seed: int
    task_id: str = ""
    rate: float | None = None
    rows: int | None = None
    is_curve: bool = False

    @property
    def name(self) -> str:
        """What it is called in files and messages, such as ``lora/movies-rate-0.002-seed-0``."""
        parts = [self.task_id or "stream"]
        parts += [] if self.rows is None else [f"rows-{self.rows}"]
        parts += ["curve"] if self.is_curve else []
        parts += [] if self.rate is None else [f"rate-{self.rate:g}"]
        return f"{self.method}/{'-'.join([*parts, f'seed-{self.seed}'])}"


@dataclass(frozen=True)
class Work:
    """
    A cell that is to be computed.

    Args:
        cell: Which.
        sources: Cells on whose adapters it builds.
    """

    cell: Cell
    sources: tuple[Cell, ...] = ()


Lesson = Callable[[Cell], Mapping[str, Any]]


class CellFolder:
    """
    Where outcomes of cells are kept.

    Args:
        folder: It.
        lesson: What decides a cell's outcome beside itself: model, training, rows. Outcomes of another
            lesson are not those of this benchmark, and are computed anew.
    """

    def __init__(self, folder: Path, lesson: Lesson) -> None:
        self._folder = folder
        self._lesson = lesson
        self._loaded: dict[Cell, dict[str, Any]] = {}

    def load(self, cell: Cell) -> dict[str, Any] | None:
        """The outcome of a cell, if it was computed for this lesson."""
        if cell not in self._loaded:
            path = self.path(cell)
            if not path.is_file():
                return None
            held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if held["lesson"] != self._digest(cell):
                return None
            self._loaded[cell] = held["outcome"]
        return self._loaded[cell]

    def save(self, cell: Cell, outcome: Mapping[str, Any]) -> None:
        """Keep an outcome, whole or not at all."""
        held = {"lesson": self._digest(cell), "cell": asdict(cell), "outcome": outcome}
        write_file(self.path(cell), (json.dumps(held, indent=1) + "\n").encode())
        self._loaded[cell] = dict(outcome)

    def path(self, cell: Cell) -> Path:
        """Its file."""
        return self._folder / "cells" / f"{cell.name}.json"

    def adapter(self, cell: Cell) -> Path:
        """Where an adapter that it trained is kept, for cells that build on it."""
        return self._folder / "adapters" / cell.name

    def _digest(self, cell: Cell) -> str:
        said = json.dumps(self._lesson(cell), sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:16]

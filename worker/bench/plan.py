"""The plan: which cells a benchmark has, and which of them can be computed by now."""

from collections.abc import Callable, Iterator
from typing import Any

from share_dist.errors import WorkerError
from worker.bench.cell import Cell, CellFolder, Work
from worker.bench.methods import METHODS, Method
from worker.bench.suite import Suite

Outcomes = Callable[[Cell], dict[str, Any] | None]

SEARCH_SEED = 0
"""Learning rates are chosen by the validation rows of this seed, and hold for all others."""


class Plan:
    """
    All cells of a suite.

    A method's learning rate is searched for once, with the first seed; the other seeds take what did
    best there on validation rows, a task's own for methods of one task.

    Args:
        suite: It.
        folder: Where outcomes are kept.
    """

    def __init__(self, suite: Suite, folder: CellFolder) -> None:
        self._suite = suite
        self._folder = folder

    def ready(self) -> list[Work]:
        """Cells that have no outcome yet, and need nothing that is not there; empty: all is done."""
        return [
            work
            for work in self._known()
            if self._is_missing(work.cell) and not any(map(self._is_missing, work.sources))
        ]

    def count(self) -> tuple[int, int]:
        """How many cells are done, and how many there are in all."""
        done = sum(not self._is_missing(work.cell) for work in self._known())
        return done, sum(
            len(list(self._slots(method))) * self._runs(method) for method in self._methods
        )

    def chosen(self, method: str, task_id: str, seed: int, rows: int | None = None) -> Cell | None:
        """
        The cell of a method's best learning rate; None where it is not known yet.

        Raises:
            WorkerError: No rate that was tried came to an end.
        """
        found = {
            each: self._folder.load(each) for each in self._search(METHODS[method], task_id, rows)
        }
        scores = {
            cell: outcome.get("validation", 0.0)
            for cell, outcome in found.items()
            if outcome is not None and "diverged" not in outcome
        }
        if None in found.values():
            return None
        if not scores:
            raise WorkerError(
                f"{method}, {task_id or 'the stream'}: training diverged with each of the learning rates "
                f"{', '.join(f'{each.rate:g}' for each in found)}: lower the method's rates"
            )
        return Cell(method, seed, task_id, max(scores, key=scores.__getitem__).rate, rows)

    @property
    def _methods(self) -> list[Method]:
        return [METHODS[name] for name in self._suite.settings.methods]

    def _slots(self, method: Method) -> Iterator[tuple[str, int | None]]:
        """Task and rows of all cells of a method; an empty task is the stream."""
        if method.scope == "stream":
            yield "", None
            return
        for rows in dict.fromkeys((None, self._suite.settings.few_rows)):
            for task_id in self._suite.task_ids:
                yield task_id, rows

    def _runs(self, method: Method) -> int:
        """Cells for each of them: the search, and the other seeds."""
        return max(1, len(method.rates)) + self._suite.settings.seeds - 1

    def _search(self, method: Method, task_id: str, rows: int | None) -> list[Cell]:
        rates = method.rates or (None,)
        return [Cell(method.name, SEARCH_SEED, task_id, rate, rows) for rate in rates]

    def _known(self) -> Iterator[Work]:
        """All cells whose learning rate is known by now."""
        for method in self._methods:
            for task_id, rows in self._slots(method):
                cells = self._search(method, task_id, rows)
                chosen = [
                    self.chosen(method.name, task_id, seed, rows)
                    for seed in range(self._suite.settings.seeds)
                    if seed != SEARCH_SEED
                ]
                for cell in (*cells, *filter(None, chosen)):
                    sources = self._sources(method, cell)
                    if sources is not None:
                        yield Work(cell, sources)

    def _sources(self, method: Method, cell: Cell) -> tuple[Cell, ...] | None:
        """On what a cell builds: the other tasks' adapters, of the same seed; None: not known yet."""
        if not method.needs:
            return ()
        others = [each for each in self._suite.task_ids if each != cell.task_id]
        found = [self.chosen(method.needs, each, cell.seed) for each in others]
        return None if None in found else tuple(filter(None, found))

    def _is_missing(self, cell: Cell) -> bool:
        if self._folder.load(cell) is None:
            return True
        is_source = any(each.needs == cell.method for each in self._methods)
        return is_source and not self._folder.adapter(cell).is_dir()

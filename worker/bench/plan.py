"""The plan: which cells a benchmark has, and which of them can be computed by now."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import fmean

from share_dist.errors import WorkerError
from worker.bench.cell import Cell, CellFolder, Work
from worker.bench.methods import Method
from worker.bench.suite import Suite

SEARCH_SEED = 0
"""Learning rates are chosen by the validation rows of this seed, and hold for all others."""


class Plan:
    """
    All cells of a suite.

    A method's learning rate is searched for once, with the first seed: all tasks and seeds take what
    did best there on the mean of the suite's search tasks' validation rows, from few rows as well: so few
    leave too few of them to choose by.

    Args:
        suite: It.
        folder: Where outcomes are kept.
    """

    def __init__(self, suite: Suite, folder: CellFolder) -> None:
        self._suite = suite
        self._folder = folder

    def ready(self) -> list[Work]:
        """Cells that have no outcome yet, and need nothing that is not there; empty: all is done."""
        missing = [work for work in self._known() if self._folder.load(work.cell) is None]
        wanted = {cell: None for work in missing for cell in work.sources if self._is_gone(cell)}
        whole = [work for work in missing if wanted.keys().isdisjoint(work.sources)]
        # an outcome may be there without the adapter, which is not kept with a committed result
        return [*whole, *(Work(cell) for cell in wanted if self._folder.load(cell) is not None)]

    def count(self) -> tuple[int, int]:
        """How many cells are done, and how many there are in all."""
        return self._sums(lambda _: 1)

    def lessons_left(self) -> int:
        """How many lessons the cells without an outcome have: what is left to do, in one measure for tasks and streams."""
        done, total = self._sums(self.num_lessons)
        return total - done

    def num_lessons(self, method: str) -> int:
        """How many lessons a cell of a method has: one, or one of each task of the stream."""
        is_stream = self._suite.method(method).scope == "stream"
        return len(self._suite.task_ids) if is_stream else 1

    def chosen(self, method: str, task_id: str, seed: int, rows: int | None = None) -> Cell | None:
        """
        The cell of a method's best learning rate; None where it is not known yet.

        Raises:
            WorkerError: No rate that was tried came to an end.
        """
        tuned = self._suite.tuned(method)
        rates = tuned.rates or (None,)
        rate = rates[0] if len(rates) == 1 else self._best_rate(tuned)
        if rate is None and tuned.rates:
            return None
        return Cell(method, seed, task_id, rate, rows)

    def searched(self, method: Method) -> dict[float, float | None]:
        """
        What the search for a learning rate has found.

        Returns:
            Rate -> mean validation score, None where training diverged; empty before all are computed, and where there is
            nothing to search.
        """
        found: dict[float, float | None] = {}
        for rate in method.rates if len(method.rates) > 1 else ():
            runs = [self._folder.load(each) for each in self._search(method, rate)]
            ended = [each for each in runs if each is not None]
            if len(ended) < len(runs):
                return {}
            has_diverged = any("diverged" in each for each in ended)
            found[rate] = None if has_diverged else fmean(each["validation"] for each in ended)
        return found

    def _best_rate(self, method: Method) -> float | None:
        """The rate of the best mean validation score; None: not all are computed yet."""
        found = self.searched(method)
        means = {rate: mean for rate, mean in found.items() if mean is not None}
        if found and not means:
            raise WorkerError(
                f"{method.name}: training diverged with each of the learning rates "
                f"{', '.join(f'{each:g}' for each in method.rates)}: lower the method's rates"
            )
        return max(means, key=means.__getitem__, default=None)

    @property
    def _methods(self) -> list[Method]:
        return [self._suite.method(name) for name in self._suite.settings.methods]

    def _variants(self, method: Method) -> list[int | None]:
        """Of how many rows its cells are."""
        few = self._suite.few_rows(method)
        return [None] if few is None else [None, few]

    def _tasks(self, method: Method) -> list[str]:
        """Tasks of its cells; an empty one is the stream."""
        return [""] if method.scope == "stream" else self._suite.task_ids

    def _tuned(self, method: Method) -> Method:
        return self._suite.tuned(method.name)

    def _sums(self, weight: Callable[[str], int]) -> tuple[int, int]:
        """Of cells that are done and of all, what each weighs by its method."""
        done = sum(
            weight(work.cell.method)
            for work in self._known()
            if self._folder.load(work.cell) is not None
        )
        tuned = {each.name: each for each in map(self._tuned, self._methods)}
        cells = sum(weight(each.name) * self._num_cells(each) for each in self._methods)
        return done, cells + sum(
            weight(each.name) * self._num_searched(each) for each in tuned.values()
        )

    def _num_cells(self, method: Method) -> int:
        """Cells of a method: every task and seed."""
        each = len(self._tasks(method)) * self._suite.settings.seeds
        return each * (len(self._variants(method)) + self._suite.has_curve(method))

    def _num_searched(self, method: Method) -> int:
        """Cells of a method's search that are not among those of its tasks and seeds."""
        if len(method.rates) < 2:
            return 0
        is_asked_for = method.name in self._suite.settings.methods
        each = len(self._suite.search_tasks) if method.scope == "task" else 1
        return (len(method.rates) - is_asked_for) * each

    def _search(self, method: Method, rate: float) -> list[Cell]:
        tasks = [""] if method.scope == "stream" else self._suite.search_tasks
        return [Cell(method.name, SEARCH_SEED, task_id, rate) for task_id in tasks]

    def _known(self) -> Iterator[Work]:
        """All cells whose learning rate is known by now, each once."""
        known: set[Cell] = set()
        for method in self._methods:
            for rows in self._variants(method):
                for cell in self._cells(method, rows):
                    sources = self._sources(method, cell)
                    if sources is not None and cell not in known:
                        known.add(cell)
                        yield Work(cell, sources)

    def _cells(self, method: Method, rows: int | None) -> Iterator[Cell]:
        tuned = self._tuned(method)
        if len(tuned.rates) > 1 and rows is None:
            for rate in tuned.rates:
                yield from self._search(tuned, rate)
        for seed in range(self._suite.settings.seeds):
            for task_id in self._tasks(method):
                cell = self.chosen(method.name, task_id, seed, rows)
                if cell is None:
                    continue
                yield cell
                if rows is None and self._suite.has_curve(method):
                    yield replace(cell, is_curve=True)

    def _sources(self, method: Method, cell: Cell) -> tuple[Cell, ...] | None:
        """On what a cell builds: the other tasks' adapters, of the same seed; None: not known yet."""
        if not method.needs:
            return ()
        others = [each for each in self._suite.task_ids if each != cell.task_id]
        found = [self.chosen(method.needs, each, cell.seed) for each in others]
        return None if None in found else tuple(filter(None, found))

    def _is_gone(self, cell: Cell) -> bool:
        """Whether a cell cannot be built on yet."""
        return self._folder.load(cell) is None or not self._folder.adapter(cell).is_dir()

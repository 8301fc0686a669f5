"""The runner: computes all cells of a benchmark, some at a time, each in a process that keeps its model."""

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from multiprocessing.managers import DictProxy, SyncManager
from pathlib import Path
from typing import Any

from share_dist.commands.processes import end_with_parent
from share_dist.errors import TrainingDiverged
from worker.bench.cell import Cell, CellFolder, Lesson, Work
from worker.bench.methods import METHODS
from worker.bench.plan import SEARCH_SEED, Plan
from worker.bench.suite import Suite

LOOK_SECONDS = 0.5

Progress = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Standing:
    """
    How far a benchmark is.

    Args:
        done: Cells with an outcome.
        total: Cells in all.
        under_way: Name of a cell -> steps done, steps in all.
        seconds_left: By what lessons took until now, of which a stream has one of each task; None before the first cell is done.
    """

    done: int
    total: int
    under_way: Progress
    seconds_left: float | None


def lesson_of(suite: Suite) -> Lesson:
    """What decides every outcome of a suite."""
    stream, settings = suite.stream, suite.settings

    def of_cell(cell: Cell) -> dict[str, Any]:
        method = METHODS[cell.method]
        lessons = {task.id: task.lesson() for task in stream.tasks}
        built_on = lessons if method.needs or not cell.task_id else {}
        sizes = {"num_factors": suite.num_factors(method), "oversample": settings.oversample}
        sources = {"rates": suite.tuned(method.needs).rates, "search": sorted(suite.search_tasks)} if method.needs else {}  # fmt: skip
        return {
            "model": stream.model.lesson(),
            "method": method.lesson(),
            "training": suite.training(method, cell.rows).lesson(),
            "tasks": {cell.task_id: lessons.get(cell.task_id), **built_on},
            **({} if cell.task_id else {"order": suite.order(cell.seed)}),
            **({"sources": sources} if sources else {}),
            **({"after_steps": settings.after_steps} if cell.is_curve else {}),
            **(sizes if method.has_subspace else {}),
        }

    return of_cell


def run_cells(
    suite: Suite,
    folder: Path,
    num_at_once: int,
    on_standing: Callable[[Standing], None],
    on_done: Callable[[str, dict[str, Any]], None],
) -> None:
    """
    Compute every cell that has no outcome yet.

    What is done stays done, whenever this is interrupted.

    Args:
        suite: Whose.
        folder: Of the benchmark.
        num_at_once: Processes; each holds one model.
        on_standing: Told how far it is, about twice a second.
        on_done: Told every outcome, with its cell's name.

    Raises:
        ShareError: A cell cannot be computed.
    """
    cells = CellFolder(folder, lesson_of(suite))
    plan, context = Plan(suite, cells), multiprocessing.get_context("spawn")
    if not plan.ready():
        return
    manager = SyncManager(ctx=context)
    manager.start(end_with_parent)
    with manager:
        progress: DictProxy[str, tuple[int, int]] = manager.dict()
        threads = max(1, len(os.sched_getaffinity(0)) // num_at_once)
        told = suite, folder, threads, progress
        pool = ProcessPoolExecutor(num_at_once, context, _begin_process, told)
        began, computed = time.monotonic(), 0
        running: dict[Future[dict[str, Any]], Work] = {}
        try:
            while True:
                _submit(pool, plan, running, num_at_once)
                if not running:
                    return
                (done, total), num_left = plan.count(), plan.lessons_left()
                while not (finished := wait(running, LOOK_SECONDS, FIRST_COMPLETED).done):
                    each = (time.monotonic() - began) / computed if computed else None
                    left = None if each is None else each * num_left
                    on_standing(Standing(done, total, dict(progress), left))
                for future in finished:
                    work = running.pop(future)
                    outcome = future.result()
                    cells.save(work.cell, outcome)
                    computed += plan.num_lessons(work.cell.method)
                    on_done(work.cell.name, outcome)
        except BaseException:
            for process in pool._processes.values():  # noqa: SLF001  there is no public way to end one in the middle
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _submit(
    pool: ProcessPoolExecutor,
    plan: Plan,
    running: dict[Future[dict[str, Any]], Work],
    num_at_once: int,
) -> None:
    under_way = [work.cell for work in running.values()]
    for work in plan.ready():
        if len(running) == num_at_once:
            return
        if work.cell not in under_way:
            running[pool.submit(compute, work)] = work


_STATE: dict[str, Any] = {}


def _begin_process(*told: Any) -> None:
    end_with_parent()
    begin(*told)


def begin(suite: Suite, folder: Path, threads: int, progress: Any) -> None:
    """Prepare a process; its model is loaded with its first cell."""
    import torch

    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    _STATE.update(suite=suite, folder=folder, progress=progress)


@cache
def _cells() -> dict[str, Any]:
    from worker.backbone import load_backbone
    from worker.bench.shared_cells import SharedCells
    from worker.bench.stream_cells import StreamCells
    from worker.bench.task_cells import TaskCells

    suite = _STATE["suite"]
    backbone = load_backbone(suite.stream)
    tasks = TaskCells(suite, CellFolder(_STATE["folder"], lesson_of(suite)), backbone)
    return {"task": tasks, "stream": StreamCells(tasks), "shared": SharedCells(suite, backbone)}


def compute(work: Work) -> dict[str, Any]:
    """
    Compute a cell in a process that was begun.

    Raises:
        ShareError: It cannot be computed. A search that diverges is an outcome.
    """
    method, progress = _STATE["suite"].method(work.cell.method), _STATE["progress"]
    kind = "shared" if method.is_shared else method.scope

    def tell(step: int, num_steps: int) -> None:
        progress[work.cell.name] = step, num_steps

    try:
        outcome: dict[str, Any] = _cells()[kind].compute(work, tell)
    except TrainingDiverged as error:
        if work.cell.seed != SEARCH_SEED or len(method.rates) < 2:
            raise
        # too large a rate: the search goes on without it
        outcome = {"diverged": error.message}
    finally:
        progress.pop(work.cell.name, None)
    return outcome

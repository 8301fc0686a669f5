"""The suite: the file that says what a learning benchmark learns, by which methods, how often."""

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from share_dist.errors import ConfigError
from worker.bench.methods import METHODS, RANDOM_CONTROL, Method, first_step
from worker.changes import changed
from worker.stream import Task, TaskStream, TrainingSettings, parse_stream

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Small(BaseModel):
    """What ``--small`` leaves of a suite."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: list[str]
    """Ids of the tasks that stay."""
    max_train: int = Field(ge=16)
    """Most training rows of each."""
    max_test: int = Field(ge=16)
    """Most test rows of each."""
    epochs: int = Field(1, ge=1)
    """Passes over the training rows."""
    methods: list[str]
    """Methods that stay."""
    seeds: int = Field(1, ge=1)
    """How many seeds stay."""


class BenchSettings(BaseModel):
    """The section ``[bench]`` of a suite."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seeds: int = Field(3, ge=1)
    """Seeds of every method; a seed is an order of the tasks as well, the first that of the file."""
    methods: list[str] = Field(min_length=1)
    """Which methods, as `share-dist bench methods` lists them."""
    num_factors: int = Field(32, ge=1)
    """``k`` of the subspace that the tasks share."""
    oversample: int = Field(32, ge=0)
    """``o``, columns that the coordinator keeps beyond."""
    search_tasks: list[str] = []
    """On whose validation rows a method's learning rate is chosen, one for all tasks; empty: on all tasks'."""
    rates: dict[str, Annotated[list[PositiveFloat], Field(min_length=1)]] = {}
    """Method -> learning rates that are tried instead of its own: models differ in how much they bear."""
    few_rows: int | None = Field(None, ge=16)
    """Also learn every task from so many rows only, by the methods of one task."""
    few_epochs: int | None = Field(None, ge=1)
    """Passes over those few rows; None: those of ``[training]``."""
    few_methods: list[str] = []
    """Which methods learn from few rows as well, and are scored after few steps; empty: all of one task."""
    after_steps: list[PositiveInt] = []
    """Also score every task along the way, after so many steps."""
    small: Small
    """What ``--small`` leaves."""


@dataclass(frozen=True)
class Suite:
    """
    One benchmark.

    Args:
        name: Of its file.
        stream: Model, training and tasks.
        settings: Methods and seeds.
    """

    name: str
    stream: TaskStream
    settings: BenchSettings

    @property
    def task_ids(self) -> list[str]:
        """Tasks, in the order of the file."""
        return [task.id for task in self.stream.tasks]

    def task(self, task_id: str) -> Task:
        """One of its tasks."""
        return next(task for task in self.stream.tasks if task.id == task_id)

    def method(self, name: str) -> Method:
        """A method as this suite tries it: at its learning rates, or at those of the suite's columns, scaled to its form."""
        method = METHODS[name]
        if name in self.settings.rates:
            return replace(method, rates=tuple(self.settings.rates[name]))
        scale = self.rate_scale(method)
        return replace(method, rates=tuple(float(f"{rate * scale:.2g}") for rate in method.rates))

    def rate_scale(self, method: Method) -> float:
        """
        By what a method's learning rates are multiplied, so that one default suits all forms of coefficients.

        Its first step changes the weights as much as that of columns of the suite's ``k`` and ``p``.
        """
        if not method.within or method.peft is not None:
            return 1.0
        training, num_factors = self.stream.training, self.num_factors(method)
        own = first_step(method.form, num_factors, self.training(method).pseudo_rank)
        return first_step("columns", self.settings.num_factors, training.pseudo_rank) / own

    def tuned(self, name: str) -> Method:
        """The method whose search finds the learning rate of this one: itself, or the one that it is a variant of."""
        return self.method(METHODS[name].rates_of or name)

    @property
    def search_tasks(self) -> list[str]:
        """Tasks on which learning rates are searched for."""
        return self.settings.search_tasks or self.task_ids

    def training(self, method: Method, rows: int | None = None) -> TrainingSettings:
        """How a method learns: from all rows, or from few."""
        few = (
            {}
            if rows is None or self.settings.few_epochs is None
            else {"epochs": self.settings.few_epochs}
        )
        return self.stream.training.model_copy(
            update={**few, "start": method.start, **method.training}
        )

    def few_rows(self, method: Method) -> int | None:
        """From how few rows a method learns as well; None: from all only."""
        return self.settings.few_rows if self._is_of_few(method) else None

    def has_curve(self, method: Method) -> bool:
        """Whether a method is scored along the way as well; the frozen model has no way to go."""
        return bool(self.settings.after_steps) and self._is_of_few(method) and bool(method.rates)

    def _is_of_few(self, method: Method) -> bool:
        chosen = self.settings.few_methods or self.settings.methods
        return method.scope == "task" and method.name in chosen

    def num_factors(self, method: Method) -> int:
        """Directions a side of a method's subspace."""
        return method.num_factors or self.settings.num_factors

    def order(self, seed: int) -> list[str]:
        """In which order a stream of this seed meets the tasks; seed 0: that of the file."""
        ids = self.task_ids
        if seed:
            random.Random(seed).shuffle(ids)  # noqa: S311  # an order, not a secret
        return ids

    def small(self) -> "Suite":
        """The same, small enough for minutes on two cores: each method's middle learning rate is taken, and none searched for."""
        small = self.settings.small
        searched = map(self.tuned, {*small.methods, RANDOM_CONTROL})
        tried = {each.name: each.rates for each in searched}
        limits = {"max_train": small.max_train, "max_test": small.max_test}
        tasks = tuple(self.task(each).model_copy(update=limits) for each in small.tasks)
        training = self.stream.training.model_copy(update={"epochs": small.epochs})
        return Suite(
            f"{self.name}-small",
            TaskStream(self.stream.path, self.stream.worker_id, self.stream.model, training, tasks),
            self.settings.model_copy(
                update={
                    "methods": small.methods,
                    "seeds": small.seeds,
                    "search_tasks": [],
                    "rates": {
                        name: [rates[len(rates) // 2]] for name, rates in tried.items() if rates
                    },
                    "few_rows": None,
                    "after_steps": [],
                }
            ),
        )


def suite_names() -> list[str]:
    """The suites that come with the package."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in files("worker.bench").joinpath("suites").iterdir()
        if entry.name.endswith(".toml")
    )


def read_suite(name_or_path: str, methods: Sequence[str], changes: Sequence[str] = ()) -> Suite:
    """
    Read a suite.

    Args:
        name_or_path: One that comes with the package, or a file.
        methods: Known methods.
        changes: ``section.key=value`` of its sections ``[model]``, ``[training]`` and ``[bench]``, which stand instead of what the file says.

    Raises:
        ConfigError: There is none, a method is not known, a change has another form, or ``[bench]`` cannot be used.
        StreamError: The rest of it cannot be used.
    """
    path = _path_of(name_or_path)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}", key="suite") from error
    document = changed(document, changes, ("training", "bench", "model"))
    settings = _settings(path, document.pop("bench", {}))
    suite = Suite(path.stem, parse_stream(path, document), settings)
    _require_known(path, settings.methods, methods, "method")
    _require_known(path, settings.small.methods, settings.methods, "method of [bench.small]")
    of_a_task = [each for each in settings.methods if METHODS[each].scope == "task"]
    _require_known(path, settings.few_methods, of_a_task, "method of bench.few_methods")
    tuned = [each for each in methods if METHODS[each].rates]
    _require_known(path, list(settings.rates), tuned, "method of [bench.rates]")
    _require_known(path, settings.search_tasks, suite.task_ids, "task of bench.search_tasks")
    _require_known(path, settings.small.tasks, suite.task_ids, "task of [bench.small]")
    return suite


def _path_of(name_or_path: str) -> Path:
    if name_or_path in suite_names():
        return Path(str(files("worker.bench").joinpath("suites", f"{name_or_path}.toml")))
    path = Path(name_or_path)
    if not path.is_file():
        raise ConfigError(
            f"there is no suite {name_or_path!r}: give a file, or one of {', '.join(suite_names())}",
            key="suite",
        )
    return path


def _settings(path: Path, section: dict[str, Any]) -> BenchSettings:
    try:
        return BenchSettings.model_validate(section)
    except ValidationError as error:
        problems = "\n".join(
            f"  bench.{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()
        )
        raise ConfigError(f"{path} cannot be used:\n{problems}", key="bench") from error


def _require_known(path: Path, given: Sequence[str], known: Sequence[str], what: str) -> None:
    unknown = [each for each in given if each not in known]
    if unknown:
        raise ConfigError(
            f"{path}: unknown {what}: {', '.join(unknown)}; known: {', '.join(known)}", key="bench"
        )

"""What is simulated: how many, how fast, how far away, from which seed."""

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from share_dist.errors import ConfigError

MOST_PUSHES: Final = 1_000_000


class Scenario(BaseModel):
    """
    Everything that a run depends on, beside the recorded updates and what the coordinator takes.

    Times are virtual seconds. What is drawn around a median falls log-normally: a spread is the
    standard deviation of the logarithm.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, ge=0, description="Of everything that is drawn")
    workers: int = Field(100, ge=1, le=MOST_PUSHES, description="How many learn")
    tasks: int = Field(5, ge=1, le=MOST_PUSHES, description="That each of them learns")
    sites: int = Field(5, ge=1, le=MOST_PUSHES, description="Where they are")
    train_seconds: float = Field(600.0, gt=0, description="Median of one task")
    train_spread: float = Field(0.5, ge=0, le=5, description="Of that, over tasks")
    stragglers: float = Field(0.05, ge=0, le=1, description="Share of workers that are slow")
    straggler_factor: float = Field(10.0, ge=1, description="How many times slower")
    latency_seconds: float = Field(0.05, ge=0, description="Median of a site, one way")
    megabits_per_second: float = Field(100.0, gt=0, description="Median of a site's bandwidth")
    site_spread: float = Field(0.5, ge=0, le=5, description="Of both, over sites")
    present_seconds: float | None = Field(
        None, ge=1, description="Mean time until a worker goes away; none leaves where absent"
    )
    absent_seconds: float = Field(1800.0, ge=0, description="Mean time that it stays away")
    join_seconds: float | None = Field(
        None, ge=0, description="All have joined by then; as train_seconds where absent"
    )
    num_factors: int = Field(32, ge=1, description="Principal factors per side")
    oversample: int = Field(32, ge=0, description="Columns kept beyond those")
    layers: int | None = Field(
        None, ge=1, description="Of the adapters, the first; all where absent"
    )
    pushes: int | None = Field(None, ge=1, description="The run ends after so many")

    @property
    def num_pushes(self) -> int:
        """How many updates are merged when all is done."""
        every = self.workers * self.tasks
        return every if self.pushes is None else min(every, self.pushes)


def make_scenario(**values: Any) -> Scenario:
    """
    Make a scenario of what was given.

    Raises:
        ConfigError: A value is out of its range, or there are more than a million pushes.
    """
    try:
        scenario = Scenario.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        raise ConfigError(f"{key} is {first['input']!r}: {first['msg'].lower()}", key=key) from None
    if scenario.num_pushes > MOST_PUSHES:
        raise ConfigError(
            f"{scenario.workers:,} workers with {scenario.tasks:,} tasks each make "
            f"{scenario.num_pushes:,} pushes, at most {MOST_PUSHES:,} are simulated: "
            "ask for fewer tasks, or end the run by pushes",
            key="tasks",
        )
    return scenario

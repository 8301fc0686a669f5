"""What happened in a run, push by push; written as lines of JSON, and read again to replay it."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from share_dist.core.values import Subspace
from share_dist.errors import ConfigError
from share_dist.simulation.moments import Moments
from share_dist.simulation.scenario import Scenario


@dataclass(frozen=True, slots=True)
class Push:
    """
    One update on its way; times are virtual seconds since the start.

    Args:
        worker_id: Of whom.
        site: From where.
        task_id: Of which task.
        origin: Whether it is recorded or synthetic, and what of.
        is_synthetic: The same, for programs.
        base_version: That it was trained in.
        version: That contains it.
        lag: Versions between.
        angle: Largest principal angle between the base version and the one merged into, radians.
        trained_at: Sending begins.
        arrived_at: All of it has come.
        merged_at: Its version is there.
        service_seconds: What the coordinator took for it, as counted; in a round until it was durable,
            and for the last of the round until all were merged.
        pulled_bytes: Of its base version's payload.
        pushed_bytes: Of its own.
    """

    worker_id: str
    site: str
    task_id: str
    origin: str
    is_synthetic: bool
    base_version: int
    version: int
    lag: int
    angle: float
    trained_at: float
    arrived_at: float
    merged_at: float
    service_seconds: float
    pulled_bytes: int
    pushed_bytes: int


@dataclass(frozen=True)
class Sample:
    """A version that was looked at: since when it was the newest, and its bases."""

    seconds: float
    num_updates: int
    subspace: Subspace


@dataclass
class Trace:
    """
    A run as far as it came.

    Args:
        pushes: In the order in which they were merged.
        samples: Some versions, the newest last.
        moments: Of all merged updates.
        measured_seconds: Wall time of each call of a push, whatever was counted.
        cpu_seconds: Processor time of the coordinator, without its start.
        stored_bytes: Of its store in the end.
        newest: The last version with its tail; None before the run has ended.
        is_whole: False when the run was ended before all was done.
    """

    pushes: list[Push] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    moments: Moments = field(default_factory=Moments)
    measured_seconds: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    stored_bytes: int = 0
    newest: Subspace | None = None
    is_whole: bool = True

    @property
    def seconds(self) -> float:
        """Virtual time until the last merge."""
        return self.pushes[-1].merged_at if self.pushes else 0.0


def write_trace(path: Path, scenario: Scenario, pushes: Sequence[Push]) -> None:
    """Write a line for the scenario, and one for each push."""
    lines: list[dict[str, Any]] = [{"scenario": scenario.model_dump()}, *map(asdict, pushes)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read_service_seconds(path: Path, scenario: Scenario) -> list[float]:
    """
    Read what the coordinator took for each push of an earlier run.

    Raises:
        ConfigError: The file holds no trace, or that of another scenario; says what differs.
    """
    try:
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        found = json.loads(first)["scenario"]
        seconds = [float(json.loads(line)["service_seconds"]) for line in lines]
        names = {*found, *scenario.model_dump()}
        if not all(math.isfinite(each) and each >= 0 for each in seconds):
            raise ValueError("a push cannot take such a time")  # noqa: TRY301 - told as any other damage
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} holds no trace of a simulation ({error}): give a file that --trace wrote",
            key="replay",
        ) from error
    for name in sorted(names):
        asked = scenario.model_dump().get(name)
        if found.get(name) != asked:
            raise ConfigError(
                f"{path} was written with {name} {found.get(name)}, now it is {asked}: replay it with the "
                "options that it was made with",
                key="replay",
            )
    return seconds

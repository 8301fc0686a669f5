"""A whole simulation: a coordinator is started, a scenario is played before it, the coordinator is ended."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from share_dist.simulation.asynchronous import run_asynchronously
from share_dist.simulation.link import Link
from share_dist.simulation.population import Worker
from share_dist.simulation.rounds import run_in_rounds
from share_dist.simulation.scenario import Scenario
from share_dist.simulation.session import Progress, ServiceClock, Session, measured
from share_dist.simulation.trace import Trace
from share_dist.simulation.updates import Updates


def simulate(
    scenario: Scenario,
    updates: Updates,
    *,
    in_rounds: bool = False,
    clock: ServiceClock = measured,
    progress: Progress = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    num_pushes: int | None = None,
    is_member: Callable[[Worker], bool] = lambda _: True,
) -> Trace:
    """
    Play a scenario before a coordinator of its own, on loopback, with a store that is gone afterwards.

    Args:
        scenario: What is simulated.
        updates: What is pushed.
        in_rounds: All wait for all, and each round is one merge; by default nobody waits.
        clock: What of the time that a push is measured to take counts in virtual time.
        progress: Told how many updates are merged.
        should_stop: Asked before every push; the run then ends as it is.
        num_pushes: It ends after so many; None for all of the scenario's.
        is_member: Who of the scenario's workers takes part.

    Raises:
        WorkerError: The coordinator did not start, or refused an update.
        TransportError: It is gone.
    """
    per_merge = scenario.workers if in_rounds else 1
    with (
        tempfile.TemporaryDirectory(prefix="share-dist-simulate-") as folder,
        Link(Path(folder), scenario, updates.recorded(0), per_merge) as link,
    ):
        session = Session(
            link, scenario, updates, clock, progress, should_stop, num_pushes, is_member
        )
        return run_in_rounds(session) if in_rounds else run_asynchronously(session)

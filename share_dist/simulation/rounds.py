"""
The same work in synchronous rounds: all pull one version, all learn, and one merge takes what all have learnt.

::

    worker 1      pull .. train ........ push                 pull .. train ...
    worker 2      pull .. train ...................... push   pull .. train ...
    coordinator                          takes         takes, merges both

A round lasts as long as its slowest worker, and the coordinator's merge after it. Who is done waits.
"""

from collections.abc import Sequence

from share_dist.simulation.session import Arrival, Session
from share_dist.simulation.trace import Trace
from share_dist.simulation.updates import DrawnUpdate
from share_dist.wire.records import Receipt


def run_in_rounds(session: Session) -> Trace:
    """
    Simulate a round for each task that the workers learn, or until somebody stops it.

    The session's coordinator merges as many updates at once as there are workers. A round
    that is stopped leaves nothing behind.
    """
    told_at, version = 0.0, 0
    for number in range(session.scenario.tasks):
        arrivals = [
            session.lesson(
                worker,
                number,
                max(worker.joins_at, told_at + worker.site.latency_seconds),
                version,
            )
            for worker in session.workers
        ]
        arrivals.sort(key=lambda each: (each.arrived_at, each.worker.index))
        receipt = _take(session, arrivals)
        if receipt is None:
            break
        told_at, version = session.trace.seconds, receipt.version
        session.sample(told_at)
    return session.end()


def _take(session: Session, arrivals: Sequence[Arrival]) -> Receipt | None:
    """Take every update as it arrives, and merge all with the last; None where it was stopped before."""
    taken: list[tuple[Arrival, DrawnUpdate, float]] = []
    free_at, last = 0.0, arrivals[-1]
    for arrival in arrivals:
        if session.should_stop():
            return None
        session.be_heard(arrival)
        drawn = session.draw(arrival)
        receipt, seconds = session.push(arrival, drawn, "merged" if arrival is last else "durable")
        free_at = max(free_at, arrival.arrived_at) + seconds
        taken.append((arrival, drawn, seconds))
    for arrival, drawn, seconds in taken:
        session.note(arrival, drawn, receipt, seconds, free_at)
    return receipt

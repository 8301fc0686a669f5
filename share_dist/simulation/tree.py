"""
A tree of two levels: workers before coordinators of their own, and a root that fuses what these have learnt.

::

    root                 merge_subspaces of all leaves' newest versions
    leaves        coordinator 0     coordinator 1     coordinator 2
    workers       0, 3, 6, ...      1, 4, 7, ...      2, 5, 8, ...

Leaves know nothing of each other until the root fuses them, so they are simulated one after the other.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from share_dist.core.fusion import Sketch, merge_subspaces
from share_dist.core.values import Fingerprint, Subspace
from share_dist.simulation.moments import Moments
from share_dist.simulation.population import Worker
from share_dist.simulation.run import simulate
from share_dist.simulation.scenario import Scenario
from share_dist.simulation.session import Progress, ServiceClock, measured
from share_dist.simulation.trace import Trace
from share_dist.simulation.updates import Updates
from share_dist.wire.codec import subspace_to_bytes


@dataclass(frozen=True)
class Tree:
    """
    What a tree has come to.

    Args:
        leaves: The run of each.
        fused: What the root makes of them.
        moments: Of all updates of all leaves.
        fusion_seconds: Wall time of the root's one merge.
        received_bytes: Of the leaves' newest versions with their tails, which the root gets.
    """

    leaves: Sequence[Trace]
    fused: Subspace
    moments: Moments
    fusion_seconds: float
    received_bytes: int


def simulate_tree(
    scenario: Scenario,
    updates: Updates,
    num_leaves: int,
    *,
    clock: ServiceClock = measured,
    progress: Progress = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Tree:
    """
    Play a scenario before as many coordinators, each with every ``num_leaves``-th worker, and fuse what they learnt.

    Args:
        scenario: What is simulated; each worker's work is the same as before a single coordinator.
        updates: What is pushed.
        num_leaves: From 1 to the number of workers.
        clock: As in ``simulate``.
        progress: Told how many updates all leaves have merged.
        should_stop: Asked before every push; leaves that were not begun by then are left out.

    Raises:
        WorkerError: A coordinator did not start, or refused an update.
        TransportError: It is gone.
    """
    leaves: list[Trace] = []
    for number in range(num_leaves):
        if leaves and should_stop():
            break
        before = sum(len(leaf.pushes) for leaf in leaves)
        leaves.append(
            simulate(
                scenario,
                updates,
                clock=clock,
                progress=_beyond(progress, before),
                should_stop=should_stop,
                is_member=_every(num_leaves, number),
            )
        )
    return _fused(scenario, leaves)


def _fused(scenario: Scenario, leaves: Sequence[Trace]) -> Tree:
    subspaces = [leaf.newest for leaf in leaves if leaf.newest is not None]
    sketches = [Sketch(each, {}, Fingerprint("0" * 64, each.shapes)) for each in subspaces]
    began = time.perf_counter()
    fusion = merge_subspaces(sketches, scenario.num_factors, oversample=scenario.oversample)
    seconds = time.perf_counter() - began
    moments = Moments()
    for leaf in leaves:
        moments.add_all(leaf.moments.sums)
    received = sum(len(subspace_to_bytes(each)) for each in subspaces)
    return Tree(leaves, fusion.sketch.subspace, moments, seconds, received)


def _every(num_leaves: int, number: int) -> Callable[[Worker], bool]:
    return lambda worker: worker.index % num_leaves == number


def _beyond(progress: Progress, before: int) -> Progress:
    return lambda merged: progress(before + merged)

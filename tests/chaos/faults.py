"""Which faults there are, and when: all of it from one seed."""

import random
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tests.chaos.streams import WORKERS

Kind: TypeAlias = Literal["actor", "coordinator", "node"]

KILL_SECONDS = 20.0
NODE_SECONDS = 90.0
COORDINATOR_SHARE = 0.3
"""Of the kills; the others are of actors."""


@dataclass(frozen=True)
class Fault:
    """
    One fault.

    Args:
        at_seconds: When, counted from the start of the workers.
        kind: What is killed, by SIGKILL.
        which: The worker whose actor it is, or the number of the node.
        away_seconds: How long a coordinator or a node stays away.
    """

    at_seconds: float
    kind: Kind
    which: str = ""
    away_seconds: float = 0.0


def schedule(seconds: float, seed: int, num_nodes: int) -> list[Fault]:
    """
    Plan faults: an actor or the coordinator every 20 s, a node every 90 s.

    A node's turn falls between two kills, so that none hides the other.
    """
    rng = random.Random(seed)
    faults = []
    for number in range(1, int(seconds / KILL_SECONDS) + 1):
        at = number * KILL_SECONDS
        if rng.random() < COORDINATOR_SHARE:
            faults.append(Fault(at, "coordinator", away_seconds=rng.uniform(1.0, 12.0)))
        else:
            faults.append(Fault(at, "actor", rng.choice(WORKERS)))
    for number in range(1, int((seconds - KILL_SECONDS / 2) / NODE_SECONDS) + 1):
        at = number * NODE_SECONDS + KILL_SECONDS / 2
        faults.append(Fault(at, "node", str(rng.randrange(num_nodes)), rng.uniform(2.0, 8.0)))
    return sorted(faults, key=lambda fault: fault.at_seconds)

"""What came of a run: distributions, energy over time, bytes, what the coordinator took."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from share_dist.simulation.population import draw_workers, offered_per_second
from share_dist.simulation.scenario import Scenario
from share_dist.simulation.trace import Push, Trace
from share_dist.simulation.tree import Tree

SHARES: Final = (0.5, 0.75, 0.9, 0.95, 0.99)
"""Of the energy that both kinds of runs reach, and of all updates: until when each has it."""


def summarise(scenario: Scenario, trace: Trace) -> dict[str, Any]:
    """
    Sum up a run as far as it came, as JSON-able values; times are virtual but for what is called measured.

    ``utilisation`` is the time that the coordinator was busy with pushes over the time since the first arrived, and
    ``offered_load`` what it would be while all workers of the scenario learn: their rate times the mean counted service;
    beyond 1 pushes come faster than they are merged one by one.
    """
    pushes = trace.pushes
    service = distribution([push.service_seconds for push in pushes])
    num_synthetic = sum(push.is_synthetic for push in pushes)
    return {
        "is_whole": trace.is_whole,
        "updates": {
            "merged": len(pushes),
            "asked": scenario.num_pushes,
            "recorded": len(pushes) - num_synthetic,
            "synthetic": num_synthetic,
        },
        "seconds": trace.seconds,
        "updates_per_hour": _per(3600 * len(pushes), trace.seconds),
        "lag": distribution([push.lag for push in pushes]),
        "angle": distribution([push.angle for push in pushes]),
        "arrived_to_merged_seconds": distribution(
            [push.merged_at - push.arrived_at for push in pushes]
        ),
        "counted_service_seconds": service,
        "measured_service_seconds": distribution(trace.measured_seconds),
        "utilisation": _utilisation(pushes),
        "offered_per_second": offered_per_second(scenario),
        "offered_load": offered_per_second(scenario) * service.get("mean", 0.0),
        "energy": _energy(scenario, trace),
        "merged_at": {
            str(share): pushes[math.ceil(share * len(pushes)) - 1].merged_at if pushes else None
            for share in (*SHARES, 1.0)
        },
        "sites": _sites(scenario, pushes),
        "coordinator": {
            "cpu_seconds_per_1000": _per(1000 * trace.cpu_seconds, len(pushes)),
            "received_bytes_per_1000": _per(1000 * _total(pushes, _pushed), len(pushes)),
            "sent_bytes_per_1000": _per(1000 * _total(pushes, _pulled), len(pushes)),
            "stored_bytes": trace.stored_bytes,
        },
    }


def compare(asynchronous: Mapping[str, Any], rounds: Mapping[str, Any]) -> dict[str, Any] | None:
    """
    Tell when either run of the same work had captured the same energy, and merged the same share of its updates.

    Returns:
        None unless both came to their end. ``ratio`` is the rounds' time over the other: 2 says that the
        asynchronous run was there in half of the time.
    """
    if not (asynchronous["is_whole"] and rounds["is_whole"]):
        return None
    runs = (asynchronous, rounds)
    reached = min(run["energy"]["captured"] for run in runs)
    to_energy = []
    for share in SHARES:
        seconds = [_time_to(run["energy"]["curve"], share * reached) for run in runs]
        to_energy.append({"share": share, "captured": share * reached, **_beside(*seconds)})
    to_merged = [
        {"share": float(share), **_beside(*(run["merged_at"][share] for run in runs))}
        for share in asynchronous["merged_at"]
    ]
    return {"until_captured": to_energy, "until_merged": to_merged}


def summarise_tree(scenario: Scenario, tree: Tree) -> dict[str, Any]:
    """
    Sum up a tree of coordinators: each leaf as a run of its own workers, and the root.

    The root's ``captured`` is of all updates of all leaves, as the captured energy of a single coordinator is.
    """
    leaves = [summarise(scenario, trace) for trace in tree.leaves]
    for leaf in leaves:
        leaf["offered_per_second"] /= len(leaves)
        leaf["offered_load"] /= len(leaves)
    return {
        "is_whole": sum(len(leaf.pushes) for leaf in tree.leaves) == scenario.num_pushes,
        "leaves": leaves,
        "captured": tree.moments.captured(tree.fused, scenario.num_factors),
        "fusion_seconds": tree.fusion_seconds,
        "received_bytes": tree.received_bytes,
    }


def distribution(values: Sequence[float]) -> dict[str, float]:
    """
    Describe values by those that came: the middle, the 90th and the 99th of a hundred, both ends, and the mean.

    Examples:
        >>> distribution([3, 1, 2])["p50"]
        2
    """
    if not values:
        return {"samples": 0}
    ordered = sorted(values)
    middle = {
        f"p{percent}": ordered[math.ceil(percent / 100 * len(ordered)) - 1]
        for percent in (50, 90, 99)
    }
    return {
        "samples": len(ordered),
        "mean": math.fsum(ordered) / len(ordered),
        "smallest": ordered[0],
        **middle,
        "largest": ordered[-1],
    }


def _utilisation(pushes: Sequence[Push]) -> float:
    if not pushes:
        return 0.0
    began = min(push.arrived_at for push in pushes)
    return _per(math.fsum(push.service_seconds for push in pushes), pushes[-1].merged_at - began)


def _energy(scenario: Scenario, trace: Trace) -> dict[str, Any]:
    """Tell what each version that was looked at holds of all that was merged in the end."""
    curve = [
        {
            "seconds": sample.seconds,
            "updates": sample.num_updates,
            "captured": trace.moments.captured(sample.subspace, scenario.num_factors),
        }
        for sample in trace.samples
    ]
    return {"captured": curve[-1]["captured"] if curve else 0.0, "curve": curve}


def _sites(scenario: Scenario, pushes: Sequence[Push]) -> list[dict[str, Any]]:
    workers = draw_workers(scenario)
    sites = {worker.site.name: worker.site for worker in workers}
    by_site = {
        name: list(found) for name, found in itertools.groupby(sorted(pushes, key=_site), key=_site)
    }
    return [
        {
            "site": name,
            "workers": sum(worker.site.name == name for worker in workers),
            "latency_seconds": site.latency_seconds,
            "megabits_per_second": site.bytes_per_second * 8 / 1e6,
            "updates": len(by_site.get(name, [])),
            "pushed_bytes": _total(by_site.get(name, []), _pushed),
            "pulled_bytes": _total(by_site.get(name, []), _pulled),
        }
        for name, site in sorted(sites.items())
    ]


def _time_to(curve: Sequence[Mapping[str, float]], captured: float) -> float:
    """Find when that much was captured first; what is merged counts from its version on."""
    return next(point["seconds"] for point in curve if point["captured"] >= captured)


def _beside(asynchronous: float, rounds: float) -> dict[str, float]:
    return {
        "asynchronous_seconds": asynchronous,
        "rounds_seconds": rounds,
        "ratio": _per(rounds, asynchronous),
    }


def _total(pushes: Iterable[Push], num_bytes: Callable[[Push], int]) -> int:
    return sum(num_bytes(push) for push in pushes)


def _pushed(push: Push) -> int:
    return push.pushed_bytes


def _pulled(push: Push) -> int:
    return push.pulled_bytes


def _site(push: Push) -> str:
    return push.site


def _per(amount: float, of: float) -> float:
    return amount / of if of else 0.0

"""
How a coordinator's cost grows from 10 to 10,000 simulated workers, and where a tree answers: `make bench`.

One scenario with ever more workers (``share_dist.simulation``: virtual time, a real coordinator, real pushes and merges), each with as many
tasks as make a run of a few hundred updates or more; the largest ends after ``--pushes``. Then the same work in synchronous rounds, and
before trees of coordinators, of which a root fuses the newest versions. What is pushed was recorded from real training
(``python -m tests.benchmarks.real_adapters FOLDER``), beyond that it is synthetic with the recorded spectra, and counted apart.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch

from share_dist.simulation.population import offered_per_second
from share_dist.simulation.recorded import read_recorded
from share_dist.simulation.report import compare, summarise, summarise_tree
from share_dist.simulation.run import simulate
from share_dist.simulation.scenario import Scenario, make_scenario
from share_dist.simulation.tree import simulate_tree
from share_dist.simulation.updates import Updates
from tests.benchmarks import measuring

WORKERS = {10: 20, 100: 4, 1_000: 1, 10_000: 1}
"""How many there are -> how many tasks each learns."""

IN_ROUNDS = 50
TASKS_IN_ROUNDS = 4
LEAVES = (2, 4)
FULL = 0.7
"""A coordinator that is busy for a larger share of its time lets updates wait for long."""


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--adapters", type=Path, required=True, help="folder of real_adapters")
    parser.add_argument("--layers", type=int, default=2, help="the first of the adapters' layers")
    parser.add_argument("--pushes", type=int, default=2000, help="of a run, at most")
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS))
    parser.add_argument("--train-seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    updates = Updates(read_recorded([options.adapters], layers=options.layers), options.seed)
    report: dict[str, Any] = {
        "layers": options.layers,
        "recordings": updates.num_recorded,
        "common_directions": {
            name: [both.a, both.b] for name, both in updates.num_common.items()
        },
        "train_seconds": options.train_seconds,
        "load_average": os.getloadavg(),
        "rows": [],
    }  # fmt: skip
    for workers in options.workers:
        report["rows"].append(_row(_scenario(options, workers, WORKERS.get(workers, 1)), updates))
        print(report["rows"][-1], flush=True)
        measuring.write(report, options.output)
    scenario = _scenario(options, IN_ROUNDS, TASKS_IN_ROUNDS)
    report["rounds"], single = _rounds(scenario, updates)
    print(report["rounds"], flush=True)
    report["tree"] = [_tree(scenario, updates, leaves, single) for leaves in LEAVES]
    print(*report["tree"], sep="\n", flush=True)
    measuring.write(report, options.output)


def _scenario(options: argparse.Namespace, workers: int, tasks: int) -> Scenario:
    return make_scenario(
        seed=options.seed,
        workers=workers,
        tasks=tasks,
        sites=20,
        train_seconds=options.train_seconds,
        layers=options.layers,
        pushes=options.pushes,
    )


def _row(scenario: Scenario, updates: Updates) -> dict[str, Any]:
    """What one number of workers costs, and how many a coordinator would have room for at this cost."""
    run = summarise(scenario, simulate(scenario, updates))
    kept = (
        "updates", "seconds", "lag", "angle", "arrived_to_merged_seconds", "measured_service_seconds",
        "utilisation", "offered_per_second", "offered_load", "coordinator",
    )  # fmt: skip
    per_worker = offered_per_second(scenario) / scenario.workers
    return {
        "workers": scenario.workers,
        "tasks": scenario.tasks,
        **{name: run[name] for name in kept},
        "captured": run["energy"]["captured"],
        "room_for_workers": FULL / (run["counted_service_seconds"]["mean"] * per_worker),
    }


def _rounds(scenario: Scenario, updates: Updates) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same work with and without waiting for each other; and the run without, for the trees."""
    single = summarise(scenario, simulate(scenario, updates))
    rounds = summarise(scenario, simulate(scenario, updates, in_rounds=True))
    found = {
        "workers": scenario.workers,
        "tasks": scenario.tasks,
        "updates": single["updates"],
        "captured": {"asynchronous": single["energy"]["captured"], "rounds": rounds["energy"]["captured"]},
        # of a merge of many at once, each update's share: what a coordinator takes that has fallen behind
        "service_seconds_in_rounds": rounds["measured_service_seconds"]["mean"],
        "service_seconds": single["measured_service_seconds"]["mean"],
        "comparison": compare(single, rounds),
    }  # fmt: skip
    return found, single


def _tree(
    scenario: Scenario, updates: Updates, leaves: int, single: dict[str, Any]
) -> dict[str, Any]:
    tree = summarise_tree(scenario, simulate_tree(scenario, updates, leaves))
    return {
        "leaves": leaves,
        "workers": scenario.workers,
        "updates": single["updates"],
        "captured": tree["captured"],
        "captured_by_one": single["energy"]["captured"],
        "largest_load": max(leaf["offered_load"] for leaf in tree["leaves"]),
        "load_of_one": single["offered_load"],
        "fusion_seconds": tree["fusion_seconds"],
        "received_bytes": tree["received_bytes"],
    }


if __name__ == "__main__":
    main()

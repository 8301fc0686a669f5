"""
One budget of bytes for all bases, shared out by each merge, against one ``k`` everywhere in the same bytes: `make bench`.

Ten tasks' rank-8 LoRAs (``python -m tests.benchmarks.real_adapters FOLDER``), three seeds, come to a coordinator's merge one
after the other in three orders; ``2 k`` columns are kept on every side either way, of which it gets up to
``1.5 k`` where the bytes are shared out. Told is the relative error of ``dW`` as it is served in the
end, over all layers: mean and worst over the tasks, and the ratio of the means.
"""

import argparse
import itertools
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from share_dist.core.many import delta_error
from share_dist.core.merge import merge
from share_dist.core.outcome import MergeOutcome
from share_dist.core.subspace import reconstruct, update_from_factors
from share_dist.core.values import METRICS, Factors, MergedTask, Metric, Subspace
from tests.benchmarks import measuring
from tests.benchmarks.real_adapters import adapters_of, seeds_of


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("adapters", type=Path, help="folder of real_adapters")
    parser.add_argument("--num-factors", type=int, nargs="+", default=[4, 8, 16, 32, 48])
    parser.add_argument("--orders", type=int, default=3)
    parser.add_argument("--output", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args()
    seeds = seeds_of(options.adapters)
    rows = []
    for metric, k in itertools.product(METRICS, options.num_factors):
        found = []
        for seed, order in itertools.product(seeds, range(options.orders)):
            adapters = {task: each.factors for task, each in adapters_of(options.adapters, seed).items()}  # fmt: skip
            names = random.Random(order).sample(sorted(adapters), len(adapters))
            found.append(_compared([(name, adapters[name]) for name in names], metric, k))
        rows.append(_summed_up(metric, k, found))
        print(rows[-1], flush=True)
    report = {"seeds": seeds, "orders": options.orders, "rows": rows}
    measuring.write(report, options.output)


def _compared(arrivals: Sequence[tuple[str, Factors]], metric: Metric, k: int) -> dict[str, Any]:
    """Merge the same arrivals both ways, and measure what is served in the end."""
    uniform = _streamed(arrivals, metric, k)
    max_bytes = _served_bytes(uniform.subspace)
    shared_out = _streamed(arrivals, metric, k, max_bytes)
    errors = {
        name: _errors(outcome.subspace, outcome.tasks, dict(arrivals))
        for name, outcome in (("uniform", uniform), ("shared_out", shared_out))
    }
    ks = [basis.num_factors for layer in shared_out.subspace.layers.values() for _, basis in layer]
    spent = _served_bytes(shared_out.subspace)
    return {"errors": errors, "bytes": max_bytes, "spent": spent, "least": min(ks), "most": max(ks)}


def _streamed(
    arrivals: Sequence[tuple[str, Factors]], metric: Metric, k: int, max_bytes: int | None = None
) -> MergeOutcome:
    first = arrivals[0][1]
    most = k if max_bytes is None else 3 * k // 2
    subspace = Subspace.empty({name: layer.shape for name, layer in first.items()}, metric)
    tasks: Mapping[str, MergedTask] = {}
    for name, factors in arrivals:
        update = update_from_factors(subspace, factors, name)
        outcome = merge(
            subspace, tasks, [update], most, oversample=2 * k - most, max_bytes=max_bytes
        )
        subspace, tasks = outcome.subspace, outcome.tasks
    return outcome


def _served_bytes(subspace: Subspace) -> int:
    return sum(
        basis.leading.numel() * basis.vectors.element_size()
        for layer in subspace.layers.values()
        for _, basis in layer
    )


def _errors(
    subspace: Subspace, tasks: Mapping[str, MergedTask], adapters: Mapping[str, Factors]
) -> list[float]:
    return [
        delta_error(factors, reconstruct(subspace, tasks[name].served(subspace)))
        for name, factors in adapters.items()
    ]


def _summed_up(metric: Metric, k: int, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ways = {
        way: {
            "error": round(statistics.fmean(statistics.fmean(each["errors"][way]) for each in found), 4),
            "worst": round(statistics.fmean(max(each["errors"][way]) for each in found), 4),
        }
        for way in ("uniform", "shared_out")
    }  # fmt: skip
    ratios = [
        statistics.fmean(each["errors"]["shared_out"]) / statistics.fmean(each["errors"]["uniform"])
        for each in found
    ]
    return {
        "metric": metric,
        "num_factors": k,
        "bytes": found[0]["bytes"],
        "most_bytes_spent": max(each["spent"] for each in found),
        **ways,
        "ratio": {"mean": round(statistics.fmean(ratios), 4), "largest": round(max(ratios), 4)},
        "least_factors": min(each["least"] for each in found),
        "most_factors": max(each["most"] for each in found),
    }


if __name__ == "__main__":
    main()

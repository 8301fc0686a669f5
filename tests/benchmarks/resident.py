"""
What a coordinator keeps in memory for one version, at several sizes: part of `make bench`.

Each coordinator is a process of its own with one subspace of 32 factors, and takes four updates, each
of another task. Its resident memory is read when it has begun, after the merges and after pulls by
several clients at once, each time at rest, and set against the bytes of the version that it serves.
"""

import argparse
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from share_dist.client import ShareClient
from tests.benchmarks.measuring import (
    coordinator,
    fingerprint_of,
    rss_mib,
    shapes_of,
    update_of,
    write,
)

LAYERS = 8
FACTORS = 32
NUM_UPDATES = 4
NUM_PULLERS = 8


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--mib", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rest", type=float, default=12.0, help="seconds before memory is read")
    parser.add_argument("--output", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args()
    sizes = [_measure(mib, options.rest) for mib in options.mib]
    for size in sizes:
        print(" ".join(f"{name}={value}" for name, value in size.items()))
    write({"load_average": os.getloadavg(), "sizes": sizes}, options.output)


def _measure(mib: int, rest_seconds: float) -> dict[str, Any]:
    shapes = shapes_of(LAYERS, mib * 2**20 // (LAYERS * 2 * FACTORS * 4))
    config = {"num_factors": FACTORS, "oversample": 0}
    with tempfile.TemporaryDirectory(prefix="share-dist-bench-") as folder, ExitStack() as closing:
        address, pid = closing.enter_context(coordinator(Path(folder, "store"), **config))

        def at_rest() -> float:
            time.sleep(rest_seconds)
            return rss_mib(pid)

        empty = at_rest()
        clients = [
            closing.enter_context(
                ShareClient(
                    address,
                    worker_id=f"w{index}",
                    fingerprint=fingerprint_of(shapes),
                    timeout_seconds=300,
                )
            )
            for index in range(NUM_PULLERS)
        ]
        clients[0].register()
        for number in range(NUM_UPDATES):
            update = update_of(shapes, str(number), pseudo_rank=FACTORS, num_temporary=FACTORS)
            clients[0].push(update, wait="merged")
        merged = at_rest()
        with ThreadPoolExecutor(NUM_PULLERS) as pool:
            list(pool.map(ShareClient.pull, clients))
        pulled = at_rest()
    return {
        "version_mib": mib,
        "empty_rss_mib": empty,
        "merged_rss_mib": merged,
        "pulled_rss_mib": pulled,
        "merged_beyond_empty_over_version": round((merged - empty) / mib, 2),
        "pulled_beyond_empty_over_version": round((pulled - empty) / mib, 2),
    }


if __name__ == "__main__":
    main()

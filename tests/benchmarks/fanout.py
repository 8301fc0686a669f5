"""
A new version to a hundred watchers, by rotations and whole: part of `make bench`.

Every watcher holds the subspace and advances as soon as it hears of a version. Half of the rounds
they follow by rotations, half they pull the whole, in turn. Printed are the bytes, and the time
from the push: to the first and the last watcher of each round, and to every watcher by itself, both
until it is told of the version (which costs the same in either kind) and until it holds the bases.

All watchers are threads of one process, which decodes and checks what each of them gets: on
few processors that is most of the time until they hold it.
"""

import argparse
import os
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from share_dist.client import ShareClient
from share_dist.client.mirror import Mirror
from tests.benchmarks.measuring import (
    coordinator,
    fingerprint_of,
    percentiles,
    rss_mib,
    shapes_of,
    spread,
    update_of,
    write,
)


class Watcher(threading.Thread):
    """Advances whenever it is told; notes when it was done and what came."""

    def __init__(self, client: ShareClient) -> None:
        super().__init__(daemon=True)
        self.is_whole = False
        self.version = -1
        self.told: dict[int, float] = {}
        self.reached: dict[int, float] = {}
        self.num_bytes: dict[int, int] = {}
        self._client = client

    def run(self) -> None:
        mirror = Mirror(self._client)
        mirror.advance()
        with self._client.watch(mirror.subspace.version) as watch:
            self.version = mirror.subspace.version
            for event in watch:
                self.told[event.version] = time.perf_counter()
                followed = Mirror(self._client) if self.is_whole else mirror
                came = followed.advance(event.version)
                self.reached[event.version] = time.perf_counter()
                self.num_bytes[event.version] = came.num_bytes
                mirror, self.version = followed, event.version


class Round(NamedTuple):
    """Seconds from one push to each watcher, and what all of them got."""

    told: list[float]
    held: list[float]
    num_bytes: int


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--watchers", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=10, help="of each kind")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--output", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args()
    shapes = shapes_of(options.layers, options.features)
    fingerprint = fingerprint_of(shapes)
    with tempfile.TemporaryDirectory(prefix="share-dist-bench-") as folder, ExitStack() as closing:
        address, pid = closing.enter_context(coordinator(Path(folder, "store"), min_updates=1))

        def client(name: str) -> ShareClient:
            made = ShareClient(
                address, worker_id=name, fingerprint=fingerprint, timeout_seconds=300
            )
            return closing.enter_context(made)

        pusher = client("pusher")
        pusher.register()
        for number in range(8):
            pusher.push(update_of(shapes, f"first-{number}"), wait="merged")
        watchers = [Watcher(client(f"watcher-{index}")) for index in range(options.watchers)]
        for watcher in watchers:
            watcher.start()
        _wait(watchers, 8)
        kinds: dict[str, list[Round]] = {"rotations": [], "whole": []}
        for number in range(2 * options.rounds):
            kind = ("rotations", "whole")[number % 2]
            for watcher in watchers:
                watcher.is_whole = kind == "whole"
            began = time.perf_counter()
            update = update_of(shapes, f"task-{number}", base=pusher.pull())
            version = pusher.push(update, wait="merged").version
            _wait(watchers, version)
            kinds[kind].append(
                Round(
                    told=[watcher.told[version] - began for watcher in watchers],
                    held=[watcher.reached[version] - began for watcher in watchers],
                    num_bytes=sum(watcher.num_bytes[version] for watcher in watchers),
                )
            )
        resident = rss_mib(pid)
    report = {
        "watchers": options.watchers,
        "load_average": os.getloadavg(),
        "rounds": options.rounds,
        "coordinator_rss_mib": resident,
    }
    for kind, rounds in kinds.items():
        report[kind] = _report(rounds)
        print(f"{kind}:")
        for name, value in report[kind].items():
            print(f"  {name:32} {value}")
    sent = [sum(each.num_bytes for each in kinds[kind]) for kind in ("rotations", "whole")]
    report["rotation_bytes_to_whole"] = round(sent[0] / sent[1], 3)
    print(
        f"bytes by rotations to whole: {report['rotation_bytes_to_whole']}; coordinator {resident} MiB"
    )
    write(report, options.output)


def _report(rounds: list[Round]) -> dict[str, Any]:
    return {
        "push_to_first_watcher_seconds": spread([min(each.held) for each in rounds]),
        "push_to_last_watcher_seconds": spread([max(each.held) for each in rounds]),
        "push_to_each_watcher_told_seconds": percentiles([s for each in rounds for s in each.told]),
        "push_to_each_watcher_seconds": percentiles([s for each in rounds for s in each.held]),
        "bytes": spread([each.num_bytes for each in rounds], 0),
    }


def _wait(watchers: list[Watcher], version: int) -> None:
    deadline = time.monotonic() + 300
    while min(watcher.version for watcher in watchers) < version:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not every watcher reached version {version}")
        time.sleep(0.002)


if __name__ == "__main__":
    main()

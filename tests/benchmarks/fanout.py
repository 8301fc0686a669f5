"""
A new version to a hundred watchers, by rotations and whole: part of `make bench`.

Every watcher holds the subspace and advances as soon as it hears of a version. Half of the rounds
they follow by rotations, half they pull the whole, in turn. Printed are the bytes and
the time until all have the version, and from push to the last watcher.
"""

import argparse
import os
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from share_dist.client import ShareClient
from share_dist.client.mirror import Mirror
from tests.benchmarks.measuring import (
    coordinator,
    fingerprint_of,
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
        self.reached: dict[int, float] = {}
        self.num_bytes: dict[int, int] = {}
        self._client = client

    def run(self) -> None:
        mirror = Mirror(self._client)
        mirror.advance()
        with self._client.watch(mirror.subspace.version) as watch:
            self.version = mirror.subspace.version
            for event in watch:
                followed = Mirror(self._client) if self.is_whole else mirror
                came = followed.advance(event.version)
                self.reached[event.version] = time.perf_counter()
                self.num_bytes[event.version] = came.num_bytes
                mirror, self.version = followed, event.version


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
        kinds: dict[str, list[tuple[float, int]]] = {"rotations": [], "whole": []}
        for number in range(2 * options.rounds):
            kind = ("rotations", "whole")[number % 2]
            for watcher in watchers:
                watcher.is_whole = kind == "whole"
            began = time.perf_counter()
            update = update_of(shapes, f"task-{number}", base=pusher.pull())
            version = pusher.push(update, wait="merged").version
            _wait(watchers, version)
            seconds = max(watcher.reached[version] for watcher in watchers) - began
            kinds[kind].append((seconds, sum(watcher.num_bytes[version] for watcher in watchers)))
        resident = rss_mib(pid)
    report = {
        "watchers": options.watchers,
        "load_average": os.getloadavg(),
        "rounds": options.rounds,
        "coordinator_rss_mib": resident,
    }
    for kind, rounds in kinds.items():
        seconds = sorted(each for each, _ in rounds)
        report[kind] = {
            "push_to_last_watcher_seconds": spread(seconds),
            "p99_seconds": round(seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))], 4),
            "bytes": spread([each for _, each in rounds], 0),
        }
        print(f"{kind:10} {report[kind]}")
    sent = [sum(each for _, each in kinds[kind]) for kind in ("rotations", "whole")]
    report["rotation_bytes_to_whole"] = round(sent[0] / sent[1], 3)
    print(
        f"bytes by rotations to whole: {report['rotation_bytes_to_whole']}; coordinator {resident} MiB"
    )
    write(report, options.output)


def _wait(watchers: list[Watcher], version: int) -> None:
    deadline = time.monotonic() + 300
    while min(watcher.version for watcher in watchers) < version:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not every watcher reached version {version}")
        time.sleep(0.002)


if __name__ == "__main__":
    main()

"""
What durability costs many pushers at once: part of `make bench`.

Thirty-two workers push updates of about 100 kB. A shim between the coordinator and the C library
counts every sync of a file; for the baseline the same shim lets each sync return at once. Both
coordinators are measured in turn.
"""

import argparse
import itertools
import mmap
import os
import struct
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from share_dist.client import ShareClient
from share_dist.wire.codec import update_to_bytes
from tests.benchmarks.measuring import (
    coordinator,
    fingerprint_of,
    ratios,
    shapes_of,
    spread,
    update_of,
    write,
)

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
static unsigned long *counter;
static int is_off;
__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("SYNC_COUNTER");
    int fd = path ? open(path, O_RDWR) : -1;
    if (fd >= 0) {
        counter = mmap(0, sizeof *counter, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (counter == MAP_FAILED) counter = 0;
    }
    is_off = getenv("SYNC_OFF") != 0;
}
static int pass(const char *name, int fd) {
    if (counter) __sync_fetch_and_add(counter, 1);
    if (is_off) return 0;
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    return real(fd);
}
int fsync(int fd) { return pass("fsync", fd); }
int fdatasync(int fd) { return pass("fdatasync", fd); }
"""

LAYERS = 4
FEATURES = 760
FACTORS = 4


class Pushers:
    """Workers that push to one coordinator for a while, all at once."""

    def __init__(
        self, folder: Path, shim: Path, name: str, num_workers: int, *, is_off: bool
    ) -> None:
        self._counter = folder / f"{name}.syncs"
        self._counter.write_bytes(bytes(mmap.PAGESIZE))
        self._shapes = shapes_of(LAYERS, FEATURES)
        environment = {"LD_PRELOAD": str(shim), "SYNC_COUNTER": str(self._counter)}
        environment |= {"SYNC_OFF": "1"} if is_off else {}
        # nothing is merged: a merge syncs for itself, and takes the processor from the pushes
        keys = ("min_updates", "max_updates", "max_wait_seconds", "max_pending")
        unmerged = dict.fromkeys(keys, 10**6)
        self._numbers = itertools.count()
        self._closing = ExitStack()
        address, _ = self._closing.enter_context(
            coordinator(folder / name, environment, **unmerged)
        )
        self._clients = [
            self._closing.enter_context(
                ShareClient(
                    address, worker_id=f"w{index}", fingerprint=fingerprint_of(self._shapes)
                )
            )
            for index in range(num_workers)
        ]
        for client in self._clients:
            client.register()
        self.update_bytes = len(update_to_bytes(self._update()))

    def close(self) -> None:
        """End the coordinator."""
        self._closing.close()

    def push_for(self, seconds: float) -> tuple[float, float]:
        """Push; return updates per second, and syncs per acknowledged update."""
        updates = [[self._update() for _ in range(12)] for _ in self._clients]
        before, began, done = self._syncs(), time.perf_counter(), [0] * len(self._clients)

        def work(index: int) -> None:
            for update in itertools.cycle(updates[index]):
                if time.perf_counter() - began > seconds:
                    return
                number = next(self._numbers)
                self._clients[index].push(_renamed(update, number))
                done[index] += 1

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(self._clients))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        total = sum(done)
        return total / (time.perf_counter() - began), (self._syncs() - before) / total

    def _update(self) -> Any:
        return update_of(
            self._shapes, str(next(self._numbers)), pseudo_rank=FACTORS, num_temporary=FACTORS
        )

    def _syncs(self) -> int:
        return int(struct.unpack("<Q", self._counter.read_bytes()[:8])[0])


def _renamed(update: Any, number: int) -> Any:
    from dataclasses import replace

    return replace(update, update_id=f"update-again-{number}", task_id=f"task-again-{number}")


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--workers", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each round")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="share-dist-bench-") as name:
        folder = Path(name)
        shim = _compiled(folder)
        durable = Pushers(folder, shim, "durable", options.workers, is_off=False)
        careless = Pushers(folder, shim, "careless", options.workers, is_off=True)
        rounds = []
        for number in range(options.repeats + 1):
            measured = careless.push_for(options.seconds), durable.push_for(options.seconds)
            rounds += [measured] if number else []
        durable.close()
        careless.close()
    off, on = zip(*rounds, strict=True)
    per_second_off, per_second_on = [each[0] for each in off], [each[0] for each in on]
    report = {
        "workers": options.workers,
        "load_average": os.getloadavg(),
        "update_bytes": durable.update_bytes,
        "updates_per_second": spread(per_second_on, 1),
        "updates_per_second_without_syncs": spread(per_second_off, 1),
        "rate_to_rate_without_syncs": ratios(
            [1 / rate for rate in per_second_off], [1 / rate for rate in per_second_on]
        ),
        "syncs_per_update": spread([each[1] for each in on], 3),
    }
    for key, value in report.items():
        print(f"{key:35} {value}")
    write(report, options.output)


def _compiled(folder: Path) -> Path:
    source, shim = folder / "shim.c", folder / "shim.so"
    source.write_text(SHIM)
    command = ["gcc", "-O2", "-shared", "-fPIC", "-o", str(shim), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return shim


if __name__ == "__main__":
    main()

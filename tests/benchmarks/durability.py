"""
What durability costs many pushers at once: part of `make bench`.

Thirty-two workers push updates of about 100 kB. A shim between the coordinator and the C library
counts every sync, those of the database and those of other files apart; for the baseline the same
shim lets each sync return at once. Three coordinators are measured in turn: one without syncs and
one with, which merge nothing, so that pushes alone are counted; and one that merges meanwhile.

Updates are small enough to lie in the database itself, so every sync of another file is a merge's. Of
the database's, a merge has one at most, and shares it with the pushes that come at the same time.
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
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from share_dist.client import ShareClient
from share_dist.core.values import TaskUpdate
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
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
static unsigned long *counters; /* syncs of the database, of other files */
static int is_off;
__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("SYNC_COUNTER");
    int fd = path ? open(path, O_RDWR) : -1;
    if (fd >= 0) {
        counters = mmap(0, 2 * sizeof *counters, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (counters == MAP_FAILED) counters = 0;
    }
    is_off = getenv("SYNC_OFF") != 0;
}
static int is_database(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    return strstr(path, "/rows.sqlite") != 0;
}
static int pass(const char *name, int fd) {
    if (counters) __sync_fetch_and_add(counters + !is_database(fd), 1);
    if (is_off) return 0;
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    return real(fd);
}
int fsync(int fd) { return pass("fsync", fd); }
int fdatasync(int fd) { return pass("fdatasync", fd); }
"""

TASKS_OF_A_WORKER = 4
LAYERS = 4
FEATURES = 760
FACTORS = 4


class Round(NamedTuple):
    """What was counted while workers pushed."""

    updates_per_second: float
    database_syncs: float
    """For each acknowledged update, as what follows."""
    file_syncs: float
    merges: float

    @property
    def syncs(self) -> float:
        """All of them, for each acknowledged update."""
        return self.database_syncs + self.file_syncs


class Pushers:
    """
    Workers that push to one coordinator for a while, all at once.

    Args:
        folder: For store and counters.
        shim: What counts.
        name: Of the store.
        num_workers: How many push.
        is_off: Whether syncs return at once.
        merges: Whether the coordinator merges meanwhile; each worker then pushes its own few tasks
            again and again, so that versions do not grow.
    """

    def __init__(
        self,
        folder: Path,
        shim: Path,
        name: str,
        num_workers: int,
        *,
        is_off: bool = False,
        merges: bool = False,
    ) -> None:
        self._merges = merges
        self._counter = folder / f"{name}.syncs"
        self._counter.write_bytes(bytes(mmap.PAGESIZE))
        self._shapes = shapes_of(LAYERS, FEATURES)
        environment = {"LD_PRELOAD": str(shim), "SYNC_COUNTER": str(self._counter)}
        environment |= {"SYNC_OFF": "1"} if is_off else {}
        keys = ("min_updates", "max_updates", "max_wait_seconds", "max_pending")
        config = {} if merges else dict.fromkeys(keys, 10**6)
        self._numbers = itertools.count()
        self._closing = ExitStack()
        address, _ = self._closing.enter_context(coordinator(folder / name, environment, **config))
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

    def push_for(self, seconds: float) -> Round:
        """Push for so long."""
        updates = [[self._update() for _ in range(12)] for _ in self._clients]
        before, began, done = self._counts(), time.perf_counter(), [0] * len(self._clients)

        def work(index: int) -> None:
            for update in itertools.cycle(updates[index]):
                if time.perf_counter() - began > seconds:
                    return
                number = next(self._numbers)
                self._clients[index].push(self._renamed(update, index, number))
                done[index] += 1

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(self._clients))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        total, passed = sum(done), time.perf_counter() - began
        counted = [after - each for after, each in zip(self._counts(), before, strict=True)]
        return Round(total / passed, *(each / total for each in counted))

    def _update(self) -> TaskUpdate:
        return update_of(
            self._shapes, str(next(self._numbers)), pseudo_rank=FACTORS, num_temporary=FACTORS
        )

    def _renamed(self, update: TaskUpdate, index: int, number: int) -> TaskUpdate:
        task = f"{index}-{number % TASKS_OF_A_WORKER}" if self._merges else f"again-{number}"
        return replace(update, update_id=f"update-again-{number}", task_id=f"task-{task}")

    def _counts(self) -> tuple[int, int, int]:
        """Syncs of the database, of other files, and versions so far."""
        database, files = struct.unpack("<QQ", self._counter.read_bytes()[:16])
        return database, files, self._clients[0].status().current_version


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--workers", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each round")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="share-dist-bench-") as place:
        folder = Path(place)
        shim = _compiled(folder)
        pushers = {
            "without syncs": Pushers(folder, shim, "careless", options.workers, is_off=True),
            "pushes": Pushers(folder, shim, "durable", options.workers),
            "merges": Pushers(folder, shim, "merging", options.workers, merges=True),
        }
        rounds: dict[str, list[Round]] = {name: [] for name in pushers}
        for number in range(options.repeats + 1):
            for name, each in pushers.items():
                measured = each.push_for(options.seconds)
                rounds[name] += [measured] if number else []
        update_bytes = pushers["pushes"].update_bytes
        for each in pushers.values():
            each.close()
    report = {
        "workers": options.workers,
        "load_average": os.getloadavg(),
        "update_bytes": update_bytes,
        **_report(**{name.replace(" ", "_"): each for name, each in rounds.items()}),
    }
    for key, value in report.items():
        print(f"{key:35} {value}")
    write(report, options.output)


def _report(without_syncs: list[Round], pushes: list[Round], merges: list[Round]) -> dict[str, Any]:
    rates, rates_off = (
        [each.updates_per_second for each in rounds] for rounds in (pushes, without_syncs)
    )
    return {
        "updates_per_second": spread(rates, 1),
        "updates_per_second_without_syncs": spread(rates_off, 1),
        "rate_to_rate_without_syncs": ratios(
            [1 / rate for rate in rates_off], [1 / rate for rate in rates]
        ),
        "syncs_per_update": spread([each.syncs for each in pushes], 3),
        "with_merges": {
            "updates_per_second": spread([each.updates_per_second for each in merges], 1),
            "merges_per_update": spread([each.merges for each in merges], 3),
            "database_syncs_per_update": spread([each.database_syncs for each in merges], 3),
            "file_syncs_per_update": spread([each.file_syncs for each in merges], 3),
            "syncs_per_update": spread([each.syncs for each in merges], 3),
        },
    }


def _compiled(folder: Path) -> Path:
    source, shim = folder / "shim.c", folder / "shim.so"
    source.write_text(SHIM)
    command = ["gcc", "-O2", "-shared", "-fPIC", "-o", str(shim), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return shim


if __name__ == "__main__":
    main()

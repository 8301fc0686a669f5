"""What the benchmarks of the wire share: a coordinator as a process of its own, numbers and their spread."""

import contextlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from share_dist.core.values import (
    Fingerprint,
    LayerShape,
    LayerUpdate,
    SideUpdate,
    Subspace,
    TaskUpdate,
)


@contextlib.contextmanager
def coordinator(
    store: Path, environment: Mapping[str, str] | None = None, **config: object
) -> Iterator[tuple[str, int]]:
    """Run ``python -m coordinator serve`` under keys of its configuration; yield address and process id."""
    command = [sys.executable, "-m", "coordinator", "serve", "--json", "--store", str(store)]
    command += ["--listen", "127.0.0.1:0"]
    keys = {"log_level": "ERROR", **config}
    given = {f"SHARE_DIST_{key.upper()}": str(value) for key, value in keys.items()}
    with tempfile.TemporaryFile("w+") as words:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=words,
            text=True,
            env={**os.environ, **given, **(environment or {})},
        )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                words.seek(0)
                raise RuntimeError(f"the coordinator did not start: {words.read()[-2000:]}")
            yield json.loads(line)["address"], process.pid
        finally:
            process.terminate()
            process.wait(60)
            process.stdout.close()


def update_of(
    shapes: Mapping[str, LayerShape],
    name: str,
    *,
    base: Subspace | None = None,
    pseudo_rank: int = 4,
    num_temporary: int = 4,
) -> TaskUpdate:
    """Make an update with random numbers that depend on its name only."""
    base = base or Subspace.empty(shapes)
    generator = torch.Generator().manual_seed(sum(name.encode()))

    def side(columns: int, features: int) -> SideUpdate:
        return SideUpdate(
            torch.randn(columns, pseudo_rank, generator=generator),
            torch.randn(features, num_temporary, generator=generator) / features**0.5,
            torch.randn(num_temporary, pseudo_rank, generator=generator),
        )

    layers = {
        layer: LayerUpdate(
            side(both.a.num_factors, both.a.features), side(both.b.num_factors, both.b.features)
        )
        for layer, both in base.layers.items()
    }
    return TaskUpdate(f"update-{name}", f"task-{name}", base.version, layers)


def shapes_of(num_layers: int, features: int) -> dict[str, LayerShape]:
    """Layers of equal size."""
    return {f"layer{index:02d}": LayerShape(features, features) for index in range(num_layers)}


def fingerprint_of(shapes: Mapping[str, LayerShape]) -> Fingerprint:
    """What all updates of a benchmark belong to."""
    return Fingerprint("0" * 64, dict(shapes))


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def interleaved(
    works: Mapping[str, Callable[[], object]],
    repeats: int,
    tidy: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Do all in turn, again and again, after one round to warm up; tidy up after each, outside of its time."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for round_number in range(repeats + 1):
        for name, work in works.items():
            seconds = seconds_of(work)
            tidy()
            if round_number:
                taken[name].append(seconds)
    return taken


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median, smallest and largest."""
    return {
        "median": round(statistics.median(values), digits),
        "smallest": round(min(values), digits),
        "largest": round(max(values), digits),
    }


def percentiles(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """How many there are, and the middle, the 99th of a hundred and the largest, each a value that came."""
    ordered = sorted(values)
    return {
        "samples": len(ordered),
        "p50": round(ordered[math.ceil(0.5 * len(ordered)) - 1], digits),
        "p99": round(ordered[math.ceil(0.99 * len(ordered)) - 1], digits),
        "largest": round(ordered[-1], digits),
    }


def ratios(baseline: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Speed relative to the baseline beside it, round by round: 1 is as quick, 0.5 half as quick."""
    return spread([before / after for before, after in zip(baseline, ours, strict=True)], 3)


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return round(int(line.split()[1]) / 1024, 1)


def write(report: dict[str, Any], output: Path | None) -> None:
    """Write the JSON, with what it was measured on."""
    report = {"cpus": os.cpu_count(), "machine": platform.machine(), **report}
    if output:
        output.write_text(json.dumps(report, indent=2) + "\n")

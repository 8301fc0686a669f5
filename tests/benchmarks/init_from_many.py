"""
Time and memory of a subspace made of many adapters on disk, one at a time: `make bench`.

Adapters have Mistral-7B's shape (query and value of a few layers, rank 16) and are written to a folder
first. Timed in turn: reading all of them, and `share_dist.core.many.subspace_from_many` over the same
files, which reads them as well. The floor is the larger of the reading and of the merges' products,
``2 d (m^2 + 3 m q + 2 q^2)`` operations a merge and side, at the speed of sgemm measured in the same run.
Each memory is that of a process of its own: how far its resident set rose above what the imports left.
"""

import argparse
import math
import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from share_dist.adapters import load_lora
from share_dist.core.many import subspace_from_many
from tests.benchmarks.measuring import seconds_of, spread, write
from tests.benchmarks.peer_time import quiet
from tests.benchmarks.peers.base import mistral, write_adapters


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument(
        "--folder",
        type=Path,
        default=None,
        help="where the adapters are, or are written to; else a temporary folder",
    )
    parser.add_argument("--adapters", type=int, default=500)
    parser.add_argument(
        "--fewer",
        type=int,
        default=50,
        help="adapters whose peak memory is told beside that of all",
    )
    parser.add_argument("--layers", type=int, default=2, help="of Mistral's shape")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--num-factors", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args()  # fmt: skip
    quiet()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folders = write_adapters(folder, mistral(options.layers), options.adapters, rank=options.rank, decay=0.5)  # fmt: skip
        report = _measure(folders, options)
    write(report, options.output)


def _measure(folders: Sequence[Path], options: argparse.Namespace) -> dict[str, object]:
    k = options.num_factors
    reading, streaming, products = [], [], []
    for _ in range(options.rounds):
        reading.append(seconds_of(lambda: [load_lora(folder) for folder in folders] and None))
        products.append(_flops(options) / _sgemm_flops_per_second())
        streaming.append(seconds_of(lambda: _stream(folders, k)))
    floors = [max(pair) for pair in zip(reading, products, strict=True)]
    memory = {len(some): _peak_bytes(some, k) for some in (folders[: options.fewer], folders)}
    size = sum(path.stat().st_size for path in folders[0].iterdir())
    report = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "adapters": len(folders),
        "adapted": len(mistral(options.layers)),
        "rank": options.rank,
        "num_factors": k,
        "oversample": k,
        "adapter_bytes": size,
        "seconds": spread(streaming),
        "reading_seconds": spread(reading),
        "products_seconds": spread(products),
        "over_floor": spread([a / b for a, b in zip(streaming, floors, strict=True)], 2),
        "peak_bytes": {str(count): peak for count, peak in memory.items()},
    }
    print(
        f"{len(folders)} adapters of {size:,} bytes: {report['seconds']['median']:.1f} s, reading alone "
        f"{report['reading_seconds']['median']:.1f} s, products at sgemm's speed "
        f"{report['products_seconds']['median']:.1f} s: {report['over_floor']['median']:.1f} of the floor; "
        + ", ".join(f"{peak / 1e6:.0f} MB at {count}" for count, peak in memory.items())
    )
    return report


def _stream(folders: Sequence[Path], num_factors: int) -> None:
    subspace_from_many(((folder.name, load_lora(folder).factors) for folder in folders), num_factors)  # fmt: skip


def _flops(options: argparse.Namespace) -> float:
    """Operations of the products of all merges, of both sides of all layers."""
    m = q = 2 * options.num_factors
    merges = math.ceil(options.adapters / (q // options.rank))
    features = sum(sum(shape) for shape in mistral(options.layers).values())
    return merges * 2.0 * features * (m * m + 3 * m * q + 2 * q * q)


def _sgemm_flops_per_second(size: int = 1024) -> float:
    one, other = torch.randn(2, size, size)
    seconds = min(seconds_of(lambda: one @ other) for _ in range(5))
    return 2.0 * size**3 / seconds


def _peak_bytes(folders: Sequence[Path], num_factors: int) -> int:
    """Let a process of its own do it."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_rise, folders, num_factors).result()


def _rise(folders: Sequence[Path], num_factors: int) -> int:
    quiet()
    _stream(folders[:1], num_factors)  # what is loaded once, such as the linear algebra
    before = status_bytes("VmRSS")
    _stream(folders, num_factors)
    return status_bytes("VmHWM") - before


def status_bytes(field: str) -> int:
    """A size from this process's status; ``ru_maxrss`` would be that of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()

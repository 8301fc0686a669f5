"""
Seconds until one adapter more is merged, of share-dist and of every other program: `make bench`.

All begin with the same adapters, on disk as PEFT writes them, keep equally many components, compute in
float32 with the same threads, and are timed in turn, round by round. Beside the time stands what became
of the adapters: the relative error of ``dW``, mean over the tasks. Programs that take a path
(lorashare, peft) read one adapter inside the measured time; all others are given it in memory.
"""

import argparse
import copy
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from share_dist.adapters import load_lora
from share_dist.core.many import delta_error
from share_dist.core.values import LayerShape
from tests.benchmarks.measuring import ratios, seconds_of, spread, write
from tests.benchmarks.peers.base import ROBERTA, Peer, mistral, write_adapters
from tests.benchmarks.peers.table import FROM_BYTES, OTHERS, OURS

SAMPLED = 32
"""Tasks whose error is measured, spread over all of them."""


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[10, 32, 128, 256])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-factors", type=int, default=32)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument(
        "--decay", type=float, default=0.5, help="singular values fall as i ** -decay"
    )
    parser.add_argument(
        "--mistral-layers",
        type=int,
        default=0,
        help="instead of RoBERTa-base: query and value of so many layers of Mistral-7B",
    )
    parser.add_argument("--output", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args()  # fmt: skip
    quiet()
    shapes = mistral(options.mistral_layers) if options.mistral_layers else ROBERTA
    with tempfile.TemporaryDirectory() as folder:
        folders = write_adapters(
            Path(folder), shapes, max(options.tasks) + 1, rank=options.rank, decay=options.decay
        )
        rows = [_row(folders, count, options, shapes) for count in options.tasks]
    report = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "model": f"Mistral-7B, {options.mistral_layers} layers" if options.mistral_layers else "RoBERTa-base",
        "adapted": len(shapes),
        "num_factors": options.num_factors,
        "rank": options.rank,
        "decay": options.decay,
        "rounds": options.rounds,
        "rows": rows,
    }  # fmt: skip
    write(report, options.output)


def quiet() -> None:
    """Let the programs say nothing, and torch use one thread unless it was told otherwise."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def _row(
    folders: Sequence[Path], num_tasks: int, options: argparse.Namespace, shapes: Mapping[str, LayerShape]
) -> dict[str, Any]:  # fmt: skip
    """Measure all programs after so many tasks."""
    new = folders[num_tasks]
    begun = folders[:num_tasks]
    works: dict[str, tuple[Peer, Any, Any]] = {}
    ours = OURS.start(begun, options.num_factors)
    works[OURS.name] = (OURS, ours, OURS.read(new))
    pushed = FROM_BYTES.pushed(ours, new.name, OURS.read(new))
    works[FROM_BYTES.name] = (FROM_BYTES, ours, pushed)
    found: dict[str, dict[str, Any]] = {}
    for peer in OTHERS:

        def begin(peer: Peer = peer) -> None:
            works[peer.name] = (peer, peer.start(begun, options.num_factors), peer.read(new))

        attempt(begin, peer.name, found)
    OURS.add(ours, new.name, OURS.read(new))  # the first run of anything pays for its loading
    taken, ended = _timed(works, new.name, options.rounds, found)
    baseline = taken[OURS.name]
    for name, (peer, *_) in works.items():
        if name in found:
            continue
        found[name] = {
            "seconds": spread(taken[name], 5),
            "over_ours": ratios(taken[name], baseline),
            "error": _error(peer, ended[name], [*_sampled(begun), new]),
            "error_of_new": _error(peer, ended[name], [new]),
            "held_bytes": peer.held_bytes(ended[name]),
        }
    _print(num_tasks, found)
    return {"tasks": num_tasks, "peers": found}


def attempt(work: Callable[[], Any], name: str, found: dict[str, dict[str, Any]]) -> Any:
    """Do something that a program may not be able to do; that it cannot is a result too."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001  whatever it is, it is told by its name
        found[name] = {"failed": f"{type(error).__name__}: {error}"[:200]}


def _timed(
    works: Mapping[str, tuple[Peer, Any, Any]],
    new: str,
    rounds: int,
    found: dict[str, dict[str, Any]],
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Let each in turn merge the new adapter into a copy of its state; what fails is told in ``found``."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    ended: dict[str, Any] = {}
    for _ in range(rounds):
        for name, (peer, state, adapter) in works.items():
            if name in found:
                continue
            begun = copy.deepcopy(state)

            def work(
                peer: Peer = peer, begun: Any = begun, adapter: Any = adapter, name: str = name
            ) -> None:
                ended[name] = peer.add(begun, new, adapter)

            seconds = attempt(lambda work=work: seconds_of(work), name, found)
            taken[name].append(seconds or 0.0)
    return taken, ended


def _sampled(folders: Sequence[Path]) -> Sequence[Path]:
    return folders[:: -(-len(folders) // SAMPLED)]


def _error(peer: Peer, state: Any, folders: Sequence[Path]) -> float:
    """Mean relative error of the ``dW`` of some tasks."""
    errors = [
        delta_error(load_lora(folder).factors, peer.factors(state, folder.name))
        for folder in folders
    ]
    return round(sum(errors) / len(errors), 4)


def _print(num_tasks: int, found: Mapping[str, Mapping[str, Any]]) -> None:
    for name, row in found.items():
        if "failed" in row:
            print(f"{num_tasks:5d} tasks before: {name:38s} {row['failed']}", flush=True)
            continue
        print(
            f"{num_tasks:5d} tasks before: {name:38s} {row['seconds']['median'] * 1e3:10.1f} ms, "
            f"{row['over_ours']['median']:8.1f}x ours, error {row['error']:.3f} "
            f"(of the new one {row['error_of_new']:.3f}), {row['held_bytes']:12,d} bytes",
            flush=True,
        )


if __name__ == "__main__":
    main()

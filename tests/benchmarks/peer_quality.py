"""
What is left of the same adapters in equally many bytes, by every program: `make bench`.

The budget is what share-dist serves at a number of principal factors: bases and coefficients in
float32. Every other program gets the most components that fit into it. Told are the relative error of
``dW``, mean and worst over the tasks, and of adapters that were held out and only said in what was
found. ``batch`` is the one SVD of everything at once: what a stream is to come near.

Adapters are drawn with singular values that fall as stated, or read from ``--adapters``: folders of PEFT directories.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from share_dist.adapters import LoraAdapter, load_lora, save_lora
from share_dist.core.many import delta_error, subspace_from_many
from share_dist.core.subspace import project, reconstruct
from share_dist.core.values import Factors, LayerShape, Metric, Subspace
from tests.benchmarks.measuring import write
from tests.benchmarks.peer_time import attempt, quiet
from tests.benchmarks.peers.base import ROBERTA, Peer, random_adapter, write_adapters
from tests.benchmarks.peers.ours import Ours
from tests.benchmarks.peers.table import OTHERS

HELD_OUT = 5
"""One adapter in so many is held out."""

LAYERS = 4
"""Drawn adapters have so many of RoBERTa's layers: what is found in one is found in all."""


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument(
        "--adapters",
        type=Path,
        nargs="+",
        default=[],
        help="folders of PEFT directories, a population each",
    )
    parser.add_argument("--count", type=int, default=40, help="adapters drawn of each spectrum")
    parser.add_argument("--decays", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    parser.add_argument("--num-factors", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--output", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args()  # fmt: skip
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        populations = _populations(options, Path(folder))
        rows = [
            _row(title, folders, num_factors)
            for title, folders in populations.items()
            for num_factors in options.num_factors
        ]
        limits = {peer.name: _limits(peer, Path(folder)) for peer in (Ours(), *OTHERS)}
    write({"torch": torch.__version__, "held_out": HELD_OUT, "rows": rows, "limits": limits}, options.output)  # fmt: skip


def _populations(options: argparse.Namespace, folder: Path) -> dict[str, list[Path]]:
    shapes = dict(list(ROBERTA.items())[:LAYERS])
    drawn = {
        f"drawn, i^-{decay:g}": write_adapters(folder / f"{decay}", shapes, options.count, rank=8, decay=decay)
        for decay in options.decays
    }  # fmt: skip
    return drawn | {f"trained, {path.name}": _plain(path, folder) for path in options.adapters}


def _plain(population: Path, folder: Path) -> list[Path]:
    """
    Write adapters that exist once more, with a scale of 1: the factors hold it.

    Some programs forget ``lora_alpha``; that is told by itself, and not mixed with what they cut.
    """
    found = sorted(path.parent for path in population.glob("*/adapter_config.json"))
    plain = [folder / population.name / path.name for path in found]
    for path, target in zip(found, plain, strict=True):
        save_lora(load_lora(path), target)
    return plain


def _row(title: str, folders: Sequence[Path], num_factors: int) -> dict[str, Any]:
    """Measure all programs on one population and budget."""
    out = folders[HELD_OUT - 1 :: HELD_OUT]
    folders = [folder for folder in folders if folder not in out]
    first = load_lora(folders[0])
    shapes: Mapping[str, LayerShape] = {name: layer.shape for name, layer in first.factors.items()}
    rank = max(first.ranks.values())
    one_by_one = Ours(at_once=1)
    streamed = one_by_one.start(folders, num_factors)
    budget = one_by_one.held_bytes(streamed)
    found: dict[str, dict[str, Any]] = {}
    found[one_by_one.name] = {
        "num_factors": num_factors,
        "held_bytes": budget,
        **_errors(one_by_one, streamed, folders),
        "held_out": _mean(_projected(streamed.subspace, folder) for folder in out),
    }
    for metric in ("delta", "factors"):
        found[f"share-dist init ({metric})"] = _in_two_passes(folders, out, num_factors, metric)
    whole = Ours(at_once=0)
    found["batch"] = {"num_factors": num_factors} | _errors(whole, whole.start(folders, num_factors), folders)  # fmt: skip
    for peer in OTHERS:
        k = peer.num_factors(budget, shapes, rank, len(folders))
        measured = attempt(
            lambda peer=peer, k=k: _measured(peer, k, folders, out), peer.name, found
        )
        if measured:
            found[peer.name] = measured
    for name, row in found.items():
        print(f"{title}, k={num_factors}: {name:32s} {row}", flush=True)
    return {"adapters": title, "count": len(folders), "budget_bytes": budget, "peers": found}


def _measured(
    peer: Peer, num_factors: int, folders: Sequence[Path], out: Sequence[Path]
) -> dict[str, Any]:
    """Bring all adapters but one in, then the last as the program merges one more."""
    *begun, last = folders
    state = peer.add(peer.start(begun, num_factors), last.name, peer.read(last))
    row = {"num_factors": num_factors, "held_bytes": peer.held_bytes(state)}
    row |= _errors(peer, state, folders)
    if said := getattr(peer, "said", None):
        row["held_out"] = _mean(
            delta_error(load_lora(folder).factors, said(state, f"out-{folder.name}", peer.read(folder)))
            for folder in out
        )  # fmt: skip
    return row


def _in_two_passes(
    folders: Sequence[Path], out: Sequence[Path], num_factors: int, metric: Metric
) -> dict[str, Any]:
    """Stream the adapters once to find the bases, and once to say them: what `share-dist init` does."""
    named = ((folder.name, load_lora(folder).factors) for folder in folders)
    subspace = subspace_from_many(named, num_factors, metric=metric)
    errors = [_projected(subspace, folder) for folder in folders]
    return {
        "num_factors": num_factors,
        "error": _mean(errors),
        "worst": round(max(errors), 4),
        "held_out": _mean(_projected(subspace, folder) for folder in out),
    }


def _projected(subspace: Subspace, folder: Path) -> float:
    factors = load_lora(folder).factors
    return delta_error(factors, reconstruct(subspace, project(subspace, factors)))


def _errors(peer: Peer, state: Any, folders: Sequence[Path]) -> dict[str, float]:
    errors = [
        delta_error(load_lora(folder).factors, peer.factors(state, folder.name))
        for folder in folders
    ]
    return {"error": _mean(errors), "worst": round(max(errors), 4)}


def _mean(values: Any) -> float:
    values = list(values)
    return round(sum(values) / len(values), 4)


def _limits(peer: Peer, folder: Path) -> dict[str, str]:
    """Say what a program makes of adapters that are not all alike: the error it is left with, or its exception."""
    cases = {
        "bfloat16": _bfloat16,
        "ranks 8 and 4": _mixed_ranks,
        "alpha of 16 for one": _scaled,
    }
    told = {}
    for case, make in cases.items():
        folders = write_adapters(folder / "limits" / case.replace(" ", "-"), {"layer.q": LayerShape(96, 96)}, 6, rank=8, decay=0.5)  # fmt: skip
        make(folders[-1])
        meant = [load_lora(each).factors for each in folders]
        found: dict[str, dict[str, Any]] = {}
        error = attempt(lambda folders=folders, meant=meant: _left(peer, folders, meant), peer.name, found)  # fmt: skip
        told[case] = found[peer.name]["failed"] if found else f"error {error:.3f}"
    return told


def _left(peer: Peer, folders: Sequence[Path], meant: Sequence[Factors]) -> float:
    *begun, last = folders
    state = peer.add(peer.start(begun, 48), last.name, peer.read(last))
    return _mean(
        delta_error(factors, peer.factors(state, folder.name))
        for folder, factors in zip(folders, meant, strict=True)
    )


def _bfloat16(folder: Path) -> None:
    for each in folder.parent.iterdir():
        path = each / "adapter_model.safetensors"
        tensors = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
        save_file(tensors, path)


def _mixed_ranks(folder: Path) -> None:
    save_lora(LoraAdapter(random_adapter({"layer.q": LayerShape(96, 96)}, 4, 0.5, 99)), folder)


def _scaled(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 8', '"lora_alpha": 16'))


if __name__ == "__main__":
    main()

"""
A million odd inputs for the decoders, each kind in a process of its own: part of `make soak`.

Inputs are grown by coverage with atheris where it is installed, by chance
where not; both change them with ``tests.fuzz.mutation``. An input that is not a value and
not a ShareError ends its process, as does one that takes too long or too much memory; it is kept,
and the command fails.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Attack:
    """What one decoder went through."""

    decoder: str
    engine: str
    inputs: int
    seconds: float
    exit_code: int
    last_words: str


def main() -> int:
    """Attack every decoder; return 1 if one broke."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000, help="in all, at least")
    parser.add_argument("--engine", choices=("atheris", "plain"), default=None)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument(
        "--kept", type=Path, default=Path("runs/fuzz"), help="for inputs that broke"
    )
    parser.add_argument("--output", type=Path, default=None, help="file for the JSON")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", default="", help="decoders with this in their name")
    options = parser.parse_args()
    engine = options.engine or ("atheris" if find_spec("atheris") else "plain")
    seed = random.SystemRandom().randrange(1, 2**31) if options.seed is None else options.seed
    names = [name for name in _names() if options.only in name]
    each = -(-options.inputs // len(names))
    options.kept.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.processes) as pool:
        jobs = [pool.submit(_attack, name, engine, each, seed, options.kept) for name in names]
        attacks = [_printed(job.result()) for job in jobs]
    return _conclude(attacks, seed, options)


def _names() -> list[str]:
    from tests.fuzz.decoders import find_decoders

    return [decoder.name for decoder in find_decoders()]


def _attack(name: str, engine: str, inputs: int, seed: int, kept: Path) -> Attack:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="share-dist-fuzz-") as folder:
        command = [sys.executable, "-m", "tests.fuzz.attack", engine, name, str(inputs), str(seed)]
        done = subprocess.run(
            [*command, folder, str(kept)], check=False, capture_output=True, text=True
        )
        count = Path(folder, "count")
        found = int(count.read_text()) if count.exists() else 0
    seconds = time.monotonic() - started
    words = "" if done.returncode == 0 else done.stderr[-4000:]
    return Attack(name, engine, found, round(seconds, 1), done.returncode, words)


def _printed(attack: Attack) -> Attack:
    verdict = "held" if attack.exit_code == 0 else f"BROKE (exit {attack.exit_code})"
    print(
        f"{attack.decoder:45} {attack.inputs:9,d} inputs {attack.seconds:7.1f} s  {verdict}",
        flush=True,
    )
    if attack.last_words:
        print(attack.last_words)
    return attack


def _conclude(attacks: list[Attack], seed: int, options: argparse.Namespace) -> int:
    total = sum(attack.inputs for attack in attacks)
    broken = [attack.decoder for attack in attacks if attack.exit_code]
    print(f"{total:,d} inputs, seed {seed}; broke: {', '.join(broken) or 'none'}")
    if options.output:
        report: dict[str, Any] = {"inputs": total, "seed": seed, "broken": broken}
        report["attacks"] = [asdict(attack) for attack in attacks]
        options.output.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if broken or total < options.inputs else 0


if __name__ == "__main__":
    sys.exit(main())

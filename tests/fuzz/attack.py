"""One decoder, attacked in this process: ``python -m tests.fuzz.attack ENGINE NAME INPUTS SEED FOLDER KEPT``."""

import contextlib
import os
import random
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fuzz.decoders import Decoder

HANG_SECONDS = 10
MEMORY_BYTES = 2**29
"""Address space that a decoder may take beyond what the process had when the attack began."""

LONGEST_BYTES = 2**17
LONGEST_POOL = 500


def main(arguments: list[str]) -> None:
    """Attack until so many inputs were held against, or one was not."""
    engine, name, inputs, seed, folder, kept = arguments
    attack = {"atheris": _with_atheris, "plain": _by_chance}[engine]
    attack(name, int(inputs), int(seed), Path(folder), Path(kept))


def _by_chance(name: str, inputs: int, seed: int, folder: Path, kept: Path) -> None:
    decoder = _find(name)
    rng = random.Random(seed)
    pool = list(decoder.seeds)
    signal.signal(signal.SIGALRM, _hung)
    _bound_memory(decoder)
    for count in range(1, inputs + 1):
        data = decoder.mutate(rng.choice(pool), rng)[:LONGEST_BYTES]
        signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
        try:
            taken = decoder.attack(data)
        except BaseException:
            _keep(decoder, data, kept)
            raise
        signal.setitimer(signal.ITIMER_REAL, 0)
        if taken and rng.random() < 0.05:
            pool[rng.randrange(len(pool)) if len(pool) > LONGEST_POOL else len(pool) :][:1] = [data]
        if count % 1000 == 0 or count == inputs:
            (folder / "count").write_text(str(count))


def _with_atheris(name: str, inputs: int, seed: int, folder: Path, kept: Path) -> None:
    import atheris

    with atheris.instrument_imports(include=["share_dist.wire", "share_dist.core.values"]):
        decoder = _find(name)
    corpus = folder / "corpus"
    corpus.mkdir()
    for index, data in enumerate(decoder.seeds):
        (corpus / str(index)).write_bytes(data)
    count = 0

    def one_input(data: bytes) -> None:
        nonlocal count
        count += 1
        if count % 1000 == 0 or count >= inputs:
            (folder / "count").write_text(str(count))
        try:
            decoder.attack(data)
        except BaseException:
            _keep(decoder, data, kept)
            raise

    def mutated(data: bytes, longest: int, chance: int) -> bytes:
        rng = random.Random(chance)
        if rng.random() < 0.3:
            return bytes(atheris.Mutate(data, longest))
        return decoder.mutate(data, rng)[:longest]

    limits = [f"-timeout={HANG_SECONDS}", "-rss_limit_mb=2000", f"-max_len={LONGEST_BYTES}"]
    flags = [f"-runs={inputs}", f"-seed={seed}", f"-artifact_prefix={kept}/", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *limits, *flags, str(corpus)], one_input, custom_mutator=mutated)
    _bound_memory(decoder)
    atheris.Fuzz()


def _find(name: str) -> "Decoder":
    from tests.fuzz.decoders import find_decoders

    return next(decoder for decoder in find_decoders() if decoder.name == name)


def _bound_memory(decoder: "Decoder") -> None:
    # whatever is loaded or compiled at first use is not what an input costs
    for data in decoder.seeds:
        decoder.attack(data)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _hung(*_: object) -> None:
    raise TimeoutError(f"an input took more than {HANG_SECONDS} s")


def _keep(decoder: "Decoder", data: bytes, kept: Path) -> None:
    path = kept / f"{decoder.name.split(',', maxsplit=1)[0]}.{os.getpid()}.bin"
    path.write_bytes(data)
    with contextlib.suppress(OSError):
        sys.stderr.write(f"the input that broke it: {path}\n")


if __name__ == "__main__":
    main(sys.argv[1:])

"""
What Ray, gRPC and a process of its own cost an actor: part of `make bench`.

**Wall time.** The same stream of real tasks, with the same seeds, threads and priority, is learnt by `share-dist worker run` (an actor on a local Ray
cluster, a coordinator in a process of its own, gRPC between them) and by the same loop in one plain process, whose coordinator is an object that
merges when it is called. Both begin from nothing, take turns round by round, and are set against each other round by round: the seconds
of training alone, and the whole stream from the first pull to the last merge that was followed.

**Start-up.** From the start of the command to the first step, stage by stage, from the times in the actor's own events.

**Memory.** Proportional resident memory (Pss: a page that n processes share counts 1/n for each) of the processes of one actor and of several, while all train.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.measuring import coordinator, ratios, spread, write

TASKS = {"movies": "movies", "author": "author"}
PLAIN, ACTOR = "plain process", "actor"
SAME = {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
"""Ray gives its workers the lowest priority; beside other programs that alone would decide."""

MODULE = "tests.benchmarks.actor_overhead"


def main() -> None:
    """Run the benchmark and write its JSON, or one part of it in this process."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=320, help="training rows of each task")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--actors", type=int, default=4, help="whose memory is set against one's")
    parser.add_argument(
        "--models",
        nargs="*",
        default=["kit:model", "large"],
        help="whose memory: folders, kit:model, or large (BERT-large's shape)",
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=["time", "memory"],
        default=["time", "memory"],
        help="what is not measured stays as it stands in --output",
    )
    parser.add_argument(
        "--plain", type=Path, nargs=2, metavar=("STREAM", "WORKDIR"), help="learn in this process"
    )
    parser.add_argument(
        "--marked", nargs=argparse.REMAINDER, help="run a command, and say when Ray was up"
    )
    parser.add_argument("--output", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args()  # fmt: skip
    if options.plain:
        _learn_plainly(*options.plain)
    elif options.marked:
        _run_marked(options.marked)
    else:
        _measure(options)


def _measure(options: argparse.Namespace) -> None:
    output = options.output
    report: dict[str, Any] = json.loads(output.read_text()) if output and output.exists() else {}
    with tempfile.TemporaryDirectory(prefix="share-dist-bench-") as folder:
        if "time" in options.parts:
            report |= _times(Path(folder), options)
            write(report, output)
        if "memory" in options.parts:
            report["memory"] = []
            for number, model in enumerate(options.models):
                found = _memory(Path(folder, f"memory-{number}"), model, options.actors)
                report["memory"].append(found)
                write(report, output)
    print(json.dumps(report, indent=2))


def _times(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    # the first round warms up
    rounds = [_round(folder / str(number), options) for number in range(options.rounds + 1)][1:]
    return {
        "load_average": os.getloadavg(),
        "tasks": list(TASKS),
        "rows": options.rows,
        "epochs": options.epochs,
        "rounds": options.rounds,
        "over_plain": {
            name: _over_plain(rounds, name) for name in ("training_seconds", "whole_seconds")
        },
        "start_up_seconds": {
            stage: spread([each[ACTOR]["start_up"][stage] for each in rounds], 2)
            for stage in rounds[0][ACTOR]["start_up"]
        },
    }


def _over_plain(rounds: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    plain, actor = ([each[kind][name] for each in rounds] for kind in (PLAIN, ACTOR))
    return {PLAIN: spread(plain, 2), ACTOR: spread(actor, 2), "ratio": ratios(actor, plain)}


def _round(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Learn once in each way; the order is turned from round to round."""
    folder.mkdir()
    stream = _stream(folder / "north.toml", "kit:model", TASKS, options.rows, options.epochs)
    ways = {PLAIN: _plain, ACTOR: _actor}
    names = list(ways) if int(folder.name) % 2 else list(reversed(ways))
    found = {name: ways[name](stream, folder / name.replace(" ", "-")) for name in names}
    for name, each in found.items():
        print(folder.name, name, each, flush=True)
    return found


def _stream(path: Path, model: str, tasks: Mapping[str, str], rows: int, epochs: int) -> Path:
    listed = "".join(
        f"""
[[task]]
id = "{path.stem}-{name}"
type = "text-classification"
source = {{ entry_point = "worker.kit_tasks:{entry}" }}
max_train = {rows}
max_test = 100
"""
        for name, entry in tasks.items()
    )
    path.write_text(
        f'[model]\npath = "{model}"\ntargets = ["query", "value"]\n[training]\nepochs = {epochs}\n{listed}'
    )
    return path


# In one plain process


def _plain(stream: Path, workdir: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", MODULE, "--plain", str(stream), str(workdir)]
    done = subprocess.run(
        command, env=os.environ | SAME, stdout=subprocess.PIPE, text=True, check=True
    )
    return _figures(_events(done.stdout), workdir)


def _learn_plainly(stream_path: Path, workdir: Path) -> None:
    import torch

    from tests.worker.fakes import FakeCoordinator
    from worker.backbone import load_backbone
    from worker.loop import TaskLoop
    from worker.stream import read_stream

    def tell(event: Any, **fields: Any) -> None:
        print(json.dumps({"event": event.value, "time": time.time(), **fields}), flush=True)

    torch.set_num_threads(1)
    stream = read_stream(stream_path)
    folder = workdir / stream.worker_id
    TaskLoop(stream, load_backbone(stream), FakeCoordinator(), folder, emit=tell).run()


# As an actor


def _actor(stream: Path, workdir: Path) -> dict[str, Any]:
    with _running([stream], workdir) as (begun, process):
        assert process.stdout is not None
        events = _events(process.stdout.read())
        assert process.wait() == 0
    return _figures(events, workdir) | {"start_up": _start_up(begun, events)}


@contextlib.contextmanager
def _running(
    streams: Sequence[Path], workdir: Path
) -> Iterator[tuple[float, subprocess.Popen[str]]]:
    """Run `worker run` on these streams beside a coordinator of its own; ended by Ctrl-C where it has not."""
    with coordinator(workdir.with_suffix(".store")) as (address, _):
        command = [sys.executable, "-m", MODULE, "--marked", *map(str, streams)]
        command += ["--coordinator", address, "--workdir", str(workdir), "--json"]
        begun = time.time()
        process = subprocess.Popen(
            command,
            env=os.environ | SAME,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            yield begun, process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.communicate()


def _run_marked(arguments: Sequence[str]) -> None:
    """`worker run` on a Ray of one processor, with the moments before and after Ray said among its events."""
    from worker import driver
    from worker.cli import app

    start = driver.ray_cluster

    def mark(name: str) -> None:
        print(json.dumps({"event": name, "time": time.time()}), flush=True)

    @contextlib.contextmanager
    def marked(address: str | None) -> Iterator[Any]:
        mark("command_ready")
        # one processor, and with it one thread, as the plain process has
        with start(address, num_cpus=1) as machines:
            mark("ray_ready")
            yield machines

    driver.ray_cluster = marked
    app(["run", *arguments])


def _start_up(begun: float, events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of each stage, from the start of the command to the end of the first step."""
    first = {each["event"]: each for each in reversed(events)}
    loaded = first["worker_loaded"]
    actor_up = loaded["time"] - loaded["seconds"]
    model_from = loaded["time"] - loaded["model_seconds"]
    moments = {
        "the command's own imports": first["command_ready"]["time"],
        "a local Ray": first["ray_ready"]["time"],
        "the actor's process, torch imported": actor_up,
        "transformers imported, the stream read": model_from,
        "the model, its digest and layers": loaded["time"],
        "registered, first pull, basis put in": first["worker_started"]["time"],
        "the first task's rows, head of the frozen model": first["task_started"]["time"],
        "the first step": first["task_progressed"]["time"],
    }
    ends = [begun, *moments.values()]
    stages = {name: round(end - before, 3) for (name, end), before in zip(moments.items(), ends, strict=False)}  # fmt: skip
    return {**stages, "in all": round(ends[-1] - begun, 3)}


def _figures(events: Sequence[Mapping[str, Any]], workdir: Path) -> dict[str, Any]:
    """Seconds of training by the worker's own laps, and of the stream from its first event to its last."""
    (path,) = workdir.glob("*/results.json")
    tasks = json.loads(path.read_text())["tasks"]
    first = {each["event"]: each for each in reversed(events)}
    last = {each["event"]: each for each in events}
    return {
        "training_seconds": sum(each["seconds"]["train"] for each in tasks),
        "whole_seconds": last["worker_finished"]["time"] - first["worker_started"]["time"],
        "learnt": [each["learnt"] for each in tasks],
    }  # fmt: skip


def _events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


# Memory


def _memory(folder: Path, model: str, actors: int) -> dict[str, Any]:
    folder.mkdir()
    location = str(_large_model(folder / "model")) if model == "large" else model
    found = {count: _resident(folder / str(count), location, count) for count in (1, actors)}
    one, many = found[1][0], found[actors]
    extra = (sum(each["pss_mib"] for each in many) - one["pss_mib"]) / (actors - 1)
    return {
        "model": "BERT-large's shape, random weights" if model == "large" else model,
        "weights_mib": one["weights_mib"],
        "actors": actors,
        "one_pss_mib": one["pss_mib"],
        "extra_pss_mib": round(extra, 1),
        "extra_to_one": round(extra / one["pss_mib"], 3),
        "one": one,
        "each_of_many": many,
    }


def _large_model(folder: Path) -> Path:
    """24 layers of 1,024 features, 1.2 GiB, with the kit's tokenizer."""
    import torch
    import transformers

    from share_dist.commands.kit import require_source

    kit = str(require_source("model"))
    transformers.AutoTokenizer.from_pretrained(kit).save_pretrained(folder)
    config = transformers.BertConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def _resident(folder: Path, model: str, count: int) -> list[dict[str, Any]]:
    """Memory of each actor's process when all of them have trained a step."""
    folder.mkdir()
    streams = [
        _stream(folder / f"north-{index}.toml", model, {"movies": "movies"}, 64, 200)
        for index in range(count)
    ]
    trained, pids = set[str](), dict[str, int]()
    with _running(streams, folder / "work") as (_, process):
        assert process.stdout is not None
        for line in process.stdout:
            for event in _events(line):
                if event["event"] == "worker_loaded":
                    pids[event["worker_id"]] = event["pid"]
                if event["event"] == "task_progressed":
                    trained.add(event["worker_id"])
            if len(trained) == count:
                return [_pss(pid) for pid in pids.values()]
    raise RuntimeError(f"{count} actors on {model} ended before all had trained a step")


def _pss(pid: int) -> dict[str, Any]:
    rolled = _kib(Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    weights: dict[str, float] = {}
    for block in _mappings(pid):
        if block[0].rstrip().endswith(".safetensors"):
            for name, value in _kib(block[1:]).items():
                weights[name] = weights.get(name, 0) + value
    return {
        "pss_mib": rolled["Pss"],
        "pss_own_mib": rolled["Pss_Anon"],
        "pss_of_files_mib": rolled["Pss_File"],
        "weights_mib": round(weights.get("Rss", 0.0), 1),
        "weights_pss_mib": round(weights.get("Pss", 0.0), 1),
        "weights_copied_mib": round(weights.get("Private_Dirty", 0.0), 1),
    }


def _mappings(pid: int) -> Iterator[list[str]]:
    block: list[str] = []
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split(":")[0].split(" ")[0] and block:
            yield block
            block = []
        block.append(line)
    yield block


def _kib(lines: Sequence[str]) -> dict[str, float]:
    """Sizes that a line says in kB, in MiB."""
    said = [line.split() for line in lines]
    return {each[0].rstrip(":"): round(int(each[1]) / 1024, 1) for each in said if each[-1] == "kB"}


if __name__ == "__main__":
    main()

"""
The README's tables, made from the code: `python -m tests.house.readme_tables` writes them anew.

A table stands between ``<!-- NAME -->`` and ``<!-- end of NAME -->``.
"""

import ast
import inspect
import itertools
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import click
import typer.main
from pydantic.fields import FieldInfo

import share_dist
import worker.stream
from coordinator.config import CoordinatorConfig
from share_dist import errors
from share_dist.cli import app
from share_dist.commands.report import BYTE_COLUMNS, COLUMNS, cell, columns_of
from share_dist.pb import coordinator_pb2

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
RESULTS = ROOT / "tests/benchmarks/results"


def table(headings: Iterable[str], lines: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    headings = list(headings)
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)


def first_sentence(text: str) -> str:
    """The first sentence of a docstring, on one line."""
    sentence = re.split(r"(?<=\.)\s", " ".join(text.split()), maxsplit=1)[0]
    return sentence.rstrip(".").replace("``", "`").replace("|", r"\|")


def commands() -> str:
    """Every command of the command line."""
    return table(["command", "what it does"], _commands(typer.main.get_command(app), "share-dist"))


def _commands(command: click.Command, path: str) -> list[tuple[str, str]]:
    below = getattr(command, "commands", None)
    if below is None:
        return [(f"`{path}`", first_sentence(command.help or ""))]
    return [row for name, child in below.items() for row in _commands(child, f"{path} {name}")]


def rpcs() -> str:
    """Every RPC, with the comment above it in the proto."""
    text = (ROOT / "protos/share_dist/pb/coordinator.proto").read_text()
    rows = []
    for rpc in coordinator_pb2.DESCRIPTOR.services_by_name["Coordinator"].methods:
        comment = re.search(rf"((?:  //.*\n)+)  rpc {rpc.name}\(", text)
        assert comment, f"{rpc.name} has no comment in the proto"
        said = " ".join(line.strip().removeprefix("//").strip() for line in comment[1].splitlines())
        shape = f"{'stream of ' * rpc.client_streaming}`{rpc.input_type.name}` → {'stream of ' * rpc.server_streaming}`{rpc.output_type.name}`"
        rows.append((f"`{rpc.name}`", shape, said.rstrip(".")))
    return table(["RPC", "request → response", "what it does"], rows)


def error_classes() -> str:
    """Every error that is raised."""
    rows = []
    for name in errors.__all__:
        kind = getattr(errors, name)
        if not kind.__subclasses__():
            rows.append(
                (f"`{name}`", int(kind.exit_code), kind.status or "-", first_sentence(kind.__doc__))
            )
    return table(["error", "exit code", "gRPC status", "meaning"], rows)


def coordinator_config() -> str:
    """Every key of the coordinator's configuration."""
    rows = [
        (
            f"`{name}`",
            _default(field),
            field.description,
        )
        for name, field in CoordinatorConfig.model_fields.items()
    ]
    return table(["key", "default", "meaning"], rows)


def stream_file() -> str:
    """Every key of a task stream's file."""
    rows = []
    for section, model in (
        ("model", worker.stream.ModelSettings),
        ("training", worker.stream.TrainingSettings),
        ("task", worker.stream.Task),
        ("task.source", worker.stream.DatasetSource),
        ("task.source", worker.stream.EntryPointSource),
    ):
        said = _attribute_docstrings(model)
        for name, field in model.model_fields.items():
            rows.append((f"`{section}.{name}`", _default(field), said.get(name, "")))
    return table(["key", "default", "meaning"], rows)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return (
        "-"
        if field.default in (None, "")
        else f"`{json.dumps(field.get_default(call_default_factory=True))}`"
    )


def _attribute_docstrings(kind: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
    said = {}
    for node, following in itertools.pairwise(body):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            said[node.target.id] = first_sentence(following.value.value)
    return said


def public_names() -> str:
    """Every public name of the library."""
    rows = [
        (f"`{name}`", first_sentence(inspect.getdoc(getattr(share_dist, name)) or ""))
        for name in share_dist.__all__
    ]
    return table(["name", "what it is"], rows)


def quickstart() -> str:
    """The committed run of the quickstart: its tasks and what it had to reach."""
    report = json.loads((RESULTS / "quickstart.json").read_text())
    columns = {
        field: heading
        for field, heading in columns_of(report, COLUMNS).items()
        if field != "worker"
    }
    rows = [[cell(field, row[field]) for field in columns] for row in report["tasks"]]
    checks = [
        (
            check["what"],
            f"{check['found']:.4g}",
            f"{check['bound']} {check['limit']}",
            "reached" if check["reached"] else "**not reached**",
        )
        for check in report["checks"]
    ]
    source = (
        f"`make quickstart` printed this in {report['seconds'] / 60:.1f} minutes on 2 cores without a "
        f"GPU, with seed {report['options']['seed']} "
        "([`quickstart.json`](tests/benchmarks/results/quickstart.json)). One seed: a task's standard "
        "error is about one point, and smaller differences are noise. `--compare` adds each task's own "
        "LoRA, with the best of three learning rates by validation."
    )
    sent = [[cell(field, row[field]) for field in BYTE_COLUMNS] for row in report["tasks"]]
    return "\n\n".join([
        table(columns.values(), rows),
        table(BYTE_COLUMNS.values(), sent),
        table(["", "found", "wanted", ""], checks),
        source,
    ])  # fmt: skip


def byte_accounts() -> str:
    """What many tasks cost in all, by the committed run of the quickstart."""
    report = json.loads((RESULTS / "quickstart.json").read_text())
    fields = ("num_tasks", "lora_rank", "basis", "coefficients", "heads", "total", "lora_total")
    return table(
        ["tasks", "LoRA rank", "bases", "coefficients", "heads", "in all", "LoRAs and heads", "pays from"],
        [
            [*(f"{account[field]:,}" for field in fields), account["break_even"]]
            for account in report["bytes"]["accounts"]
        ],
    )  # fmt: skip


def merge_time() -> str:
    """The committed run of the merge benchmark."""
    report = json.loads((RESULTS / "merge_time.json").read_text())

    def ratio(found: float | None) -> str:
        return "" if found is None else f"{found:,.1f}x"

    return table(
        [
            "model",
            "tasks before",
            "merge, ms",
            "to fewest tasks",
            "to the floor",
            "drift of all, to a copy",
            "first read, to a copy",
            "batch SVD to merge",
        ],
        [
            (
                shape["name"],
                f"{row['tasks']:,}",
                f"{row['merge_seconds'] * 1e3:.0f}",
                f"{row['over_fewest_tasks']:.2f}x",
                ratio(row["over_floor"]),
                ratio(row["drift_over_copy"]),
                ratio(row["first_read_over_copy"]),
                ratio(row["batch_over_merge"]),
            )
            for shape in report["shapes"]
            for row in shape["rows"]
        ],
    )


def wire() -> str:
    """The committed runs of the benchmarks of the wire, of durability and of the fan-out."""
    speed, durability, fanout = (
        json.loads((RESULTS / f"{name}.json").read_text())
        for name in ("wire_speed", "durability", "fanout")
    )

    def ratio(name: str) -> str:
        return _with_spread(speed["ratios"][name])

    rows = [
        ("64 MiB fetched (bytes verified and decoded), to bare gRPC", ratio("fetch to gRPC"), "≥ 0.8"),
        ("64 MiB pulled (bases checked as well), to bare gRPC", ratio("pull to gRPC"), "≥ 0.8"),
        ("64 MiB pulled, to raw TCP", ratio("pull to TCP"), ""),
        ("64 MiB sent and admitted, to bare gRPC, hash and fsync", ratio("send to gRPC"), "≥ 0.8"),
        ("64 MiB pushed (encoded as well), to the same", ratio("push to gRPC"), "≥ 0.8"),
        ("64 MiB pushed, to raw TCP", ratio("push to TCP"), ""),
        ("fsyncs per acknowledged push, 32 pushers of 100 kB", _with_spread(durability["syncs_per_update"]), "≤ 0.2"),
        ("rate to the rate without fsync, the same", _with_spread(durability["rate_to_rate_without_syncs"]), "≥ 0.8"),
        ("bytes to 100 watchers, by rotations to whole bases", f"{fanout['rotation_bytes_to_whole']:.2f}", ""),
        *(
            (
                f"push to last of 100 watchers, by {how}",
                (f"{fanout[key]['push_to_last_watcher_seconds']['median']:.1f} s, "
                f"slowest of {fanout['rounds']} {fanout[key]['push_to_last_watcher_seconds']['largest']:.1f} s"),
                "",
            )
            for how, key in (("rotations", "rotations"), ("whole bases", "whole"))
        ),
        ("coordinator's memory to bytes of the version it holds", f"{speed['coordinator_rss_over_held_bytes']:.1f}", ""),
    ]  # fmt: skip
    return table(["what", "found, median (lowest to highest)", "wanted"], rows)


def _with_spread(found: dict[str, float]) -> str:
    return f"{found['median']:.2f} ({found['smallest']:.2f} to {found['largest']:.2f})"


def soak() -> str:
    """The committed run of the soak."""
    report = json.loads((RESULTS / "soak.json").read_text())
    recovery = report["recovery_seconds"]
    return table(
        ["workers", "seconds", "kills", "acknowledged", "lost", "merged twice", "broken in the store", "back after, p50 / max", "memory"],
        [
            (
                report["workers"],
                f"{report['seconds']:.0f}",
                report["kills"],
                f"{report['acknowledged']:,}",
                len(report["lost"]),
                len(report["doubled"]),
                len(report["findings"]),
                f"{recovery['p50']:.1f} / {recovery['max']:.1f} s",
                f"{report['rss_slope_mib_per_minute']:+.1f} MiB a minute",
            )
        ],
    )  # fmt: skip


def chaos() -> str:
    """The committed run under fire."""
    report = json.loads((RESULTS / "chaos.json").read_text())
    killed, back, accuracy = report["killed"], report["recovery_seconds"], report["accuracy"]
    undisturbed = accuracy["undisturbed"]
    return table(
        ["seconds", "actors", "killed: actors / nodes / coordinator", "back after, median", "tasks", "merged once", "mean accuracy", f"undisturbed, {len(undisturbed)} seeds"],
        [
            (
                f"{report['seconds']:.0f}",
                report["actors"],
                f"{killed['actor']} / {killed['node']} / {killed['coordinator']}",
                " / ".join(f"{back[who]['median']:.0f}" for who in ("actor", "node", "coordinator")) + " s",
                report["tasks"],
                "all" if report["each_task_merged_once"] else "not all",
                f"{accuracy['disturbed']:.3f}",
                f"{min(undisturbed):.3f} to {max(undisturbed):.3f}",
            )
        ],
    )  # fmt: skip


def learning() -> str:
    """What was wanted of the text suite, and what was found."""
    from tests.benchmarks.learn.readme_tables import wanted

    return wanted("text", of_variants=False)


def learning_pictures() -> str:
    """What was wanted of the suite of pictures, and what was found."""
    from tests.benchmarks.learn.readme_tables import wanted

    return wanted("images", of_variants=False)


def learning_generation() -> str:
    """What was wanted of the suite of completions, and what was found."""
    from tests.benchmarks.learn.readme_tables import wanted

    return wanted("generation", of_variants=False)


TABLES: dict[str, Callable[[], str]] = {
    "commands": commands,
    "rpcs": rpcs,
    "errors": error_classes,
    "coordinator config": coordinator_config,
    "stream file": stream_file,
    "public names": public_names,
    "quickstart": quickstart,
    "bytes in all": byte_accounts,
    "merge time": merge_time,
    "wire": wire,
    "soak": soak,
    "chaos": chaos,
    "learning": learning,
    "learning pictures": learning_pictures,
    "learning completions": learning_generation,
}


def block(name: str) -> re.Pattern[str]:
    """Find a table by its name; group 1 is what stands between the markers."""
    return re.compile(rf"<!-- {name} -->\n(.*?)\n?<!-- end of {name} -->", re.DOTALL)


def with_tables(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """A page's text with every table made anew."""
    for name, make in tables.items():
        marked = f"<!-- {name} -->\n{make()}\n<!-- end of {name} -->"
        text, count = block(name).subn(lambda _, marked=marked: marked, text)
        assert count == 1, f"the page has {count} tables named {name!r}"
    return text


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text(), TABLES))

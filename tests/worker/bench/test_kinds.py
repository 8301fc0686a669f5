"""Suites of images and of completions go through every kind of cell, as suites of texts do."""

from dataclasses import replace

import pytest
import torch

from tests.worker import toys
from worker.backbone import load_backbone
from worker.bench.cell import Cell, CellFolder, Work
from worker.bench.methods import METHODS
from worker.bench.report import tables
from worker.bench.runner import lesson_of
from worker.bench.shared_cells import SharedCells
from worker.bench.stream_cells import StreamCells
from worker.bench.suite import read_suite
from worker.bench.summary import summarise
from worker.bench.task_cells import TaskCells

TASKS = ("first", "second", "third")

SUITE = """
[model]
path = "{model}"
targets = {targets}
[training]
epochs = 1
batch_size = 16
num_temporary = 2
pseudo_rank = 2
validation_fraction = 0.2
[bench]
seeds = 1
methods = ["frozen", "lora", "full", "eigenlorax", "share", "joint", "sequence"]
search_tasks = ["first"]
num_factors = 4
oversample = 4
[bench.small]
tasks = ["first", "second"]
max_train = 32
max_test = 16
methods = ["frozen"]
"""

TASK = """
[[task]]
id = "{id}"
type = "{kind}"
source = {{ entry_point = "tests.worker.toys:{function}", arguments = {{ seed = {seed} }} }}
max_train = 48
max_test = 24
{more}
"""

KINDS = {
    "image-classification": (
        toys.make_image_model,
        "colours",
        r"'.*\.(q_proj|v_proj|query|value)'",
        "",
    ),
    "causal-lm": (
        toys.make_causal_model,
        "completed",
        '["q_proj", "v_proj"]',
        'metric = "exact_match"',
    ),
}
METRICS = {
    "image-classification": ("accuracy", {"accuracy", "macro_f1"}),
    "causal-lm": ("exact_match", {"exact_match", "token_accuracy", "perplexity"}),
}


@pytest.fixture(scope="module", params=list(KINDS))
def cells(request, tmp_path_factory):
    """Cells of a suite of three tasks of one kind."""
    make_model, function, targets, more = KINDS[request.param]
    folder = tmp_path_factory.mktemp("kinds")
    tasks = (
        TASK.format(id=name, kind=request.param, function=function, seed=at, more=more)
        for at, name in enumerate(TASKS)
    )
    path = folder / "toys.toml"
    suite = SUITE.format(model=make_model(folder / "model"), targets=targets)
    path.write_text(suite + "".join(tasks))
    suite = read_suite(str(path), list(METHODS))
    backbone = load_backbone(suite.stream, torch.device("cpu"))
    return TaskCells(suite, CellFolder(folder / "bench", lesson_of(suite)), backbone)


def silent(_step, _num_steps):
    pass


def learn(cells, method, task_id, sources=()):
    """The outcome of a task's cell, which is kept for the summary."""
    rate = (METHODS[method].rates or (None,))[-1]
    cell = Cell(method, 0, task_id, rate)
    outcome = cells.compute(Work(cell, sources), silent)
    cells.folder.save(cell, outcome)
    return outcome


def kind_of(cells):
    return cells.suite.stream.tasks[0].type


def test_single_tasks_are_scored_frozen_learnt_and_in_the_subspace_of_the_others(cells):
    """The frozen model, a LoRA, all weights and coefficients have the same scores by name, of which the task's own comes first."""
    metric, names = METRICS[kind_of(cells)]
    rate = METHODS["lora"].rates[-1]
    sources = tuple(Cell("lora", 0, each, rate) for each in TASKS[1:])
    outcomes = [learn(cells, "frozen", "first"), learn(cells, "full", "first")]
    outcomes += [learn(cells, "lora", each) for each in TASKS]
    outcomes += [learn(cells, "eigenlorax", "first", sources)]
    for outcome in outcomes:
        assert outcome["metric"] == metric
        assert outcome["scores"].keys() == names
        assert outcome["test"] == outcome["scores"][metric]
        assert (outcome["head_bytes"] == 0) == (metric == "exact_match")
    assert outcomes[2]["num_parameters"] == 4 * 8 * (32 + 32)
    assert outcomes[-1]["num_parameters"] == 4 * 2 * 4 * 2


@pytest.mark.parametrize("name", ["sequence", "joint"])
def test_one_adapter_learns_all_tasks_whatever_heads_they_have(cells, name):
    """One LoRA on a stream of images, or of completions that have no head of their own, is scored on every task."""
    outcome = StreamCells(cells).compute(Work(Cell(name, 0, rate=2e-3)), silent)
    assert list(outcome["final"]) == list(TASKS)
    assert outcome["scores"].keys() == set(TASKS)
    metric, names = METRICS[kind_of(cells)]
    for task_id, scores in outcome["scores"].items():
        assert scores.keys() == names
        assert scores[metric] == outcome["final"][task_id]


@pytest.mark.system
def test_tasks_share_a_subspace_and_say_all_their_scores(cells):
    """A real coordinator merges all three, and the summary says each score of each task beside the one it is compared by."""
    cell = Cell("share", 0, rate=METHODS["share"].rates[0])
    outcome = SharedCells(cells.suite, cells.backbone).compute(Work(cell), silent)
    metric, names = METRICS[kind_of(cells)]
    assert outcome["versions"][-1]["version"] == len(TASKS)
    assert all(outcome["scores"][each][metric] == outcome["final"][each] for each in TASKS)
    for rate in METHODS["share"].rates:
        cells.folder.save(replace(cell, rate=rate), outcome)
    for each in TASKS:
        learn(cells, "frozen", each)
    summary = summarise(cells.suite, cells.folder)
    assert summary["metrics"] == dict.fromkeys(TASKS, metric)
    assert (summary["bytes"]["head"] == 0) == (metric == "exact_match")
    assert summary["bytes"]["tasks"]["share"]["served"] > 0
    found = summary["methods"]["share"]["all_scores"]
    assert found.keys() == names
    for name, by_task in found.items():
        assert by_task == {each: outcome["scores"][each][name] for each in TASKS}
    shown = tables(summary)
    for name in names - {metric}:
        _, lines = shown[f"{name} by task"]
        assert [line[0] for line in lines] == list(TASKS)
        assert lines[0][-1] == f"{outcome['scores']['first'][name]:.3f}"
    assert f"{metric} by task" in shown


@pytest.mark.system
def test_late_workers_learn_in_versions_that_are_long_past(cells):
    """Each task begins in version 0, however many were merged before it; nothing of them is lost."""
    work = Work(Cell("share-late", 0, rate=2e-2))
    outcome = SharedCells(cells.suite, cells.backbone).compute(work, silent)
    assert outcome["lags"] == {each: number for number, each in enumerate(TASKS)}
    assert [each["num_factors"] for each in outcome["versions"]] == [2, 4, 4]
    assert outcome["final"].keys() == set(TASKS)
    assert outcome["learnt"].keys() == set(TASKS)

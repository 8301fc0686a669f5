from dataclasses import replace

import pytest
import torch

from share_dist.adapters import inject
from share_dist.core.subspace import project, random_subspace
from share_dist.core.values import LayerFactors
from tests.worker import toys
from worker.backbone import load_backbone
from worker.bench.cell import Cell, CellFolder
from worker.bench.runner import lesson_of
from worker.bench.task_cells import TaskCells
from worker.bench.task_free import ServedTask, input_coordinates, task_free_scores
from worker.prepared import prepare
from worker.sources import load_rows
from worker.stream import read_stream


@pytest.fixture
def served(make_suite, tmp_path):
    """A subspace, and three tasks with coefficients of zero and the frozen model's heads."""
    suite = make_suite("frozen")
    backbone = load_backbone(suite.stream, torch.device("cpu"))
    cells = TaskCells(suite, CellFolder(tmp_path / "bench", lesson_of(suite)), backbone)
    subspace = random_subspace(backbone.shapes, 8, seed=0)
    nothing = project(
        subspace,
        {name: LayerFactors(torch.zeros(32, 2), torch.zeros(32, 2)) for name in backbone.shapes},
    )
    tasks = {}
    for name in toys.WORDS:
        prepared, frozen = cells.prepare(Cell("frozen", 0, name))
        tasks[name] = ServedTask(prepared, nothing, frozen.start.head)
    return tasks, subspace, backbone


def test_rows_without_an_id_are_routed_and_answered(served):
    """Most rows find their task; what is answered without the id is right nearly as often as with it, and never where another's classes are said. Rows of a task that the router does not know are left to the base far more often."""
    found = task_free_scores(*served)
    assert found["rows"] == 3 * 48
    assert found["choice"] > 0.7
    assert found["choice"] == pytest.approx(sum(found["choice_by_task"].values()) / 3)
    assert 0 <= found["abstained"] <= 1 - found["choice"]
    assert 0 <= found["calibration_error"] < 0.3
    assert found["strangers_abstained"] > found["abstained"] + 0.3
    assert found["oracle"] > 0.6
    assert found["oracle"] - (1 - found["choice"]) - 1e-9 <= found["routed"] <= found["choice"]


def test_a_task_of_the_same_classes_may_answer(served):
    """Of two tasks with the same rows and classes either may be chosen: nothing is lost without the id but what is left to the base, and neither is a stranger to the other's router."""
    tasks, *others = served
    twins = {"mood": tasks["mood"], "twin": tasks["mood"]}
    found = task_free_scores(twins, *others)
    assert found["choice"] < 0.7
    assert found["routed"] >= found["oracle"] - found["abstained"] - 1e-9
    assert found["strangers_abstained"] < 0.2
    assert "strangers_abstained" not in task_free_scores({"mood": tasks["mood"]}, *others)


def test_nothing_is_answered_where_no_task_classifies_rows(served):
    """Of other types only the choice is measured."""
    tasks, *others = served
    changed = {
        name: replace(
            each,
            prepared=replace(
                each.prepared,
                task=each.prepared.task.model_copy(update={"type": "text-regression"}),
            ),
        )
        for name, each in tasks.items()
    }
    subspace, backbone = others
    modality = backbone.modalities["text-classification"]
    reading = replace(backbone, modalities={"text-regression": modality})
    found = task_free_scores(changed, subspace, reading)
    assert found["choice"] > 0.7
    assert not {"oracle", "routed"} & found.keys()


def test_a_router_sees_the_prompt_and_not_the_answer(tmp_path):
    """Of a task of completions there is one row of coordinates for each input, whatever its answer is."""
    model = toys.make_causal_model(tmp_path / "model")
    path = tmp_path / "stream.toml"
    path.write_text(
        toys.mixed_stream_text(model, "north", {"completed": "causal-lm"}, "epochs = 1")
    )
    stream = read_stream(path)
    backbone = load_backbone(stream, torch.device("cpu"))
    (task,) = stream.tasks
    rows = load_rows(task, stream.folder)
    prepared = prepare(task, rows, backbone.reading(task.type), stream.training)
    answers = torch.cat([each[each[:, 1].argmax() + 1 :, 0] for each in prepared.test.encoded])
    changed = []
    for each in prepared.test.encoded:
        other = each.clone()
        other[each[:, 1].argmax() + 1 :, 0] = answers.roll(1)[: len(each) - each[:, 1].argmax() - 1]
        changed.append(other)
    assert any(not torch.equal(*pair) for pair in zip(changed, prepared.test.encoded, strict=True))
    with inject(backbone.model, random_subspace(backbone.shapes, 4, seed=0)) as injected:
        found, again = (
            input_coordinates(injected, backbone, replace(prepared, test=replace(prepared.test, encoded=each)), "test", 20)
            for each in (prepared.test.encoded, changed)
        )  # fmt: skip
    assert found.shape == (20, sum(4 for _ in backbone.shapes))
    assert torch.equal(found, again)
    assert len({tuple(each) for each in found.tolist()}) > 10

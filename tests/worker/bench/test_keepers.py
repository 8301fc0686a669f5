import copy
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch

from share_dist.errors import ConfigError
from tests.worker.bench.layers import applied, layers_of
from worker.backbone import load_backbone
from worker.bench.adapting import adapted_by
from worker.bench.cell import Cell, CellFolder, Work
from worker.bench.keepers import ADAPTER, FISHER_ROWS, keeper_of, mean_loss, weight_gradients
from worker.bench.keeping import overlap
from worker.bench.methods import METHODS
from worker.bench.runner import lesson_of
from worker.bench.stream_cells import StreamCells
from worker.bench.task_cells import TaskCells
from worker.trainer import Hooks, train

KEPT = ("o-lora", "ewc-lora", "coso", "osf")
TASKS = ("mood", "food", "motion")


@pytest.fixture
def cells(make_suite, tmp_path):
    suite = make_suite("sequence", *KEPT)
    backbone = load_backbone(suite.stream, torch.device("cpu"))
    return TaskCells(suite, CellFolder(tmp_path / "bench", lesson_of(suite)), backbone)


@pytest.fixture
def learn(cells):
    """Learn tasks one after another as a method does, with a look after each."""

    def learn(name, after=lambda _keeper: None):
        method, model, rate = METHODS[name], cells.suite.stream.model, METHODS[name].rates[-1]
        lessons, heads = {}, {}
        for each in TASKS:
            prepared, frozen = cells.prepare(Cell(name, 0, each))
            lessons[each] = cells.lesson(Cell(name, 0, each), prepared)
            heads[each] = copy.deepcopy(frozen.start.head)
        with adapted_by(method, lessons["mood"], heads["mood"], model, rate) as adapted:
            keeper = keeper_of(method, adapted, model, rate)
            for each in TASKS:
                lesson = keeper.begin(lessons[each], heads[each])
                hooks = Hooks(penalty=keeper.penalty, on_step=lambda _: keeper.stepped())
                train(lesson, keeper.adapted.trainee, heads[each], hooks=hooks)
                keeper.end()
                after(keeper)
        return keeper

    return learn


def kept_layers(keeper):
    return list(layers_of(keeper.adapted).values())


def sides_a(keeper):
    return [each.lora_A[ADAPTER].weight.detach().clone() for each in kept_layers(keeper)]


def products(keeper):
    return [each.get_delta_weight(ADAPTER).detach().clone() for each in kept_layers(keeper)]


@pytest.mark.parametrize("name", KEPT)
def test_a_stream_is_learnt_and_the_model_left_as_it_was(cells, name):
    """Every task is scored by its own head in the end, the next before it is learnt, and no bit of the frozen model is changed."""
    before = {key: each.clone() for key, each in cells.backbone.model.state_dict().items()}
    work = Work(Cell(name, 1, rate=METHODS[name].rates[-1]))
    outcome = StreamCells(cells).compute(work, lambda *_: None)
    assert outcome["final"].keys() == outcome["before"].keys() == set(TASKS)
    assert [sum(each is not None for each in row) for row in outcome["matrix"]] == [2, 3, 3]
    assert outcome["num_parameters"] > 0
    after = cells.backbone.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_numbers_of_a_method_are_those_of_all_tasks(cells):
    """One LoRA in sequence, one for each task, sides B alone beside the sides A that are kept, and never more than the weights have."""
    lora, weights = 4 * 8 * (32 + 32), 4 * 32 * 32
    expected = {
        "sequence": (lora, lora),
        "ewc-lora": (lora, lora),
        "o-lora": (min(3 * lora, weights), min(3 * lora, weights)),
        "coso": (3 * lora // 2, min(3 * lora, weights)),
        "osf": (weights, weights),
    }
    for name, (trained, kept) in expected.items():
        outcome = StreamCells(cells).compute(
            Work(Cell(name, 0, rate=METHODS[name].rates[0])), lambda *_: None
        )
        assert (outcome["num_parameters"], outcome["adapter_bytes"]) == (trained, 4 * kept), name


def test_the_penalty_keeps_sides_a_apart(learn, monkeypatch):
    """Sides A of different tasks overlap far less than those that no penalty holds, and they start apart."""

    def overlaps():
        found = []
        learn("o-lora", after=lambda keeper: found.append(sides_a(keeper)))
        return sum(
            float(overlap(one, other))
            for first, second in combinations(found, 2)
            for one, other in zip(first, second, strict=True)
        )

    held = overlaps()
    monkeypatch.setattr("worker.bench.keepers.ORTHOGONALITY", 0.0)
    free = overlaps()
    assert held < 0.7 * free


def test_what_is_learnt_is_added_up(learn):
    """After the next task has begun, the weights are the former ones with their LoRA."""
    seen = []
    learn(
        "o-lora",
        after=lambda keeper: seen.append(
            [(layer.get_base_layer().weight.clone(), product) for layer, product in zip(kept_layers(keeper), products(keeper), strict=True)]
        ),
    )  # fmt: skip
    for former, later in pairwise(seen):
        for (weight, product), (next_weight, _) in zip(former, later, strict=True):
            assert torch.allclose(weight + product, next_weight, atol=1e-6)


def test_the_fisher_information_holds_the_product(learn, monkeypatch):
    """The stronger the elastic penalty, the less the product of the first task is changed by the later ones."""

    def change():
        found = []
        learn("ewc-lora", after=lambda keeper: found.append(products(keeper)))
        return sum(
            float((first - last).norm()) for first, last in zip(found[0], found[-1], strict=True)
        )

    monkeypatch.setattr("worker.bench.keepers.ELASTICITY", 0.0)
    free = change()
    monkeypatch.setattr("worker.bench.keepers.ELASTICITY", 1e7)
    assert change() < 0.7 * free


def test_the_fisher_information_is_the_mean_of_squared_gradients(cells):
    """Of every row by itself, with respect to the weight that the product is added to."""
    method, model = METHODS["ewc-lora"], cells.suite.stream.model
    prepared, frozen = cells.prepare(Cell("ewc-lora", 0, "mood"))
    lesson, head = cells.lesson(Cell("ewc-lora", 0, "mood"), prepared), frozen.start.head
    assert len(lesson.fit) <= FISHER_ROWS
    with adapted_by(method, lesson, head, model, 1e-3) as adapted:
        keeper = keeper_of(method, adapted, model, 1e-3)
        inside = keeper.begin(lesson, head)
        assert keeper.penalty() is None
        keeper.end()
    name = min(inside.backbone.shapes)
    weight = keeper.adapted.model.get_base_model().get_submodule(name).get_base_layer().weight
    squares = torch.zeros_like(weight)
    inside.backbone.model.eval()
    for row in range(len(lesson.fit)):
        weight.requires_grad_().grad = None
        mean_loss(inside, head, [row]).backward()
        squares += weight.grad.square() / len(lesson.fit)
    assert squares.any()
    assert torch.allclose(keeper._fisher[name], squares, rtol=1e-4, atol=1e-12)
    assert keeper.penalty() == 0


def test_a_change_never_leaves_the_free_directions(learn):
    """What a later task adds to the weights has nothing in the span that the former tasks' gradients used."""
    protected, added = [], []

    def after(keeper):
        added.append(products(keeper))
        names = sorted(keeper.adapted.lesson.backbone.shapes)
        protected.append([keeper._protected[each].clone() for each in names])

    learn("coso", after=after)
    for at, former in enumerate(protected[:-1]):
        for span, product in zip(former, added[at + 1], strict=True):
            assert span.shape[1] > 0
            assert torch.allclose(span.mT @ span, torch.eye(span.shape[1]), atol=1e-4)
            assert product.norm() > 1e-4
            assert (product @ span).norm() < 1e-5 * product.norm()


def test_a_gradient_of_weights_is_that_of_the_mean_loss(cells):
    """A step against it lowers the loss by its squared norm, and the weights are frozen again."""
    prepared, frozen = cells.prepare(Cell("sequence", 0, "mood"))
    lesson = cells.lesson(Cell("sequence", 0, "mood"), prepared)
    lesson = replace(
        lesson, backbone=replace(lesson.backbone, model=copy.deepcopy(lesson.backbone.model))
    )
    name = next(iter(lesson.backbone.shapes))
    weight = lesson.backbone.model.get_submodule(name).weight
    rows, head = list(range(20)), frozen.start.head
    gradient = weight_gradients(lesson, head, rows, {name: weight})[name]
    assert not weight.requires_grad
    step = 1e-2 / float(gradient.norm())
    with torch.no_grad():
        before = mean_loss(lesson, head, rows)
        weight -= step * gradient
        fallen = float(before - mean_loss(lesson, head, rows))
    assert fallen == pytest.approx(step * float(gradient.square().sum()), rel=0.05)


def test_steps_against_the_gradient_leave_the_fixed_directions_unmoved(cells):
    """
    After steps of plain gradient descent the weight's sixteen largest singular directions hold none of its change, the others all of it.

    AdamW, which scales what `peft` has projected, leaves a little there.
    """
    method, model = METHODS["osf"], cells.suite.stream.model
    prepared, frozen = cells.prepare(Cell("osf", 0, "mood"))
    lesson, head = cells.lesson(Cell("osf", 0, "mood"), prepared), frozen.start.head
    weights = [
        cells.backbone.model.get_submodule(each).weight.detach()
        for each in sorted(cells.backbone.shapes)
    ]
    with adapted_by(method, lesson, head, model, 1e-3) as adapted:
        keeper = keeper_of(method, adapted, model, 1e-3)
        inside = keeper.begin(lesson, head)
        parameters = list(adapted.trainee.parameters.values())
        for at in range(0, 30, 10):
            loss = mean_loss(inside, head, list(range(at, at + 10)))
            gradients = torch.autograd.grad(loss, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.data -= 0.1 * gradient / gradient.norm()
    for weight, layer in zip(weights, kept_layers(keeper), strict=True):
        left, _, right = torch.linalg.svd(weight)
        change = applied(layer) - weight
        size = change.norm()
        assert size > 1e-2
        assert (left[:, :16].mT @ change).norm() < 1e-4 * size
        assert (change @ right[:16].mT).norm() < 1e-4 * size
        assert (left[:, 16:].mT @ change @ right[16:].mT).norm() > 0.9999 * size


def test_osf_adapts_all_layers_of_a_name(cells):
    """Where a suite names layers it says so, instead of adapting others."""
    with pytest.raises(ConfigError, match="layers"):
        METHODS["osf"].peft.make(["query"], [0])

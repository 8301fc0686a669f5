import copy
import itertools
import json
from dataclasses import replace

import pytest
import torch

from share_dist.adapters import LoraAdapter, inject, load_lora, subspace_from_adapters
from share_dist.core.subspace import project, random_subspace, reconstruct
from share_dist.core.values import LayerFactors, Subspace
from share_dist.errors import TrainingDiverged, WorkerError
from tests.worker.bench.layers import applied, layers_of
from worker.backbone import load_backbone
from worker.beginning import FirstGradients
from worker.bench import stream_cells
from worker.bench.adapting import TASK, adapted_by, by_peft
from worker.bench.cell import Cell, CellFolder, Work
from worker.bench.keepers import ADAPTER, mean_loss
from worker.bench.methods import METHODS
from worker.bench.plan import SEARCH_SEED, Plan
from worker.bench.report import tables
from worker.bench.runner import begin, compute, lesson_of
from worker.bench.stream_cells import StreamCells
from worker.bench.summary import summarise
from worker.bench.task_cells import TaskCells
from worker.prepared import prepare
from worker.sources import load_rows
from worker.trainer import train


@pytest.fixture
def make_cells(make_suite, tmp_path):
    def make(*methods, **kwargs):
        suite = make_suite(*methods, **kwargs)
        folder = CellFolder(tmp_path / "bench", lesson_of(suite))
        backbone = load_backbone(suite.stream, torch.device("cpu"))
        return suite, folder, TaskCells(suite, folder, backbone)

    return make


def silent(_step, _num_steps):
    pass


@pytest.mark.parametrize(
    "name",
    [
        "lora",
        "pissa",
        "vera",
        "vb-lora",
        "full",
        "random-subspace",
        "weight-subspace",
        "random-gradient",
        "random-broad",
        "input-subspace",
    ],
)
def test_a_method_learns_and_leaves_the_model_as_it_was(make_cells, name):
    """Each method of one task is scored by test rows, and changes no bit of the frozen model."""
    _, _, cells = make_cells(name)
    model = cells.backbone.model
    before = {key: each.clone() for key, each in model.state_dict().items()}
    outcome = cells.compute(Work(Cell(name, 0, "mood", METHODS[name].rates[-1])), silent)
    assert 0 <= outcome["test"] <= 1
    # a bank's vectors are told by their places
    assert (outcome["num_parameters"] * 4 == outcome["adapter_bytes"]) == (name != "vb-lora")
    assert 0 < outcome["adapter_bytes"] <= outcome["num_parameters"] * 4
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_equal_cells_have_equal_outcomes(make_cells):
    """A cell that is computed again gives the same scores: its seed alone decides."""
    _, _, cells = make_cells("lora")
    work = Work(Cell("lora", 1, "mood", 2e-3))
    first, second = (cells.compute(work, silent) for _ in range(2))
    assert first["scores"] == second["scores"]
    assert first["validation"] == second["validation"]


def test_a_seed_draws_its_own_rows_and_shares_them_with_all_methods(make_cells):
    """Another seed learns from other rows of the same task, and from other few; test rows are the same, and the split is a worker's."""
    suite, _, cells = make_cells("lora")

    def said(rows):
        return [each.tolist() for each in rows.encoded]

    first, other = (cells.prepare(Cell("lora", seed, "mood", 2e-3))[0] for seed in (0, 1))
    assert said(first.test) == said(other.test)
    assert said(first.validation) != said(other.validation)
    few, others = (cells.prepare(Cell("lora", seed, "mood", 2e-3, 16))[0] for seed in (0, 1))
    assert few.num_train == others.num_train == 16
    assert said(few.fit) != said(others.fit)
    task, settings = suite.task("mood"), suite.stream.training.model_copy(update={"seed": 1})
    rows, reading = load_rows(task, suite.stream.folder), cells.backbone.reading(task.type)
    assert said(prepare(task, rows, reading, settings).fit) == said(other.fit)


def test_an_outcome_depends_on_its_method_order_and_sources(make_cells, tmp_path):
    """What an outcome depends on is asked for when it is read: the method, the order of a stream, and the rates tried for what it builds on."""
    suite, folder, _ = make_cells("lora", "eigenlorax", "share")
    built, stream = Cell("eigenlorax", 0, "mood", 1e-2), Cell("share", 0, rate=2e-2)
    for each in (built, stream):
        folder.save(each, {"test": 0.5})

    def held(**changes):
        other = replace(suite, **changes)
        again = CellFolder(tmp_path / "bench", lesson_of(other))
        return [again.load(each) is not None for each in (built, stream)]

    assert held() == [True, True]
    backwards = replace(suite.stream, tasks=suite.stream.tasks[::-1])
    assert held(stream=backwards) == [True, False]
    tried = suite.settings.model_copy(update={"rates": {"lora": [1e-3]}})
    assert held(settings=tried) == [False, True]
    assert METHODS["share"].lesson() != METHODS["lora"].lesson()
    assert METHODS["pissa"].lesson() != METHODS["lora"].lesson()


def test_the_same_once_more_starts_elsewhere(make_cells):
    """``lora-again`` is the LoRA of a seed that no suite has: as large, and not the same numbers."""
    _, folder, cells = make_cells("lora", "lora-again")
    prepared, _ = cells.prepare(Cell("lora", 1, "mood", 2e-3))
    first, again = (
        cells.lesson(Cell(name, 1, "mood", 2e-3), prepared) for name in ("lora", "lora-again")
    )
    assert first.seed == 1
    assert again.seed == 1001
    assert replace(again, seed=1) == first
    plan = Plan(make_cells("lora", "lora-again")[0], folder)
    assert {work.cell.method for work in plan.ready()} == {"lora"}


def test_a_curve_is_scored_along_the_way_and_changes_nothing(make_suite, tmp_path):
    """The scores after so many steps are those of training that is looked at, and the last is that of the whole cell."""
    suite = make_suite("frozen", "lora")
    suite = replace(suite, settings=suite.settings.model_copy(update={"after_steps": [1, 4, 900]}))
    folder = CellFolder(tmp_path / "bench", lesson_of(suite))
    cells = TaskCells(suite, folder, load_backbone(suite.stream, torch.device("cpu")))
    whole = Cell("lora", 0, "mood", METHODS["lora"].rates[-1])
    curve = cells.compute(Work(replace(whole, is_curve=True)), silent)["after_steps"]
    assert curve.keys() == {"1", "4", "900"}
    assert curve["900"] == cells.compute(Work(whole), silent)["test"]
    plan = Plan(suite, folder)
    for _ in range(3):
        for work in plan.ready():
            folder.save(
                work.cell,
                {
                    "test": 0.5,
                    "validation": 0.5,
                    "metric": "accuracy",
                    "scores": {},
                    "majority": 0.4,
                    "head_bytes": 1,
                    "after_steps": {"1": 0.1 * work.cell.seed, "4": 0.4, "900": 0.5},
                },
            )
    assert plan.count() == (plan.count()[1], plan.count()[1])
    assert not any(work.cell.method == "frozen" and work.cell.is_curve for work in plan.ready())
    summary = summarise(suite, folder)
    assert summary["after_steps"]["lora"]["1"] == pytest.approx([0.0, 0.1])
    title = next(each for each in tables(summary) if "after so many steps" in each)
    assert tables(summary)[title][1] == [
        ["lora", "0.0500 ± 0.0707", "0.4000 ± 0.0000", "0.5000 ± 0.0000"]
    ]


def test_a_lora_has_the_numbers_of_its_rank(make_cells):
    """A rank-8 LoRA of four layers of 32 x 32 trains 8 (32 + 32) numbers in each."""
    _, _, cells = make_cells("lora")
    outcome = cells.compute(Work(Cell("lora", 0, "mood", 2e-3)), silent)
    assert outcome["num_parameters"] == 4 * 8 * (32 + 32)


def test_coefficients_are_trained_in_the_subspace_of_the_other_tasks(make_cells):
    """``eigenlorax`` reads the adapters of the cells that it builds on, and trains 2 k p numbers a layer."""
    _, folder, cells = make_cells("lora", "eigenlorax")
    sources = tuple(Cell("lora", 0, each, 2e-3) for each in ("food", "motion"))
    for each in sources:
        cells.compute(Work(each), silent)
    assert load_lora(folder.adapter(sources[0])).factors
    outcome = cells.compute(Work(Cell("eigenlorax", 0, "mood", 1e-2), sources), silent)
    assert outcome["num_parameters"] == 4 * 2 * 4 * 2
    others = [load_lora(folder.adapter(each)) for each in sources]
    task_cell = Cell("eigenlorax", 0, "mood", 1e-2)
    prepared, frozen = cells.prepare(task_cell)
    lesson, head = cells.lesson(task_cell, prepared), copy.deepcopy(frozen.start.head)
    subspace, model = subspace_from_adapters(others, 4), cells.suite.stream.model
    with adapted_by(METHODS["eigenlorax"], lesson, head, model, 1e-2, subspace, others) as adapted:
        train(adapted.lesson, adapted.trainee, head)
        learnt = reconstruct(subspace, adapted.injected.coefficients(TASK))
        for name, factors in learnt.items():
            weight = adapted.lesson.backbone.model.get_submodule(name)
            change = applied(weight) - weight.weight
            assert change.norm() > 0
            torch.testing.assert_close(change, factors.delta_weight(), rtol=0, atol=1e-5)
            # nothing but combinations of what the others' adapters are made of
            for side, part in (("b", change), ("a", change.mT)):
                spanned = torch.cat([each.factors[name][side] for each in others], dim=1)
                inside = spanned @ torch.linalg.lstsq(spanned, part, driver="gelsd").solution
                assert (part - inside).norm() < 1e-3 * part.norm()
    # an entry in a byte or a half, and a scale of four bytes for each of two columns a side
    sizes = {"int8": 4 * 2 * (4 * 2 + 2 * 4), "int4": 4 * 2 * (4 * 1 + 2 * 4)}
    for precision, size in sizes.items():
        short = outcome["in_fewer_bits"][precision]
        assert short["adapter_bytes"] == size
        assert 0 <= short["test"] <= 1


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("eigenlorax-nearest", 4 * 2 * 4 * 8),
        ("eigenlorax-core", 4 * 4 * 4),
        ("eigenlorax-diagonal", 4 * 4),
    ],
)
def test_each_form_trains_its_numbers(make_cells, name, num_parameters):
    """Columns of both sides, a core between the bases or its diagonal: so many numbers, which are learnt."""
    suite, folder, cells = make_cells("lora", name)
    sources = tuple(Cell("lora", 0, each, 2e-3) for each in ("food", "motion"))
    for each in sources:
        cells.compute(Work(each), silent)
    cell = Cell(name, 0, "mood", METHODS[name].rates[-1])
    outcome = cells.compute(Work(cell, sources), silent)
    assert outcome["num_parameters"] == num_parameters
    prepared, frozen = cells.prepare(cell)
    lesson, head = cells.lesson(cell, prepared), copy.deepcopy(frozen.start.head)
    others = [load_lora(folder.adapter(each)) for each in sources]
    subspace = subspace_from_adapters(others, 4)
    with adapted_by(
        METHODS[name], lesson, head, suite.stream.model, cell.rate, subspace, others
    ) as adapted:
        before = {key: each.detach().clone() for key, each in adapted.trainee.parameters.items()}
        train(adapted.lesson, adapted.trainee, head)
        for key, parameter in adapted.trainee.parameters.items():
            changed = parameter.detach() != before[key]
            assert changed.any()
            if name.endswith("diagonal"):
                assert not changed[~torch.eye(4, dtype=torch.bool)].any()


@pytest.mark.parametrize("name", ["eigenlorax-core", "eigenlorax-diagonal"])
def test_a_form_between_the_bases_is_what_the_model_adds(make_cells, name):
    """Each layer begins as the frozen one, and after training applies its weight and ``V_B S V_A'``, of a diagonal ``V_B diag(s) V_A'``."""
    suite, _, cells = make_cells(name)
    cell = Cell(name, 0, "mood", METHODS[name].rates[-1])
    prepared, frozen = cells.prepare(cell)
    lesson, head = cells.lesson(cell, prepared), copy.deepcopy(frozen.start.head)
    subspace, model = random_subspace(cells.backbone.shapes, 4, 0), lesson.backbone.model
    layers = {each: model.get_submodule(each) for each in subspace.layers}
    with adapted_by(
        METHODS[name], lesson, head, suite.stream.model, cell.rate, subspace
    ) as adapted:
        for layer in layers.values():
            assert torch.allclose(applied(layer), layer.weight, atol=1e-6)
        train(adapted.lesson, adapted.trainee, head)
        for each, layer in layers.items():
            core = adapted.trainee.parameters[f"{each}.b.coefficients"].detach()
            said = core.diagonal().diag() if name.endswith("diagonal") else core
            a, b = (basis.vectors for _, basis in subspace.layers[each])
            expected = b @ said @ a.mT
            assert expected.norm() > 1e-2
            assert torch.allclose(applied(layer) - layer.weight, expected, atol=1e-5)


def test_pissa_starts_from_the_largest_singular_vectors(make_cells):
    """At its start the model computes what the frozen one does, and each adapter's product is its weight, cut to rank 8."""
    suite, _, cells = make_cells("pissa")
    cell = Cell("pissa", 0, "mood", 1e-3)
    prepared, frozen = cells.prepare(cell)
    lesson = cells.lesson(cell, prepared)
    with adapted_by(
        METHODS["pissa"], lesson, frozen.start.head, suite.stream.model, 1e-3
    ) as adapted:
        encoded = prepared.fit.encoded
        ours, theirs = (
            each.features(encoded) for each in (adapted.lesson.backbone, lesson.backbone)
        )
        assert torch.allclose(ours, theirs, atol=1e-5)
        for name, layer in layers_of(adapted).items():
            weight = lesson.backbone.model.get_submodule(name).weight.detach()
            left, values, right = torch.linalg.svd(weight)
            cut = left[:, :8] @ values[:8].diag() @ right[:8]
            a, b = (side[ADAPTER].weight for side in (layer.lora_A, layer.lora_B))
            assert torch.allclose(layer.scaling[ADAPTER] * b @ a, cut, atol=1e-5)
            assert torch.allclose(applied(layer), weight, atol=1e-5)


@pytest.fixture
def learnt(make_cells):
    """One task learnt by a method that `peft` has, with the lesson that it began with."""

    def learn(name):
        suite, _, cells = make_cells(name)
        cell = Cell(name, 0, "mood", METHODS[name].rates[-1])
        prepared, frozen = cells.prepare(cell)
        lesson, head = cells.lesson(cell, prepared), copy.deepcopy(frozen.start.head)
        adapted = by_peft(METHODS[name], lesson, suite.stream.model, cell.rate)
        train(adapted.lesson, adapted.trainee, head)
        return adapted, lesson

    return learn


def test_vera_trains_two_vectors_between_matrices_that_all_layers_share(learnt):
    """A layer trains 256 + n numbers, and adds ``diag(b) B diag(d) A``, of the same A and B in every layer."""
    adapted, lesson = learnt("vera")
    layers, trained = layers_of(adapted), adapted.trainee.parameters
    assert len(trained) == 2 * len(layers)
    first = next(iter(layers.values()))
    a, b = first.vera_A[ADAPTER], first.vera_B[ADAPTER]
    assert (a.shape, b.shape) == ((256, 32), (32, 256))
    assert not a.requires_grad
    assert not b.requires_grad
    for name, layer in layers.items():
        by_rank, by_output = layer.vera_lambda_d[ADAPTER], layer.vera_lambda_b[ADAPTER]
        assert any(each is by_rank for each in trained.values())
        assert any(each is by_output for each in trained.values())
        assert (by_rank.shape, by_output.shape) == ((256,), (layer.out_features,))
        assert layer.vera_A[ADAPTER].data_ptr() == a.data_ptr()
        assert layer.vera_B[ADAPTER].data_ptr() == b.data_ptr()
        expected = (by_output.diag() @ b @ by_rank.diag() @ a).detach()
        assert expected.norm() > 1e-2
        change = applied(layer) - lesson.backbone.model.get_submodule(name).weight
        assert torch.allclose(change, expected, atol=1e-5)


def test_vb_lora_mixes_its_factors_from_one_bank(learnt):
    """Every 32 numbers of a factor are two vectors of the bank, weighed by the softmax of the two largest logits."""
    adapted, lesson = learnt("vb-lora")
    layers = layers_of(adapted)
    bank = next(iter(layers.values())).vblora_vector_bank[ADAPTER].detach()
    assert bank.shape == (128, 32)

    def mixed(logits):
        vector = torch.zeros(32)
        places = logits.argsort(descending=True)[:2]
        weights = logits[places].exp() / logits[places].exp().sum()
        for weight, place in zip(weights, places, strict=True):
            vector += weight * bank[place]
        return vector

    for name, layer in layers.items():
        assert layer.vblora_vector_bank[ADAPTER].data_ptr() == bank.data_ptr()
        of_a, of_b = (
            each[ADAPTER].detach() for each in (layer.vblora_logits_A, layer.vblora_logits_B)
        )
        assert (of_a.shape, of_b.shape) == ((4, 1, 128), (1, 4, 128))
        a = torch.stack([torch.cat([mixed(piece) for piece in row]) for row in of_a])
        b = torch.cat([torch.stack([mixed(each) for each in piece], dim=1) for piece in of_b])
        change = applied(layer) - lesson.backbone.model.get_submodule(name).weight
        assert change.norm() > 1e-4
        assert torch.allclose(change, b @ a, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "trained", "kept"),
    [
        # a vector of the rank and one of the outputs a layer
        ("vera", 4 * (256 + 32), 4 * 4 * (256 + 32)),
        # logits of two sides of rank 4 in pieces of 32 over a bank of 128 such vectors; kept are two places in a byte each and one weight, and the bank
        ("vb-lora", 4 * 2 * 4 * 128 + 128 * 32, 4 * 2 * 4 * (2 + 4) + 4 * 128 * 32),
    ],
)  # fmt: skip
def test_what_is_drawn_or_shared_is_not_counted_twice(make_cells, name, trained, kept):
    """VeRA keeps its vectors, not the random matrices; VB-LoRA the places of the vectors it chose, not the weights of all."""
    _, _, cells = make_cells(name)
    outcome = cells.compute(Work(Cell(name, 0, "mood", METHODS[name].rates[0])), silent)
    assert (outcome["num_parameters"], outcome["adapter_bytes"]) == (trained, kept)


def test_the_nearest_task_is_the_one_the_gradient_asks_for(make_cells):
    """Coefficients begin as those of the task whose weight change lowers the loss fastest, and at zero where none lowers it."""
    suite, _, cells = make_cells("lora", "eigenlorax-nearest")
    cell = Cell("eigenlorax-nearest", 0, "mood", 1e-2)
    prepared, frozen = cells.prepare(cell)
    lesson, head = cells.lesson(cell, prepared), frozen.start.head
    with inject(lesson.backbone.model, Subspace.empty(cells.backbone.shapes)) as injected:
        gradients = dict(FirstGradients(injected, lesson, head))
    wanted, opposite = (
        LoraAdapter(
            {
                name: LayerFactors(sign * gradient.mT[:, :8], torch.eye(len(gradient))[:, :8])
                for name, gradient in gradients.items()
            }
        )
        for sign in (-1.0, 1.0)
    )
    subspace = subspace_from_adapters([wanted, opposite], 8)
    for others, is_near in (([opposite, wanted], True), ([opposite], False)):
        with adapted_by(
            METHODS[cell.method], lesson, head, suite.stream.model, 1e-2, subspace, others
        ) as adapted:
            found = adapted.trainee.parameters
            said = project(subspace, wanted.factors).layers
            for name, layer in said.items():
                began = found[f"{name}.a.coefficients"], found[f"{name}.b.coefficients"]
                assert bool(began[1].any()) == is_near
                if is_near:
                    assert torch.allclose(began[0], layer.a, atol=1e-5)


def test_a_lora_starts_in_the_subspace_of_the_other_tasks(make_cells):
    """``lora-init`` trains as many numbers as a LoRA, and begins where the frozen model is."""
    suite, folder, cells = make_cells("lora", "lora-init")
    cells.suite = replace(suite, settings=suite.settings.model_copy(update={"num_factors": 8}))
    sources = tuple(Cell("lora", 0, each, 2e-3) for each in ("food", "motion"))
    for each in sources:
        cells.compute(Work(each), silent)
    cell = Cell("lora-init", 0, "mood", 2e-3)
    outcome = cells.compute(Work(cell, sources), silent)
    assert outcome["num_parameters"] == 4 * 8 * (32 + 32)
    subspace = subspace_from_adapters([load_lora(folder.adapter(each)) for each in sources], 8)
    prepared, frozen = cells.prepare(cell)
    lesson, model = cells.lesson(cell, prepared), suite.stream.model
    before = lesson.backbone.features(prepared.test.encoded)
    with adapted_by(
        METHODS[cell.method], lesson, frozen.start.head, model, 2e-3, subspace
    ) as adapted:
        first = next(each for name, each in adapted.trainee.parameters.items() if "lora_A" in name)
        leading = next(iter(subspace.layers.values())).a.leading
        assert torch.allclose(first, leading.mT / 3**0.5, atol=1e-6)
        after = adapted.lesson.backbone.features(prepared.test.encoded)
        assert torch.allclose(before, after, atol=1e-6)


def test_a_random_subspace_is_orthonormal_and_of_the_size_asked_for(make_cells):
    """The control has the same sizes as a learnt subspace, and its seed decides it."""
    _, _, cells = make_cells("frozen")
    first, again, other = (random_subspace(cells.backbone.shapes, 4, seed) for seed in (1, 1, 2))
    for name, layer in first.layers.items():
        for side, basis in layer:
            gram = basis.vectors.mT @ basis.vectors
            assert torch.allclose(gram, torch.eye(4), atol=1e-6)
            assert torch.equal(basis.vectors, again.layers[name][side].vectors)
            assert not torch.equal(basis.vectors, other.layers[name][side].vectors)


@pytest.mark.parametrize("name", ["sequence", "joint"])
def test_one_adapter_for_all_tasks_is_scored_on_every_task(make_cells, name):
    """After the last task every task has a score by its own head; of what comes later, only the next has one."""
    suite, _, cells = make_cells(name)
    steps = []
    outcome = StreamCells(cells).compute(
        Work(Cell(name, 1, rate=2e-3)), lambda step, num_steps: steps.append((step, num_steps))
    )
    assert outcome["order"] == suite.order(1)
    assert outcome["final"].keys() == set(suite.task_ids)
    assert all(0 <= each <= 1 for each in outcome["final"].values())
    assert steps[-1][0] == steps[-1][1] == len(steps)
    if name == "sequence":
        assert [sum(each is not None for each in row) for row in outcome["matrix"]] == [2, 3, 3]


def test_all_tasks_at_once_are_learnt_by_one_adapter(make_cells, monkeypatch):
    """Every row of every task is gone through once a pass, tasks in turn, each by its own head in one model."""
    suite, _, cells = make_cells("joint")
    seen, passes = [], suite.stream.training.epochs

    def recording(lesson, head, rows):
        seen.append((lesson.task_id, tuple(rows), lesson, head))
        return mean_loss(lesson, head, rows)

    monkeypatch.setattr(stream_cells, "mean_loss", recording)
    StreamCells(cells).compute(Work(Cell("joint", 0, rate=2e-3)), silent)
    lessons = {task_id: (lesson, head) for task_id, _, lesson, head in seen}
    assert lessons.keys() == set(suite.task_ids)
    assert len({id(lesson.backbone.model) for lesson, _ in lessons.values()}) == 1
    assert len({id(head) for _, head in lessons.values()}) == len(lessons)
    for task_id, (lesson, _) in lessons.items():
        rows = [row for each, batch, *_ in seen for row in batch if each == task_id]
        assert sorted(rows) == sorted([*range(len(lesson.fit.lengths))] * passes)
    changes = sum(one[0] != other[0] for one, other in itertools.pairwise(seen))
    assert changes > len(lessons) * passes


def test_one_adapter_goes_from_task_to_task(make_cells, monkeypatch):
    """In a sequence every task begins with the adapter as the one before has left it, and changes it."""
    suite, _, cells = make_cells("sequence")
    courses = []

    def recording(lesson, trainee, head, hooks):
        def now():
            return {name: each.detach().clone() for name, each in trainee.parameters.items()}

        before = now()
        found = train(lesson, trainee, head, hooks=hooks)
        courses.append((lesson.task_id, before, now()))
        return found

    monkeypatch.setattr(stream_cells, "train", recording)
    StreamCells(cells).compute(Work(Cell("sequence", 0, rate=2e-3)), silent)
    assert [task_id for task_id, *_ in courses] == suite.order(0)
    for _, before, after in courses:
        assert all(not torch.equal(before[name], after[name]) for name in before)
    for (*_, left), (_, found, _) in itertools.pairwise(courses):
        assert all(torch.equal(left[name], found[name]) for name in left)


def test_the_whole_model_is_trained(make_cells):
    """All of a copy's weights that outcomes depend on change; the frozen model's do not."""
    suite, _, cells = make_cells("full")
    cell = Cell("full", 0, "mood", 1e-3)
    prepared, frozen = cells.prepare(cell)
    lesson, head = cells.lesson(cell, prepared), copy.deepcopy(frozen.start.head)
    kept = {name: each.clone() for name, each in cells.backbone.model.state_dict().items()}
    with adapted_by(METHODS["full"], lesson, head, suite.stream.model, 1e-3) as adapted:
        train(adapted.lesson, adapted.trainee, head)
        trained = dict(adapted.lesson.backbone.model.named_parameters())
        assert adapted.num_parameters == sum(each.numel() for each in trained.values())
        for name, parameter in trained.items():
            assert torch.equal(parameter, kept[name]) == name.startswith("pooler"), name
    for name, each in cells.backbone.model.state_dict().items():
        assert torch.equal(each, kept[name])


def test_an_outcome_of_another_lesson_is_not_taken(make_suite, tmp_path):
    """Where training changed, a cell is computed anew; where only another task changed, it is not."""
    suite = make_suite("frozen")
    cell, whole = Cell("frozen", 0, "mood"), Cell("share", 0)
    for each in (cell, whole):
        CellFolder(tmp_path, lesson_of(suite)).save(each, {"test": 0.5})
        assert CellFolder(tmp_path, lesson_of(suite)).load(each) == {"test": 0.5}

    def is_taken(each, **changes):
        return CellFolder(tmp_path, lesson_of(replace(suite, **changes))).load(each) is not None

    tasks = [each.model_copy(update={"max_train": 9}) for each in suite.stream.tasks]
    other_task = replace(suite.stream, tasks=(suite.stream.tasks[0], *tasks[1:]))
    assert is_taken(cell, stream=other_task)
    assert not is_taken(whole, stream=other_task)
    training = suite.stream.training.model_copy(update={"epochs": 9})
    assert not is_taken(cell, stream=replace(suite.stream, training=training))
    larger = suite.settings.model_copy(update={"num_factors": 9})
    assert is_taken(cell, settings=larger)
    assert not is_taken(whole, settings=larger)


def test_few_rows_and_a_method_change_how_is_learnt(make_suite):
    """Few rows are gone through more often; a method's own settings hold over the suite's."""
    suite = make_suite("frozen")
    few = replace(
        suite, settings=suite.settings.model_copy(update={"few_rows": 16, "few_epochs": 7})
    )
    assert few.training(METHODS["lora"]).epochs == suite.stream.training.epochs
    assert few.training(METHODS["lora"], 16).epochs == 7
    assert few.training(METHODS["eigenlorax-gradient"]).start == "gradient"


def test_a_methods_own_size_holds_over_the_suites(make_suite, tmp_path):
    """Where a method says its directions a side, another size of the suite leaves its cells as they are."""
    suite = make_suite("eigenlorax", "eigenlorax-broad")
    assert [suite.num_factors(METHODS[each]) for each in suite.settings.methods] == [4, 64]
    larger = replace(suite, settings=suite.settings.model_copy(update={"num_factors": 9}))
    for name, is_kept in (("eigenlorax", False), ("eigenlorax-broad", True)):
        cell = Cell(name, 0, "mood", 1e-2)
        CellFolder(tmp_path, lesson_of(suite)).save(cell, {"test": 0.5})
        assert (CellFolder(tmp_path, lesson_of(larger)).load(cell) is not None) == is_kept


def test_a_random_subspace_is_no_larger_than_its_layers(make_cells):
    """More directions than a side has features are all of them."""
    _, _, cells = make_cells("frozen")
    for layer in random_subspace(cells.backbone.shapes, 64, 0).layers.values():
        for _, basis in layer:
            assert basis.num_factors == basis.vectors.shape[0] == 32


def test_the_plan_searches_with_the_first_seed_only(make_suite, tmp_path):
    """Every rate is tried with seed 0; the other seeds take the one that validated best, and test rows decide nothing."""
    suite = make_suite("lora")
    folder = CellFolder(tmp_path, lesson_of(suite))
    plan = Plan(suite, folder)
    first = plan.ready()
    assert {work.cell.seed for work in first} == {0}
    assert len(first) == 3 * len(METHODS["lora"].rates)
    for work in first:
        is_best = work.cell.rate == METHODS["lora"].rates[1]
        folder.save(
            work.cell, {"validation": 0.9 if is_best else 0.8, "test": 0.1 if is_best else 0.9}
        )
        folder.adapter(work.cell).mkdir(parents=True)
    assert {(work.cell.seed, work.cell.rate) for work in plan.ready()} == {
        (1, METHODS["lora"].rates[1])
    }
    assert plan.count() == (len(first), len(first) + 3)
    assert plan.lessons_left() == 3


@pytest.mark.parametrize("few_methods", [[], ["lora"]])
def test_few_rows_are_learnt_from_by_some_methods_only(make_suite, tmp_path, few_methods):
    """Those that the suite names; without a word, all that learn one task by itself, and never a stream; at the rate that was found with all rows."""
    suite = make_suite("frozen", "lora", "share")
    changes = {"few_rows": 16, "few_methods": few_methods}
    suite = replace(suite, settings=suite.settings.model_copy(update=changes))
    folder = CellFolder(tmp_path, lesson_of(suite))
    plan = Plan(suite, folder)
    ready = plan.ready()
    found = {work.cell.method for work in ready if work.cell.rows == 16}
    assert found == ({"frozen"} if not few_methods else set())
    assert {work.cell.method for work in ready if work.cell.rows is None} == {
        "frozen",
        "lora",
        "share",
    }
    searched = [
        Cell("lora", SEARCH_SEED, each, rate)
        for each in suite.search_tasks
        for rate in METHODS["lora"].rates
    ]
    for each in searched:
        folder.save(each, {"validation": each.rate})
    few = [work.cell for work in plan.ready() if work.cell.rows is not None]
    assert {each.method for each in few} == {*(few_methods or ("frozen", "lora"))}
    assert {each.rate for each in few if each.method == "lora"} == {max(METHODS["lora"].rates)}


def test_what_builds_on_adapters_waits_for_them(make_suite, tmp_path):
    """``eigenlorax`` of a task is ready once the other tasks' LoRAs are chosen, and never builds on its own."""
    suite = make_suite("lora", "eigenlorax")
    folder = CellFolder(tmp_path, lesson_of(suite))
    plan = Plan(suite, folder)
    assert {work.cell.method for work in plan.ready()} == {"lora"}
    for work in plan.ready():
        folder.save(work.cell, {"validation": 0.5, "test": 0.5})
        folder.adapter(work.cell).mkdir(parents=True)
    ready = [work for work in plan.ready() if work.cell.method == "eigenlorax"]
    assert len(ready) == 3 * len(METHODS["eigenlorax"].rates)
    assert all(work.cell.task_id not in {each.task_id for each in work.sources} for work in ready)
    assert all(len(work.sources) == 2 for work in ready)


def test_a_cell_whose_adapter_is_gone_is_computed_again(make_suite, tmp_path):
    """An outcome alone does not do for what others build on: adapters are not kept with a committed result."""
    suite = make_suite("lora", "eigenlorax")
    folder = CellFolder(tmp_path, lesson_of(suite))
    for work in Plan(suite, folder).ready():
        folder.save(work.cell, {"validation": 0.5, "test": 0.5})
    assert {work.cell.method for work in Plan(suite, folder).ready()} == {"lora"}


def test_a_cell_is_a_file_that_says_what_it_is(make_suite, tmp_path):
    """The file of an outcome holds its cell."""
    suite = make_suite("frozen")
    folder, cell = CellFolder(tmp_path, lesson_of(suite)), Cell("frozen", 2, "mood", rows=64)
    folder.save(cell, {"test": 0.5})
    held = json.loads(folder.path(cell).read_text())
    assert folder.path(cell).name == "mood-rows-64-seed-2.json"
    assert Cell(**held["cell"]) == cell


def test_a_rate_that_diverges_is_not_chosen(make_suite, tmp_path):
    """The search goes on without it; where every rate diverges that is an error which names them."""
    suite = make_suite("lora")
    folder = CellFolder(tmp_path, lesson_of(suite))
    rates = METHODS["lora"].rates
    for rate in rates:
        diverged = {"diverged": "loss nan"} if rate == rates[-1] else {"validation": 0.5}
        folder.save(Cell("lora", 0, "mood", rate), diverged)
        folder.save(Cell("lora", 0, "food", rate), {"diverged": "loss nan"})
    by_mood = replace(suite, settings=suite.settings.model_copy(update={"search_tasks": ["mood"]}))
    assert Plan(by_mood, folder).chosen("lora", "food", 1).rate == rates[0]
    by_food = replace(suite, settings=suite.settings.model_copy(update={"search_tasks": ["food"]}))
    with pytest.raises(WorkerError, match=r"lora: .* 0\.002, 0\.005, 0\.01, 0\.02"):
        Plan(by_food, folder).chosen("lora", "food", 1)


def test_a_rate_is_searched_for_on_some_tasks_only(make_suite, tmp_path):
    """The other tasks are learnt with what was chosen: their validation rows choose no rate."""
    suite = make_suite("lora")
    suite = replace(suite, settings=suite.settings.model_copy(update={"search_tasks": ["food"]}))
    folder, rates = CellFolder(tmp_path, lesson_of(suite)), METHODS["lora"].rates
    plan = Plan(suite, folder)
    assert [work.cell.task_id for work in plan.ready()] == ["food"] * len(rates)
    for work in plan.ready():
        folder.save(work.cell, {"validation": work.cell.rate, "test": 0.5})
    assert {work.cell.rate for work in plan.ready()} == {max(rates)}
    assert {work.cell.task_id for work in plan.ready()} == set(suite.task_ids)
    assert plan.count() == (len(rates), len(rates) + 5)


def test_a_diverging_search_is_an_outcome_and_another_seed_an_error(make_suite, tmp_path):
    """A rate of 1e30 has no end in the search; with a rate that was chosen it stops the benchmark."""
    suite = make_suite("lora", training="rollbacks = 0")
    begin(suite, tmp_path, 1, {})
    found = compute(Work(Cell("lora", 0, "mood", 1e30)))
    assert "not finite" in found["diverged"]
    with pytest.raises(TrainingDiverged):
        compute(Work(Cell("lora", 1, "mood", 1e30)))

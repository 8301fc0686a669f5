"""Removal, against the subspace that was never fed with the task, and against its own bound."""

import random

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from share_dist.core.merge import merge
from share_dist.core.removal import remove_tasks
from share_dist.core.subspace import update_from_factors
from share_dist.core.values import LayerShape, Subspace, TaskUpdate
from share_dist.errors import ConfigError, UnknownTask
from tests.core.adapters import (
    METRICS,
    SPECTRA,
    delta_weights,
    distance,
    merge_in_sequence,
    metric_columns,
    norm,
    projector,
    random_factors,
)

SMALL = {"q": LayerShape(24, 18)}
SIDES = [("q", "a"), ("q", "b")]
everywhere = pytest.mark.parametrize("metric", METRICS)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def moment(subspace, name, side):
    """The second moment that a version keeps, ``V diag(l) V.T``."""
    basis = subspace.layers[name][side]
    vectors = basis.vectors.double()
    return vectors * basis.energies @ vectors.mT


def size_of(matrix):
    return float(torch.linalg.matrix_norm(matrix))


@everywhere
@both_dtypes
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("gone", [["task-001"], ["task-000", "task-003"]])
def test_without_truncation_it_is_as_if_the_task_had_never_come(metric, dtype, spectrum, gone):
    """Projectors, energies and every other task are those of the lineage without it, to 1e-6."""
    adapters = [random_factors(s, spectrum, rank=2, shapes=SMALL, dtype=dtype) for s in range(5)]
    full = merge_in_sequence(adapters, metric)[-1][2]
    outcome = remove_tasks(full.subspace, full.tasks, gone)
    stay = [adapter for index, adapter in enumerate(adapters) if f"task-{index:03d}" not in gone]
    never = merge_in_sequence(stay, metric)[-1][2].subspace
    assert outcome.report.residue_bound == 0.0
    assert outcome.report.removed_task_ids == tuple(gone)
    for name, side in SIDES:
        mine, theirs = outcome.subspace.layers[name][side], never.layers[name][side]
        assert mine.num_factors == theirs.num_factors
        assert mine.cut_energy == 0.0
        difference = moment(outcome.subspace, name, side) - moment(never, name, side)
        assert float(difference.norm()) < 1e-6 * float(theirs.energies.sum())
        gap = float((theirs.energies[-1] / theirs.energies[0]) ** 0.5)
        if gap > 1e-2:  # float32: a direction is known to its rounding over its share
            spans = projector(mine.leading.double()) - projector(theirs.leading.double())
            assert float(spans.norm()) < (1e-6 if dtype == torch.float64 else 1e-5)
    was, now = (
        delta_weights(v, {t: task for t, task in tasks.items() if t not in gone})
        for v, tasks in ((full.subspace, full.tasks), (outcome.subspace, outcome.tasks))
    )
    assert was.keys() == now.keys()
    for task_id, weights in was.items():
        assert distance(weights, now[task_id]) < 1e-5 * norm(weights)


class Reference:
    """Second moments as they would be had nothing been cut since a task came: kept beside a lineage."""

    def __init__(self):
        self.parts = {}

    def start(self, subspace, tasks):
        """From here on nothing is cut: what there is stays as it is kept."""
        self.parts = {
            (task_id, name, side): self._kept(subspace, task, name, side)
            for task_id, task in tasks.items()
            for name, side in SIDES
        }

    @staticmethod
    def _kept(subspace, task, name, side):
        layer = task.layers[name]
        V, E = subspace.layers[name][side].vectors.double(), layer.coefficients[side].double()
        return layer.weights[side] * (V @ E @ layer.grams[side] @ E.mT @ V.mT)

    def put(self, task_id, adapter, metric, weight):
        """A task comes, whole; its former contribution goes."""
        for name, side in SIDES:
            columns = metric_columns(adapter[name], side, metric)
            self.parts[task_id, name, side] = weight * (columns @ columns.mT)

    def take(self, task_ids):
        self.parts = {key: part for key, part in self.parts.items() if key[0] not in task_ids}

    def moment(self, name, side):
        parts = [part for key, part in self.parts.items() if key[1:] == (name, side)]
        size = SMALL[name].features(side)
        return sum(parts, torch.zeros(size, size, dtype=torch.float64))


def push(subspace, task_id, adapter, weight, update_id):
    update = update_from_factors(subspace, adapter, task_id, update_id)
    return TaskUpdate(update_id, task_id, subspace.version, update.layers, weight=weight)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    metric=st.sampled_from(METRICS),
    spectrum=st.sampled_from(SPECTRA),
    k=st.integers(1, 7),
    oversample=st.integers(0, 4),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    gives_credit=st.booleans(),
)
def test_the_residue_is_within_its_bound(
    seed, metric, spectrum, k, oversample, dtype, gives_credit
):
    """
    Whatever was merged late, with credit or without, replaced and removed meanwhile: what stays differs from what would
    have been without the tasks removed, and without any cut since they came, by no more than the bound.
    """
    rng = random.Random(seed)
    subspace, tasks, older = Subspace.empty(SMALL, metric, dtype), {}, {}
    reference, watched = Reference(), set()
    for index in range(rng.randint(3, 8)):
        older[subspace.version] = subspace
        names = rng.sample(["a", "b", "c", "d", "e"], rng.randint(1, 2))
        if index == 2 or (index > 2 and not watched & tasks.keys()):
            reference.start(subspace, tasks)
            watched = set(names)  # the reference counts from just before these come
        elif watched:
            watched -= set(names)  # replaced: they came anew
        updates = []
        for name in names:
            adapter = random_factors(rng.randrange(10**6), spectrum, rank=rng.randint(1, 4) * 2, shapes=SMALL, dtype=dtype)  # fmt: skip
            base = older[rng.choice(list(older)[-2:])]
            weight = rng.choice([0.1, 1.0, 5.0])
            updates.append(push(base, name, adapter, weight, f"{index}-{name}"))
            reference.put(name, adapter, metric, weight)
        outcome = merge(subspace, tasks, updates, k, oversample=oversample, bases=older, gives_credit=gives_credit)  # fmt: skip
        subspace, tasks = outcome.subspace, outcome.tasks
        others = sorted(tasks.keys() - watched)
        if index > 2 and others and rng.random() < 0.3:
            gone = rng.sample(others, 1)
            outcome = remove_tasks(subspace, tasks, gone, k, oversample=oversample)
            subspace, tasks = outcome.subspace, outcome.tasks
            reference.take(gone)
    gone = sorted(watched & tasks.keys())
    assume(gone)
    energy = dict.fromkeys(SIDES, 0.0)
    for task_id, name, side in reference.parts:
        if task_id in gone:
            energy[name, side] += float(reference.parts[task_id, name, side].trace())
    outcome = remove_tasks(subspace, tasks, gone, k, oversample=oversample)
    reference.take(gone)
    whole = {key: float(reference.moment(*key).trace()) for key in SIDES}
    for name, side in SIDES:
        truth = size_of(reference.moment(name, side) - moment(outcome.subspace, name, side))
        bound = outcome.report.layers[name][side].residue_bound * energy[name, side]
        rounding = 1e-9 if dtype == torch.float64 else 1e-5
        assert truth <= bound * (1 + rounding) + rounding * (whole[name, side] + energy[name, side])


def test_the_bound_is_of_the_size_of_the_truth():
    """Over truncated lineages the bound is passed never, and not idle: some truth is above a tenth of it."""
    ratios = []
    for seed in range(8):
        adapters = [random_factors(10 * seed + i, rank=3, shapes=SMALL) for i in range(3)]
        full = merge_in_sequence(adapters, "delta", 4)[-1][2]
        outcome = remove_tasks(full.subspace, full.tasks, ["task-002"], 4)
        before = merge_in_sequence(adapters[:2], "delta", 4)[-1][2]
        truth = size_of(moment(before.subspace, "q", "a") - moment(outcome.subspace, "q", "a"))
        ratios.append(truth / outcome.report.layers["q"].a.residue_bound)
    print(f"truth over bound: {min(ratios):.3f} to {max(ratios):.3f}")
    assert max(ratios) <= 1
    assert max(ratios) > 0.1


@everywhere
def test_what_each_task_lost_adds_up_to_what_was_cut(metric):
    """The account of the tasks together is the account of the basis, through replacements and removals."""
    adapters = [random_factors(seed, rank=3, shapes=SMALL) for seed in range(7)]
    subspace, tasks = Subspace.empty(SMALL, metric, torch.float64), {}
    for index, adapter in enumerate(adapters):
        update = push(subspace, f"t{index % 4}", adapter, 1.0 + index, f"u{index}")
        outcome = merge(subspace, tasks, [update], 4, oversample=1)
        if index == 5:
            outcome = remove_tasks(outcome.subspace, outcome.tasks, ["t3"], 4, oversample=1)
        subspace, tasks = outcome.subspace, outcome.tasks
        for name, side in SIDES:
            basis = subspace.layers[name][side]
            lost = sum(task.layers[name].cut_energy[side] for task in tasks.values())
            assert lost == pytest.approx(basis.cut_energy, rel=1e-9, abs=1e-12)
            weights = {f"t{i % 4}": 1.0 + i for i in range(index + 1)}
            total = sum(weights[task_id] for task_id in tasks)
            assert float(basis.energies.sum()) + basis.cut_energy == pytest.approx(total)
            report = outcome.report.layers[name][side]
            kept = float(basis.energies[: basis.num_factors].sum()) / total
            assert report.explained_energy == pytest.approx(kept)


@everywhere
def test_removing_all_tasks_leaves_nothing_and_one_can_come_again(metric):
    """No column is left and no error raised, and a task that is pushed again is served as it was trained."""
    adapters = [random_factors(seed, shapes=SMALL) for seed in range(3)]
    full = merge_in_sequence(adapters, metric, 4)[-1][2]
    outcome = remove_tasks(full.subspace, full.tasks, full.tasks.keys(), 4)
    assert outcome.tasks == {}
    assert outcome.subspace.version == 4
    assert outcome.report.lowest_energy_kept == 1.0
    for _, basis in outcome.subspace.layers["q"]:
        assert (basis.num_columns, basis.num_factors, basis.cut_energy) == (0, 0, 0.0)
    again = update_from_factors(outcome.subspace, adapters[1], "task-001")
    back = merge(outcome.subspace, {}, [again], 4)
    served = delta_weights(back.subspace, back.tasks)["task-001"]
    trained = {"q": adapters[1]["q"].delta_weight()}
    assert distance(served, trained) < 1e-9 * norm(trained)


@everywhere
def test_drift_of_a_removal_is_certified(metric):
    """The report says of every task that stays how far the removal moved it, as measured."""
    adapters = [random_factors(seed, shapes=SMALL) for seed in range(6)]
    full = merge_in_sequence(adapters, metric, 6, oversample=3)[-1][2]
    outcome = remove_tasks(full.subspace, full.tasks, ["task-004"], 6, oversample=3)
    was = delta_weights(full.subspace, full.tasks)
    now = delta_weights(outcome.subspace, outcome.tasks)
    assert outcome.report.drift.keys() == now.keys() == was.keys() - {"task-004"}
    for task_id, drift in outcome.report.drift.items():
        assert drift == pytest.approx(distance(was[task_id], now[task_id]), rel=1e-6, abs=1e-9)
    assert max(outcome.report.drift.values()) > 1e-3


def test_a_removal_is_a_rotation_too():
    """It brings no direction, and leads to the next version like a merge."""
    full = merge_in_sequence([random_factors(s, shapes=SMALL) for s in range(3)], "delta", 6)[-1][2]
    outcome = remove_tasks(full.subspace, full.tasks, ["task-000"], 6)
    for name, both in outcome.rotation.items():
        for side, turn in both:
            assert turn.directions.shape[1] == 0
            advanced = turn.advance(full.subspace.layers[name][side].vectors)
            assert torch.allclose(advanced, outcome.subspace.layers[name][side].vectors)


def test_factors_may_be_kept():
    """With keeps_factors a removal does not cut below what a side has, but for its rank."""
    full = merge_in_sequence([random_factors(s, shapes=SMALL) for s in range(4)], "delta", 9)[-1][2]
    fewer = remove_tasks(full.subspace, full.tasks, ["task-000"], 5)
    kept = remove_tasks(full.subspace, full.tasks, ["task-000"], 5, keeps_factors=True)
    assert (fewer.subspace.num_factors, kept.subspace.num_factors) == (5, 9)


def test_who_is_not_there_cannot_be_removed():
    """An unknown task is refused with the nearest names, and an empty list too."""
    full = merge_in_sequence([random_factors(s, shapes=SMALL) for s in range(2)], "delta")[-1][2]
    with pytest.raises(UnknownTask, match="did you mean task-00") as caught:
        remove_tasks(full.subspace, full.tasks, ["task-000", "task-005"])
    assert caught.value.task_id == "task-005"
    with pytest.raises(UnknownTask, match="2 others are"):
        remove_tasks(full.subspace, full.tasks, ["zebra"])
    with pytest.raises(ConfigError, match="name at least one"):
        remove_tasks(full.subspace, full.tasks, [])
    with pytest.raises(ConfigError, match="num_factors is 0"):
        remove_tasks(full.subspace, full.tasks, ["task-000"], 0)

"""The table of tasks owes its turns until somebody reads; whoever reads sees no difference."""

import random
from dataclasses import replace

import pytest
import torch

from share_dist.core import table as table_module
from share_dist.core.merge import merge
from share_dist.core.removal import remove_tasks
from share_dist.core.subspace import update_from_factors
from share_dist.core.table import Carry, TaskTable
from share_dist.core.values import LayerShape, Pair, Subspace
from tests.core.adapters import METRICS, delta_weights, distance, norm, random_factors

SHAPES = {"q": LayerShape(20, 16), "v": LayerShape(16, 16)}
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def lineage(seed, metric, dtype, read):
    """Twelve truncated steps: tasks of mixed ranks come, are replaced and removed; ``read`` sees each table."""
    rng = random.Random(seed)
    subspace, tasks, drifts = Subspace.empty(SHAPES, metric, dtype), TaskTable(0), []
    for index in range(12):
        if index == 7:
            outcome = remove_tasks(subspace, tasks, [sorted(tasks)[1]], 6, oversample=3)
        else:
            adapter = random_factors(100 * seed + index, rank=rng.choice([2, 3]), shapes=SHAPES, dtype=dtype)  # fmt: skip
            task_id = f"t{rng.randrange(7)}"
            update = replace(update_from_factors(subspace, adapter, task_id), update_id=f"u{index}")
            outcome = merge(subspace, tasks, [update], 6, oversample=3)
        subspace, tasks = outcome.subspace, outcome.tasks
        drifts.append(outcome.report.drift)
        read(tasks)
    return subspace, tasks, drifts


@both_dtypes
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("seed", "many"), [(0, table_module._MANY), (1, 1)])
def test_reading_late_is_reading_at_every_merge(metric, dtype, seed, many, monkeypatch):
    """Tasks, their accounts and every drift are the same whether each version was read or only the last."""
    monkeypatch.setattr(table_module, "_MANY", many)
    subspace, eager, moved = lineage(seed, metric, dtype, lambda tasks: list(tasks.values()))
    _, lazy, moved_late = lineage(seed, metric, dtype, len)
    rounding = 1e-12 if dtype == torch.float64 else 1e-5
    assert list(eager) == list(lazy) == sorted(eager)
    assert len(lazy) == len(list(lazy))
    here, there = delta_weights(subspace, eager), delta_weights(subspace, lazy)
    for task_id, task in eager.items():
        assert distance(here[task_id], there[task_id]) < rounding * norm(here[task_id])
        for name, layer in task.layers.items():
            late = lazy[task_id].layers[name]
            for side in ("a", "b"):
                assert torch.equal(late.grams[side], layer.grams[side])
                assert late.weights[side] == layer.weights[side]
                for told in ("cut_energy", "cut_meanwhile"):
                    mine, theirs = getattr(layer, told)[side], getattr(late, told)[side]
                    assert theirs == pytest.approx(mine, rel=1e-9, abs=rounding)
    for one, other in zip(moved, moved_late, strict=True):
        assert dict(other) == pytest.approx(dict(one), rel=1e-3, abs=10 * rounding)


def test_a_version_costs_no_product_with_a_task_until_somebody_reads(monkeypatch):
    """Nine turns are owed and nobody is touched; the first reader pays one sweep, the second nothing."""
    swept = []
    settle = table_module._settled
    monkeypatch.setattr(table_module, "_settled", lambda *held: swept.append(len(held[1])) or settle(*held))  # fmt: skip
    _, first, _ = lineage(3, "delta", torch.float64, len)
    start = TaskTable.of(dict(first), 12)
    swept.clear()
    generator = torch.Generator().manual_seed(0)
    table, whole = start, torch.eye(9, dtype=torch.float64)
    for step in range(9):
        turn = torch.randn(9, 9, generator=generator, dtype=torch.float64)
        whole = whole @ turn
        carries = {name: Pair(Carry(turn, 0.5), Carry(turn, 0.5)) for name in SHAPES}
        table = table.after(13 + step, [], carries, TaskTable(13 + step))
        assert (len(table), min(first) in table, "other" in table) == (len(start), True, False)
    assert swept == []
    for task_id, task in table.items():
        assert task.version == 21
        before, after = start[task_id].layers["q"], task.layers["q"]
        assert torch.allclose(after.coefficients.a, whole.mT @ before.coefficients.a, rtol=1e-9)
        assert after.cut_meanwhile.a == pytest.approx(before.cut_meanwhile.a + 4.5)
    assert swept == [9]


def test_what_is_owed_does_not_grow_for_ever(monkeypatch):
    """After so many versions that nobody read, one of them pays for all: an amount that does not grow."""
    swept = []
    settle = table_module._settled
    monkeypatch.setattr(table_module, "_settled", lambda *held: swept.append(len(held[1])) or settle(*held))  # fmt: skip
    monkeypatch.setattr(table_module, "_MOST_OWED", 5)
    _, first, _ = lineage(3, "delta", torch.float64, len)
    table = TaskTable.of(dict(first), 12)
    swept.clear()
    turn = Carry(torch.eye(9, dtype=torch.float64), 0.0)
    for step in range(17):
        carries = {name: Pair(turn, turn) for name in SHAPES}
        table = table.after(13 + step, [], carries, TaskTable(13 + step))
    assert swept == [5, 5, 5]
    assert len(list(table.values())) == len(first)


def test_many_tasks_are_not_written_anew_for_a_few(monkeypatch):
    """What does not turn of a large group stays where it is until as many tasks have come since."""
    monkeypatch.setattr(table_module, "_MANY", 2)
    _, tasks, _ = lineage(0, "delta", torch.float64, len)
    one = next(iter(tasks.values()))
    named = [replace(one, task_id=f"{place}") for place in range(7)]
    table = TaskTable.of({task.task_id: task for task in named[:3]}, 12)
    (grams,) = (group.layers["q"].a.grams for group in table.groups)
    turn = Carry(torch.eye(9, dtype=torch.float64), 0.0)
    carries = {name: Pair(turn, turn) for name in SHAPES}
    sizes = []
    for task in named[3:]:
        came = TaskTable.of({task.task_id: task}, 12)
        table = table.after(table.version + 1, [], carries, came)
        sizes.append([len(group.task_ids) for group in table.groups])
        assert (table.groups[0].layers["q"].a.grams is grams) == (len(table.groups) > 1)

    assert sizes == [[3, 1], [3, 2], [3, 2, 1], [7]]
    assert list(table) == [task.task_id for task in named]


def test_a_table_in_use_stays_as_it_is():
    """Bringing a later version up to date does not change what an earlier one says."""
    versions, subspace, tasks = [], Subspace.empty(SHAPES), TaskTable(0)
    for index in range(4):
        adapter = random_factors(index, shapes=SHAPES, dtype=torch.float32)
        update = update_from_factors(subspace, adapter, f"t{index}")
        outcome = merge(subspace, tasks, [update], 6)
        subspace, tasks = outcome.subspace, outcome.tasks
        versions.append((subspace, tasks, delta_weights(subspace, {"t0": tasks["t0"]})))
    list(tasks.values())
    for subspace, tasks, said in versions:
        assert torch.equal(delta_weights(subspace, {"t0": tasks["t0"]})["t0"]["q"], said["t0"]["q"])
    with pytest.raises(KeyError):
        versions[0][1]["t3"]


def test_tasks_that_come_as_a_plain_mapping_are_the_same_tasks():
    """A table made of tasks gives them back, whatever their pseudo-ranks and layers."""
    _, tasks, _ = lineage(0, "delta", torch.float32, len)
    again = TaskTable.of(dict(tasks), tasks.version)
    assert len({group.kind for group in again.groups}) == 2
    for task_id, task in tasks.items():
        for name, layer in task.layers.items():
            for side in ("a", "b"):
                mine = again[task_id].layers[name]
                assert torch.equal(mine.coefficients[side], layer.coefficients[side])
                assert mine.cut_energy[side] == pytest.approx(layer.cut_energy[side], rel=1e-6, abs=1e-15)  # fmt: skip

"""Following rotations from version to version, against the bases that the coordinator keeps."""

import hashlib
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from share_dist.core.merge import merge
from share_dist.core.outcome import SideRotation
from share_dist.core.removal import remove_tasks
from share_dist.core.steps import advance, probe_vectors, step_of
from share_dist.core.subspace import update_from_factors
from share_dist.core.values import LayerShape, Pair, Subspace
from share_dist.errors import NotFinite, ShapeMismatch, VersionMismatch
from tests.core.adapters import merge_in_sequence, random_factors
from tests.equality import first_difference

SMALL = {"q": LayerShape(24, 18), "v": LayerShape(24, 18)}


def random_lineage(seed, length):
    """Merges of one to three tasks, replacements and removals, each as (before, outcome)."""
    rng = random.Random(seed)
    subspace, tasks = Subspace.empty(SMALL), {}
    for index in range(length):
        if len(tasks) > 3 and rng.random() < 0.2:
            gone = rng.sample(sorted(tasks), rng.randint(1, len(tasks)))
            outcome = remove_tasks(subspace, tasks, gone, 8, oversample=4)
        else:
            names = rng.sample([f"t{number}" for number in range(12)], rng.randint(1, 3))
            updates = [
                update_from_factors(
                    subspace,
                    random_factors(
                        1000 * seed + 10 * index + each, rank=rng.randint(1, 3), shapes=SMALL, dtype=torch.float32
                    ),
                    name,
                    f"{index}-{name}",
                )
                for each, name in enumerate(names)
            ]  # fmt: skip
            k = rng.randint(4, 9)
            outcome = merge(subspace, tasks, updates, k, oversample=rng.randint(0, 4))
        yield subspace, outcome
        subspace, tasks = outcome.subspace, outcome.tasks


@pytest.fixture(scope="module")
def fifty():
    """A lineage of 50 versions."""
    return list(random_lineage(1, 50))


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_following_a_lineage_stays_with_the_coordinator(seed):
    """Whatever was merged, replaced and removed, rotations lead to the coordinator's bases."""
    follow(random_lineage(seed, 8))


def test_following_fifty_steps_stays_with_the_coordinator(fifty):
    """After 50 merges and removals, what followed the rotations is within 1e-5 of the bases."""
    follow(fifty)


def follow(lineage):
    """Advance from version 0, and compare every version reached."""
    held = Subspace.empty(SMALL)
    for before, outcome in lineage:
        held = advance(held, [step_of(outcome.rotation, before, outcome.subspace)])
        assert held.version == outcome.subspace.version
        for name, layer in outcome.subspace.layers.items():
            for side, basis in layer:
                mine = held.layers[name][side]
                assert torch.allclose(mine.vectors, basis.vectors, rtol=0, atol=1e-5)
                assert torch.equal(mine.energies, basis.energies)
                assert (mine.num_factors, mine.cut_energy) == (basis.num_factors, basis.cut_energy)


def test_rounding_of_another_machine_does_not_add_up(fifty):
    """A follower whose every product is off by float32 rounding is still within 1e-5 after 50 steps."""
    held = Subspace.empty(SMALL)
    generator = torch.Generator().manual_seed(0)
    for before, outcome in fifty:
        held = advance(held, [step_of(outcome.rotation, before, outcome.subspace)])
        layers = {
            name: type(layer)(*(
                replace(basis, vectors=basis.vectors * (1 + 6e-8 * torch.randn(basis.vectors.shape, generator=generator)))
                for _, basis in layer
            ))
            for name, layer in held.layers.items()
        }  # fmt: skip
        held = replace(held, layers=layers)
    for name, layer in outcome.subspace.layers.items():
        for side, basis in layer:
            assert torch.allclose(held.layers[name][side].vectors, basis.vectors, atol=1e-5)


def test_several_steps_at_once_are_each_of_them():
    """Advancing by a list of steps is advancing one by one."""
    history = [(before, outcome) for before, outcome in random_lineage(2, 4)]
    steps = [step_of(outcome.rotation, before, outcome.subspace) for before, outcome in history]
    at_once = advance(Subspace.empty(SMALL), steps)
    one_by_one = Subspace.empty(SMALL)
    for step in steps:
        one_by_one = advance(one_by_one, [step])
    assert first_difference(at_once, one_by_one) is None
    assert first_difference(advance(at_once, []), at_once) is None


def test_a_step_brings_no_direction_that_brings_nothing():
    """An update inside the span adds no column of Q: what would be sent is only the rotation."""
    outcome = merge_in_sequence([random_factors(0, shapes=SMALL, dtype=torch.float32)], "delta")[
        -1
    ][2]
    again = update_from_factors(
        outcome.subspace, random_factors(0, shapes=SMALL, dtype=torch.float32), "again"
    )
    after = merge(outcome.subspace, outcome.tasks, [again])
    assert {turn.directions.shape[1] for both in after.rotation.values() for _, turn in both} == {0}


def changed(step, name, side, **fields):
    """The same step with some fields of one side replaced."""
    both = step.layers[name]
    sides = Pair(*(replace(one, **fields) if which == side else one for which, one in both))
    return replace(step, layers={**step.layers, name: sides})


@pytest.fixture(scope="module")
def last_step():
    """A version that is held, and a step from it that brings directions and has a tail."""
    history = merge_in_sequence(
        [random_factors(seed, shapes=SMALL, dtype=torch.float32) for seed in range(4)],
        "delta",
        6,
        4,
    )
    before, _, outcome = history[-1]
    return before, step_of(outcome.rotation, before, outcome.subspace)


@pytest.mark.parametrize("part", ["matrix", "directions"])
@pytest.mark.parametrize("seed", range(5))
def test_a_wrong_entry_is_found_by_the_probes(last_step, part, seed):
    """One entry of U or Q that is off by 1e-3 leads to a refusal, wherever it is."""
    before, step = last_step
    rng = random.Random(seed)
    name, side = rng.choice(["q", "v"]), rng.choice(["a", "b"])
    rotation = step.layers[name][side].rotation
    wrong = getattr(rotation, part).clone()
    wrong.view(-1)[rng.randrange(wrong.numel())] += 1e-3
    if part == "directions":  # a direction whose row of U is small matters as little as it should
        weight = rotation.matrix[-rotation.directions.shape[1] :].abs().max()
        wrong = rotation.directions + 1e-3 / weight
    damaged = SideRotation(**{"matrix": rotation.matrix, "directions": rotation.directions, part: wrong})  # fmt: skip
    with pytest.raises(VersionMismatch, match="away from where it led the coordinator"):
        advance(before, [changed(step, name, side, rotation=damaged)])


def test_another_version_than_the_one_held_is_refused(last_step):
    """A step that does not start from what is held, or from other columns than those, is refused."""
    before, step = last_step
    with pytest.raises(VersionMismatch, match="does not start from version 2"):
        advance(replace(before, version=2), [step])
    turned = {
        name: type(layer)(*(replace(basis, vectors=basis.vectors.flip(1)) for _, basis in layer))
        for name, layer in before.layers.items()
    }
    with pytest.raises(VersionMismatch, match="pull the whole subspace"):
        advance(replace(before, layers=turned), [step])
    with pytest.raises(ShapeMismatch, match="pull the whole subspace with its tail"):
        advance(before.without_tail(), [step])
    with pytest.raises(ShapeMismatch, match="layer 'v' is only in one of"):
        advance(replace(before, layers={"q": before.layers["q"]}), [step])


def test_numbers_that_are_none_are_refused(last_step):
    """NaN in a rotation or in the probes never compares as near enough."""
    before, step = last_step
    side = step.layers["q"].a
    with pytest.raises(NotFinite):
        advance(before, [changed(step, "q", "a", probes=side.probes * torch.nan)])
    damaged = SideRotation(side.rotation.matrix * torch.nan, side.rotation.directions)
    with pytest.raises(NotFinite):
        advance(before, [changed(step, "q", "a", rotation=damaged)])


def test_a_step_needs_versions_that_follow_each_other():
    """A rotation between other versions than neighbours cannot be said."""
    history = merge_in_sequence([random_factors(seed, shapes=SMALL) for seed in range(3)], "delta")
    (first, _, _), *_, (_, _, outcome) = history
    with pytest.raises(VersionMismatch):
        step_of(outcome.rotation, first, outcome.subspace)


def test_probe_vectors_are_those_of_the_specification():
    """Uniform in [-1, 1), a longer one begins with a shorter one, and the bytes are fixed for ever."""
    z = probe_vectors(7, 1000)
    assert z.shape == (1000, 2)
    assert -1 <= float(z.min()) < -0.9
    assert 0.9 < float(z.max()) < 1
    assert float(z.mean().abs()) < 0.05
    assert torch.equal(probe_vectors(7, 10), z[:10])
    assert not torch.equal(probe_vectors(8, 10), z[:10])
    digest = hashlib.sha256(
        b"share-dist probe" + bytes([7, 0, 0, 0, 0, 0, 0, 0]) + bytes([1, 0, 0, 0]) + bytes(4)
    ).digest()
    assert z[1, 1] == int.from_bytes(digest[4:8], "little") / 2**31 - 1
    assert z[:2].tolist() == [
        [-0.19859133940190077, -0.9739255914464593],
        [0.07447910914197564, -0.4773453394882381],
    ]

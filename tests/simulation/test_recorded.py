"""What was recorded from real training is read as what it is."""

import json

import pytest
import torch

from share_dist.adapters import LoraAdapter, save_lora, save_subspace
from share_dist.core.merge import merge
from share_dist.core.subspace import update_from_factors
from share_dist.core.values import Subspace
from share_dist.errors import AdapterFormatError, ConfigError, ShapeMismatch
from share_dist.simulation.recorded import read_recorded
from tests.simulation.support import SHAPES, make_factors, write_adapters
from worker.checkpoint import TaskCheckpoint


def same_weights(factors, expected):
    return all(
        torch.allclose(factors[name].delta_weight(), layer.delta_weight(), atol=1e-5)
        for name, layer in expected.items()
    )


@pytest.fixture
def version_one():
    empty = Subspace.empty(SHAPES)
    updates = [update_from_factors(empty, make_factors(seed), f"t{seed}") for seed in (7, 8)]
    return merge(empty, {}, updates).subspace


def test_adapters_are_found_at_any_depth_with_their_weights(tmp_path):
    """Each PEFT directory is one recording, named by its place, and its ``dW`` is evenly split."""
    found = read_recorded([write_adapters(tmp_path, 3)])
    assert [each.name for each in found] == [f"seed-0/task-{index}" for index in range(3)]
    for seed, each in enumerate(found):
        assert same_weights(each.factors, make_factors(seed))
        for layer in each.factors.values():
            assert torch.allclose(layer.a.square().sum(0), layer.b.square().sum(0), rtol=1e-4)


def test_only_the_first_layers_are_kept(tmp_path):
    """``layers`` counts by name."""
    (found,) = read_recorded([write_adapters(tmp_path, 1)], layers=1)
    assert list(found.factors) == ["deep.query"]


def test_what_a_worker_keeps_of_its_first_version_says_itself(tmp_path):
    """An update of version 0 needs no bases."""
    update = update_from_factors(Subspace.empty(SHAPES), make_factors(1), "cats")
    TaskCheckpoint(tmp_path / "north", "cats", "").save_update(update)
    (found,) = read_recorded([tmp_path])
    assert found.name == "north/tasks/cats"
    assert same_weights(found.factors, make_factors(1))


def test_what_a_worker_keeps_of_a_later_version_is_said_in_its_bases(tmp_path, version_one):
    """With the subspace file of its base version, its factors are those that were learnt."""
    update = update_from_factors(version_one, make_factors(1), "cats")
    TaskCheckpoint(tmp_path / "north", "cats", "").save_update(update)
    save_subspace(tmp_path / "one.safetensors", version_one)
    (found,) = read_recorded([tmp_path / "north"], [tmp_path / "one.safetensors"])
    assert same_weights(found.factors, make_factors(1))


@pytest.mark.parametrize("base_digest", [None, "f" * 64])
def test_without_its_bases_an_update_is_refused_with_what_to_do(tmp_path, version_one, base_digest):
    """Neither no bases nor those of the same number from another store will do."""
    own = Subspace(version_one.layers, 1, digest="a" * 64)
    update = update_from_factors(own, make_factors(1), "cats")
    TaskCheckpoint(tmp_path / "north", "cats", "").save_update(update)
    files = []
    if base_digest:
        files = [tmp_path / "one.safetensors"]
        save_subspace(files[0], Subspace(version_one.layers, 1, digest=base_digest))
    with pytest.raises(ConfigError, match="share-dist pull --version 1"):
        read_recorded([tmp_path / "north"], files)


def test_damaged_tensors_are_refused(tmp_path):
    """What is not what its description says is named with its path."""
    update = update_from_factors(Subspace.empty(SHAPES), make_factors(1), "cats")
    TaskCheckpoint(tmp_path, "cats", "").save_update(update)
    path = tmp_path / "tasks/cats/update.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(AdapterFormatError, match="not those that it describes"):
        read_recorded([tmp_path])


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"sha256": "", "update": {}})])
def test_a_description_that_is_none_is_refused(tmp_path, text):
    """A file of that name that a worker never wrote is named with its path."""
    (tmp_path / "update.json").write_text(text)
    with pytest.raises(AdapterFormatError, match=r"update\.json"):
        read_recorded([tmp_path])


def test_an_empty_folder_is_refused(tmp_path):
    """Nothing recorded, nothing simulated."""
    with pytest.raises(ConfigError, match="give folders with recorded updates"):
        read_recorded([tmp_path])


def test_recordings_of_other_layers_are_refused(tmp_path):
    """All have to fit into one subspace."""
    write_adapters(tmp_path, 1)
    save_lora(LoraAdapter({"deep.query": make_factors(0)["deep.query"]}), tmp_path / "odd")
    with pytest.raises(ShapeMismatch, match=r"odd|task-0"):
        read_recorded([tmp_path])

"""A subspace on disk: every bit comes back, and nothing missing, unexpected or skewed passes."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from share_dist.adapters import load_subspace, save_subspace
from share_dist.core.values import Basis, LayerShape, LayerSubspace, Subspace
from share_dist.errors import AdapterFormatError, NotOrthonormal, ShapeMismatch
from tests.strategies import orthonormal


def basis(features, columns, num_factors, seed, cut_energy=0.0):
    energies = torch.linspace(2, 1, columns, dtype=torch.float64)
    return Basis(orthonormal(features, columns, seed), energies, num_factors, cut_energy)


@pytest.fixture
def subspace():
    """Different k on the two sides, a tail on one, and bases that two layers share."""
    layer = LayerSubspace(basis(6, 4, 2, 1, cut_energy=0.1 + 0.2), basis(5, 3, 3, 2))
    return Subspace({"encoder.0.query": layer, "z": layer}, version=7, metric="factors")


def rewrite(path, change_tensors=lambda tensors: None, **description):
    """Damage a file: its tensors, or what its header says."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        described = json.loads(file.metadata()["share_dist"])
    change_tensors(tensors)
    save_file(tensors, path, {"share_dist": json.dumps(described | description)})


def test_every_bit_comes_back(subspace, tmp_path):
    """Vectors, energies, k of each side, tail, version and metric survive the disk."""
    save_subspace(tmp_path / "s", subspace)
    loaded = load_subspace(tmp_path / "s")
    assert (loaded.version, loaded.metric) == (7, "factors")
    assert list(loaded.layers) == list(subspace.layers)
    for name, layer in subspace.layers.items():
        for side, expected in layer:
            found = loaded.layers[name][side]
            assert torch.equal(found.vectors, expected.vectors)
            assert torch.equal(found.energies, expected.energies)
            assert found.num_factors == expected.num_factors
            assert found.cut_energy == expected.cut_energy


def test_a_file_of_the_first_release_says_nothing_of_what_was_cut(subspace, tmp_path):
    """It is read as one of which nothing was cut."""
    save_subspace(tmp_path / "s", subspace)
    rewrite(tmp_path / "s", cut_energy={})
    loaded = load_subspace(tmp_path / "s")
    assert {basis.cut_energy for layer in loaded.layers.values() for _, basis in layer} == {0.0}


def test_the_empty_subspace_comes_back(tmp_path):
    """Version 0 has no factors, yet knows its layers."""
    empty = Subspace.empty({"q": LayerShape(6, 4)})
    save_subspace(tmp_path / "s", empty)
    loaded = load_subspace(tmp_path / "s")
    assert (loaded.version, loaded.num_factors, loaded.shapes) == (0, 0, empty.shapes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.pop("layers/z/b/energies"),
            "missing keys are layers/z/b/energies",
        ),
        (lambda tensors: tensors.update(stray=torch.zeros(1)), "unexpected keys are stray"),
    ],
)
def test_missing_and_unexpected_keys_are_named(subspace, tmp_path, change, message):
    """A tensor too few or too many is an error that names it."""
    save_subspace(tmp_path / "s", subspace)
    rewrite(tmp_path / "s", change)
    with pytest.raises(AdapterFormatError, match=message) as caught:
        load_subspace(tmp_path / "s")
    assert caught.value.path == str(tmp_path / "s")


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"format": "share-dist subspace 2"}, "this release reads 'share-dist subspace 1'"),
        ({"metric": "euclid"}, "metric 'euclid'"),
        ({"version": "seven"}, "holds no subspace"),
        ({"num_factors": {"z": [1]}}, "holds no subspace"),
    ],
)
def test_a_description_that_cannot_be_read_is_refused(subspace, tmp_path, description, message):
    """A later format, an unknown metric and damaged fields are refused as what they are."""
    save_subspace(tmp_path / "s", subspace)
    rewrite(tmp_path / "s", **description)
    with pytest.raises(AdapterFormatError, match=message):
        load_subspace(tmp_path / "s")


@pytest.mark.parametrize("metadata", [{}, {"share_dist": "[]"}, {"share_dist": '"text"'}])
def test_other_tensor_files_are_no_subspace(tmp_path, metadata):
    """A safetensors file of anything else is told apart."""
    save_file({"x": torch.zeros(1)}, tmp_path / "x", metadata)
    with pytest.raises(AdapterFormatError, match="holds no subspace"):
        load_subspace(tmp_path / "x")


def test_a_damaged_or_absent_file_is_refused(subspace, tmp_path):
    """A file cut short, or not there, is an error that says which."""
    path = tmp_path / "s"
    save_subspace(path, subspace)
    path.write_bytes(path.read_bytes()[:-8])
    for place in (path, tmp_path / "absent"):
        with pytest.raises(AdapterFormatError, match=f"{place.name} cannot be read"):
            load_subspace(place)


def test_skewed_columns_are_refused(subspace, tmp_path):
    """A basis that lost its orthonormality names its layer and side."""
    save_subspace(tmp_path / "s", subspace)
    rewrite(tmp_path / "s", lambda tensors: tensors["layers/z/a/vectors"].mul_(1.5))
    with pytest.raises(NotOrthonormal, match="z, side a"):
        load_subspace(tmp_path / "s")


def test_more_factors_than_columns_are_refused(subspace, tmp_path):
    """A k that the columns cannot give is refused with both numbers."""
    save_subspace(tmp_path / "s", subspace)
    rewrite(tmp_path / "s", num_factors={"encoder.0.query": [9, 3], "z": [2, 3]})
    with pytest.raises(ShapeMismatch, match=r"4 columns.*num_factors=9"):
        load_subspace(tmp_path / "s")


def test_a_failed_write_leaves_the_old_file(subspace, tmp_path, monkeypatch):
    """When the disk is full the earlier version stays, and nothing else is left behind."""
    save_subspace(tmp_path / "s", subspace)
    before = (tmp_path / "s").read_bytes()

    def fail(_descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_subspace(tmp_path / "s", Subspace.empty({"q": LayerShape(6, 4)}))
    assert (tmp_path / "s").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["s"]

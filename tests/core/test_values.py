"""Values are checked once, where they are made."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch

from share_dist.core.values import (
    Basis,
    Coefficients,
    Fingerprint,
    LayerCoefficients,
    LayerShape,
    LayerSubspace,
    SideUpdate,
    Subspace,
    TaskUpdate,
    check_orthonormal,
)
from share_dist.errors import (
    ConfigError,
    FingerprintMismatch,
    NotFinite,
    NotOrthonormal,
    ShapeMismatch,
    UpdateRefused,
)
from tests.core.adapters import SHAPES, merge_in_sequence, random_factors

FINGERPRINT = Fingerprint("ab" * 32, SHAPES)


def basis(features=4, columns=2, num_factors=2):
    return Basis(
        torch.eye(features)[:, :columns], torch.ones(columns, dtype=torch.float64), num_factors
    )


@pytest.mark.parametrize(
    ("vectors", "energies", "num_factors"),
    [
        (torch.eye(3)[:, :2], torch.ones(3), 2),
        (torch.eye(3)[:, :2], torch.ones(2), 3),
        (torch.zeros(2, 3), torch.ones(3), 2),
        (torch.zeros(3), torch.ones(3), 0),
        (torch.eye(3), torch.ones(3), -1),
    ],
)
def test_a_basis_must_fit_together(vectors, energies, num_factors):
    """Shapes that contradict each other are refused with both of them in the message."""
    with pytest.raises(ShapeMismatch, match="basis"):
        Basis(vectors, energies, num_factors)


def test_without_tail_keeps_the_leading_factors():
    """What is broadcast is the first k columns and their energies."""
    whole = basis(columns=3, num_factors=2)
    served = whole.without_tail()
    assert served.num_columns == served.num_factors == 2
    assert torch.equal(served.vectors, whole.vectors[:, :2])


def test_an_unknown_metric_is_refused():
    """The message names the metrics that exist."""
    with pytest.raises(ConfigError, match="delta, factors"):
        Subspace.__post_init__(SimpleNamespace(layers={}, metric="gamma"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_counted(bad):
    """NaN and infinity are refused with layer, side and how many."""
    tensor = torch.zeros(3, 2)
    tensor[1, 1] = bad
    with pytest.raises(NotFinite, match="q, side b: 1 of 6") as caught:
        Coefficients({"q": LayerCoefficients(torch.zeros(3, 2), tensor)}, version=1)
    assert (caught.value.layer, caught.value.side, caught.value.num_entries) == ("q", "b", 1)


def test_a_side_update_must_fit_together():
    """E, T and tau whose shapes contradict each other are refused with all three."""
    with pytest.raises(ShapeMismatch, match="do not fit together"):
        SideUpdate(torch.zeros(2, 3), torch.zeros(5, 1), torch.zeros(2, 3))
    with pytest.raises(ShapeMismatch, match="needs matrices"):
        SideUpdate(torch.zeros(2), torch.zeros(5, 1), torch.zeros(1, 3))


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_is_a_positive_number(weight):
    """Any other weight is refused by its value."""
    with pytest.raises(UpdateRefused, match="weight"):
        TaskUpdate("u", "t", 0, {}, weight=weight)


@pytest.mark.parametrize("field", ["update_id", "task_id"])
def test_ids_are_not_empty(field):
    """An empty id is refused by its name."""
    names = {"update_id": "u", "task_id": "t"} | {field: ""}
    with pytest.raises(ConfigError, match=field):
        TaskUpdate(names["update_id"], names["task_id"], 0, {})


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (Fingerprint("cd" * 32, SHAPES), "base_model"),
        (Fingerprint("ab" * 32, SHAPES, metric="factors"), "metric"),
        (Fingerprint("ab" * 32, SHAPES, wire_version=2), "wire_version"),
        (Fingerprint("ab" * 32, {**SHAPES, "out": LayerShape(1, 2)}), "layers"),
        (Fingerprint("ab" * 32, {"out": SHAPES["out"]}), "layers"),
    ],
)
def test_fingerprints_name_the_first_field_that_differs(other, field):
    """A mismatch tells the field and both values; equal ones pass and have equal digests."""
    FINGERPRINT.require(Fingerprint("ab" * 32, dict(reversed(SHAPES.items()))))
    with pytest.raises(FingerprintMismatch, match=field) as caught:
        FINGERPRINT.require(other)
    assert caught.value.field == field
    assert other.digest != FINGERPRINT.digest


def test_columns_that_are_not_orthonormal_are_found():
    """The layer, the side and the deviation are named."""
    good = basis()
    bad = Basis(good.vectors * 1.01, good.energies, 2)
    check_orthonormal(Subspace({"q": LayerSubspace(good, good)}))
    with pytest.raises(NotOrthonormal, match="q, side b") as caught:
        check_orthonormal(Subspace({"q": LayerSubspace(good, bad)}))
    assert caught.value.deviation == pytest.approx(0.0201, rel=1e-3)


@pytest.mark.parametrize("size", [1e-30, 1e30, 3e38])
def test_columns_whose_products_overflow_are_not_orthonormal(size):
    """Infinities of both signs in one sum are no number, and no excuse either."""
    vectors = torch.full((1200, 2), size)
    vectors[::2, 1] *= -1
    bad = Basis(vectors, torch.ones(2, dtype=torch.float64), 2)
    with pytest.raises(NotOrthonormal, match="q, side a"):
        check_orthonormal(Subspace({"q": LayerSubspace(bad, bad)}))


def test_values_can_be_copied_and_pickled():
    """A subspace and its tasks travel between processes unchanged."""
    outcome = merge_in_sequence([random_factors(0)], "delta")[-1][2]
    for twin in (copy.deepcopy(outcome), pickle.loads(pickle.dumps(outcome))):
        assert torch.equal(
            twin.subspace.layers["out"].a.vectors, outcome.subspace.layers["out"].a.vectors
        )
        assert twin.report == outcome.report

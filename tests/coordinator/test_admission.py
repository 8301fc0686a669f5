"""Every reason to refuse an update, with its numbers and its remedy."""

import math
from dataclasses import replace

import pytest
import torch

from coordinator.admission import (
    AdmissionLimits,
    Admitted,
    Refused,
    Suspicious,
    admit,
    check_fingerprint,
    check_version,
)
from share_dist.core.merge import merge
from share_dist.core.temporary import factor_of
from share_dist.core.values import LayerUpdate, SideUpdate
from share_dist.errors import (
    BaseVersionTooOld,
    FingerprintMismatch,
    ShapeMismatch,
    UpdateRefused,
    VersionInFuture,
)
from tests.coordinator.support import EMPTY, FINGERPRINT, make_update, with_first_layer

LIMITS = AdmissionLimits()


def refusal(update, base=EMPTY, limits=LIMITS):
    verdict = admit(update, base, base, limits)
    assert isinstance(verdict, Refused), verdict
    return verdict.error


def first_side(update, **fields):
    return replace(update.layers["encoder.query"].a, **fields)


def test_norms_of_an_admitted_update_are_those_of_its_dense_delta():
    """An admitted update comes with ||dW|| of every layer, as the dense product has it."""
    base = merge(EMPTY, {}, [make_update()], 6).subspace
    update = make_update("dogs", base=base)
    verdict = admit(update, base, base, LIMITS)
    assert isinstance(verdict, Admitted)
    for name, layer in update.layers.items():
        a, b = (factor_of(base.layers[name][side].leading, learnt) for side, learnt in layer)
        assert verdict.measures[name].norm == pytest.approx(float((b @ a.mT).norm()), rel=1e-5)


def test_pseudo_ranks_may_differ_between_layers_but_not_between_sides():
    """Both sides of a layer must have the same pseudo-rank."""
    odd = with_first_layer(
        make_update(), a=SideUpdate(torch.zeros(0, 3), torch.ones(12, 1), torch.ones(1, 3))
    )
    error = refusal(odd)
    assert isinstance(error, ShapeMismatch)
    assert "pseudo-rank 3 on side A and 2 on side B" in error.message


@pytest.mark.parametrize(
    ("change", "reason", "sentence"),
    [
        ({"weight": 10.5}, "weight", "has weight 10.5: send at most 10"),
        ({"scale": 0.0}, "norm", "has ||dW|| = 0 in encoder.query, not above 1e-09"),
        ({"scale": 1e-6}, "norm", "nothing was learnt there"),
        ({"scale": 1e6}, "norm", "training has diverged"),
        ({"pseudo_rank": 257, "num_temporary": 1}, "pseudo-rank", "need 1 to 256"),
        ({"num_temporary": 257}, "temporary", "send at most 256"),
    ],
)
def test_out_of_bounds(change, reason, sentence):
    """Each bound refuses with its reason, the update's and the task's id, and what to do."""
    error = refusal(make_update("cats", "u1", **change))
    assert isinstance(error, UpdateRefused)
    assert (error.update_id, error.task_id, error.reason) == ("u1", "cats", reason)
    assert error.message.startswith("update u1 for task 'cats' ")
    assert sentence in error.message


def test_norms_that_overflow_are_refused():
    """Entries that are finite, with a product that is not, are refused as diverged."""
    update = make_update()
    huge = with_first_layer(
        update, a=first_side(update, temporary_coefficients=torch.full((2, 2), 3e38))
    )
    error = refusal(huge)
    assert error.reason == "norm"
    assert math.isfinite(AdmissionLimits().max_norm)


def test_other_dtypes_are_refused():
    """Only float32 is merged; another dtype is named."""
    update = make_update()
    half = {name: tensor.half() for name, tensor in _tensors(update.layers["encoder.query"].a)}
    error = refusal(with_first_layer(update, a=SideUpdate(**half)))
    assert error.reason == "dtype"
    assert "torch.float16" in error.message


def _tensors(side):
    return [
        (name, getattr(side, name))
        for name in ("coefficients", "temporary", "temporary_coefficients")
    ]


def test_rows_must_be_those_of_the_base_version():
    """Coefficients that were made for another k are refused with both numbers."""
    base = merge(EMPTY, {}, [make_update()], 6).subspace
    error = refusal(make_update("dogs"), base)
    assert isinstance(error, ShapeMismatch)
    assert (error.layer, error.side) == ("encoder.query", "a")
    assert "coefficients of 0 rows" in error.message


def test_features_must_be_those_of_the_layer():
    """Temporary factors of another width are refused."""
    update = make_update()
    wide = with_first_layer(update, a=first_side(update, temporary=torch.ones(13, 2)))
    assert "temporary factors of 13 features" in refusal(wide).message


@pytest.mark.parametrize("extra", [True, False])
def test_layers_must_be_those_of_the_fingerprint(extra):
    """A layer too many and a layer too few are both refused by name."""
    update = make_update()
    layers = dict(update.layers)
    if extra:
        layers["lm_head"] = LayerUpdate(layers["encoder.query"].a, layers["encoder.query"].b)
    else:
        del layers["encoder.value"]
    error = refusal(replace(update, layers=layers))
    assert isinstance(error, ShapeMismatch)
    assert error.layer == ("lm_head" if extra else "encoder.value")


def test_versions_that_cannot_be_merged():
    """An unknown and a dropped base version are refused as two different errors."""
    name = "update 7f3a for task 'cats'"
    assert check_version(name, 12, 0, 12, is_kept=True) is None
    future = check_version(name, 12, 0, 11, is_kept=False)
    assert isinstance(future.error, VersionInFuture)
    assert future.error.current_version == 11
    old = check_version(name, 12, 15, 18, is_kept=False)
    assert isinstance(old.error, BaseVersionTooOld)
    assert old.error.message == (
        "update 7f3a for task 'cats' was trained on version 12, the oldest that can still be "
        "merged is 15, now is 18: pull version 18, rebase and push again"
    )


def test_fingerprints_that_cannot_be_merged():
    """Another digest, and any digest before the store is bound, are refused."""
    assert check_fingerprint(FINGERPRINT.digest, FINGERPRINT) is None
    for digest, bound in (("f" * 64, FINGERPRINT), (FINGERPRINT.digest, None), ("", None)):
        verdict = check_fingerprint(digest, bound)
        assert isinstance(verdict.error, FingerprintMismatch)
        assert verdict.error.found == digest


def suspicion(update, base, **limits):
    verdict = admit(update, base, base, replace(LIMITS, **limits))
    assert isinstance(verdict, Suspicious), verdict
    return verdict.reason


def test_soft_bounds_make_suspicious_and_say_the_numbers():
    """Norm, spectrum and energy outside the bases each have a bound; beyond it an operator looks."""
    base = merge(EMPTY, {}, [make_update()], 2).subspace
    update = make_update("dogs", base=base)
    assert isinstance(admit(update, base, base, LIMITS), Admitted)
    assert "quarantine_norm is 0.5" in suspicion(update, base, quarantine_norm=0.5)
    assert "quarantine_condition is 1.01" in suspicion(update, base, quarantine_condition=1.01)
    assert "quarantine_energy_outside is 0.01" in suspicion(
        update, base, quarantine_energy_outside=0.01
    )


def test_what_is_refused_is_not_merely_suspicious():
    """A hard limit comes before every soft one."""
    limits = replace(LIMITS, quarantine_norm=1.0)
    assert refusal(make_update(scale=1e6), limits=limits).reason == "norm"


def test_the_first_update_of_all_is_outside_of_nothing():
    """In an empty subspace no update is suspected for its energy outside of it."""
    limits = replace(LIMITS, quarantine_energy_outside=0.1)
    assert isinstance(admit(make_update(), EMPTY, EMPTY, limits), Admitted)

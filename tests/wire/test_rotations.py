"""Steps between versions to payload bytes and back."""

import hashlib
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from share_dist.core.merge import merge
from share_dist.core.steps import advance, step_of
from share_dist.core.subspace import update_from_factors
from share_dist.core.values import LayerFactors, LayerShape, Subspace
from share_dist.errors import (
    MalformedMessage,
    MessageTooLarge,
    NotFinite,
    ShapeMismatch,
    ShareError,
    VersionMismatch,
)
from share_dist.wire.rotations import (
    MAX_STEPS,
    anchor_chain,
    next_chain,
    rotation_from_bytes,
    rotation_to_bytes,
    steps_from_bytes,
    steps_to_bytes,
)
from share_dist.wire.tensors import payload_sizes, tensors_from_bytes, tensors_to_bytes
from tests.equality import first_difference
from tests.strategies import matrix

Q = "encoder.0.query"
D, N, P = 40, 30, 3


def lineage(length=4, num_factors=5, oversample=2):
    """Versions with one new task each, as (before, outcome)."""
    subspace, tasks, history = Subspace.empty({Q: LayerShape(D, N)}), {}, []
    for index in range(length):
        factors = {Q: LayerFactors(matrix(D, P, 2 * index), matrix(N, P, 2 * index + 1))}
        update = update_from_factors(subspace, factors, f"t{index}")
        outcome = merge(subspace, tasks, [update], num_factors, oversample=oversample)
        history.append((subspace, outcome))
        subspace, tasks = outcome.subspace, outcome.tasks
    return history


HISTORY = lineage()
PAYLOADS = [
    rotation_to_bytes(outcome.rotation, before, outcome.subspace) for before, outcome in HISTORY
]
BEFORE, LAST = HISTORY[-1]


def test_a_step_comes_back():
    """What was written is read to the bit, with and without a tail and cut energy."""
    for (before, outcome), payload in zip(HISTORY, PAYLOADS, strict=True):
        step = step_of(outcome.rotation, before, outcome.subspace)
        assert (
            first_difference(rotation_from_bytes(payload, version=outcome.subspace.version), step)
            is None
        )


def test_steps_lead_from_the_empty_subspace_to_the_current_one():
    """Payloads read and followed give the coordinator's bases."""
    steps = [rotation_from_bytes(payload, version=v) for v, payload in enumerate(PAYLOADS, 1)]
    held = advance(Subspace.empty({Q: LayerShape(D, N)}), steps)
    for side, basis in LAST.subspace.layers[Q]:
        assert torch.allclose(held.layers[Q][side].vectors, basis.vectors, atol=1e-5)


def test_tensors_of_a_step_are_named_as_documented():
    """The names and shapes are those of the wire specification."""
    m, q, k, m_new = 7, P, 5, 7
    shapes = {
        name: tuple(tensor.shape) for name, tensor in tensors_from_bytes(PAYLOADS[-1]).items()
    }
    assert shapes == {
        f"{Q}.{side}.{kind}": shape
        for side, d in (("a", D), ("b", N))
        for kind, shape in {
            "rotation": (m + q, k),
            "rotation_tail": (m + q, m_new - k),
            "directions": (d, q),
            "energies": (m_new,),
            "cut_energy": (1,),
            "probes": (m_new, 2),
        }.items()
    }


def test_the_bytes_of_a_step_are_its_formula():
    """``4 ((m + q) m_new + d q + 2 m_new) + 8 (m_new + 1)`` per side: no term holds ``d m``."""
    m, q, m_new = 7, P, 7
    expected = sum(4 * ((m + q) * m_new + d * q + 2 * m_new) + 8 * (m_new + 1) for d in (D, N))
    assert payload_sizes(PAYLOADS[-1]).data_bytes == expected


def test_a_chain_is_what_the_specification_says():
    """It begins with the anchor's digest, and each step's digest is put behind it and hashed."""
    anchor = hashlib.sha256(b"anchor").digest()
    assert anchor_chain(b"anchor") == anchor
    step = hashlib.sha256(PAYLOADS[0]).digest()
    assert next_chain(anchor, PAYLOADS[0]) == hashlib.sha256(anchor + step).digest()


def changed(**tensors):
    """The last step's payload with tensors replaced, added, or (None) left out."""
    named = tensors_from_bytes(PAYLOADS[-1]) | {f"{Q}.a.{kind}": t for kind, t in tensors.items()}
    return tensors_to_bytes({name: tensor for name, tensor in named.items() if tensor is not None})


@pytest.mark.parametrize(
    ("tensors", "error"),
    [
        ({"rotation": None}, MalformedMessage),
        ({"directions": None}, MalformedMessage),
        ({"probes": None}, MalformedMessage),
        ({"energies": None}, MalformedMessage),
        ({"samples": torch.ones(3)}, MalformedMessage),
        ({"rotation": torch.ones(10)}, ShapeMismatch),
        ({"rotation_tail": torch.ones(9, 2)}, ShapeMismatch),
        ({"rotation_tail": None}, ShapeMismatch),
        ({"directions": torch.ones(D, P, 1)}, ShapeMismatch),
        ({"directions": torch.ones(D, P + 1)}, ShapeMismatch),
        ({"directions": torch.ones(D + 1, P)}, ShapeMismatch),
        ({"probes": torch.ones(7, 1)}, ShapeMismatch),
        ({"probes": torch.ones(7, 2)}, VersionMismatch),
        ({"energies": torch.ones(7)}, MalformedMessage),
        ({"energies": torch.ones(6).double()}, ShapeMismatch),
        ({"energies": torch.full((7,), torch.nan).double()}, NotFinite),
        ({"energies": -torch.ones(7).double()}, MalformedMessage),
        ({"cut_energy": torch.ones(2).double()}, ShapeMismatch),
        ({"cut_energy": -torch.ones(1).double()}, MalformedMessage),
        ({"cut_energy": torch.full((1,), torch.inf).double()}, NotFinite),
        ({"cut_energy": torch.ones(1)}, MalformedMessage),
        ({"rotation": torch.full((10, 5), torch.nan)}, NotFinite),
        ({"directions": torch.full((D, P), torch.inf)}, NotFinite),
    ],
)
def test_what_is_no_step_is_refused(tensors, error):
    """Every way in which a step can be wrong has its error, before the bases are replaced."""
    with pytest.raises(error):
        advance(BEFORE, [rotation_from_bytes(changed(**tensors), version=4)])


def test_a_step_of_another_version_is_refused():
    """The same bytes announced as another version's fail: probes are drawn by version."""
    first = rotation_from_bytes(PAYLOADS[0], version=1)
    assert advance(Subspace.empty({Q: LayerShape(D, N)}), [first]).version == 1
    empty = Subspace(Subspace.empty({Q: LayerShape(D, N)}).layers, version=6)
    with pytest.raises(VersionMismatch, match="away from where it led the coordinator"):
        advance(empty, [rotation_from_bytes(PAYLOADS[0], version=7)])


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_many_steps_come_back_from_one_payload(payloads):
    """Whatever the steps are, they are parted as they were put together."""
    assert steps_from_bytes(steps_to_bytes(payloads)) == payloads


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", MalformedMessage),
        (b"\x01", MalformedMessage),
        ((1).to_bytes(8, "little"), MalformedMessage),
        ((1).to_bytes(8, "little") + (3).to_bytes(8, "little") + b"ab", MalformedMessage),
        ((1).to_bytes(8, "little") + (1).to_bytes(8, "little") + b"ab", MalformedMessage),
        ((0).to_bytes(8, "little") + b"x", MalformedMessage),
        ((1).to_bytes(8, "little") + (2**64 - 1).to_bytes(8, "little"), MalformedMessage),
        ((2**64 - 1).to_bytes(8, "little"), MessageTooLarge),
        ((MAX_STEPS + 1).to_bytes(8, "little") + bytes(8 * (MAX_STEPS + 1)), MessageTooLarge),
    ],
)
def test_what_are_no_steps_is_refused(data, error):
    """Counts and lengths cost nothing by being announced."""
    with pytest.raises(error):
        steps_from_bytes(data)


def test_too_many_steps_are_not_written():
    """The writer keeps to what a reader takes."""
    with pytest.raises(MessageTooLarge):
        steps_to_bytes([b""] * (MAX_STEPS + 1))


@given(st.binary(max_size=60), st.integers(0, len(PAYLOADS[-1])), st.integers(0, 40))
@settings(deadline=None, max_examples=200)
def test_damaged_steps_raise_errors_of_ours_only(noise, at, length):
    """Whatever arrives is either followed or refused with a ShareError."""
    for data in (noise, PAYLOADS[-1][:at] + noise + PAYLOADS[-1][at + length :]):
        with suppress(ShareError):
            steps_from_bytes(data)
        with suppress(ShareError):
            advance(BEFORE, [rotation_from_bytes(data, version=4)])

"""Bases and coefficients in fewer bits."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from share_dist.core.values import (
    Basis,
    Coefficients,
    Head,
    LayerCoefficients,
    LayerSubspace,
    Subspace,
    check_orthonormal,
)
from share_dist.errors import (
    MalformedMessage,
    NotFinite,
    NotOrthonormal,
    ShapeMismatch,
    ShareError,
)
from share_dist.wire.precision import (
    subspace_from_precision,
    subspace_to_precision,
    task_from_precision,
    task_to_precision,
)
from share_dist.wire.records import PRECISIONS
from share_dist.wire.tensors import (
    payload_sizes,
    tensors_from_bytes,
    tensors_to_bytes,
)
from tests import strategies
from tests.equality import first_difference
from tests.strategies import matrix, orthonormal

Q = "encoder.0.query"
SHORT = ("bfloat16", "int8", "int4")
LOSS = {"float32": 0.0, "bfloat16": 0.003, "int8": 0.02, "int4": 0.2}
"""Most that a random orthonormal basis loses."""

everywhere = pytest.mark.parametrize("precision", PRECISIONS)
shortened = pytest.mark.parametrize("precision", SHORT)


def subspace(features=96, columns=12, num_factors=8):
    """One layer with a tail."""
    energies = torch.arange(columns, 0, -1, dtype=torch.float64)
    bases = (Basis(orthonormal(features, columns, s), energies, num_factors, 0.5) for s in (0, 1))
    return Subspace({Q: LayerSubspace(*bases)}, version=3)


def read(payload: bytes, precision: Any) -> Subspace:
    return subspace_from_precision(payload, precision=precision, version=3, metric="delta")


def relative(found, exact):
    return float((found.double() - exact.double()).norm() / exact.double().norm())


@everywhere
def test_the_loss_reported_is_the_loss_measured(precision):
    """A receiver's bases are orthonormal, and as far from the sender's as was said."""
    sent = subspace()
    short = subspace_to_precision(sent, precision)
    back = read(short.payload, precision)
    check_orthonormal(back)
    errors = [
        relative(back.layers[Q][side].vectors, basis.vectors) for side, basis in sent.layers[Q]
    ]
    assert short.loss == pytest.approx(max(errors), rel=1e-9, abs=1e-12)
    assert short.loss <= LOSS[precision]
    assert (short.loss == 0) == (precision == "float32")
    for side, basis in sent.layers[Q]:
        there = back.layers[Q][side]
        assert there.vectors.dtype == torch.float32
        assert torch.equal(there.energies, basis.energies)
        assert (there.num_factors, there.cut_energy) == (basis.num_factors, basis.cut_energy)
        identity = torch.eye(basis.num_columns)
        assert (there.vectors.mT @ there.vectors - identity).abs().max() < 1e-6


@everywhere
@given(value=strategies.subspaces())
@settings(deadline=None, max_examples=30)
def test_any_subspace_comes_back_near(precision, value):
    """Empty bases and single features too; energies and accounts to the bit."""
    short = subspace_to_precision(value, precision)
    back = subspace_from_precision(
        short.payload, precision=precision, version=value.version, metric=value.metric
    )
    assert back.shapes == value.shapes
    for name, layer in value.layers.items():
        for side, basis in layer:
            there = back.layers[name][side]
            assert torch.equal(there.energies, basis.energies)
            assert (there.num_factors, there.cut_energy) == (basis.num_factors, basis.cut_energy)
            assert torch.allclose(there.vectors, basis.vectors, atol=max(0.02, LOSS[precision]))
    assert 0 <= short.loss <= LOSS[precision]


@everywhere
@given(value=strategies.coefficients(), head=strategies.heads())
@settings(deadline=None, max_examples=30)
def test_any_task_comes_back_near_with_its_head_as_it_is(precision, value, head):
    """Coefficients lose what is said, heads nothing."""
    short = task_to_precision(value, head, precision)
    back, back_head = task_from_precision(
        short.payload,
        precision=precision,
        version=value.version,
        head_info=replace(head, tensors={}),
    )
    assert first_difference(back_head, head) is None
    errors = [
        relative(back.layers[name][side], tensor) if bool((tensor != 0).any()) else 0.0
        for name, layer in value.layers.items()
        for side, tensor in layer
    ]
    assert short.loss == pytest.approx(max(errors, default=0.0), abs=1e-12)
    assert short.loss <= {"float32": 0.0, "int4": 0.15}.get(precision, 0.005)


@pytest.mark.parametrize(("precision", "loss"), [("int8", 0.02), ("int4", 0.15)])
def test_columns_of_any_size_are_kept_in_integers(precision, loss):
    """Each column has its own scale: one of 1e-30 is kept as well as one of 1e30, and zeros are zeros."""
    E = matrix(50, 3, 0) * torch.tensor([1e30, 1e-30, 0.0])
    coefficients = Coefficients({Q: LayerCoefficients(E, E)}, 1)
    short = task_to_precision(coefficients, Head(), precision)
    back, _ = task_from_precision(short.payload, precision=precision, version=1, head_info=Head())
    for column in range(2):
        assert relative(back.layers[Q].a[:, column], E[:, column]) < loss
    assert not back.layers[Q].a[:, 2].any()


def test_the_bytes_are_those_of_the_precision():
    """bfloat16 halves a basis; int8 with scales and energies is less than 0.27 of it, int4 less than 0.14."""
    sent = subspace(768, 48, 32).without_tail()
    sizes = {
        precision: payload_sizes(subspace_to_precision(sent, precision).payload)
        for precision in PRECISIONS
    }
    vectors, energies = 2 * 768 * 32, 2 * 8 * 32
    assert sizes["float32"].data_bytes == 4 * vectors + energies
    assert sizes["bfloat16"].data_bytes == 2 * vectors + energies
    assert sizes["int8"].data_bytes == vectors + 2 * 4 * 32 + energies
    assert sizes["int8"].data_bytes < 0.27 * sizes["float32"].data_bytes
    assert sizes["int4"].data_bytes == vectors // 2 + 2 * 4 * 32 + energies
    assert sizes["int4"].data_bytes < 0.14 * sizes["float32"].data_bytes


def test_tensors_are_named_as_documented():
    """The names and dtypes are those of the wire specification."""
    tensors = tensors_from_bytes(
        subspace_to_precision(subspace(), "int8").payload, may_have_int8=True
    )
    assert {name.removeprefix(f"{Q}.a."): tensor.dtype for name, tensor in tensors.items() if ".a." in name} == {
        "vectors": torch.int8,
        "vectors_scale": torch.float32,
        "tail": torch.int8,
        "tail_scale": torch.float32,
        "energies": torch.float64,
        "cut_energy": torch.float64,
    }  # fmt: skip


def test_scales_and_rounding_are_those_of_the_specification():
    """The largest entry of a column is 127 steps, and a half goes to the even neighbour."""
    E = torch.tensor([[127.0, -12.7], [0.5, 12.7], [1.5, 0.0], [-2.5, 6.4]])
    coefficients = Coefficients({Q: LayerCoefficients(E, E)}, 1)
    payload = task_to_precision(coefficients, Head(), "int8").payload
    tensors = tensors_from_bytes(payload, may_have_int8=True)
    assert tensors[f"{Q}.a.coefficients"].tolist() == [[127, -127], [0, 127], [2, 0], [-2, 64]]
    assert tensors[f"{Q}.a.coefficients_scale"].tolist() == pytest.approx([1.0, 0.1])


def test_half_bytes_are_those_of_the_specification():
    """Column 0 in the lower half, column 1 in the upper one, two's complement; zeros beyond an odd number."""
    E = torch.tensor([[7.0, -7.0, 7.0], [-1.0, 3.0, -7.0]])
    coefficients = Coefficients({Q: LayerCoefficients(E, E)}, 1)
    payload = task_to_precision(coefficients, Head(), "int4").payload
    tensors = tensors_from_bytes(payload, may_have_int8=True)
    packed = tensors[f"{Q}.a.coefficients"]
    assert packed.view(torch.uint8).tolist() == [[0x97, 0x07], [0x3F, 0x09]]
    assert tensors[f"{Q}.a.coefficients_scale"].tolist() == [1.0, 1.0, 1.0]
    back, _ = task_from_precision(payload, precision="int4", version=1, head_info=Head())
    assert torch.equal(back.layers[Q].a, E)


def test_int4_clips_where_that_loses_less():
    """One entry in many that is far larger does not make all others coarse."""
    E = matrix(2000, 1, 3)
    E[0] = 2 * E.abs().max()
    coefficients = Coefficients({Q: LayerCoefficients(E, E)}, 1)
    payload = task_to_precision(coefficients, Head(), "int4").payload
    scale = tensors_from_bytes(payload, may_have_int8=True)[f"{Q}.a.coefficients_scale"]
    assert float(scale) < 0.75 * float(E.abs().max()) / 7
    back, _ = task_from_precision(payload, precision="int4", version=1, head_info=Head())
    plain = (E / (E.abs().max() / 7)).round() * (E.abs().max() / 7)
    assert relative(back.layers[Q].a, E) < 0.9 * relative(plain, E)


def changed(precision: Any, **tensors: torch.Tensor | None) -> bytes:
    """The same payload with tensors of side a replaced, added, or (None) left out."""
    data = subspace_to_precision(subspace(), precision).payload
    named = tensors_from_bytes(data, may_have_int8=True)
    named |= {f"{Q}.a.{kind}": tensor for kind, tensor in tensors.items()}
    return tensors_to_bytes(
        {name: tensor for name, tensor in named.items() if tensor is not None}, may_have_int8=True
    )


INT8 = torch.ones(96, 8, dtype=torch.int8)


@pytest.mark.parametrize(
    ("tensors", "error"),
    [
        ({"vectors": None}, MalformedMessage),
        ({"vectors": torch.ones(96, 8)}, MalformedMessage),
        ({"vectors": torch.ones(96, 8).bfloat16()}, MalformedMessage),
        ({"vectors": torch.ones(96, dtype=torch.int8)}, MalformedMessage),
        ({"vectors": INT8[:, :7]}, MalformedMessage),
        ({"vectors": INT8[:90]}, ShapeMismatch),
        ({"vectors": INT8}, NotOrthonormal),
        ({"vectors": INT8 * 0}, NotOrthonormal),
        ({"vectors_scale": None}, MalformedMessage),
        ({"vectors_scale": torch.ones(7)}, MalformedMessage),
        ({"vectors_scale": torch.ones(8).double()}, MalformedMessage),
        ({"vectors_scale": torch.full((8,), torch.nan)}, MalformedMessage),
        ({"vectors_scale": torch.full((8,), torch.inf)}, MalformedMessage),
        ({"vectors_scale": -torch.ones(8)}, MalformedMessage),
        ({"vectors_scale": torch.zeros(8)}, NotOrthonormal),
        ({"vectors_scale": torch.full((8,), 3e38)}, NotFinite),
        ({"tail_scale": None}, MalformedMessage),
        ({"tail": None}, MalformedMessage),
        ({"energies": torch.ones(12, dtype=torch.int8)}, MalformedMessage),
        ({"samples": torch.ones(12, dtype=torch.int8)}, MalformedMessage),
        ({"energies_scale": torch.ones(12)}, MalformedMessage),
    ],
)
def test_what_is_no_int8_subspace_is_refused(tensors, error):
    """Every way in which a short payload can be wrong has its error."""
    with pytest.raises(error):
        read(changed("int8", **tensors), "int8")


INT4 = torch.full((96, 4), 0x11, dtype=torch.int8)


@pytest.mark.parametrize(
    ("tensors", "error"),
    [
        ({"vectors": None}, MalformedMessage),
        ({"vectors": torch.ones(96, 4)}, MalformedMessage),
        ({"vectors": INT8}, MalformedMessage),
        ({"vectors": INT4[:, :3]}, MalformedMessage),
        ({"vectors": INT4[:90]}, ShapeMismatch),
        ({"vectors": INT4}, NotOrthonormal),
        ({"vectors_scale": None}, MalformedMessage),
        ({"vectors_scale": torch.ones(9)}, MalformedMessage),
        ({"vectors_scale": torch.ones(6)}, MalformedMessage),
        (
            {"vectors_scale": torch.ones(7)},
            MalformedMessage,
        ),  # then there is something beyond the last
        ({"vectors_scale": torch.ones(8, 1)}, MalformedMessage),
        ({"vectors_scale": torch.full((8,), torch.nan)}, MalformedMessage),
        ({"vectors_scale": torch.zeros(8)}, NotOrthonormal),
        ({"vectors_scale": torch.full((8,), 3e38)}, NotFinite),
        ({"tail": None}, MalformedMessage),
    ],
)
def test_what_is_no_int4_subspace_is_refused(tensors, error):
    """Every way in which half bytes can be wrong has its error."""
    with pytest.raises(error):
        read(changed("int4", **tensors), "int4")


@pytest.mark.parametrize(
    ("tensors", "error"),
    [
        ({"vectors": torch.ones(96, 8)}, MalformedMessage),
        ({"vectors": INT8}, MalformedMessage),
        ({"vectors": torch.ones(96, 8).bfloat16()}, NotOrthonormal),
        ({"vectors": torch.full((96, 8), torch.nan).bfloat16()}, NotFinite),
        ({"vectors_scale": torch.ones(8)}, MalformedMessage),
    ],
)
def test_what_is_no_bfloat16_subspace_is_refused(tensors, error):
    """Float32 and int8 are not taken where bfloat16 was asked for."""
    with pytest.raises(error):
        read(changed("bfloat16", **tensors), "bfloat16")


@pytest.mark.parametrize("asked", PRECISIONS)
@pytest.mark.parametrize("sent", PRECISIONS)
def test_one_precision_is_not_taken_for_another(asked, sent):
    """A payload in another precision than its header says is refused, except that rounded bases never pass as exact."""
    payload = subspace_to_precision(subspace(), sent).payload
    if asked == sent:
        assert read(payload, asked).version == 3
        return
    with pytest.raises((MalformedMessage, NotOrthonormal)):
        read(payload, asked)


def test_a_head_is_never_int8():
    """Int8 stands for coefficients only; a head that comes so is refused."""
    data = tensors_to_bytes(
        {"head.coefficients": torch.ones(2, 2, dtype=torch.int8)}, may_have_int8=True
    )
    with pytest.raises(MalformedMessage, match="which only vectors, tail, coefficients may be"):
        task_from_precision(data, precision="int8", version=1, head_info=Head())


def test_a_giant_is_refused_before_it_is_made():
    """Dimensions of an int8 tensor must fill their bytes, as those of every other."""
    header = b'{"q.a.vectors":{"dtype":"I8","shape":[1099511627776,2],"data_offsets":[0,4]}}'
    data = len(header).to_bytes(8, "little") + header + bytes(4)
    with pytest.raises(MalformedMessage):
        read(data, "int8")


any_tensors = st.builds(
    lambda shape, dtype, value: torch.full(shape, value).to(dtype),
    st.lists(st.integers(0, 2), max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int8]),
    st.sampled_from([0.0, 1.0, -1.0]),
)
names = st.sampled_from(
    [f"{layer}.{side}.{kind}{scale}" for layer in (Q, "head") for side in "ab"
     for kind in ("vectors", "tail", "energies", "coefficients") for scale in ("", "_scale")]
)  # fmt: skip


@given(st.dictionaries(names, any_tensors, max_size=8), st.sampled_from(SHORT))
@settings(deadline=None, max_examples=200)
def test_any_well_formed_file_is_a_value_or_an_error_of_ours(named, precision):
    """No decoder raises anything but a ShareError."""
    data = tensors_to_bytes(named, may_have_int8=True)
    with suppress(ShareError):
        read(data, precision)
    with suppress(ShareError):
        task_from_precision(data, precision=precision, version=1, head_info=Head())

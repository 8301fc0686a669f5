"""Values with tensors to payload bytes and back."""

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from share_dist.core.values import (
    Basis,
    Coefficients,
    Head,
    LayerCoefficients,
    LayerShape,
    LayerSubspace,
    LayerUpdate,
    MergedLayer,
    MergedTask,
    Pair,
    SideUpdate,
    Subspace,
    TaskUpdate,
)
from share_dist.errors import (
    MalformedMessage,
    NotFinite,
    NotOrthonormal,
    ShapeMismatch,
    ShareError,
)
from share_dist.wire.codec import (
    merged_tasks_from_bytes,
    merged_tasks_to_bytes,
    subspace_from_bytes,
    subspace_to_bytes,
    task_from_bytes,
    task_to_bytes,
    update_from_record,
    update_tensors_from_bytes,
    update_to_bytes,
    update_to_parts,
    update_to_record,
)
from share_dist.wire.tensors import payload_sizes, tensors_from_bytes, tensors_to_bytes
from tests import strategies
from tests.equality import first_difference, same

Q = "encoder.0.query"


def subspace(num_columns: int = 3, num_factors: int = 2) -> Subspace:
    def basis(features: int) -> Basis:
        return Basis(
            strategies.orthonormal(features, num_columns, seed=features),
            torch.arange(num_columns, 0, -1, dtype=torch.float64),
            num_factors,
        )

    return Subspace({Q: LayerSubspace(basis(6), basis(4))}, version=3)


def side_update(features: int) -> SideUpdate:
    return SideUpdate(torch.ones(2, 3), torch.ones(features, 1), torch.ones(1, 3))


def update() -> TaskUpdate:
    return TaskUpdate(
        update_id="u1",
        task_id="movies",
        base_version=3,
        layers={Q: LayerUpdate(side_update(6), side_update(4))},
        head=Head({"weight": torch.ones(2, 5)}, "text-classification", 2),
        scores={"accuracy": 0.5},
    )


def read_subspace(data: bytes, **options: Any) -> Subspace:
    return subspace_from_bytes(data, version=3, metric="delta", **options)


@given(strategies.subspaces())
@settings(deadline=None, max_examples=50)
def test_a_subspace_comes_back(value):
    """Vectors, energies, tail and num_factors of every side come back to the bit."""
    data = subspace_to_bytes(value)
    back = subspace_from_bytes(data, version=value.version, metric=value.metric)

    assert first_difference(back, value) is None


@given(strategies.subspaces())
@settings(deadline=None, max_examples=50)
def test_what_is_sent_has_no_tail(value):
    """Without its tail, a subspace comes back without its tail."""
    sent = value.without_tail()
    back = subspace_from_bytes(subspace_to_bytes(sent), version=value.version, metric=value.metric)

    assert first_difference(back, sent) is None


@given(strategies.updates())
@settings(deadline=None, max_examples=50)
def test_an_update_comes_back_from_its_record(value):
    """Metadata that went through JSON, and a payload, are the whole update."""
    metadata, payload = update_to_record(value)
    back = update_from_record(json.loads(json.dumps(metadata)), payload)

    assert first_difference(back, value) is None


@given(strategies.coefficients(), strategies.heads())
@settings(deadline=None, max_examples=50)
def test_a_task_comes_back(coefficients, head):
    """Coefficients and head come back to the bit."""
    head_info = replace(head, tensors={})
    back = task_from_bytes(
        task_to_bytes(coefficients, head), version=coefficients.version, head_info=head_info
    )

    assert first_difference(back, (coefficients, head)) is None


@given(strategies.merged_tasks())
@settings(deadline=None, max_examples=50)
def test_merged_tasks_come_back(tasks):
    """Coefficients, grams and weights of every task come back, whatever characters its id has."""
    version = next((task.version for task in tasks.values()), 0)
    back = merged_tasks_from_bytes(merged_tasks_to_bytes(tasks), version=version)

    assert first_difference(dict(back), tasks) is None


def test_tasks_are_read_as_the_table_that_a_merge_needs():
    """Tasks that were stored as one group are read as one, and no number of theirs lies in memory twice."""
    (group,) = merged_tasks_from_bytes(tensors_to_bytes(stacked_tasks(), MEMBERS), version=1).groups
    blocks = group.layers[Q]

    assert set(group.task_ids) == {"books", "movies"}
    for _, block in blocks:
        assert block.rows.untyped_storage().nbytes() == block.rows.nbytes


def test_tensors_of_a_payload_are_named_as_documented():
    """The names are those of the wire specification."""
    sent = subspace()

    assert set(tensors_from_bytes(subspace_to_bytes(sent))) == {
        f"{Q}.{side}.{kind}" for side in "ab" for kind in ("vectors", "energies", "tail")
    }
    assert set(tensors_from_bytes(update_to_bytes(update()))) == {"head.weight"} | {
        f"{Q}.{side}.{kind}"
        for side in "ab"
        for kind in ("coefficients", "temporary", "temporary_coefficients")
    }


def test_an_update_in_parts_is_its_own_memory():
    """What is sent is what is stored, to the byte, and no tensor was copied for it."""
    sent = update()
    parts = update_to_parts(sent)
    assert b"".join(parts) == update_to_bytes(sent)
    addresses = {np.frombuffer(part, np.uint8).ctypes.data for part in parts if len(part)}
    assert sent.layers[Q].a.temporary.data_ptr() in addresses


def test_the_bytes_of_an_update_are_its_entries_and_a_header():
    """``4 (k p + d f + f p)`` per side, the head, and nothing else but names and shapes."""
    entries = sum(2 * 3 + features * 1 + 1 * 3 for features in (6, 4)) + 2 * 5

    assert payload_sizes(update_to_bytes(update())).data_bytes == 4 * entries


def changed(data: bytes, **tensors: torch.Tensor | None) -> bytes:
    """The same payload with tensors replaced, added, or (None) left out."""
    named = tensors_from_bytes(data) | {name: t for name, t in tensors.items() if t is not None}
    for name, tensor in tensors.items():
        if tensor is None:
            del named[name]
    return tensors_to_bytes(named)


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ({f"{Q}.a.vectors": None}, MalformedMessage, "lacks encoder.0.query.a.vectors"),
        ({f"{Q}.b.energies": None}, MalformedMessage, "lacks encoder.0.query.b.energies"),
        ({f"{Q}.c.vectors": torch.ones(1, 1)}, MalformedMessage, "c.vectors' is none that belongs"),
        ({f"{Q}.a.note": torch.ones(1)}, MalformedMessage, "a.note' is none that belongs"),
        ({"a.vectors": torch.ones(1, 1)}, MalformedMessage, "'a.vectors' is none that belongs"),
        ({"head.a.vectors": torch.ones(1, 1)}, MalformedMessage, "under the name 'head'"),
        ({f"{Q}.a.vectors": torch.ones(6)}, ShapeMismatch, r"shapes \(6,\), \(6, 1\)"),
        ({f"{Q}.a.tail": torch.ones(5, 1)}, ShapeMismatch, r"\(6, 2\), \(5, 1\)"),
        ({f"{Q}.a.tail": torch.ones(6)}, ShapeMismatch, r"\(6, 2\), \(6,\)"),
        ({f"{Q}.a.tail": None}, ShapeMismatch, r"energies \(m,\)"),
        ({f"{Q}.a.energies": torch.ones(3)}, MalformedMessage, "energies need to be F64"),
        ({f"{Q}.a.energies": -torch.ones(3).double()}, MalformedMessage, "not negative"),
        ({f"{Q}.a.energies": torch.full((3,), torch.nan).double()}, NotFinite, "3 of 3 entries"),
        (
            {f"{Q}.a.cut_energy": torch.ones(2).double()},
            ShapeMismatch,
            r"\(2,\) needs to be \(1,\)",
        ),
        ({f"{Q}.a.cut_energy": torch.ones(1)}, MalformedMessage, "cut_energy need to be F64"),
        ({f"{Q}.a.cut_energy": -torch.ones(1).double()}, MalformedMessage, "not negative"),
        ({f"{Q}.a.cut_energy": torch.full((1,), torch.inf).double()}, NotFinite, "1 of 1"),
        ({f"{Q}.a.vectors": torch.ones(6, 2)}, NotOrthonormal, "columns deviate"),
        ({f"{Q}.a.vectors": torch.full((6, 2), torch.inf)}, NotFinite, "12 of 18 entries"),
    ],
)
def test_what_is_no_subspace_is_refused(tensors, error, message):
    """Every way in which bases can be wrong has its error, with the layer's name."""
    with pytest.raises(error, match=message):
        read_subspace(changed(subspace_to_bytes(subspace()), **tensors))


def test_the_check_of_columns_can_be_left_out():
    """Trusted bytes are not measured."""
    data = changed(subspace_to_bytes(subspace()), **{f"{Q}.a.vectors": torch.ones(6, 2)})

    assert read_subspace(data, check=False).num_factors == 2


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ({f"{Q}.a.temporary": None}, MalformedMessage, "lacks encoder.0.query.a.temporary"),
        ({f"{Q}.a.samples": torch.ones(9)}, MalformedMessage, "a.samples' is none that belongs"),
        ({"samples": torch.ones(9)}, MalformedMessage, "'samples' is none that belongs"),
        ({f"{Q}.a.temporary": torch.ones(6)}, ShapeMismatch, "matrices E"),
        ({f"{Q}.a.temporary": torch.ones(6, 2)}, ShapeMismatch, "do not fit together"),
        (
            {
                f"{Q}.a.coefficients": torch.ones(2, 4),
                f"{Q}.a.temporary_coefficients": torch.ones(1, 4),
            },
            ShapeMismatch,
            "need the same number of columns",
        ),
    ],
)
def test_what_is_no_update_is_refused(tensors, error, message):
    """Missing, strange and ill-fitting tensors of an update are refused."""
    with pytest.raises(error, match=message):
        update_tensors_from_bytes(changed(update_to_bytes(update()), **tensors))


def test_an_update_that_is_not_finite_is_refused():
    """NaN cannot enter through the wire."""
    metadata, payload = update_to_record(update())
    bad = changed(payload, **{f"{Q}.b.coefficients": torch.full((2, 3), torch.nan)})

    with pytest.raises(NotFinite, match="side b: 6 of 6"):
        update_from_record(metadata, bad)


def test_a_record_with_other_fields_is_refused():
    """A record that lacks a field, or has a strange one, is no update."""
    metadata, payload = update_to_record(update())

    for damaged in (metadata | {"note": 1}, {"head": metadata["head"]}, {"update_id": "u"}):
        with pytest.raises(MalformedMessage, match="does not have the fields"):
            update_from_record(damaged, payload)


@pytest.mark.parametrize("name", ["", "head", "head.dense"])
def test_a_layer_whose_name_belongs_to_heads_cannot_be_sent(name):
    """A layer's tensors can never be taken for a head's."""
    with pytest.raises(MalformedMessage, match="belongs to the tasks' heads"):
        subspace_to_bytes(Subspace.empty({name: LayerShape(2, 2)}))


@pytest.mark.parametrize(
    ("tensors", "error"),
    [
        ({f"{Q}.a.coefficients": torch.ones(2)}, ShapeMismatch),
        ({f"{Q}.a.coefficients": torch.ones(2, 1)}, ShapeMismatch),
        ({f"{Q}.a.coefficients": torch.full((2, 3), torch.nan)}, NotFinite),
        ({f"{Q}.a.coefficients": None}, MalformedMessage),
        ({"head.weight": torch.full((1,), torch.inf)}, NotFinite),
    ],
)
def test_what_is_no_task_is_refused(tensors, error):
    """A task's payload is checked as an update's is."""
    coefficients = Coefficients({Q: LayerCoefficients(torch.ones(2, 3), torch.ones(2, 3))}, 1)
    data = changed(task_to_bytes(coefficients, Head()), **tensors)

    with pytest.raises(error):
        task_from_bytes(data, version=1, head_info=Head())


MEMBERS = '{"tasks":["movies","books"],"groups":[["encoder.0.query",[1,0]]]}'


def stacked_tasks():
    """The tensors of two merged tasks."""
    return {
        f"0.{side}.{each}": torch.ones(shape, dtype=torch.float64)
        for side in "ab"
        for each, shape in (("coefficients", (2, 2, 3)), ("grams", (2, 3, 3)), ("weights", (2,)))
    }


@pytest.mark.parametrize("kind", ["coefficients", "grams", "weights"])
@pytest.mark.parametrize("shape", [(), (2,), (1,), (1, 2, 3), (2, 2, 4), (2, 3, 4)])
def test_merged_tasks_with_wrong_shapes_are_refused(kind, shape):
    """Coefficients, grams and weights must fit each other, the other side, and the number of tasks."""
    named = stacked_tasks()
    read = merged_tasks_from_bytes(tensors_to_bytes(named, MEMBERS), version=1)
    assert list(read) == ["books", "movies"]
    if named[f"0.b.{kind}"].shape == shape:
        return
    named[f"0.b.{kind}"] = torch.ones(shape, dtype=torch.float64)

    with pytest.raises(ShapeMismatch, match="side b: coefficients, grams and weights of 2 tasks"):
        merged_tasks_from_bytes(tensors_to_bytes(named, MEMBERS), version=1)


@pytest.mark.parametrize("shape", [(), (2,), (1, 2), (2, 1), (2, 3), (2, 2, 1)])
def test_an_account_of_cuts_has_two_numbers_for_each_task(shape):
    """It may be left out, and is refused in any other shape, or when it holds no numbers."""
    named = stacked_tasks() | {"0.a.cuts": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double()}
    read = merged_tasks_from_bytes(tensors_to_bytes(named, MEMBERS), version=1)
    assert read["books"].layers[Q].cut_energy == Pair(1.0, 0.0)
    assert read["movies"].layers[Q].cut_meanwhile == Pair(4.0, 0.0)
    for tensor, error in (
        (torch.ones(shape).double(), ShapeMismatch),
        (torch.full((2, 2), torch.nan).double(), NotFinite),
    ):
        with pytest.raises(error):
            merged_tasks_from_bytes(
                tensors_to_bytes(named | {"0.a.cuts": tensor}, MEMBERS), version=1
            )


@pytest.mark.parametrize(
    "note",
    [
        None,
        "{",
        "[]",
        "{}",
        '{"tasks":["movies"],"groups":[["encoder.0.query",[0,1]]]}',
        '{"tasks":["movies","movies"],"groups":[["encoder.0.query",[0,1]]]}',
        '{"tasks":["movies","books"],"groups":[]}',
        '{"tasks":["movies","books"],"groups":[["encoder.0.query"]]}',
        '{"tasks":["movies","books"],"groups":[["encoder.0.query",[0,"x"]]]}',
        '{"tasks":["movies","books"],"groups":[["encoder.0.query",[0,1]],["t",[0]]]}',
    ],
)
def test_merged_tasks_without_their_members_are_refused(note):
    """A file that does not say whose its tensors are is malformed."""
    with pytest.raises(MalformedMessage):
        merged_tasks_from_bytes(tensors_to_bytes(stacked_tasks(), note), version=1)


def test_many_tasks_are_few_tensors():
    """The header of the stored tasks does not grow with their number."""
    layer = MergedLayer(
        LayerCoefficients(torch.ones(2, 3), torch.ones(2, 3)),
        Pair(torch.eye(3).double(), torch.eye(3).double()),
        Pair(1.0, 1.0),
    )

    def header_bytes(num_tasks):
        tasks = {f"t{i:03}": MergedTask(f"t{i:03}", 1, {Q: layer}) for i in range(num_tasks)}
        return payload_sizes(merged_tasks_to_bytes(tasks)).header_bytes

    assert header_bytes(200) - header_bytes(100) < 100 * 16


def test_a_note_is_refused_from_a_peer():
    """What is sent holds tensors and nothing beside them."""
    with pytest.raises(MalformedMessage, match="__metadata__"):
        update_tensors_from_bytes(tensors_to_bytes({"head.w": torch.ones(1)}, "a note"))


names = st.sampled_from([Q, "head", "0", ""]).flatmap(
    lambda layer: st.sampled_from(
        [f"{layer}.{side}.{kind}" for side in ("a", "b") for kind in (
            "vectors", "energies", "tail", "coefficients", "temporary",
            "temporary_coefficients", "grams", "weights",
        )]
    )
)  # fmt: skip
any_tensors = st.builds(
    lambda shape, dtype, value: torch.full(shape, value, dtype=dtype),
    st.lists(st.integers(0, 2), max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.sampled_from([0.0, 1.0, -1.0, float("nan"), float("inf")]),
)


@given(st.dictionaries(names, any_tensors, max_size=8))
@settings(deadline=None, max_examples=200)
def test_any_well_formed_file_is_a_value_or_an_error_of_ours(named):
    """No decoder raises anything but a ShareError."""
    data = tensors_to_bytes(named)
    decoders = (
        read_subspace,
        lambda payload: update_from_record(update_to_record(update())[0], payload),
        lambda payload: task_from_bytes(payload, version=1, head_info=Head()),
        lambda _: merged_tasks_from_bytes(tensors_to_bytes(named, MEMBERS), version=1),
    )
    for decode in decoders:
        with suppress(ShareError):
            decode(data)


def test_equality_tells_values_apart():
    """The comparison that these tests rest upon sees dtype, shape and bits."""
    value = update()

    assert same(value, update())
    assert not same(value, replace(value, weight=2.0))
    assert not same(torch.ones(2), torch.ones(2).double())
    assert not same(torch.ones(2), torch.ones(2, 1))
    assert first_difference(value, replace(value, head=Head())) is not None

"""
Wire and disk format, version 1: these bytes are read, and written, for ever.

``python -m tests.wire.test_golden`` writes the files anew; do so only for files
that did not exist, because what an old release has written must stay readable.
"""

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from share_dist.core.outcome import LayerRotation, SideRotation
from share_dist.core.steps import advance, step_of
from share_dist.core.values import (
    Basis,
    Coefficients,
    Fingerprint,
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
from share_dist.errors import BaseVersionTooOld
from share_dist.pb import coordinator_pb2 as pb
from share_dist.pb import error_pb2
from share_dist.wire import codec
from share_dist.wire.chunks import cut
from share_dist.wire.records import VersionEvent
from share_dist.wire.status import error_to_trailers
from tests.equality import first_difference

GOLDEN = Path(__file__).parent / "golden"
Q = "encoder.0.query"


def count(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """0, 1, 2, ... in a shape."""
    return torch.arange(torch.Size(shape).numel(), dtype=dtype).reshape(shape)


def basis(features: int) -> Basis:
    energies = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    return Basis(torch.eye(features)[:, :3].contiguous(), energies, num_factors=2)


def side(features: int) -> SideUpdate:
    return SideUpdate(count(2, 1), count(features, 1), count(1, 1))


HEAD = Head(
    {"bias": count(2, dtype=torch.bfloat16), "weight": count(2, 3)}, "text-classification", 2
)
SUBSPACE = Subspace({Q: LayerSubspace(basis(4), basis(3))}, version=5, metric="delta")
UPDATE = TaskUpdate(
    update_id="00112233445566778899aabbccddeeff",
    task_id="movies",
    base_version=5,
    layers={Q: LayerUpdate(side(4), side(3))},
    head=HEAD,
    num_samples=640,
    scores={"accuracy": 0.75},
    lease_epoch=3,
)
COEFFICIENTS = Coefficients({Q: LayerCoefficients(count(2, 1), count(2, 1))}, version=5)
MERGED = {
    "movies": MergedTask(
        "movies",
        5,
        {
            Q: MergedLayer(
                LayerCoefficients(count(3, 1), count(3, 1)),
                Pair(*(torch.ones(1, 1, dtype=torch.float64) for _ in range(2))),
                Pair(0.5, 0.25),
            )
        },
    )
}
CUT = replace(
    SUBSPACE,
    layers={Q: LayerSubspace(*(replace(each, cut_energy=0.5) for each in (basis(4), basis(3))))},
)
MERGED_CUT = {
    "movies": replace(
        MERGED["movies"],
        layers={
            Q: replace(
                MERGED["movies"].layers[Q],
                cut_energy=Pair(0.125, 0.0),
                cut_meanwhile=Pair(0.25, 0.5),
            )
        },
    )
}
NEXT = replace(
    CUT,
    version=6,
    layers={
        Q: LayerSubspace(
            *(
                replace(each, vectors=each.vectors[:, [2, 0, 1]].contiguous())
                for _, each in CUT.layers[Q]
            )
        )
    },
)
ROTATION = {
    Q: LayerRotation(
        *(
            SideRotation(torch.eye(3, dtype=torch.float64)[:, [2, 0, 1]], torch.zeros(features, 0))
            for features in (4, 3)
        )
    )
}
STEP = step_of(ROTATION, CUT, NEXT)
FINGERPRINT = Fingerprint("ab" * 32, {Q: LayerShape(4, 3)})
EVENT = VersionEvent(
    6,
    datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
    ("00112233445566778899aabbccddeeff",),
    ("movies",),
    0.9,
    0.95,
    0.125,
    2,
    1000,
    {"movies": 0.5},
    1.5,
)
ERROR = BaseVersionTooOld("too old", base_version=1, first_version=2, current_version=3)


def update_header() -> bytes:
    header = codec.update_header(
        UPDATE,
        worker_id="w0",
        fingerprint_digest=FINGERPRINT.digest,
        payload=cut(codec.update_to_bytes(UPDATE)).header,
        wait="durable",
    )
    return header.SerializeToString(deterministic=True)


def read_update(header: bytes) -> TaskUpdate:
    payload = (GOLDEN / "update.v1.safetensors").read_bytes()
    return codec.update_from_wire(pb.UpdateHeader.FromString(header), payload)


CASES: dict[str, tuple[Any, Any, Any]] = {
    "subspace.v1.safetensors": (
        SUBSPACE,
        lambda: codec.subspace_to_bytes(SUBSPACE),
        lambda data: codec.subspace_from_bytes(data, version=5, metric="delta"),
    ),
    "update.v1.safetensors": (
        (UPDATE.layers, HEAD.tensors),
        lambda: codec.update_to_bytes(UPDATE),
        codec.update_tensors_from_bytes,
    ),
    "update_header.v1.pb": (UPDATE, update_header, read_update),
    "task.v1.safetensors": (
        (COEFFICIENTS, HEAD),
        lambda: codec.task_to_bytes(COEFFICIENTS, HEAD),
        lambda data: codec.task_from_bytes(data, version=5, head_info=HEAD),
    ),
    "merged_tasks.v1.safetensors": (
        MERGED,
        lambda: codec.merged_tasks_to_bytes(MERGED),
        lambda data: dict(codec.merged_tasks_from_bytes(data, version=5)),
    ),
    "subspace_with_tail.v1.safetensors": (
        CUT,
        lambda: codec.subspace_to_bytes(CUT),
        lambda data: codec.subspace_from_bytes(data, version=5, metric="delta"),
    ),
    "subspace_bfloat16.v1.safetensors": (
        CUT,
        lambda: codec.subspace_to_precision(CUT, "bfloat16").payload,
        lambda data: codec.subspace_from_precision(
            data, precision="bfloat16", version=5, metric="delta"
        ),
    ),
    "subspace_int8.v1.safetensors": (
        CUT,
        lambda: codec.subspace_to_precision(CUT, "int8").payload,
        lambda data: codec.subspace_from_precision(
            data, precision="int8", version=5, metric="delta"
        ),
    ),
    "merged_tasks_cut.v1.safetensors": (
        MERGED_CUT,
        lambda: codec.merged_tasks_to_bytes(MERGED_CUT),
        lambda data: dict(codec.merged_tasks_from_bytes(data, version=5)),
    ),
    "step.v1.safetensors": (
        STEP,
        lambda: codec.rotation_to_bytes(ROTATION, CUT, NEXT),
        lambda data: codec.rotation_from_bytes(data, version=6),
    ),
    "steps.v1.bin": (
        [b"one", b"another"],
        lambda: codec.steps_to_bytes([b"one", b"another"]),
        codec.steps_from_bytes,
    ),
    "fingerprint.v1.pb": (
        FINGERPRINT,
        lambda: codec.fingerprint_to_pb(FINGERPRINT).SerializeToString(),
        lambda data: codec.fingerprint_from_pb(pb.Fingerprint.FromString(data)),
    ),
    "version_event.v1.pb": (
        EVENT,
        lambda: codec.version_event_to_pb(EVENT).SerializeToString(deterministic=True),
        lambda data: codec.version_event_from_pb(pb.VersionEvent.FromString(data)),
    ),
    "error.v1.pb": (
        {"name": "BaseVersionTooOld", "message": "too old", "first_version": 2},
        lambda: error_to_trailers(ERROR)[2][0][1],
        lambda data: _read_error(error_pb2.ErrorDetail.FromString(data)),
    ),
}


def _read_error(detail: error_pb2.ErrorDetail) -> dict[str, object]:
    first_version = detail.fields["first_version"].integer
    return {"name": detail.name, "message": detail.message, "first_version": first_version}


@pytest.mark.parametrize("name", CASES)
def test_old_bytes_are_read(name):
    """What the first release wrote is read as what it meant."""
    value, _, read = CASES[name]

    assert first_difference(read((GOLDEN / name).read_bytes()), value) is None


def test_the_step_leads_where_it_led():
    """What an old release wrote of a step is still followed, and its probes still agree."""
    assert first_difference(advance(CUT, [STEP]), NEXT) is None


@pytest.mark.parametrize("name", CASES)
def test_the_same_bytes_are_written(name):
    """What is written today, the first release can read."""
    _, write, _ = CASES[name]

    assert write() == (GOLDEN / name).read_bytes()


def test_the_fingerprint_keeps_its_digest():
    """The digest is what the wire specification says, for ever."""
    assert FINGERPRINT.digest == "c493d51ec8633395d26f0ee06dd16de450bde0a378826e95ef06f66ea1cfd867"


def test_every_golden_file_is_tested():
    """No file lies in the folder that nobody reads."""
    assert {path.name for path in GOLDEN.iterdir()} == set(CASES)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for file_name, (_, write_bytes, _) in CASES.items():
        (GOLDEN / file_name).write_bytes(write_bytes())

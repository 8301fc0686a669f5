"""Steps between versions to payload bytes and back, and the chain that proves where they began."""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from share_dist.core.outcome import LayerRotation, SideRotation
from share_dist.core.steps import SideStep, Step, step_of
from share_dist.core.values import Pair, Subspace
from share_dist.errors import MalformedMessage, MessageTooLarge, ShapeMismatch
from share_dist.wire.names import Parts, name_parts, parts_by_layer
from share_dist.wire.payloads import cut_energy_of, require_energies
from share_dist.wire.tensors import Buffer, tensors_from_bytes, tensors_to_bytes

MAX_STEPS = 1024
"""Most steps in one payload."""

_COUNT_BYTES = 8
_REQUIRED = ("rotation", "directions", "energies", "probes")
_OPTIONAL = ("rotation_tail", "cut_energy")


def rotation_to_bytes(rotation: Mapping[str, LayerRotation], old: Subspace, new: Subspace) -> bytes:
    """
    Write the step from a version to the next.

    Args:
        rotation: Of the merge's outcome.
        old: The version before, with its tail.
        new: The next one, with its tail.

    Raises:
        VersionMismatch: ``new`` does not follow ``old``.
    """
    step = step_of(rotation, old, new)
    return tensors_to_bytes(
        name_parts(
            (name, Pair(_parts(both.a), _parts(both.b))) for name, both in step.layers.items()
        )
    )


def rotation_from_bytes(data: bytes, *, version: int) -> Step:
    """
    Read the step to a version; ``core.steps.advance`` follows it.

    Raises:
        WireError: The bytes are no step.
        ShapeMismatch: Its tensors do not fit together.
        NotFinite: An energy is no number.
    """
    parts = parts_by_layer(tensors_from_bytes(data), _REQUIRED, _OPTIONAL)
    return Step(
        version,
        {
            name: Pair(_side_step(name, "a", both.a), _side_step(name, "b", both.b))
            for name, both in parts.items()
        },
    )


def steps_to_bytes(payloads: Sequence[bytes]) -> bytes:
    """
    Put the payloads of consecutive steps into one: their count, their lengths, themselves.

    Raises:
        MessageTooLarge: They are more than ``MAX_STEPS``.

    Examples:
        >>> steps_from_bytes(steps_to_bytes([b"one", b"two"]))
        [b'one', b'two']
    """
    _require_count(len(payloads))
    lengths = [len(payloads), *map(len, payloads)]
    return b"".join([*(length.to_bytes(_COUNT_BYTES, "little") for length in lengths), *payloads])


def steps_from_bytes(data: Buffer) -> list[bytes]:
    """
    Part the payloads of consecutive steps: the way back of ``steps_to_bytes``.

    Raises:
        MessageTooLarge: More than ``MAX_STEPS`` are announced.
        MalformedMessage: Count and lengths are not those of the bytes.
    """
    count = _number(data, 0)
    _require_count(count)
    lengths = [_number(data, index) for index in range(1, count + 1)]
    position = _COUNT_BYTES * (count + 1)
    if position + sum(lengths) != len(data):
        raise MalformedMessage(
            f"{count} steps of {sum(lengths)} bytes are announced, {len(data) - position} bytes are there",
            field="steps",
        )
    payloads = []
    for length in lengths:
        payloads.append(bytes(data[position : position + length]))
        position += length
    return payloads


def anchor_chain(payload: bytes) -> bytes:
    """Begin a chain: the SHA-256 of a whole subspace's payload, as it is sent with its tail."""
    return hashlib.sha256(payload).digest()


def next_chain(chain: bytes, payload: bytes) -> bytes:
    """
    Follow a chain by one step: ``SHA-256(chain + SHA-256(payload))``.

    Args:
        chain: Of what is held.
        payload: Of one step, as ``rotation_to_bytes`` wrote it.
    """
    return hashlib.sha256(chain + hashlib.sha256(payload).digest()).digest()


def _parts(step: SideStep) -> Parts:
    U, k = step.rotation.matrix, step.num_factors
    parts = {
        "rotation": U[:, :k],
        "directions": step.rotation.directions,
        "energies": step.energies,
        "probes": step.probes,
    }
    if U.shape[1] > k:
        parts["rotation_tail"] = U[:, k:]
    if step.cut_energy:
        parts["cut_energy"] = torch.tensor([step.cut_energy], dtype=torch.float64)
    return parts


def _side_step(layer: str, side: str, parts: Parts) -> SideStep:
    leading, tail = parts["rotation"], parts.get("rotation_tail")
    blocks = [leading] if tail is None else [leading, tail]
    matrices: list[Tensor] = [*blocks, parts["directions"], parts["probes"]]
    if any(matrix.ndim != 2 for matrix in matrices) or len(blocks[-1]) != len(leading):
        raise ShapeMismatch(
            f"{layer}, side {side}: rotation, rotation_tail, directions and probes need to be matrices, "
            f"the first two of equal height, got {[tuple(matrix.shape) for matrix in matrices]}",
            layer=layer,
            side=side,
        )
    require_energies(layer, side, "energies", parts["energies"])
    return SideStep(
        rotation=SideRotation(torch.cat(blocks, dim=1), parts["directions"]),
        energies=parts["energies"],
        num_factors=leading.shape[1],
        cut_energy=cut_energy_of(layer, side, parts),
        probes=parts["probes"],
    )


def _number(data: Buffer, index: int) -> int:
    number = data[_COUNT_BYTES * index : _COUNT_BYTES * (index + 1)]
    if len(number) != _COUNT_BYTES:
        raise MalformedMessage(
            f"{len(data)} bytes are too few for the count and the lengths of steps", field="steps"
        )
    return int.from_bytes(number, "little")


def _require_count(count: int) -> None:
    if count > MAX_STEPS:
        raise MessageTooLarge(
            f"{count} steps in one payload, at most {MAX_STEPS} are taken: pull the whole subspace",
            size_bytes=count,
            limit_bytes=MAX_STEPS,
        )

"""
Bases and coefficients in fewer bits, decoded to float32, with what is lost measured.

bfloat16 keeps the upper half of each float32. int8 keeps one float32 scale for each
column ``c``, ``scale_c = max_i |x_ic| / 127``, and ``round(x_ic / scale_c)``, to the even neighbour where two are
equally near, for each entry. int4 does the same with ``round(x_ic / scale_c)`` from -7 to 7, two columns in a byte; so
coarse, it is better to clip a few large entries: of the scales ``(10 .. 20) / 20 * max_i |x_ic| / 7`` that with the
smallest squared error is taken. A decoded basis is replaced by the nearest orthonormal columns, which leaves the
coefficients their meaning. Energies, what was cut, and heads stay as they are in every precision.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from share_dist.core.linalg import nearest_orthonormal
from share_dist.core.values import (
    Basis,
    Coefficients,
    Head,
    LayerSubspace,
    Metric,
    Side,
    Subspace,
    check_finite,
)
from share_dist.errors import MalformedMessage, NotOrthonormal
from share_dist.wire.names import HEAD_PREFIX
from share_dist.wire.payloads import (
    subspace_from_bytes,
    subspace_from_tensors,
    subspace_tensors,
    subspace_to_bytes,
    task_from_bytes,
    task_from_tensors,
    task_tensors,
    task_to_bytes,
)
from share_dist.wire.records import Precision
from share_dist.wire.tensors import Buffer, tensors_from_bytes, tensors_to_bytes

_LARGEST = 127
_LARGEST_OF_FOUR_BITS = 7
_CLIPPED = tuple(share / 20 for share in range(20, 9, -1))
_INTEGERS = ("int8", "int4")
_SHORTENED = ("vectors", "tail", "coefficients")
_SCALE = "_scale"


@dataclass(frozen=True, slots=True)
class ShortPayload:
    """
    A payload in some precision.

    Args:
        payload: Its bytes.
        loss: Largest relative Frobenius error of a basis, or of a side's coefficients, as a receiver
            decodes it; 0 for float32.
    """

    payload: bytes
    loss: float


def subspace_to_precision(subspace: Subspace, precision: Precision) -> ShortPayload:
    """Write all bases in some precision, and measure what is lost."""
    if precision == "float32":
        return ShortPayload(subspace_to_bytes(subspace), 0.0)
    tensors = _shorten(subspace_tensors(subspace), precision)
    payload = tensors_to_bytes(tensors, may_have_int8=True)
    decoded = _subspace(tensors, precision, subspace.version, subspace.metric)
    return ShortPayload(
        payload,
        max(
            (
                _relative_error(decoded.layers[name][side].vectors, basis.vectors)
                for name, layer in subspace.layers.items()
                for side, basis in layer
            ),
            default=0.0,
        ),
    )


def subspace_from_precision(
    data: Buffer, *, precision: Precision, version: int, metric: Metric
) -> Subspace:
    """
    Read all bases that were written in some precision, as float32 with orthonormal columns.

    Raises:
        WireError: The bytes are no subspace in this precision.
        ShapeMismatch: Vectors, energies and tail do not fit together.
        NotOrthonormal: The columns of a basis are further from orthonormal than rounding can bring them.
        NotFinite: An entry is no number.
    """
    if precision == "float32":
        return subspace_from_bytes(data, version=version, metric=metric)
    return _subspace(_read(data, precision), precision, version, metric)


def task_to_precision(coefficients: Coefficients, head: Head, precision: Precision) -> ShortPayload:
    """Write a task with its coefficients in some precision and its head as it is; measure what is lost."""
    if precision == "float32":
        return ShortPayload(task_to_bytes(coefficients, head), 0.0)
    tensors = _shorten(task_tensors(coefficients, head), precision)
    payload = tensors_to_bytes(tensors, may_have_int8=True)
    decoded, _ = task_from_tensors(
        _lengthen(tensors, precision), version=coefficients.version, head_info=head
    )
    return ShortPayload(
        payload,
        max(
            (
                _relative_error(decoded.layers[name][side], tensor)
                for name, layer in coefficients.layers.items()
                for side, tensor in layer
            ),
            default=0.0,
        ),
    )


def task_from_precision(
    data: Buffer, *, precision: Precision, version: int, head_info: Head
) -> tuple[Coefficients, Head]:
    """
    Read a task whose coefficients were written in some precision, as float32.

    Raises:
        WireError: The bytes are no task in this precision.
        ShapeMismatch: The coefficients of a layer do not fit together.
        NotFinite: An entry is no number.
    """
    if precision == "float32":
        return task_from_bytes(data, version=version, head_info=head_info)
    tensors = _lengthen(_read(data, precision), precision)
    return task_from_tensors(tensors, version=version, head_info=head_info)


def _read(data: Buffer, precision: Precision) -> dict[str, Tensor]:
    return tensors_from_bytes(data, may_have_int8=precision in _INTEGERS)


def _is_shortened(name: str) -> bool:
    return name.rpartition(".")[2] in _SHORTENED and not name.startswith(HEAD_PREFIX)


def _shorten(tensors: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """Replace every tensor that may be shortened by its shorter form."""
    short: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not _is_shortened(name):
            short[name] = tensor
        elif precision == "bfloat16":
            short[name] = tensor.bfloat16()
        elif precision == "int8":
            short[name], short[name + _SCALE] = _to_int8(tensor.float())
        else:
            short[name], short[name + _SCALE] = _to_int4(tensor.float())
    return short


def _largest_of_columns(tensor: Tensor) -> Tensor:
    return tensor.abs().amax(dim=0) if len(tensor) else tensor.new_zeros(tensor.shape[1])


def _steps(tensor: Tensor, scale: Tensor, largest: int) -> Tensor:
    """Say each entry in steps of its column's scale."""
    steps = tensor / torch.where(scale > 0, scale, 1.0)
    return steps.round().clamp(-largest, largest).to(torch.int8)


def _to_int8(tensor: Tensor) -> tuple[Tensor, Tensor]:
    scale = _largest_of_columns(tensor) / _LARGEST
    return _steps(tensor, scale, _LARGEST), scale


def _to_int4(tensor: Tensor) -> tuple[Tensor, Tensor]:
    largest = _largest_of_columns(tensor)
    scales = torch.stack([share * largest / _LARGEST_OF_FOUR_BITS for share in _CLIPPED])
    # relative to the column, or the squares of columns of 1e-30 would all be 0
    relative = tensor / torch.where(largest > 0, largest, 1.0)
    errors = torch.stack(
        [
            (
                relative
                - share / _LARGEST_OF_FOUR_BITS * _steps(tensor, scale, _LARGEST_OF_FOUR_BITS)
            )
            .square()
            .sum(dim=0)
            for share, scale in zip(_CLIPPED, scales, strict=True)
        ]
    )
    scale = scales.gather(0, errors.argmin(dim=0, keepdim=True)).squeeze(0)
    return _packed(_steps(tensor, scale, _LARGEST_OF_FOUR_BITS)), scale


def _packed(steps: Tensor) -> Tensor:
    """Put two neighbouring columns into one byte, the first in its lower half; one that is left over gets zeros."""
    pairs = torch.nn.functional.pad(steps, (0, steps.shape[1] % 2)).view(torch.uint8)
    return ((pairs[:, 0::2] & 15) | (pairs[:, 1::2] << 4)).view(torch.int8)


def _unpacked(packed: Tensor, num_columns: int, name: str) -> Tensor:
    """Undo ``_packed``."""
    pairs = packed.contiguous().view(torch.uint8).to(torch.int16)
    # a half that is 8 or more stands for itself less 16
    halves = torch.stack([pairs & 15, pairs >> 4], dim=-1)
    halves = torch.where(halves > _LARGEST_OF_FOUR_BITS, halves - 16, halves).flatten(start_dim=1)
    if bool(halves[:, num_columns:].any()):
        raise MalformedMessage(
            f"{name} has {num_columns} columns, and something in the half bytes beyond the last: "
            "write zeros there",
            field=name,
        )
    return halves[:, :num_columns]


def _lengthen(tensors: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """Undo ``_shorten`` in float32, and see to it that everything was shortened as it should be."""
    left = dict(tensors)
    long: dict[str, Tensor] = {}
    for name in filter(_is_shortened, tensors):
        tensor = left.pop(name)
        expected = torch.bfloat16 if precision == "bfloat16" else torch.int8
        if tensor.dtype != expected or tensor.ndim != 2:
            raise MalformedMessage(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}: in the precision {precision} "
                f"it needs to be a matrix of {expected}",
                field=name,
            )
        if precision == "bfloat16":
            long[name] = tensor.float()
            continue
        scale = _take_scale(left, name, tensor, columns_per_byte=1 + (precision == "int4"))
        steps = _unpacked(tensor, len(scale), name) if precision == "int4" else tensor
        long[name] = steps.float() * scale
    for name, tensor in left.items():
        if tensor.dtype == torch.int8:
            raise MalformedMessage(
                f"{name} is int8, which only {', '.join(_SHORTENED)} may be", field=name
            )
    return long | left


def _take_scale(
    left: dict[str, Tensor], name: str, tensor: Tensor, columns_per_byte: int
) -> Tensor:
    scale = left.pop(name + _SCALE, None)
    if (
        scale is None
        or scale.dtype != torch.float32
        or scale.ndim != 1
        or -(-len(scale) // columns_per_byte) != tensor.shape[1]
    ):
        found = "is missing" if scale is None else f"is {scale.dtype} of {tuple(scale.shape)}"
        raise MalformedMessage(
            f"{name}{_SCALE} {found}: it needs one float32 for each column, of which there are "
            f"{columns_per_byte} in each of {tensor.shape[1]} bytes of a row",
            field=name + _SCALE,
        )
    if not bool((torch.isfinite(scale) & (scale >= 0)).all()):
        raise MalformedMessage(
            f"{name}{_SCALE} holds an entry that is negative or no number", field=name + _SCALE
        )
    return scale


def _subspace(
    tensors: Mapping[str, Tensor], precision: Precision, version: int, metric: Metric
) -> Subspace:
    rough = subspace_from_tensors(_lengthen(tensors, precision), version=version, metric=metric)
    layers = {
        name: LayerSubspace(*(_orthonormal(basis, name, side) for side, basis in layer))
        for name, layer in rough.layers.items()
    }
    return replace(rough, layers=layers)


def _orthonormal(basis: Basis, name: str, side: Side) -> Basis:
    check_finite(basis.vectors, name, side)
    vectors = nearest_orthonormal(basis.vectors)
    if vectors is None:
        raise NotOrthonormal(
            f"{name}, side {side}: the columns are further from orthonormal than their precision "
            "can bring them: pull the subspace again",
            layer=name,
            side=side,
            deviation=1.0,
        )
    return replace(basis, vectors=vectors.float().contiguous())


def _relative_error(decoded: Tensor, exact: Tensor) -> float:
    norm = float(torch.linalg.vector_norm(exact.double()))
    error = float(torch.linalg.vector_norm(decoded.double() - exact.double()))
    return error / norm if norm else 0.0

"""Steps: from one version to the next without sending its bases, ``V_new = [V Q] U``, and proven by probes."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from share_dist.core.outcome import LayerRotation, SideRotation
from share_dist.core.values import Basis, LayerSubspace, Pair, Side, Subspace, check_finite
from share_dist.errors import ShapeMismatch, VersionMismatch

NUM_PROBES = 2
"""Probe vectors on each side."""

PROBE_TOLERANCE = 1e-5
"""How far an entry of ``V_new.T z`` may be off: float32 on another machine gives about 1e-6."""

_PROBE_SEED = b"share-dist probe"
_VALUES_PER_DIGEST = 8


@dataclass(frozen=True, slots=True)
class SideStep:
    """
    How one side of one layer gets to the next version, with the means to check it.

    Args:
        rotation: ``U`` and ``Q``, in the dtype of the bases.
        energies: ``(m_new,)`` float64; of the next version.
        num_factors: ``k`` of the next version.
        cut_energy: Of the next version.
        probes: ``V_new.T z`` for each probe vector ``z``, ``(m_new, 2)``.
    """

    rotation: SideRotation
    energies: Tensor
    num_factors: int
    cut_energy: float
    probes: Tensor


@dataclass(frozen=True)
class Step:
    """
    From one version to the next.

    Args:
        version: The next one.
        layers: Layer name -> both sides.
    """

    version: int
    layers: Mapping[str, Pair[SideStep]]


def step_of(rotation: Mapping[str, LayerRotation], old: Subspace, new: Subspace) -> Step:
    """
    Say how a merge got from one version to the next.

    Args:
        rotation: Of the merge's outcome.
        old: The version before, with its tail.
        new: The next one, with its tail.

    Raises:
        VersionMismatch: ``new`` does not follow ``old``.
    """
    _require_next(old, new.version)
    draw = _Probes(new.version)
    return Step(
        new.version,
        {
            name: Pair(*(_side_step(turn, new.layers[name][side], draw) for side, turn in both))
            for name, both in rotation.items()
        },
    )


def advance(subspace: Subspace, steps: Sequence[Step]) -> Subspace:
    """
    Follow steps from a version that is held to a later one, and check each version reached.

    Args:
        subspace: What is held, with its tail.
        steps: Of the versions after it, in order, without a gap.

    Accuracy:
        Equal to the coordinator's bases but for float32 rounding, which the probes bound.

    Raises:
        VersionMismatch: The steps do not follow from what is held, or lead elsewhere than
            the coordinator was led: pull the whole subspace.
        ShapeMismatch: A step does not fit the bases that it starts from.
        NotFinite: An entry of a step is no number.
    """
    for step in steps:
        subspace = _advance_once(subspace, step)
    return subspace


def probe_vectors(version: int, features: int) -> Float[Tensor, "d 2"]:
    """
    Draw the probe vectors of a version, the same on every machine and in every language.

    Vector ``j`` is made of the bytes ``SHA-256(seed + version + j + i)`` for ``i = 0, 1, 2, ...``, with
    the seed ``share-dist probe`` in ASCII, ``version`` in eight bytes and ``j`` and ``i``
    in four, little endian. Every four bytes, read as an unsigned number ``x``, little endian,
    give the entry ``x / 2^31 - 1``.

    Examples:
        >>> [round(entry, 6) for entry in probe_vectors(1, 3)[:, 0].tolist()]
        [-0.243181, 0.464244, -0.461754]
    """
    return torch.stack([_uniform(version, index, features) for index in range(NUM_PROBES)], dim=1)


def _uniform(version: int, index: int, features: int) -> Float[Tensor, " d"]:
    prefix = _PROBE_SEED + version.to_bytes(8, "little") + index.to_bytes(4, "little")
    blocks = -(-features // _VALUES_PER_DIGEST)
    drawn = b"".join(
        hashlib.sha256(prefix + block.to_bytes(4, "little")).digest() for block in range(blocks)
    )
    return torch.from_numpy(np.frombuffer(drawn, "<u4")[:features] / 2.0**31 - 1.0)


class _Probes:
    """The probe vectors of one version: those of fewer features begin those of more."""

    def __init__(self, version: int) -> None:
        self._version = version
        self._longest = torch.zeros(0, NUM_PROBES, dtype=torch.float64)

    def of(self, vectors: Float[Tensor, "d m"]) -> Float[Tensor, "m 2"]:
        """Compute ``V.T z`` in float64."""
        features = vectors.shape[0]
        if len(self._longest) < features:
            self._longest = probe_vectors(self._version, features)
        z = self._longest[:features].to(vectors.device)
        return (z.mT @ vectors.double()).mT.contiguous()


def _side_step(turn: SideRotation, new: Basis, draw: _Probes) -> SideStep:
    dtype = new.vectors.dtype
    return SideStep(
        rotation=SideRotation(turn.matrix.to(dtype), turn.directions.to(dtype)),
        energies=new.energies,
        num_factors=new.num_factors,
        cut_energy=new.cut_energy,
        probes=draw.of(new.vectors).float(),
    )


def _require_next(old: Subspace, version: int) -> None:
    if version != old.version + 1:
        raise VersionMismatch(
            f"a step to version {version} does not start from version {old.version}, which is "
            "held: pull the whole subspace",
            version=version,
            expected=str(version - 1),
            found=str(old.version),
        )


def _advance_once(subspace: Subspace, step: Step) -> Subspace:
    _require_next(subspace, step.version)
    if step.layers.keys() != subspace.layers.keys():
        different = min(step.layers.keys() ^ subspace.layers.keys())
        raise ShapeMismatch(
            f"layer {different!r} is only in one of the step to version {step.version} and "
            f"version {subspace.version}: pull the whole subspace",
            layer=different,
        )
    draw = _Probes(step.version)
    layers = {
        name: LayerSubspace(*(
            _next_basis(subspace.layers[name][side], one, draw, name, side, step.version)
            for side, one in both
        ))
        for name, both in step.layers.items()
    }  # fmt: skip
    return replace(subspace, version=step.version, layers=layers)


def _next_basis(
    old: Basis, step: SideStep, draw: _Probes, name: str, side: Side, version: int
) -> Basis:
    U, Q = step.rotation.matrix, step.rotation.directions
    rows, columns = old.num_columns + Q.shape[1], U.shape[1]
    found = [tuple(tensor.shape) for tensor in (U, Q, step.energies, step.probes)]
    needed = [(rows, columns), (old.features, Q.shape[1]), (columns,), (columns, NUM_PROBES)]
    if found != needed:
        raise ShapeMismatch(
            f"{name}, side {side}: rotation, directions, energies and probes of the step to version "
            f"{version} have the shapes {found}, need {needed}: pull the whole subspace with its tail",
            layer=name,
            side=side,
        )
    for tensor in (U, Q, step.probes):
        check_finite(tensor, name, side)
    vectors = step.rotation.advance(old.vectors)
    deviation = float((draw.of(vectors) - step.probes).abs().max()) if columns else 0.0
    if not deviation <= PROBE_TOLERANCE:
        raise VersionMismatch(
            f"{name}, side {side}: the step to version {version} leads {deviation:.1e} away from where "
            f"it led the coordinator, allowed is {PROBE_TOLERANCE:.0e}: pull the whole subspace",
            version=version,
            expected=f"{PROBE_TOLERANCE:.0e}",
            found=f"{deviation:.1e}",
        )
    return Basis(vectors, step.energies, step.num_factors, step.cut_energy)

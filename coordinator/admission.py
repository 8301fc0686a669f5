"""
May this update in? A pure check at the door.

The verdict is ``Admitted``; or ``Suspicious``, for what may be right and yet looks wrong, which
is kept aside until an operator has looked at it; or ``Refused``, for what cannot be right.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch

from share_dist.core.measure import DeltaMeasure, measure_update
from share_dist.core.values import (
    Fingerprint,
    LayerShape,
    Side,
    SideUpdate,
    Subspace,
    TaskUpdate,
)
from share_dist.errors import (
    BaseVersionTooOld,
    FingerprintMismatch,
    ShapeMismatch,
    ShareError,
    UpdateRefused,
    VersionInFuture,
)


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """
    What an update may be at most: beyond ``max_...`` it is refused, beyond ``quarantine_...`` it
    is suspicious. None is no bound.

    Args:
        max_pseudo_rank: Largest ``p``.
        max_temporary: Largest ``f``.
        min_norm: Smallest Frobenius norm of a layer's ``dW``: below it there is nothing to merge.
        max_norm: Largest Frobenius norm of a layer's ``dW``: above it training has diverged.
        max_weight: Largest weight of a task in the merge.
        quarantine_norm: Largest Frobenius norm of a layer's ``dW`` that is like the others'.
        quarantine_condition: Largest ratio of a layer's singular values.
        quarantine_energy_outside: Largest share of a layer's energy that the current bases
            cannot say, 0 to 1; in an empty subspace everything is outside, and nobody is judged.
    """

    max_pseudo_rank: int = 256
    max_temporary: int = 256
    min_norm: float = 1e-9
    max_norm: float = 1e4
    max_weight: float = 10.0
    quarantine_norm: float | None = None
    quarantine_condition: float | None = None
    quarantine_energy_outside: float | None = None


@dataclass(frozen=True, slots=True)
class Admitted:
    """The update may be merged. ``measures`` tells of each layer's ``dW``."""

    measures: Mapping[str, DeltaMeasure]


@dataclass(frozen=True, slots=True)
class Suspicious:
    """The update is kept, and merged only once an operator lets it; the reason says why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The update may not be merged; the error says why and what to do."""

    error: ShareError


Verdict: TypeAlias = Admitted | Suspicious | Refused


def check_fingerprint(digest: str, fingerprint: Fingerprint | None) -> Refused | None:
    """
    Refuse an update of another model, other layers or another metric.

    Args:
        digest: Digest of the fingerprint that the worker trained under.
        fingerprint: What the coordinator works on; None until the first worker registers.
    """
    expected = fingerprint.digest if fingerprint else ""
    if fingerprint and digest == expected:
        return None
    known = f"works on {expected[:12]}" if expected else "works on nothing yet"
    return Refused(
        FingerprintMismatch(
            f"the update was trained under fingerprint {digest[:12] or '(none)'}, this coordinator "
            f"{known}: register with your fingerprint, then push",
            field="digest",
            expected=expected,
            found=digest,
        )
    )


def check_version(
    name: str, base_version: int, first_version: int, current_version: int, *, is_kept: bool
) -> Refused | None:
    """
    Refuse an update whose base version does not exist yet, or is no longer kept.

    Args:
        name: How to call the update.
        base_version: The version that it was trained on.
        first_version: The oldest version that is kept.
        current_version: The newest.
        is_kept: Whether the base version is; some older than the first may be.
    """
    if base_version > current_version:
        return Refused(
            VersionInFuture(
                f"{name} was trained on version {base_version}, the newest here is "
                f"{current_version}: it belongs to another coordinator, or this store was restored "
                "from an older copy",
                version=base_version,
                current_version=current_version,
            )
        )
    if not is_kept:
        return Refused(
            BaseVersionTooOld(
                f"{name} was trained on version {base_version}, the oldest that can "
                f"still be merged is {first_version}, now is {current_version}: pull version "
                f"{current_version}, rebase and push again",
                base_version=base_version,
                first_version=first_version,
                current_version=current_version,
            )
        )
    return None


def admit(
    update: TaskUpdate,
    base: Subspace,
    current: Subspace,
    limits: AdmissionLimits,
    *,
    map_layers: Callable[..., Iterable[DeltaMeasure]] = map,
) -> Verdict:
    """
    Check an update against the subspace that it was trained in, and the one it would join.

    That its numbers are finite was checked when the value was made.

    Args:
        update: What was pushed.
        base: The subspace of the update's base version.
        current: The current version.
        limits: What an update may be at most.
        map_layers: Measures the layers, as ``map`` would.

    Returns:
        ``Admitted`` with the measures of every layer's ``dW``, or the first reason against it.
    """
    try:
        _check_caps(update, base.shapes, limits)
        # once and for all layers: the merge's own checks would factor each side anew
        measures = measure_update(update, base, current, map_layers=map_layers)
        for name, measure in measures.items():
            _check_norm(update, name, measure, limits)
    except ShareError as error:
        return Refused(error)
    for name, measure in measures.items():
        odd = _oddity(measure, limits, is_first=current.layers[name].a.num_factors == 0)
        if odd:
            return Suspicious(f"in {name} {odd}")
    return Admitted(measures)


def _check_caps(
    update: TaskUpdate, shapes: Mapping[str, LayerShape], limits: AdmissionLimits
) -> None:
    if update.weight > limits.max_weight:
        raise _refusal(
            update,
            "weight",
            f"has weight {update.weight:g}: send at most {limits.max_weight:g}",
        )
    _check_layers(update, shapes)
    for name, layer in update.layers.items():
        for side, learnt in layer:
            _check_dtypes(update, name, side, learnt)
            _check_side_caps(update, name, learnt, limits)


def _check_layers(update: TaskUpdate, shapes: Mapping[str, LayerShape]) -> None:
    odd = sorted(update.layers.keys() ^ shapes.keys())
    if odd:
        verb = "has" if odd[0] in update.layers else "lacks"
        raise ShapeMismatch(
            f"{_name(update)} {verb} layer {odd[0]!r} ({len(odd)} layers differ): send exactly the "
            f"{len(shapes)} layers of the fingerprint",
            layer=odd[0],
        )


def _check_dtypes(update: TaskUpdate, name: str, side: Side, learnt: SideUpdate) -> None:
    for tensor in (learnt.coefficients, learnt.temporary, learnt.temporary_coefficients):
        if tensor.dtype != torch.float32:
            raise _refusal(
                update, "dtype", f"has {tensor.dtype} in {name}, side {side}: send float32"
            )


def _check_side_caps(
    update: TaskUpdate, name: str, learnt: SideUpdate, limits: AdmissionLimits
) -> None:
    if not 1 <= learnt.pseudo_rank <= limits.max_pseudo_rank:
        raise _refusal(
            update,
            "pseudo-rank",
            f"has pseudo-rank {learnt.pseudo_rank} in {name}: need 1 to {limits.max_pseudo_rank}",
        )
    if learnt.num_temporary > limits.max_temporary:
        raise _refusal(
            update,
            "temporary",
            f"has {learnt.num_temporary} temporary factors in {name}: send at most {limits.max_temporary}",
        )


def _check_norm(
    update: TaskUpdate, name: str, measure: DeltaMeasure, limits: AdmissionLimits
) -> None:
    if measure.norm < limits.min_norm or measure.norm <= measure.rounding:
        floor = max(limits.min_norm, measure.rounding)
        raise _refusal(
            update,
            "norm",
            f"has ||dW|| = {measure.norm:.3g} in {name}, not above {floor:.3g}, which rounding alone "
            "may be: nothing was learnt there; train longer, or leave this layer out of the targets",
        )
    # so that a norm that is no number is refused too
    if not measure.norm <= limits.max_norm:
        raise _refusal(
            update,
            "norm",
            f"has ||dW|| = {measure.norm:.3g} in {name}, above {limits.max_norm:g}: training has "
            "diverged; lower the learning rate",
        )


def _oddity(measure: DeltaMeasure, limits: AdmissionLimits, *, is_first: bool) -> str | None:
    """Say what about one layer is beyond a soft bound, if anything is."""
    if limits.quarantine_norm is not None and measure.norm > limits.quarantine_norm:
        return f"||dW|| is {measure.norm:.3g}, quarantine_norm is {limits.quarantine_norm:g}"
    condition = measure.largest_singular / (measure.smallest_singular or measure.largest_singular)
    if limits.quarantine_condition is not None and condition > limits.quarantine_condition:
        return (
            f"singular values of dW are from {measure.smallest_singular:.3g} to "
            f"{measure.largest_singular:.3g}, a ratio of {condition:.3g}, quarantine_condition is "
            f"{limits.quarantine_condition:g}"
        )
    most = limits.quarantine_energy_outside
    if most is not None and not is_first and measure.energy_outside > most:
        return (
            f"{measure.energy_outside:.3f} of the energy lies outside the bases, "
            f"quarantine_energy_outside is {most:g}"
        )
    return None


def _refusal(update: TaskUpdate, reason: str, sentence: str) -> UpdateRefused:
    return UpdateRefused(
        f"{_name(update)} {sentence}",
        update_id=update.update_id,
        task_id=update.task_id,
        reason=reason,
    )


def _name(update: TaskUpdate) -> str:
    return f"update {update.update_id} for task {update.task_id!r}"

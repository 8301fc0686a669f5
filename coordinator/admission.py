"""May this update in? A pure check at the door: ``Admitted``, or ``Refused`` with the reason."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from share_dist.core.newcomers import delta_norm, newcomers_of
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
    What an update may be at most.

    Args:
        max_pseudo_rank: Largest ``p``.
        max_temporary: Largest ``f``.
        min_norm: Smallest Frobenius norm of a layer's ``dW``: below it there is nothing to merge.
        max_norm: Largest Frobenius norm of a layer's ``dW``: above it training has diverged.
        max_weight: Largest weight of a task in the merge.
    """

    max_pseudo_rank: int = 256
    max_temporary: int = 256
    min_norm: float = 1e-9
    max_norm: float = 1e4
    max_weight: float = 10.0


@dataclass(frozen=True, slots=True)
class Admitted:
    """The update may be merged. ``norms`` holds the Frobenius norm of each layer's ``dW``."""

    norms: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Refused:
    """The update may not be merged; the error says why and what to do."""

    error: ShareError


Verdict: TypeAlias = Admitted | Refused


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


def admit(update: TaskUpdate, base: Subspace, limits: AdmissionLimits) -> Verdict:
    """
    Check an update against the subspace that it was trained in.

    That its numbers are finite was checked when the value was made.

    Args:
        update: What was pushed.
        base: The subspace of the update's base version.
        limits: What an update may be at most.

    Returns:
        ``Admitted`` with the norm of every layer's ``dW``, or ``Refused`` with the first reason.
    """
    try:
        if update.weight > limits.max_weight:
            raise _refusal(
                update,
                "weight",
                f"has weight {update.weight:g}: send at most {limits.max_weight:g}",
            )
        _check_layers(update, base.shapes)
        norms = {name: _admit_layer(update, name, base, limits) for name in update.layers}
    except ShareError as error:
        return Refused(error)
    return Admitted(norms)


def _check_layers(update: TaskUpdate, shapes: Mapping[str, LayerShape]) -> None:
    odd = sorted(update.layers.keys() ^ shapes.keys())
    if odd:
        verb = "has" if odd[0] in update.layers else "lacks"
        raise ShapeMismatch(
            f"{_name(update)} {verb} layer {odd[0]!r} ({len(odd)} layers differ): send exactly the "
            f"{len(shapes)} layers of the fingerprint",
            layer=odd[0],
        )


def _admit_layer(update: TaskUpdate, name: str, base: Subspace, limits: AdmissionLimits) -> float:
    for side, learnt in update.layers[name]:
        _check_dtypes(update, name, side, learnt)
        _check_caps(update, name, learnt, limits)
    # the merge's own checks, on one layer at a time so that a large update needs little memory
    alone = replace(base, layers={name: base.layers[name]})
    newcomer = newcomers_of(alone, alone, replace(update, layers={name: update.layers[name]}))
    return _check_norm(update, name, delta_norm(newcomer[name].factors), limits)


def _check_dtypes(update: TaskUpdate, name: str, side: Side, learnt: SideUpdate) -> None:
    for tensor in (learnt.coefficients, learnt.temporary, learnt.temporary_coefficients):
        if tensor.dtype != torch.float32:
            raise _refusal(
                update, "dtype", f"has {tensor.dtype} in {name}, side {side}: send float32"
            )


def _check_caps(update: TaskUpdate, name: str, learnt: SideUpdate, limits: AdmissionLimits) -> None:
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


def _check_norm(update: TaskUpdate, name: str, norm: float, limits: AdmissionLimits) -> float:
    if norm < limits.min_norm:
        raise _refusal(
            update,
            "zero-norm",
            f"has ||dW|| = {norm:g} in {name}, below {limits.min_norm:g}: nothing was learnt there; "
            "train longer, or leave this layer out of the targets",
        )
    if not norm <= limits.max_norm:
        raise _refusal(
            update,
            "norm",
            f"has ||dW|| = {norm:g} in {name}, above {limits.max_norm:g}: training has diverged; "
            "lower the learning rate",
        )
    return norm


def _refusal(update: TaskUpdate, reason: str, sentence: str) -> UpdateRefused:
    return UpdateRefused(
        f"{_name(update)} {sentence}",
        update_id=update.update_id,
        task_id=update.task_id,
        reason=reason,
    )


def _name(update: TaskUpdate) -> str:
    return f"update {update.update_id} for task {update.task_id!r}"

"""
Names of tensors inside a payload: ``{layer}.{side}.{kind}``, and ``head.{parameter}``.

Side and kind hold no dot, so a layer's name may hold as many as it likes.
"""

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from torch import Tensor

from share_dist.core.values import SIDES, Pair
from share_dist.errors import MalformedMessage

Parts: TypeAlias = dict[str, Tensor]
"""Kind -> tensor, for one side of one layer."""

HEAD_PREFIX = "head."


def name_parts(layers: Iterable[tuple[str, Pair[Parts]]]) -> dict[str, Tensor]:
    """Give every tensor of every layer its name in the payload."""
    return {
        f"{_sendable(layer)}.{side}.{kind}": tensor
        for layer, pair in layers
        for side, parts in pair
        for kind, tensor in parts.items()
    }


def parts_by_layer(
    tensors: Mapping[str, Tensor], required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, Pair[Parts]]:
    """
    Undo ``name_parts``, and see to it that nothing is missing and nothing is strange.

    Raises:
        MalformedMessage: A name is not of this form, or a side of a layer lacks a kind.
    """
    found: dict[str, dict[str, Parts]] = {}
    for name, tensor in tensors.items():
        layer, side, kind = _split(name, required + optional)
        found.setdefault(layer, {each: {} for each in SIDES})[side][kind] = tensor
    for layer, sides in found.items():
        for side, parts in sides.items():
            missing = [kind for kind in required if kind not in parts]
            if missing:
                raise MalformedMessage(
                    f"the payload lacks {layer}.{side}.{missing[0]}", field=f"{layer}.{side}"
                )
    return {layer: Pair(sides["a"], sides["b"]) for layer, sides in found.items()}


def name_head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a head's tensors their names in the payload."""
    return {f"{HEAD_PREFIX}{name}": tensor for name, tensor in tensors.items()}


def take_head(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Part a payload into a head's tensors, under their own names, and the rest."""
    head = {
        name.removeprefix(HEAD_PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(HEAD_PREFIX)
    }
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(HEAD_PREFIX)}
    return head, rest


def _sendable(layer: str) -> str:
    if not layer or f"{layer}.".startswith(HEAD_PREFIX):
        raise MalformedMessage(
            f"a layer cannot be sent under the name {layer!r}: {HEAD_PREFIX!r} belongs to the "
            "tasks' heads, which are never in a subspace. Leave this layer out of the targets",
            field=layer,
        )
    return layer


def _split(name: str, kinds: tuple[str, ...]) -> tuple[str, str, str]:
    layer_and_side, _, kind = name.rpartition(".")
    layer, _, side = layer_and_side.rpartition(".")
    if not layer or side not in SIDES or kind not in kinds:
        raise MalformedMessage(
            f"tensor {name!r} is none that belongs here: expected LAYER.SIDE.KIND with a side of "
            f"{', '.join(SIDES)} and a kind of {', '.join(kinds)}",
            field=name,
        )
    return _sendable(layer), side, kind

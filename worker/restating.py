"""Restating: what a task has learnt, in no version's words, and said again in those of another."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from share_dist.client import new_update_id
from share_dist.core.temporary import factor_of, fold
from share_dist.core.values import SIDES, LayerUpdate, SideUpdate, Subspace, TaskUpdate


def factors_of(update: TaskUpdate, base: Subspace) -> dict[str, Tensor]:
    """
    Form what an update stands for, ``F = V E + T tau``, of each side of each layer.

    Args:
        update: What was learnt.
        base: The version that it was learnt on.

    Returns:
        ``"<layer>/<side>"`` -> ``(d, p)``, float32 on the CPU.
    """
    return {
        f"{name}/{side}": factor_of(base.layers[name][side].leading.float().cpu(), part)
        for name, layer in update.layers.items()
        for side, part in layer
    }


def restated(update: TaskUpdate, factors: Mapping[str, Tensor], base: Subspace) -> TaskUpdate:
    """
    Say an update in another version, under a new id.

    What the version cannot say travels in temporary factors, at most ``p`` of them a side.

    Args:
        update: What was learnt.
        factors: As ``factors_of`` gave them.
        base: The version to say it in.

    Accuracy:
        Every column of ``F`` is kept to the rounding of float32.
    """
    layers = {
        name: LayerUpdate(
            *(_said(factors[f"{name}/{side}"], base.layers[name][side].leading) for side in SIDES)
        )
        for name in update.layers
    }
    return replace(
        update,
        update_id=new_update_id(),
        base_version=base.version,
        base_digest=base.digest,
        layers=layers,
    )


def _said(factor: Tensor, basis: Tensor) -> SideUpdate:
    num_columns = factor.shape[1]
    nothing = torch.zeros(basis.shape[1], num_columns)
    return fold(basis.float().cpu(), SideUpdate(nothing, factor, torch.eye(num_columns)))

"""Cold starts: a subspace where no adapter exists yet, from the frozen model or from what it is given."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from share_dist.adapters.targets import is_conv1d
from share_dist.core.values import Basis, LayerShape, LayerSubspace, Subspace
from share_dist.errors import RankTooLarge, ShapeMismatch


def subspace_of_weights(
    model: nn.Module, shapes: Mapping[str, LayerShape], num_factors: int
) -> Subspace:
    """
    Take the leading singular vectors of the frozen weights: right ones for side A, left ones for side B.

    Args:
        model: Whose weights.
        shapes: Its adapted layers, as ``find_targets`` finds them.
        num_factors: ``k``.

    Returns:
        Version 0 without tasks; its energies are squared singular values of the weights, not of tasks.

    Raises:
        RankTooLarge: A layer has fewer features.

    Source:
        The directions that PiSSA (arXiv 2404.02948) starts from.
    """
    layers = {}
    for name, shape in shapes.items():
        _require_features(name, shape, num_factors)
        U, sigma, Vt = torch.linalg.svd(_weight(model, name).double(), full_matrices=False)
        energies = sigma[:num_factors].square()
        layers[name] = LayerSubspace(
            _basis(Vt[:num_factors].mT, energies), _basis(U[:, :num_factors], energies)
        )
    return Subspace(layers)


def subspace_of_inputs(
    model: nn.Module,
    shapes: Mapping[str, LayerShape],
    moments: Mapping[str, Tensor],
    num_factors: int,
) -> Subspace:
    """
    Take the directions in which adapted layers are given most, and those in which they answer most.

    Side A has the leading eigenvectors of the inputs' second moment ``C``, side B those of the
    outputs', ``W C W'``.

    Args:
        model: Whose weights ``W``.
        shapes: Its adapted layers.
        moments: Layer -> ``C``, ``(d, d)``, as ``gather_moments`` gathers it.
        num_factors: ``k``.

    Returns:
        Version 0 without tasks.

    Raises:
        RankTooLarge: A layer has fewer features.
        ShapeMismatch: A layer's moment is missing.

    Source:
        Side A as in EVA (arXiv 2410.07170).
    """
    layers = {}
    for name, shape in shapes.items():
        _require_features(name, shape, num_factors)
        if name not in moments:
            raise ShapeMismatch(
                f"{name} was given no inputs: run the model inside gather_moments", layer=name
            )
        C, W = moments[name].double().cpu(), _weight(model, name).double()
        layers[name] = LayerSubspace(*(_leading(each, num_factors) for each in (C, W @ C @ W.mT)))
    return Subspace(layers)


@contextmanager
def gather_moments(
    model: nn.Module, shapes: Mapping[str, LayerShape]
) -> Iterator[Mapping[str, Tensor]]:
    """
    Sum up ``X' X`` of all that adapted layers are given inside, padding included.

    Returns:
        Layer -> ``(d, d)``, on the layer's device.
    """
    moments: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            partial(_add, moments, name), with_kwargs=True
        )
        for name in shapes
    ]
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()


def _add(
    moments: dict[str, Tensor],
    name: str,
    _module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    (inputs,) = (*args, *kwargs.values())
    rows = inputs.detach().flatten(0, -2).float()
    found = rows.mT @ rows
    moments[name] = found + moments[name] if name in moments else found


def _leading(moment: Tensor, num_factors: int) -> Basis:
    values, vectors = torch.linalg.eigh(moment)
    leading = vectors[:, -num_factors:].flip(-1)
    return _basis(leading, values[-num_factors:].flip(-1).clamp_min(0.0))


def _basis(vectors: Tensor, energies: Tensor) -> Basis:
    return Basis(vectors.float().cpu().contiguous(), energies.double().cpu(), vectors.shape[1])


def _weight(model: nn.Module, name: str) -> Tensor:
    """``W``, ``(n, d)``."""
    module = model.get_submodule(name)
    weight = module.get_parameter("weight").detach().cpu()
    return weight.mT if is_conv1d(module) else weight


def _require_features(name: str, shape: LayerShape, num_factors: int) -> None:
    if num_factors > min(shape):
        raise RankTooLarge(
            f"{num_factors} principal factors do not fit into {name}, of {tuple(shape)} features: "
            f"ask for at most {min(shape)}",
            asked=num_factors,
            largest=min(shape),
        )

"""Factors to a basis and back: initialise, project, reconstruct."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from share_dist.core.linalg import thin_svd
from share_dist.core.merge import merge
from share_dist.core.temporary import fold, propose_temporary
from share_dist.core.values import (
    Basis,
    Coefficients,
    Factors,
    LayerCoefficients,
    LayerFactors,
    LayerShape,
    LayerSubspace,
    LayerUpdate,
    Metric,
    SideUpdate,
    Subspace,
    TaskUpdate,
)
from share_dist.errors import ShapeMismatch


def project(subspace: Subspace, factors: Factors) -> Coefficients:
    """
    Say one adapter in the ``k`` principal factors of a subspace, ``E = V.T F``.

    Accuracy:
        The nearest that the subspace can say, side by side, in Frobenius norm.

    Raises:
        ShapeMismatch: The adapter's layers are not those of the subspace.
    """
    check_layers(subspace, factors)
    return Coefficients(
        {
            name: LayerCoefficients(
                *(
                    subspace.layers[name][side].leading.mT
                    @ factor.to(subspace.layers[name][side].vectors.dtype)
                    for side, factor in layer
                )
            )
            for name, layer in factors.items()
        },
        version=subspace.version,
    )


def reconstruct(subspace: Subspace, coefficients: Coefficients) -> dict[str, LayerFactors]:
    """
    Form the factors that a task's coefficients stand for, ``F = V E``, in every layer.

    Raises:
        ShapeMismatch: The coefficients do not belong to this subspace.

    Examples:
        >>> from share_dist.core.values import LayerFactors
        >>> factors = {"q": LayerFactors(torch.eye(4)[:, :2], torch.eye(3)[:, :2])}
        >>> subspace = subspace_from_factors([factors])
        >>> again = reconstruct(subspace, project(subspace, factors))
        >>> torch.allclose(again["q"].delta_weight(), factors["q"].delta_weight(), atol=1e-6)
        True
    """
    factors = {}
    for name, layer in coefficients.layers.items():
        if name not in subspace.layers:
            raise ShapeMismatch(
                f"the subspace has no layer {name!r}: these coefficients belong to another one",
                layer=name,
            )
        sides = []
        for side, tensor in layer:
            leading = subspace.layers[name][side].leading
            if tensor.shape[0] != leading.shape[1]:
                raise ShapeMismatch(
                    f"{name}, side {side}: {tensor.shape[0]} rows of coefficients for "
                    f"{leading.shape[1]} principal factors of version {subspace.version}: these "
                    f"are of version {coefficients.version}; rebase them or pull that version",
                    layer=name,
                    side=side,
                )
            sides.append(leading @ tensor.to(leading.dtype))
        factors[name] = LayerFactors(*sides)
    return factors


def subspace_from_factors(
    factors: Sequence[Factors],
    num_factors: int | None = None,
    energy: float | None = None,
    metric: Metric = "delta",
) -> Subspace:
    """
    Start a subspace from adapters that exist: version 1, with all of them merged.

    To go on merging, keep the tasks as well: call :func:`update_from_factors` and
    ``merge(Subspace.empty(...), {}, updates)``, of which this is the short form.

    Args:
        factors: One entry per adapter; all over the same layers.
        num_factors: ``k``; None keeps all that the data have.
        energy: Instead, or as well: the least ``k`` per side that explains this share.
        metric: ``"delta"`` keeps the ``dW`` best, ``"factors"`` the factors.

    Raises:
        ShapeMismatch: No adapter was given, or their layers differ.
    """
    if not factors:
        raise ShapeMismatch("a subspace needs at least one adapter to start from, got none")
    first = next(iter(factors[0].values()), None)
    dtype = torch.float64 if first is not None and first.a.dtype == torch.float64 else torch.float32
    empty = Subspace.empty({name: layer.shape for name, layer in factors[0].items()}, metric, dtype)
    updates = [
        update_from_factors(empty, adapter, f"adapter-{index:06d}", folds=False)
        for index, adapter in enumerate(factors)
    ]
    return merge(empty, {}, updates, num_factors=num_factors, energy=energy).subspace


def augment(subspace: Subspace, num_random: int, generator: torch.Generator) -> Subspace:
    """
    Add random directions, orthogonal to the basis, that coefficients can use as they use principal factors.

    A subspace of few adapters lacks what a new task needs; without temporary factors nothing else
    could learn it. The directions have no energy, so that the next merge cuts what nobody used. The
    oversampled tail is left out: energies never increase from column to column.

    Args:
        subspace: Whose bases.
        num_random: Directions for each side.
        generator: Decides which.

    Returns:
        The same version with ``k + num_random`` principal factors; coefficients of earlier tasks
        have as many rows of zeros more.

    Raises:
        RankTooLarge: A side has no ``num_random`` directions left.

    Source:
        EigenLoRAx, section on low-resource use.

    Examples:
        >>> subspace = subspace_from_factors([{"q": LayerFactors(torch.eye(4)[:, :1], torch.eye(3)[:, :1])}])
        >>> wider = augment(subspace, 2, torch.Generator().manual_seed(0))
        >>> subspace.num_factors, wider.num_factors
        (1, 3)
    """

    def wider(basis: Basis) -> Basis:
        new = propose_temporary(basis.leading, num_random, generator)
        energies = basis.energies[: basis.num_factors]
        return replace(
            basis,
            vectors=torch.cat([basis.leading, new], dim=1),
            energies=torch.cat([energies, energies.new_zeros(num_random)]),
            num_factors=basis.num_factors + num_random,
            cut_energy=basis.cut_energy + float(basis.energies[basis.num_factors :].sum()),
        )

    layers = {
        name: LayerSubspace(*(wider(basis) for _, basis in layer))
        for name, layer in subspace.layers.items()
    }
    return replace(subspace, layers=layers, digest="")


def random_subspace(shapes: Mapping[str, LayerShape], num_factors: int, seed: int) -> Subspace:
    """
    Make a subspace whose directions are random: what is said in it tells how much size alone explains.

    Args:
        shapes: Its layers.
        num_factors: ``k`` of each side; of a side with fewer features, all of them.
        seed: Decides which directions.

    Returns:
        Version 0, orthonormal; its energies are all one, and mean nothing.

    Examples:
        >>> subspace = random_subspace({"q": LayerShape(4, 2)}, num_factors=3, seed=0)
        >>> [basis.num_factors for _, basis in subspace.layers["q"]]
        [3, 2]
    """
    generator = torch.Generator().manual_seed(seed)

    def basis(features: int) -> Basis:
        size = min(num_factors, features)
        vectors = propose_temporary(torch.zeros(features, 0), size, generator)
        return Basis(vectors, torch.ones(size, dtype=torch.float64), size)

    return Subspace(
        {
            name: LayerSubspace(basis(shape.in_features), basis(shape.out_features))
            for name, shape in shapes.items()
        }
    )


def update_from_factors(
    subspace: Subspace, factors: Factors, task_id: str, update_id: str = "", *, folds: bool = True
) -> TaskUpdate:
    """
    Say an adapter that was trained elsewhere as a task update; nothing of it is lost.

    Its part inside the subspace becomes coefficients, the rest temporary factors.

    Args:
        subspace: The version to base the update on.
        factors: The adapter.
        task_id: What to call it.
        update_id: Defaults to ``task_id``.
        folds: False leaves all of it temporary factors. A merge makes the same of them, and it takes a sixth of
            the time; an update that is sent is smaller folded.

    Raises:
        ShapeMismatch: The adapter's layers are not those of the subspace.
    """
    check_layers(subspace, factors)
    layers = {}
    for name, layer in factors.items():
        sides = []
        for side, factor in evenly_split(layer) if subspace.metric == "delta" else layer:
            basis = subspace.layers[name][side].leading
            raw = all_temporary(factor.to(basis.dtype), basis.shape[1])
            sides.append(fold(basis, raw) if folds else raw)
        layers[name] = LayerUpdate(*sides)
    return TaskUpdate(
        update_id or task_id, task_id, subspace.version, layers, base_digest=subspace.digest
    )


def all_temporary(factor: Float[Tensor, "d p"], num_factors: int) -> SideUpdate:
    """
    Say a factor with no coefficients in the ``k`` principal factors: ``E = 0``, ``T = F`` and ``tau = I``.

    Examples:
        >>> said = all_temporary(torch.tensor([[3.0], [4.0]]), num_factors=2)
        >>> said.coefficients.tolist(), said.temporary_coefficients.tolist()
        ([[0.0], [0.0]], [[1.0]])
    """
    rank = factor.shape[1]
    identity = torch.eye(rank, dtype=factor.dtype, device=factor.device)
    return SideUpdate(factor.new_zeros(num_factors, rank), factor, identity)


def evenly_split(layer: LayerFactors) -> LayerFactors:
    """
    Split the same ``dW`` between the two factors evenly: ``B = U sqrt(s)``, ``A = W sqrt(s)``.

    ``(B, A)`` may have come with directions that are tiny in one factor and
    huge in the other; there is no telling rounding from content in those.

    Examples:
        >>> lopsided = LayerFactors(torch.tensor([[1e6], [0.0]]), torch.tensor([[1e-6]]))
        >>> even = evenly_split(lopsided)
        >>> round(even.b.abs().item(), 6), round(even.delta_weight()[0, 0].item(), 6)
        (1.0, 1.0)
    """
    (Q_a, R_a), (Q_b, R_b) = (torch.linalg.qr(factor.double()) for _, factor in layer)
    U, sigma, Wt = thin_svd(R_b @ R_a.mT)
    rank, root = layer.a.shape[1], sigma.sqrt()
    # a rank beyond the features leaves fewer columns: the pseudo-rank shall stay
    missing = (0, rank - sigma.shape[0])
    return LayerFactors(
        torch.nn.functional.pad(Q_a @ Wt.mT * root, missing),
        torch.nn.functional.pad(Q_b @ U * root, missing),
    )


def check_layers(subspace: Subspace, factors: Factors) -> None:
    """
    Raise unless the factors cover exactly the subspace's layers, with their features.

    Raises:
        ShapeMismatch: With the first layer that differs and both shapes.
    """
    found = {name: layer.shape for name, layer in factors.items()}
    expected = subspace.shapes
    for name in sorted({*found, *expected}):
        if found.get(name) != expected.get(name):
            raise ShapeMismatch(
                f"layer {name!r} is {found.get(name) or 'absent'} in the adapter and "
                f"{expected.get(name) or 'absent'} in the subspace: use the same base model and targets",
                layer=name,
            )

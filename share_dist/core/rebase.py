"""Rebase: the same task, and what its optimiser remembers of it, said in another version's basis."""

from jaxtyping import Float
from torch import Tensor

from share_dist.core.values import Coefficients, LayerCoefficients, Subspace


def rebase_side(
    coefficients: Float[Tensor, "k_old p"],
    old: Float[Tensor, "d k_old"],
    new: Float[Tensor, "d k_new"],
) -> Float[Tensor, "k_new p"]:
    """
    Say in the basis ``new`` what the coefficients say in ``old``: ``V_new.T V_old E``.

    Accuracy:
        The nearest that ``new`` can say, in Frobenius norm; exact where the
        span of ``new`` holds the factor.

    Examples:
        >>> import torch
        >>> old, new = torch.eye(3)[:, :2], torch.eye(3)[:, 1:]
        >>> rebase_side(torch.tensor([[5.0], [7.0]]), old, new).tolist()
        [[7.0], [0.0]]
    """
    return new.mT @ (old @ coefficients)


def rebase_moments(
    first: Float[Tensor, "k_old p"],
    second: Float[Tensor, "k_old p"],
    old: Float[Tensor, "d k_old"],
    new: Float[Tensor, "d k_new"],
) -> tuple[Float[Tensor, "k_new p"], Float[Tensor, "k_new p"]]:
    """
    Say in the basis ``new`` what an optimiser of Adam's kind remembers of coefficients in ``old``.

    The gradient of coefficients is ``V.T G``: with ``R = V_new.T V_old`` the mean of gradients becomes
    ``R m``, exactly so far as ``old`` said them. Of their squares the optimiser keeps no products of
    different rows: as though these were uncorrelated, they become ``(R * R) v``, and what ``old`` did not say
    counts as the mean of a column, so that no new row takes larger steps than the others.

    Args:
        first: Running mean of gradients.
        second: Running mean of their squares.
        old: The basis of both.
        new: The basis to say them in.

    Accuracy:
        That of ``first`` where the span of ``new`` lies in that of ``old``; ``second`` is exact
        where columns of the basis only change places and signs.

    Examples:
        >>> import torch
        >>> old, new = torch.eye(3)[:, :2], torch.eye(3)[:, [1, 0]]
        >>> first, second = torch.tensor([[5.0], [7.0]]), torch.tensor([[1.0], [4.0]])
        >>> [each.flatten().tolist() for each in rebase_moments(first, second, old, new)]
        [[7.0, 5.0], [4.0, 1.0]]
    """
    rotation = new.mT @ old
    shares = rotation.square()
    unsaid = (1 - shares.sum(dim=1, keepdim=True)).clamp(min=0)
    if not second.shape[0]:
        return rotation @ first, shares @ second
    return rotation @ first, shares @ second + unsaid * second.mean(dim=0, keepdim=True)


def rebase(coefficients: Coefficients, old: Subspace, new: Subspace) -> Coefficients:
    """
    Rebase all layers of one task from one version to another.

    A coordinator that keeps an oversampled tail remembers more of the task than
    its ``k`` served rows say: its own coefficients are nearer, pull them where it can be asked.

    Args:
        coefficients: In the ``k`` principal factors of ``old``.
        old: The subspace that the coefficients belong to.
        new: The subspace to say them in.
    """
    return Coefficients(
        {
            name: LayerCoefficients(
                *(
                    rebase_side(
                        tensor, old.layers[name][side].leading, new.layers[name][side].leading
                    )
                    for side, tensor in layer
                )
            )
            for name, layer in coefficients.layers.items()
        },
        version=new.version,
    )

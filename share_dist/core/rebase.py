"""Rebase: the same task, said in another version's basis."""

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

"""The digest of a base model: what must agree before tasks of two workers can be merged."""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from share_dist.adapters.inject import InjectedModel

VALUES_PER_PARAMETER = 4096


def model_digest(model: nn.Module | InjectedModel, exclude: Sequence[str] = ()) -> str:
    """
    Name a base model by its weights.

    Over every parameter in the order of names: its name, its shape, and up to
    4,096 evenly spaced values rounded to bfloat16, so that a checkpoint loaded
    in float32 and in bfloat16 is the same model. Injection does not change it.

    Args:
        model: A plain or injected model.
        exclude: Names of modules to leave out, such as a head that is drawn at
            random and belongs to the task.

    Returns:
        SHA-256, hex.

    Accuracy:
        A fine-tuned copy differs in almost every weight and so in the digest;
        one weight changed on purpose may go unseen. It tells models apart, it
        does not protect them.

    Examples:
        >>> layer = nn.Linear(3, 2)
        >>> model_digest(layer) == model_digest(layer.bfloat16())
        True
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(_parameters(model).items()):
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in exclude):
            continue
        digest.update(f"{name}:{tuple(parameter.shape)}:".encode())
        digest.update(_sample(parameter.detach()))
    return digest.hexdigest()


def _parameters(model: nn.Module | InjectedModel) -> Mapping[str, Tensor]:
    return (
        model.base_parameters()
        if isinstance(model, InjectedModel)
        else dict(model.named_parameters())
    )


def _sample(parameter: Tensor) -> bytes:
    values = parameter.reshape(-1)
    count = min(VALUES_PER_PARAMETER, values.numel())
    positions = torch.arange(count) * (values.numel() - 1) // max(count - 1, 1)
    sampled = values[positions.to(values.device)].to(torch.bfloat16).cpu()
    return sampled.view(torch.int16).numpy().astype("<i2").tobytes()

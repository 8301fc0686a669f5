"""An adapted layer: a linear layer of the model, and the term that is added to its output."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from share_dist.adapters.targets import is_conv1d
from share_dist.adapters.terms import Term, form_factors
from share_dist.core.values import LayerSubspace, LayerUpdate, Pair
from share_dist.errors import ConfigError


class AdaptedLayer:
    """
    Stands beside a linear layer, adds to its output and owns none of its weights.

    A forward hook, not a module in the layer's place: the model keeps its
    module names, its ``state_dict`` and its class, and code that reads
    ``layer.weight`` goes on working.

    Args:
        name: The layer's name in the model, for messages.
        module: ``nn.Linear``, or the ``Conv1D`` of transformers.
        subspace: The layer's two bases. They are taken to the device of the
            layer in float32, and there are the only copy for all tasks.
    """

    def __init__(self, name: str, module: nn.Module, subspace: LayerSubspace) -> None:
        if any(isinstance(hook, AdaptedLayer) for hook in module._forward_hooks.values()):  # noqa: SLF001  no public way to read hooks
            raise ConfigError(
                f"layer {name!r} is adapted already: eject the first injection of this model",
                key="model",
            )
        self.term: Term | None = None
        self._module = module
        self._original: nn.Parameter | None = None
        self._handle: RemovableHandle | None = None
        self.use_subspace(subspace)

    def attach(self) -> None:
        """Begin to add to the layer's output."""
        self._handle = self._module.register_forward_hook(self, with_kwargs=True)

    @property
    def weight(self) -> nn.Parameter:
        """The base weight, also while a task is merged into it."""
        return self._module.get_parameter("weight") if self._original is None else self._original

    def use_subspace(self, subspace: LayerSubspace) -> None:
        """Refer to other bases."""
        self.bases = Pair(*(self._place(basis.leading) for _, basis in subspace))

    def _place(self, vectors: Tensor) -> Tensor:
        return vectors.detach().to(self.weight.device, torch.float32)

    def __call__(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        """Add the term in use: the hook itself."""
        if self.term is None:
            return output
        (inputs,) = (*args, *kwargs.values())
        return self.term.add_to(output, inputs)

    @torch.no_grad()
    def merge(self, update: LayerUpdate) -> None:
        """
        Put ``W0 + dW`` in the place of the weight, computed in float32.

        The original parameter is set aside, not written to, so that what is
        tied to it stays as it is and ``unmerge`` restores it exactly.
        """
        delta = form_factors(self.bases, update).delta_weight()
        change = delta.mT if is_conv1d(self._module) else delta
        self._original = self._module.get_parameter("weight")
        merged = (self._original.float() + change).to(self._original.dtype)
        self._module.weight = nn.Parameter(merged, requires_grad=False)

    def unmerge(self) -> None:
        """Put the original weight back; without a merge, do nothing."""
        if self._original is not None:
            self._module.weight = self._original
            self._original = None

    def remove(self) -> None:
        """Leave the model as it was found."""
        self.unmerge()
        if self._handle is not None:
            self._handle.remove()

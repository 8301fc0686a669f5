"""Terms: what is added to the output of an adapted layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from share_dist.core.temporary import factor_of
from share_dist.core.values import LayerFactors, LayerUpdate, Pair
from share_dist.errors import ShapeMismatch


class Term(Protocol):
    """Adds a weight change to the output of its layer."""

    def add_to(self, output: Tensor, inputs: Tensor) -> Tensor:
        """
        Return ``output + dW inputs``.

        Args:
            output: ``(..., n)``, what the layer computes.
            inputs: ``(..., d)``, what it was given.
        """
        ...


def form_factors(bases: Pair[Tensor], update: LayerUpdate) -> LayerFactors:
    """
    Form a task's two factors, ``V E + T tau``, in the precision of its coefficients.

    Autocast is held off: factors are the sum of many small steps, which half
    precision would round away.
    """
    device = bases.a.device.type
    if not torch.is_autocast_enabled(device):
        return LayerFactors(factor_of(bases.a, update.a), factor_of(bases.b, update.b))
    with torch.autocast(device, enabled=False):
        return LayerFactors(factor_of(bases.a, update.a), factor_of(bases.b, update.b))


@dataclass(frozen=True, slots=True)
class TaskTerm:
    """
    One task for the whole batch, at the cost of a LoRA of rank ``p``.

    The factors are formed once per call, ``p k (d + n)`` operations, so that a
    token costs ``p (d + n)`` and not ``k (d + n)``.
    """

    bases: Pair[Tensor]
    update: LayerUpdate

    def add_to(self, output: Tensor, inputs: Tensor) -> Tensor:
        """Return ``output + (inputs F_A) F_B.T``."""
        factors = form_factors(self.bases, self.update)
        hidden = inputs @ factors.a.to(inputs.dtype)
        added = torch.addmm(
            output.reshape(-1, output.shape[-1]),
            hidden.reshape(-1, hidden.shape[-1]),
            factors.b.to(inputs.dtype).mT,
        )
        return added.view(output.shape)


@dataclass(frozen=True, slots=True)
class ProbeTerm:
    """
    A change of zero, whose gradient is that of the weight.

    It serves a weight that can have no gradient itself, such as one that is quantised.
    """

    change: Tensor
    """``(n, d)`` zeros that require a gradient."""

    def add_to(self, output: Tensor, inputs: Tensor) -> Tensor:
        """Return ``output``, which now depends on the change."""
        return output + inputs @ self.change.to(inputs.dtype).mT


@dataclass(slots=True)
class CoordinatesTerm:
    """Adds nothing, and keeps what the layer was last given, said in the principal factors of side A."""

    basis: Tensor
    """``V_A``, ``(d, k)``."""
    last: Tensor | None = None
    """``(..., k)``; None before the first call."""

    def add_to(self, output: Tensor, inputs: Tensor) -> Tensor:
        """Return ``output``."""
        self.last = inputs.float() @ self.basis
        return output


@dataclass(frozen=True, slots=True)
class MixedTerm:
    """
    Another task for each row of the batch: the two wide products are the same for all.

    Args:
        bases: ``V_A`` and ``V_B``.
        cores: ``E_A E_B.T`` of each row's task, ``(rows, k_a, k_b)``.
    """

    bases: Pair[Tensor]
    cores: Tensor

    @staticmethod
    def of(
        bases: Pair[Tensor], updates: Sequence[LayerUpdate | None], rows: Sequence[int]
    ) -> "MixedTerm":
        """
        Form the cores of one layer.

        Args:
            bases: ``V_A`` and ``V_B``.
            updates: The distinct tasks; None stands for the plain base.
            rows: For each row of the batch, which of them.
        """
        cores = bases.a.new_zeros(len(updates), bases.a.shape[1], bases.b.shape[1])
        with torch.no_grad():
            for core, update in zip(cores, updates, strict=True):
                if update is not None:
                    core.copy_(update.a.coefficients @ update.b.coefficients.mT)
        return MixedTerm(bases, cores[list(rows)])

    def add_to(self, output: Tensor, inputs: Tensor) -> Tensor:
        """Return ``output + ((inputs V_A) core_of_row) V_B.T``."""
        rows = self.cores.shape[0]
        if inputs.shape[0] != rows:
            raise ShapeMismatch(
                f"{rows} tasks were activated for {rows} rows, the layer was given "
                f"{inputs.shape[0]} rows: activate one task per row of the batch"
            )
        shared = (inputs @ self.bases.a.to(inputs.dtype)).reshape(rows, -1, self.cores.shape[1])
        said = torch.bmm(shared, self.cores.to(shared.dtype))
        return output + (said @ self.bases.b.to(said.dtype).mT).view(output.shape)

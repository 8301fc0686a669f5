"""Where training is: all that it needs to go on, and to compute the same as if it had not been interrupted."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

ADAPTER = "adapter."
"""Before the names of what is no part of the head."""


@dataclass(frozen=True)
class TrainingState:
    """
    All that training needs to go on.

    Args:
        epochs_done: Passes finished.
        batches_done: Batches finished of the pass under way; 0 between two passes.
        tensors: Parameters and head, now.
        optimizer: What the optimiser remembers.
        generators: Random generators in the middle of a pass; empty between two.
        best_epoch: The epoch to keep: the last one that is not clearly worse on
            the validation rows than any before it. -1 before the first is finished.
        best_score: The best score of any epoch there.
        best_tensors: Parameters and head as they were after ``best_epoch``.
        epochs_since_best: Passes since ``best_score`` rose.
        rate_share: Share of the learning rates that is left after roll-backs.
        rollbacks: How often training went back to an earlier state.
        rows_at_once: Rows that went through the model together; 0: none did yet.
    """

    epochs_done: int
    tensors: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    best_epoch: int
    best_score: float
    best_tensors: Mapping[str, Tensor]
    batches_done: int = 0
    generators: Mapping[str, Tensor] = field(default_factory=dict)
    epochs_since_best: int = 0
    rate_share: float = 1.0
    rollbacks: int = 0
    rows_at_once: int = 0

    @property
    def adapter(self) -> dict[str, Tensor]:
        """The parameters that are not the head's, under their own names."""
        return {
            name.removeprefix(ADAPTER): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(ADAPTER)
        }

    @property
    def is_best(self) -> bool:
        """Whether ``best_tensors`` are ``tensors``."""
        return self.batches_done == 0 and self.best_epoch == self.epochs_done - 1


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """States of the generators that dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generator_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Let the generators go on from where they were."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)

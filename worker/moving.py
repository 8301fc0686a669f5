"""Moving: the same training, gone on with in another version of the subspace."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from share_dist.core.rebase import rebase_moments, rebase_side
from share_dist.core.values import Side, Subspace
from worker.optimizer import Trainee
from worker.training_state import ADAPTER, TrainingState

_FIRST, _SECOND = "exp_avg", "exp_avg_sq"
"""As AdamW names its means of gradients and of their squares."""


@dataclass(frozen=True)
class Move:
    """
    Where training goes on.

    Args:
        trainee: The parameters of the task in the other version.
        state: What training knows, said in that version.
    """

    trainee: Trainee
    state: TrainingState


def moved(state: TrainingState, old: Subspace, new: Subspace) -> TrainingState:
    """
    Say a state of training in another version.

    Coefficients are rebased, those of the epoch to keep as well, and the optimiser's moments are turned
    with them; temporary factors and the head stay to the bit. Coefficients of a basis that was empty begin
    at zero, and the optimiser begins anew with them.

    Args:
        state: In ``old``.
        old: The version that it was trained in.
        new: The version to go on in.
    """
    layers = {f"{ADAPTER}{name}": name for name in old.layers}

    def bases_of(parameter: str) -> tuple[Tensor, Tensor] | None:
        """The bases of a parameter that is a side's coefficients."""
        layer, _, rest = parameter.rpartition(".")
        layer, _, side = layer.rpartition(".")
        if rest != "coefficients" or layer not in layers:
            return None
        return _leading(old, layers[layer], side), _leading(new, layers[layer], side)

    carry = partial(_carried, bases_of=bases_of)
    return replace(
        state,
        tensors=_with_new_rows(carry(state.tensors), new),
        best_tensors=_with_new_rows(carry(state.best_tensors), new) if state.best_tensors else {},
        optimizer=_moments(state.optimizer, bases_of),
    )


_BasesOf = Callable[[str], tuple[Tensor, Tensor] | None]


def _leading(subspace: Subspace, layer: str, side: str) -> Tensor:
    which: Side = "a" if side == "a" else "b"
    return subspace.layers[layer][which].leading.float().cpu()


def _carried(tensors: Mapping[str, Tensor], bases_of: _BasesOf) -> dict[str, Tensor]:
    return {
        name: tensor if (bases := bases_of(name)) is None else rebase_side(tensor, *bases)
        for name, tensor in tensors.items()
    }


def _with_new_rows(tensors: dict[str, Tensor], new: Subspace) -> dict[str, Tensor]:
    """Add what a task has in a basis that is no longer empty: nothing is said in it yet."""
    for name, layer in new.layers.items():
        for side, basis in layer:
            key = f"{ADAPTER}{name}.{side}"
            said = tensors.get(f"{key}.temporary_coefficients")
            if basis.num_factors and said is not None:
                tensors.setdefault(
                    f"{key}.coefficients", said.new_zeros(basis.num_factors, said.shape[1])
                )
    return tensors


def _moments(memory: Mapping[str, Tensor], bases_of: _BasesOf) -> dict[str, Tensor]:
    found = dict(memory)
    for key in memory:
        parameter, _, moment = key.rpartition("/")
        if moment == _FIRST and (bases := bases_of(parameter)) is not None:
            second = f"{parameter}/{_SECOND}"
            found[key], found[second] = rebase_moments(memory[key], memory[second], *bases)
    return found

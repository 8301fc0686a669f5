"""share-dist: the exact small merge, from values and from the bytes of a push."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from share_dist.adapters import load_lora
from share_dist.core.merge import merge
from share_dist.core.subspace import reconstruct, update_from_factors
from share_dist.core.values import Factors, LayerShape, MergedTask, Metric, Subspace, TaskUpdate
from share_dist.wire.payloads import update_from_record, update_to_record
from tests.benchmarks.peers.base import features_of

AT_ONCE = 8


@dataclass(frozen=True)
class State:
    """A version and its tasks, and how it was cut."""

    subspace: Subspace
    tasks: Mapping[str, MergedTask]
    num_factors: int


@dataclass(frozen=True)
class Ours:
    """
    Merges of a few adapters each, and one that is timed.

    Args:
        metric: What a merge keeps best.
        at_once: Adapters that each merge of the start brings in; 0 for all.
    """

    metric: Metric = "delta"
    at_once: int = AT_ONCE

    @property
    def name(self) -> str:
        how = {0: ", all at once", 1: ", one by one"}.get(self.at_once, "")
        return f"share-dist ({self.metric}{how})"

    def start(self, folders: Sequence[Path], num_factors: int) -> State:
        first = load_lora(folders[0])
        shapes = {name: layer.shape for name, layer in first.factors.items()}
        state = State(Subspace.empty(shapes, self.metric), {}, num_factors)
        step = self.at_once or len(folders)
        for start in range(0, len(folders), step):
            group = folders[start : start + step]
            updates = [
                update_from_factors(state.subspace, load_lora(folder).factors, folder.name)
                for folder in group
            ]
            state = self._merged(state, updates)
        return state

    def read(self, folder: Path) -> Factors:
        return load_lora(folder).factors

    def add(self, state: State, name: str, adapter: Factors) -> State:
        return self._merged(
            state, [update_from_factors(state.subspace, adapter, name, folds=False)]
        )

    def factors(self, state: State, name: str) -> Factors:
        return reconstruct(state.subspace, state.tasks[name].served(state.subspace))

    def held_bytes(self, state: State) -> int:
        """Bases and coefficients as they are served; the tail of later merges is the coordinator's."""
        bases = sum(
            basis.leading.numel() * 4 for layer in state.subspace.layers.values() for _, basis in layer
        )  # fmt: skip
        said = sum(
            tensor.numel() * 4
            for task in state.tasks.values()
            for layer in task.served(state.subspace).layers.values()
            for _, tensor in layer
        )
        return bases + said

    def num_factors(
        self, held_bytes: int, shapes: Mapping[str, LayerShape], rank: int, num_tasks: int
    ) -> int:
        return max(
            1, held_bytes // (4 * (features_of(shapes) + 2 * len(shapes) * num_tasks * rank))
        )

    def _merged(self, state: State, updates: Sequence[TaskUpdate]) -> State:
        k = state.num_factors
        outcome = merge(state.subspace, state.tasks, updates, k, oversample=k)
        return State(outcome.subspace, outcome.tasks, k)


@dataclass(frozen=True)
class OursFromBytes(Ours):
    """The same merge, beginning with the bytes of a push; one that names the version as its base."""

    @property
    def name(self) -> str:
        return "share-dist, from the bytes of a push"

    def pushed(self, state: State, name: str, adapter: Factors) -> tuple[dict, bytes]:
        """What a worker sends: not timed."""
        return update_to_record(update_from_factors(state.subspace.without_tail(), adapter, name))

    def add(self, state: State, name: str, adapter: tuple[dict, bytes]) -> State:
        return self._merged(state, [update_from_record(*adapter)])

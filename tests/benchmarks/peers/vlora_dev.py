"""vlora-dev: flattened adapters around their mean; every adapter one vector of ``rank * features``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from share_dist.core.values import Factors, LayerFactors, LayerShape
from tests.benchmarks.peers.base import bytes_of, features_of


@dataclass(frozen=True)
class Vlora:
    """
    ``SharedSubspace``, of which the components are counted per side of a layer.

    Args:
        method: ``absorb`` or ``absorb_incremental``.
    """

    method: str = "absorb"

    @property
    def name(self) -> str:
        return f"vlora-dev {self.method}"

    def start(self, folders: Sequence[Path], num_factors: int) -> Any:
        from vlora import SharedSubspace

        adapters = [self.read(folder) for folder in folders]
        names = [folder.name for folder in folders]
        state = SharedSubspace.from_adapters(adapters, task_ids=names, num_components=num_factors)
        # with few adapters there are fewer components yet; later ones may use all that were asked for
        state.num_components = num_factors
        return state

    def read(self, folder: Path) -> Any:
        from vlora import load_adapter

        return load_adapter(folder)

    def add(self, state: Any, name: str, adapter: Any) -> Any:
        getattr(state, self.method)(adapter, name)
        return state

    def said(self, state: Any, name: str, adapter: Any) -> Factors:
        """Say an adapter that is not in the subspace by its components."""
        state.add_task(state.project(adapter, name))
        return self.factors(state, name)

    def factors(self, state: Any, name: str) -> Factors:
        weights = state.reconstruct(name)
        return {
            layer: LayerFactors(weights.lora_a[layer].mT, weights.lora_b[layer])
            for layer in weights.layer_names
        }

    def held_bytes(self, state: Any) -> int:
        shared = bytes_of(state.components_a, state.components_b, state.means_a, state.means_b)
        return shared + sum(
            bytes_of(task.loadings_a, task.loadings_b) for task in state.tasks.values()
        )

    def num_factors(
        self, held_bytes: int, shapes: Mapping[str, LayerShape], rank: int, num_tasks: int
    ) -> int:
        vectors = rank * features_of(shapes)
        left = held_bytes // 4 - vectors
        return max(1, left // (vectors + 2 * len(shapes) * num_tasks))

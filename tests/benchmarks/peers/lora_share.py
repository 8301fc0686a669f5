"""lorashare: eigenvectors of the centred covariance of all factors, ``d x d``, again at every adapter."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from share_dist.adapters import load_lora
from share_dist.core.values import Factors, LayerShape
from tests.benchmarks.peers.base import bytes_of, features_of


@dataclass(frozen=True)
class LoraShare:
    """``SHAREModel``; it reads every adapter's files again, which it must go on having."""

    name: str = "lorashare add_adapter"

    def start(self, folders: Sequence[Path], num_factors: int) -> Any:
        from lorashare import SHAREModel

        named = {folder.name: str(folder) for folder in folders}
        return SHAREModel.from_adapters(named, num_components=num_factors)

    def read(self, folder: Path) -> str:
        return str(folder)

    def add(self, state: Any, name: str, adapter: str) -> Any:
        state.add_adapter(adapter, name)
        return state

    def said(self, state: Any, name: str, adapter: str) -> Factors:
        """Say an adapter that is not in the subspace by its components."""
        state.add_adapter(adapter, name, variance_threshold=0.0)
        return self.factors(state, name)

    def factors(self, state: Any, name: str) -> Factors:
        with tempfile.TemporaryDirectory() as folder:
            state.reconstruct(name, output_dir=folder)
            return load_lora(folder).factors

    def held_bytes(self, state: Any) -> int:
        return bytes_of(state.components, *state.all_loadings.values())

    def num_factors(
        self, held_bytes: int, shapes: Mapping[str, LayerShape], rank: int, num_tasks: int
    ) -> int:
        return max(
            1, held_bytes // (4 * (features_of(shapes) + 2 * len(shapes) * num_tasks * rank))
        )

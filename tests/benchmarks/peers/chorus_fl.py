"""chorus-fl: one average of all adapters, by an SVD of the dense ``dW``; tasks are not kept apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from share_dist.core.values import Factors, LayerFactors, LayerShape
from tests.benchmarks.peers.base import bytes_of, features_of


@dataclass
class Average:
    """What was sent, and what it was averaged to."""

    sent: list[dict[str, Tensor]]
    num_factors: int
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Chorus:
    """``FedExLoRA`` of rank ``k``: the best rank-``k`` form of the mean of all ``dW``."""

    name: str = "chorus-fl FedEx-LoRA"

    def start(self, folders: Sequence[Path], num_factors: int) -> Average:
        return Average([self.read(folder) for folder in folders], num_factors, {})

    def read(self, folder: Path) -> dict[str, Tensor]:
        return load_file(folder / "adapter_model.safetensors")

    def add(self, state: Average, name: str, adapter: dict[str, Tensor]) -> Average:
        from chorus.server.aggregation import FedExLoRA

        sent = [*state.sent, adapter]
        average = FedExLoRA(output_rank=state.num_factors).aggregate(sent)
        return Average(sent, state.num_factors, average)

    def factors(self, state: Average, name: str) -> Factors:
        keys = [key for key in state.tensors if key.endswith(".lora_A.weight")]
        return {
            key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): LayerFactors(
                state.tensors[key].mT, state.tensors[key.replace(".lora_A.", ".lora_B.")]
            )
            for key in keys
        }

    def held_bytes(self, state: Any) -> int:
        return bytes_of(state.tensors)

    def num_factors(
        self, held_bytes: int, shapes: Mapping[str, LayerShape], rank: int, num_tasks: int
    ) -> int:
        largest = min(min(shape) for shape in shapes.values())
        return max(1, min(largest, held_bytes // (4 * features_of(shapes))))

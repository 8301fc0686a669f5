"""peft: ``add_weighted_adapter`` by SVD of the dense ``dW``; tasks are not kept apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from share_dist.adapters import load_lora
from share_dist.core.values import Factors, LayerFactors, LayerShape
from tests.benchmarks.peers.base import features_of

MERGED = "merged"


def bare_model(shapes: Mapping[str, LayerShape]) -> nn.Module:
    """A module that has the layers and nothing else."""
    root = nn.Module()
    for name, shape in shapes.items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
        module.add_module(leaf, nn.Linear(*shape, bias=False))
    return root


@dataclass
class Loaded:
    """A model with every adapter loaded, whose average is an adapter more."""

    model: Any
    names: list[str]
    num_factors: int


@dataclass(frozen=True)
class PeftSvd:
    """``combination_type="svd"`` with equal weights, of rank ``k``."""

    name: str = "peft add_weighted_adapter svd"

    def start(self, folders: Sequence[Path], num_factors: int) -> Loaded:
        from peft import PeftModel

        shapes = {name: layer.shape for name, layer in load_lora(folders[0]).factors.items()}
        first, *others = folders
        model = PeftModel.from_pretrained(bare_model(shapes), str(first), adapter_name=first.name)
        for folder in others:
            model.load_adapter(str(folder), adapter_name=folder.name)
        return Loaded(model, [folder.name for folder in folders], num_factors)

    def read(self, folder: Path) -> Path:
        return folder

    def add(self, state: Loaded, name: str, adapter: Path) -> Loaded:
        if name not in state.names:
            state.model.load_adapter(str(adapter), adapter_name=name)
            state.names.append(name)
        weights = [1 / len(state.names)] * len(state.names)
        # asked for again under the same name, it would do nothing
        state.model.base_model.delete_adapter(MERGED) if MERGED in state.model.peft_config else None
        state.model.base_model.add_weighted_adapter(
            state.names, weights, MERGED, combination_type="svd", svd_rank=state.num_factors
        )
        return state

    def factors(self, state: Loaded, name: str) -> Factors:
        found = {}
        for layer, module in state.model.base_model.model.named_modules():
            if hasattr(module, "lora_A"):
                root = module.scaling[MERGED] ** 0.5
                A, B = module.lora_A[MERGED].weight, module.lora_B[MERGED].weight
                found[layer] = LayerFactors(A.detach().mT * root, B.detach() * root)
        return found

    def held_bytes(self, state: Loaded) -> int:
        tensors = (each for _, layer in self.factors(state, "").items() for _, each in layer)
        return sum(each.numel() * each.element_size() for each in tensors)

    def num_factors(
        self, held_bytes: int, shapes: Mapping[str, LayerShape], rank: int, num_tasks: int
    ) -> int:
        largest = min(min(shape) for shape in shapes.values())
        return max(1, min(largest, held_bytes // (4 * features_of(shapes))))

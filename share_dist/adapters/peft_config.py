"""PEFT's config of a LoRA, and what its tensors are by it."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor

from share_dist.core.values import LayerFactors
from share_dist.errors import AdapterFormatError

NumberT = TypeVar("NumberT", int, float)

WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}
"""Options that do not change what saved tensors mean: they choose, start or describe."""

PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""``init_lora_weights`` that leave the base weights alone; others mean a changed base."""


class PeftConfig(BaseModel):
    """What of a LoRA's config decides how its tensors are read; the rest is extra."""

    model_config = ConfigDict(extra="allow")

    peft_type: Literal["LORA"]
    r: PositiveInt = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    rank_pattern: dict[str, PositiveInt] | None = None
    alpha_pattern: dict[str, float] | None = None
    fan_in_fan_out: bool = False
    modules_to_save: list[str] | None = None
    bias: str = "none"
    init_lora_weights: bool | str = True
    base_model_name_or_path: str | None = None
    task_type: str | None = None

    def rank_of(self, layer: str) -> int:
        """Tell the rank of a layer."""
        return _of_layer(self.rank_pattern, layer, self.r)

    def scale_of(self, layer: str) -> float:
        """Tell what multiplies a layer's product."""
        rank = self.rank_of(layer)
        alpha = _of_layer(self.alpha_pattern, layer, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def require_representable(config: PeftConfig, path: Path) -> None:
    """
    Raise unless two factors a layer can say what the config means.

    Raises:
        AdapterFormatError: With the options that they cannot.
    """
    extra = config.model_extra or {}
    refused = {name: value for name, value in extra.items() if value and name not in WITHOUT_EFFECT}
    if config.bias != "none":
        refused["bias"] = config.bias
    if config.init_lora_weights not in PLAIN_STARTS:
        refused["init_lora_weights"] = config.init_lora_weights
    if refused:
        options = ", ".join(f"{name}={value!r}" for name, value in sorted(refused.items()))
        raise AdapterFormatError(
            f"{path} sets {options}, which two factors per layer cannot say: "
            "train it as plain LoRA, or convert it",
            path=str(path),
        )


def factors_of(down: Tensor, up: Tensor, name: str, config: PeftConfig, path: Path) -> LayerFactors:
    """
    Read one layer: its scale is folded into both factors.

    Args:
        down: ``lora_A``, ``(r, d)``.
        up: ``lora_B``, ``(n, r)``.
        name: Of the layer.
        config: Says rank and scale.
        path: Where the tensors are from.

    Raises:
        AdapterFormatError: Shapes are not those of a linear layer of this rank.
    """
    rank = config.rank_of(name)
    if down.ndim != 2 or up.ndim != 2 or not down.shape[0] == up.shape[1] == rank:
        raise AdapterFormatError(
            f"{path}: layer {name!r} has lora_A {tuple(down.shape)} and lora_B "
            f"{tuple(up.shape)}, its config says rank {rank}: need ({rank}, in) and (out, {rank}); "
            "only linear layers can be read",
            path=str(path),
        )
    scale = config.scale_of(name)
    root = math.sqrt(abs(scale))
    return LayerFactors(
        (down.float().mT * root).contiguous(), up.float() * math.copysign(root, scale)
    )


def _of_layer(pattern: Mapping[str, NumberT] | None, layer: str, default: NumberT) -> NumberT:
    """Look a layer up as PEFT does: the first pattern that matches the end of its name."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", layer):
            return value
    return default

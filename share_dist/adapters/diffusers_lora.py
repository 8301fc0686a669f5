"""
LoRA files as diffusers writes them, of all parts of a pipeline at once, read into factors.

A layer keeps the name of its part, as ``unet.down_blocks.0...to_q``; in a file of one model alone it has none.
Scales are in the header, as the parts' PEFT configs, or in a tensor ``alpha`` beside each layer; where there is
neither, each is one. Of the older names for the two factors those are known that say their layer.
"""

import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from torch import Tensor

from share_dist.adapters.files import read_tensors
from share_dist.adapters.peft_config import PeftConfig, factors_of, require_representable
from share_dist.core.values import Factors
from share_dist.errors import AdapterFormatError, NotFinite

ValueT = TypeVar("ValueT", Tensor, float)

WEIGHTS_FILE = "pytorch_lora_weights.safetensors"
METADATA_KEY = "lora_adapter_metadata"

_SIDES = {"lora_A": "a", "lora.down": "a", "lora_linear_layer.down": "a"} | {
    "lora_B": "b",
    "lora.up": "b",
    "lora_linear_layer.up": "b",
}
_FACTOR = re.compile(rf"(.+)\.({'|'.join(map(re.escape, _SIDES))})\.weight")
_OF_PROCESSOR = re.compile(r"(.+)\.processor\.(to_[qkv]|to_out)_lora\.(down|up)\.weight")
_ALPHA = re.compile(r"(.+?)(?:\.lora|\.lora_linear_layer)?\.alpha")


def read_diffusers_lora(path: Path) -> Factors:
    """
    Read the layers of all parts.

    Args:
        path: The safetensors file.

    Returns:
        Layer -> factors, scale folded in.

    Raises:
        AdapterFormatError: The file is damaged, lacks one of a layer's two factors, names a layer as other
            programs do, says its scales twice or of some layers only, or says something that two factors
            cannot, such as DoRA or a convolution.
        NotFinite: A tensor holds NaN or infinity.
    """
    tensors, header = read_tensors(path)
    pairs, alphas = _sorted(tensors, path)
    configs = _configs(header, path)
    _require_one_account(pairs, configs, alphas, path)
    factors = {}
    for layer, (down, up) in pairs.items():
        config = _config_of(layer, configs, down, alphas.get(layer))
        factors[layer] = factors_of(down, up, layer, config, path)
    return factors


def _sorted(
    tensors: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, float]]:
    """Layer -> its two factors, and layer -> its alpha."""
    sides: dict[str, dict[str, Tensor]] = {"a": {}, "b": {}}
    alphas: dict[str, float] = {}
    unknown = []
    for key, tensor in tensors.items():
        if (found := _FACTOR.fullmatch(key)) is not None:
            _put(sides[_SIDES[found[2]]], found[1], tensor, path)
        elif (found := _OF_PROCESSOR.fullmatch(key)) is not None:
            layer = f"{found[1]}.{found[2]}" + (".0" if found[2] == "to_out" else "")
            _put(sides["a" if found[3] == "down" else "b"], layer, tensor, path)
        elif (found := _ALPHA.fullmatch(key)) is not None and tensor.numel() == 1:
            _put(alphas, found[1], _finite(float(tensor), key), path)
        else:
            unknown.append(key)
    if unknown:
        raise AdapterFormatError(
            f"{path} holds {len(unknown)} tensors that are no factor of a LoRA by diffusers' names, such as "
            f"{min(unknown)}: load it with diffusers, and save it by save_lora_weights",
            path=str(path),
        )
    lone = sorted({*(sides["a"].keys() ^ sides["b"].keys()), *(alphas.keys() - sides["a"].keys())})
    if lone or not sides["a"]:
        what = f"one factor, or none, of layer {lone[0]}" if lone else "no factors"
        raise AdapterFormatError(f"{path} holds {what}: fetch the file again", path=str(path))
    return {layer: (down, sides["b"][layer]) for layer, down in sides["a"].items()}, alphas


def _configs(header: Mapping[str, str], path: Path) -> dict[str, PeftConfig]:
    """Part -> its config; the part of a file of one model is empty."""
    try:
        said = json.loads(header.get(METADATA_KEY, "{}"))
        parts: dict[str, dict[str, Any]] = {}
        for key, value in said.items():
            part, _, option = key.rpartition(".")
            parts.setdefault(part, {})[option] = value
        configs = {
            part: PeftConfig.model_validate({"peft_type": "LORA"} | options)
            for part, options in parts.items()
        }
    except (ValueError, AttributeError, ValidationError) as error:
        raise AdapterFormatError(
            f"{path} says in its header of its scales what cannot be read ({error}): save it again by "
            "diffusers' save_lora_weights",
            path=str(path),
        ) from error
    for config in configs.values():
        require_representable(config, path)
    return configs


def _config_of(
    layer: str, configs: Mapping[str, PeftConfig], down: Tensor, alpha: float | None
) -> PeftConfig:
    part = next((each for each in configs if not each or layer.startswith(f"{each}.")), None)
    if part is not None:
        return configs[part]
    rank = down.shape[0] if down.ndim else 0
    return PeftConfig(peft_type="LORA", r=max(rank, 1), lora_alpha=rank if alpha is None else alpha)


def _require_one_account(
    layers: Collection[str], configs: Collection[str], alphas: Collection[str], path: Path
) -> None:
    """Refuse scales of which diffusers refuses to choose one, or which it guesses."""
    without = sorted(set(layers) - set(alphas))
    if alphas and (configs or without):
        what = "in its header as well" if configs else f"and none beside {without[0]}"
        raise AdapterFormatError(
            f"{path} says scales beside {len(alphas)} layers, {what}: load it with diffusers, see what it makes of it, "
            "and save it again by save_lora_weights",
            path=str(path),
        )


def _put(held: dict[str, ValueT], layer: str, value: ValueT, path: Path) -> None:
    if layer in held:
        raise AdapterFormatError(
            f"{path} holds layer {layer} under two names: fetch the file again", path=str(path)
        )
    held[layer] = value


def _finite(alpha: float, key: str) -> float:
    if not math.isfinite(alpha):
        raise NotFinite(f"{key} is {alpha}: fetch the file again", num_entries=1)
    return alpha

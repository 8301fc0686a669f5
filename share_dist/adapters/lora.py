"""
LoRA directories as PEFT writes them, read into factors and written from them.

The only place that knows PEFT's names: ``lora_A`` is ``(r, d)`` and becomes the
factor of side A, ``(d, r)``; ``lora_B`` is ``(n, r)``, as our side B is. The
scale, ``alpha / r`` or ``alpha / sqrt(r)`` with rsLoRA, is folded into both
factors as ``sqrt(scale)``, its sign into side B. ``fan_in_fan_out`` concerns
the base weight's storage only: the factors are the same.
"""

import json
import math
import re
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from share_dist.adapters.diffusers_lora import WEIGHTS_FILE, read_diffusers_lora
from share_dist.adapters.files import read_tensors, require_keys, write_tensors
from share_dist.adapters.peft_config import PeftConfig, factors_of, require_representable
from share_dist.core.subspace import reconstruct, subspace_from_factors, update_from_factors
from share_dist.core.values import (
    Coefficients,
    Factors,
    Head,
    LayerFactors,
    Metric,
    Subspace,
    TaskUpdate,
    check_finite,
)
from share_dist.errors import AdapterFormatError, NotFinite, RankTooLarge
from share_dist.files import write_file

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
KEY_PREFIX = "base_model.model."


@dataclass(frozen=True)
class LoraAdapter:
    """
    One LoRA adapter, whatever wrote it.

    Args:
        factors: Layer name, as in the base model, -> factors, scale folded in.
            Ranks may differ between layers.
        head: Full parameter name, such as ``"classifier.weight"``, -> tensor.
        metadata: What its config says of itself: ``base_model``, ``task_type``.
    """

    factors: Factors
    head: Mapping[str, Tensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", dict(sorted(self.factors.items())))
        object.__setattr__(self, "head", dict(sorted(self.head.items())))
        for name, layer in self.factors.items():
            for side, factor in layer:
                check_finite(factor, name, side)

    @property
    def ranks(self) -> dict[str, int]:
        """Layer name -> ``r``."""
        return {name: layer.a.shape[1] for name, layer in self.factors.items()}


def load_lora(directory: str | Path) -> LoraAdapter:
    """
    Read a LoRA directory of PEFT, or one of diffusers.

    Any rank and ``lora_alpha``, rsLoRA, ``rank_pattern`` and ``alpha_pattern``,
    ``fan_in_fan_out``, half precision (read into float32), ``modules_to_save``. Where there is no
    ``adapter_config.json`` and a ``pytorch_lora_weights.safetensors``, see ``read_diffusers_lora``.

    Raises:
        AdapterFormatError: A file is missing or damaged, a key is missing or
            unexpected, or an option changes what the tensors mean in a way that
            two factors cannot say, such as DoRA; the message names it.
        NotFinite: A tensor holds NaN or infinity.
    """
    directory = Path(directory)
    try:
        if _is_of_diffusers(directory):
            return LoraAdapter(read_diffusers_lora(directory / WEIGHTS_FILE))
        return _load_peft(directory)
    except NotFinite as error:
        raise NotFinite(f"{directory}: {error.message}", **error.details) from error


def save_lora(
    adapter: LoraAdapter,
    directory: str | Path,
    *,
    base_model: str | None = None,
    task_type: str | None = None,
    fan_in_fan_out: bool = False,
) -> None:
    """
    Write a directory that ``peft.PeftModel.from_pretrained`` loads.

    ``lora_alpha`` equals ``r`` in every layer, so that the scale is 1.

    Args:
        adapter: What to write.
        directory: Made where it does not exist; files of the same name are replaced.
        base_model: Name or path of the base model; by default what the adapter says.
        task_type: PEFT's, such as ``"SEQ_CLS"``; by default what the adapter says.
        fan_in_fan_out: True for a base model whose layers are ``Conv1D``, such as GPT-2.

    Raises:
        AdapterFormatError: PEFT cannot say it: no layers, a layer of rank 0, or a
            head tensor whose name names no module.
    """
    directory = Path(directory)
    _require_writable(adapter, directory)
    ranks = adapter.ranks
    common = Counter(ranks.values()).most_common(1)[0][0]
    other = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != common}
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": _either(base_model, adapter.metadata.get("base_model")),
        "task_type": _either(task_type, adapter.metadata.get("task_type")),
        "target_modules": list(ranks),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in adapter.head}) or None,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": other,
        "alpha_pattern": other,
        "fan_in_fan_out": fan_in_fan_out,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }
    tensors = {f"{KEY_PREFIX}{name}": tensor for name, tensor in adapter.head.items()}
    for name, layer in adapter.factors.items():
        tensors[f"{KEY_PREFIX}{name}.lora_A.weight"] = layer.a.mT
        tensors[f"{KEY_PREFIX}{name}.lora_B.weight"] = layer.b
    write_tensors(directory / TENSOR_FILE, tensors, {"format": "pt"})
    write_file(directory / CONFIG_FILE, json.dumps(config, indent=2).encode())


def subspace_from_adapters(
    adapters: Sequence[LoraAdapter],
    num_factors: int | None = None,
    energy: float | None = None,
    metric: Metric = "delta",
) -> Subspace:
    """
    Find the bases that best explain many adapters at once.

    Args:
        adapters: Of the same layers; ranks may differ.
        num_factors: ``k``, the same for all layers and sides.
        energy: Or: the share of energy to keep, 0 to 1, which gives each side its ``k``.
        metric: What is explained best, the ``dW`` or the factors.

    Raises:
        ShapeMismatch: Adapters are of different layers.
        RankTooLarge: ``num_factors`` is more than a layer's features.
    """
    return subspace_from_factors(
        [adapter.factors for adapter in adapters], num_factors, energy, metric
    )


def lora_from_task(
    subspace: Subspace,
    coefficients: Coefficients,
    head: Head | None = None,
    *,
    head_module: str = "",
) -> LoraAdapter:
    """
    Say a task as an ordinary LoRA adapter of rank ``p``.

    Args:
        subspace: The version of the coefficients.
        coefficients: What the task says in it.
        head: The task's output layer.
        head_module: Where the head lies in the base model, such as
            ``"classifier"``; put before the names of its tensors.
    """
    prefix = f"{head_module}." if head_module else ""
    tensors = head.tensors if head else {}
    return LoraAdapter(
        factors=reconstruct(subspace, coefficients),
        head={f"{prefix}{name}": tensor for name, tensor in tensors.items()},
    )


def lora_start(subspace: Subspace, rank: int) -> LoraAdapter:
    """
    Start an ordinary LoRA in a subspace: its side A are the leading principal factors, side B is zero.

    What it computes at first is what the base computes; plain `peft` trains it from there, and
    may leave the subspace.

    Args:
        subspace: Whose principal factors.
        rank: Of the LoRA. A column has the norm that `peft` gives it, ``1 / sqrt(3)`` in expectation.

    Raises:
        RankTooLarge: A layer has fewer principal factors.

    Source:
        EigenLoRAx, the INIT variant.
    """
    factors = {}
    for name, layer in subspace.layers.items():
        if layer.a.num_factors < rank:
            raise RankTooLarge(
                f"{name} has {layer.a.num_factors} principal factors, a LoRA of rank {rank} starts "
                f"from as many: ask for a rank of at most {layer.a.num_factors}",
                asked=rank,
                largest=layer.a.num_factors,
            )
        start = layer.a.leading[:, :rank].float() / math.sqrt(3)
        factors[name] = LayerFactors(start, start.new_zeros(layer.b.features, rank))
    return LoraAdapter(factors)


def update_from_lora(
    adapter: LoraAdapter, task_id: str, *, subspace: Subspace, update_id: str | None = None
) -> TaskUpdate:
    """
    Say an adapter as an update against a subspace, losing nothing.

    Coefficients are its projection onto the principal factors; what they cannot
    say, the residual, becomes orthonormal temporary factors, as many as it needs.

    Args:
        adapter: Of the same layers as the subspace.
        task_id: The task that it is.
        subspace: The version to push against; may be empty.
        update_id: Drawn at random where None.

    Raises:
        ShapeMismatch: Layers or features differ from the subspace's.
    """
    update = update_from_factors(subspace, adapter.factors, task_id, update_id or uuid.uuid4().hex)
    return replace(update, head=Head(tensors=adapter.head))


def is_lora(directory: Path) -> bool:
    """Whether a folder looks like one that ``load_lora`` reads."""
    return (directory / CONFIG_FILE).exists() or _is_of_diffusers(directory)


def _is_of_diffusers(directory: Path) -> bool:
    return not (directory / CONFIG_FILE).exists() and (directory / WEIGHTS_FILE).is_file()


def _load_peft(directory: Path) -> LoraAdapter:
    config = _read_config(directory / CONFIG_FILE)
    tensors, _ = read_tensors(_tensor_path(directory))
    plain = {key.removeprefix(KEY_PREFIX): tensor for key, tensor in tensors.items()}
    layers = _layer_names(plain)
    modules = config.modules_to_save or []
    head = _head_tensors(plain, modules)
    require_keys(directory / TENSOR_FILE, _expected_keys(layers, head, modules), plain)
    pairs = {name: [plain[f"{name}.lora_{side}.weight"] for side in "AB"] for name in layers}
    return LoraAdapter(
        factors={
            name: factors_of(down, up, name, config, directory)
            for name, (down, up) in pairs.items()
        },
        head={name: tensor.float() for name, tensor in head.items()},
        metadata={
            "base_model": config.base_model_name_or_path or "",
            "task_type": config.task_type or "",
        },
    )


def _read_config(path: Path) -> PeftConfig:
    try:
        config = PeftConfig.model_validate_json(path.read_text())
    except (OSError, ValueError) as error:
        raise AdapterFormatError(
            f"{path} is no config of a PEFT LoRA adapter ({error}): give a directory that PEFT wrote",
            path=str(path),
        ) from error
    require_representable(config, path)
    return config


def _tensor_path(directory: Path) -> Path:
    path = directory / TENSOR_FILE
    if not path.exists() and (directory / "adapter_model.bin").exists():
        raise AdapterFormatError(
            f"{directory} holds adapter_model.bin, a pickle, which is not opened: "
            "load it with peft and save it again as safetensors",
            path=str(directory),
        )
    return path


def _layer_names(keys: Mapping[str, Tensor]) -> list[str]:
    matches = (re.fullmatch(r"(.+)\.lora_[AB]\.weight", key) for key in keys)
    return sorted({match[1] for match in matches if match})


def _head_tensors(tensors: Mapping[str, Tensor], modules: Sequence[str]) -> dict[str, Tensor]:
    inside = re.compile("|".join(rf"(.*\.)?{re.escape(name)}\..+" for name in modules) or r"(?!)")
    return {
        key: tensor
        for key, tensor in tensors.items()
        if inside.fullmatch(key) and ".lora_" not in key
    }


def _expected_keys(
    layers: Sequence[str], head: Mapping[str, Tensor], modules: Sequence[str]
) -> set[str]:
    """Name every key that must be there; PEFT lists head modules that a model may not have, so one is enough."""
    of_layers = {f"{name}.lora_{side}.weight" for name in layers for side in "AB"}
    of_head = head.keys() or {f"{name}.*" for name in modules}
    return (of_layers or {"*.lora_A.weight"}) | of_head


def _require_writable(adapter: LoraAdapter, directory: Path) -> None:
    if not adapter.factors or 0 in adapter.ranks.values():
        raise AdapterFormatError(
            f"cannot write {directory}: an adapter needs layers, each of rank 1 or more, got ranks {adapter.ranks}",
            path=str(directory),
        )
    loose = [name for name in adapter.head if "." not in name]
    if loose:
        raise AdapterFormatError(
            f"cannot write {directory}: head tensors {', '.join(loose)} name no module of the base "
            "model: give lora_from_task the head_module, such as 'classifier'",
            path=str(directory),
        )


def _either(first: str | None, second: str | None) -> str | None:
    return first or second or None

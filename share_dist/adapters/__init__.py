"""Subspaces inside torch modules, and foreign adapter checkpoints."""

from share_dist.adapters.config import ALL_LINEAR, AdapterConfig
from share_dist.adapters.digest import model_digest
from share_dist.adapters.frozen import load_frozen
from share_dist.adapters.inject import InjectedModel, inject
from share_dist.adapters.lora import (
    LoraAdapter,
    load_lora,
    lora_from_task,
    lora_start,
    save_lora,
    subspace_from_adapters,
    update_from_lora,
)
from share_dist.adapters.subspace_file import load_subspace, save_subspace
from share_dist.adapters.targets import find_targets
from share_dist.adapters.task_file import load_task, save_task

__all__ = [
    "ALL_LINEAR",
    "AdapterConfig",
    "InjectedModel",
    "LoraAdapter",
    "find_targets",
    "inject",
    "load_frozen",
    "load_lora",
    "load_subspace",
    "load_task",
    "lora_from_task",
    "lora_start",
    "model_digest",
    "save_lora",
    "save_subspace",
    "save_task",
    "subspace_from_adapters",
    "update_from_lora",
]

"""
share-dist: many private task streams learn into one shared low-rank subspace.

The names below are the public ones. They are loaded when they are first used,
so that a plain client does not pay for what it does not touch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from share_dist.adapters import (
        InjectedModel,
        LoraAdapter,
        find_targets,
        inject,
        load_lora,
        load_subspace,
        load_task,
        lora_from_task,
        model_digest,
        save_lora,
        save_subspace,
        save_task,
        subspace_from_adapters,
        update_from_lora,
    )
    from share_dist.client import ShareClient, new_update_id
    from share_dist.core.allocation import within_bytes
    from share_dist.core.fusion import Sketch, merge_subspaces
    from share_dist.core.many import subspace_from_many
    from share_dist.core.merge import merge
    from share_dist.core.outcome import MergeOutcome, MergeReport
    from share_dist.core.rebase import rebase
    from share_dist.core.refinement import refine
    from share_dist.core.subspace import project, reconstruct
    from share_dist.core.values import (
        Coefficients,
        Fingerprint,
        Head,
        MergedTask,
        Subspace,
        TaskUpdate,
    )
    from share_dist.errors import ShareError

_HOMES = {
    "share_dist.adapters": (
        "InjectedModel",
        "LoraAdapter",
        "find_targets",
        "inject",
        "load_lora",
        "load_subspace",
        "load_task",
        "lora_from_task",
        "model_digest",
        "save_lora",
        "save_subspace",
        "save_task",
        "subspace_from_adapters",
        "update_from_lora",
    ),
    "share_dist.client": ("ShareClient", "new_update_id"),
    "share_dist.core.allocation": ("within_bytes",),
    "share_dist.core.fusion": ("Sketch", "merge_subspaces"),
    "share_dist.core.many": ("subspace_from_many",),
    "share_dist.core.merge": ("merge",),
    "share_dist.core.outcome": ("MergeOutcome", "MergeReport"),
    "share_dist.core.rebase": ("rebase",),
    "share_dist.core.refinement": ("refine",),
    "share_dist.core.subspace": ("project", "reconstruct"),
    "share_dist.core.values": (
        "Coefficients",
        "Fingerprint",
        "Head",
        "MergedTask",
        "Subspace",
        "TaskUpdate",
    ),
    "share_dist.errors": ("ShareError",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Coefficients",
    "Fingerprint",
    "Head",
    "InjectedModel",
    "LoraAdapter",
    "MergeOutcome",
    "MergeReport",
    "MergedTask",
    "ShareClient",
    "ShareError",
    "Sketch",
    "Subspace",
    "TaskUpdate",
    "find_targets",
    "inject",
    "load_lora",
    "load_subspace",
    "load_task",
    "lora_from_task",
    "merge",
    "merge_subspaces",
    "model_digest",
    "new_update_id",
    "project",
    "rebase",
    "reconstruct",
    "refine",
    "save_lora",
    "save_subspace",
    "save_task",
    "subspace_from_adapters",
    "subspace_from_many",
    "update_from_lora",
    "within_bytes",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

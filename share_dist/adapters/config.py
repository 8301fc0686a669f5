"""Which layers of a model are adapted, and how large a task's adapter is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from share_dist.errors import ConfigError

ALL_LINEAR = "all-linear"
"""Every linear layer of the model but its heads."""


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """
    How a model is adapted.

    Args:
        targets: A list of module names, each matched as the whole name or as its
            last parts (``"query"``, ``"attention.self.query"``); or one string:
            a regular expression over the whole name, or ``"all-linear"``.
        layers: Only modules with these indices, the index being the first
            number in a name (3 in ``"encoder.layer.3.attention.self.query"``).
            None for all.
        pseudo_rank: ``p``, the rank of a task's weight change.
        num_temporary: ``f``, directions beside the basis that a task may learn.

    Raises:
        ConfigError: With the field that cannot be used, and what it holds.

    Examples:
        >>> AdapterConfig(targets=["query", "value"], layers=[0, 1]).layers
        (0, 1)
    """

    targets: str | Sequence[str] = ALL_LINEAR
    layers: Sequence[int] | None = None
    pseudo_rank: int = 8
    num_temporary: int = 4

    def __post_init__(self) -> None:
        if not isinstance(self.targets, str):
            object.__setattr__(self, "targets", tuple(self.targets))
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))
        self._require_targets()
        if self.layers == () or any(index < 0 for index in self.layers or ()):
            raise ConfigError(
                f"layers={list(self.layers or ())} names no layer: give indices from 0, or leave it out for all",
                key="layers",
            )
        if self.pseudo_rank < 1:
            raise ConfigError(
                f"pseudo_rank={self.pseudo_rank} leaves nothing to train: give 1 or more",
                key="pseudo_rank",
            )
        if self.num_temporary < 0:
            raise ConfigError(
                f"num_temporary={self.num_temporary} is no count: give 0 or more",
                key="num_temporary",
            )

    def _require_targets(self) -> None:
        if not self.targets:
            raise ConfigError(
                f"targets={self.targets!r} names no layer: give module names, a regular expression or {ALL_LINEAR!r}",
                key="targets",
            )
        if isinstance(self.targets, str):
            try:
                re.compile(self.targets)
            except re.error as error:
                raise ConfigError(
                    f"targets={self.targets!r} is no regular expression ({error}): "
                    "correct it, or give a list of module names",
                    key="targets",
                ) from error

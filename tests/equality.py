"""Equality of values that hold tensors: same types, names, shapes, dtypes and bits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def same(left: Any, right: Any) -> bool:
    """Tell whether two values are the same down to the last bit of every tensor."""
    return first_difference(left, right) is None


def first_difference(left: Any, right: Any, where: str = "value") -> str | None:
    """Name the first place at which two values differ, or None."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return None if _same_tensor(left, right) else f"{where}: {left} is not {right}"
    if type(left) is not type(right):
        return f"{where}: {type(left).__name__} is not {type(right).__name__}"
    if is_dataclass(left):
        pairs = [
            (f.name, getattr(left, f.name), getattr(right, f.name))
            for f in fields(left)
            if f.compare
        ]
        return _first(pairs, where)
    if isinstance(left, Mapping):
        if left.keys() != right.keys():
            return f"{where}: keys {sorted(left)} are not {sorted(right)}"
        return _first([(name, left[name], right[name]) for name in left], where)
    if isinstance(left, Sequence) and not isinstance(left, str | bytes):
        if len(left) != len(right):
            return f"{where}: length {len(left)} is not {len(right)}"
        return _first(list(zip(range(len(left)), left, right, strict=True)), where)
    if isinstance(left, float) and math.isnan(left) and math.isnan(right):
        return None
    return None if left == right else f"{where}: {left!r} is not {right!r}"


def _first(pairs: list[tuple[Any, Any, Any]], where: str) -> str | None:
    differences = (first_difference(a, b, f"{where}.{name}") for name, a, b in pairs)
    return next((difference for difference in differences if difference is not None), None)


def _same_tensor(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(left, right)

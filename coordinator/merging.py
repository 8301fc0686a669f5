"""A merge that one bad update cannot stop: the culprit is found by halving, the others merge."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

import torch

from share_dist.core.values import TaskUpdate
from share_dist.errors import StoreError, VersionError, WireError

ResultT = TypeVar("ResultT")
Merge: TypeAlias = Callable[[Sequence[TaskUpdate]], ResultT]

_ABOUT_VALUES = (
    ValueError,
    ArithmeticError,
    torch.linalg.LinAlgError,  # type: ignore[attr-defined]  # torch lists it nowhere
    WireError,
    VersionError,
)
"""What bad numbers raise, ``SubspaceError`` among them; anything else may be a bug of ours."""

_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
"""How torch says it on a CPU: in a bare RuntimeError."""


@dataclass(frozen=True, slots=True)
class MergeAttempt(Generic[ResultT]):
    """
    What could be merged.

    Args:
        result: The merge of all but the culprits; None if nothing could be merged.
        culprits: Update that cannot be merged -> why.
    """

    result: ResultT | None = None
    culprits: Mapping[str, str] = field(default_factory=dict)


def merge_without_culprits(
    merge: Merge[ResultT], updates: Sequence[TaskUpdate]
) -> MergeAttempt[ResultT]:
    """
    Merge as many updates as can be merged together.

    Should both halves merge alone, and only together fail, then the first half
    is merged and the other is left for the next merge. A merge that lacks
    memory is tried with half of the updates.

    An update is to blame only if a merge without it works: that of the others,
    or that of no update at all. The latter counts only for errors about values,
    as a bug of ours may need an update to show. Whoever is not to blame stays pending.

    Args:
        merge: Merges some updates into the current version; may raise anything.
        updates: What to merge, sorted.

    Raises:
        Exception: What ``merge`` raised, if no update is to blame for it.
    """
    try:
        return _attempt(merge, updates)
    except Exception as error:
        if len(updates) < 2 or not lacks_memory(error):
            raise
    middle = len(updates) // 2
    try:
        return merge_without_culprits(merge, updates[:middle])
    except Exception as error:
        if not lacks_memory(error):
            raise
        return merge_without_culprits(merge, updates[middle:])


def lacks_memory(error: Exception) -> bool:
    """Whether this is how Python, torch or an accelerator says that memory is used up."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _NO_MEMORY)


def _attempt(merge: Merge[ResultT], updates: Sequence[TaskUpdate]) -> MergeAttempt[ResultT]:
    result, failures = _search(merge, updates)
    if failures and result is None:
        failures = _blamable(merge, failures)
    reasons = {
        update_id: f"{type(error).__name__}: {error}" for update_id, error in failures.items()
    }
    return MergeAttempt(result, reasons)


def _search(
    merge: Merge[ResultT], updates: Sequence[TaskUpdate]
) -> tuple[ResultT | None, dict[str, Exception]]:
    """Find what merges together, and every update that fails alone."""
    if not updates:
        return None, {}
    try:
        return merge(updates), {}
    except Exception as error:
        if _blames_nobody(error):
            raise
        if len(updates) == 1:
            return None, {updates[0].update_id: error}
    middle = len(updates) // 2
    result, failures = _search(merge, updates[:middle])
    failures = failures | _search(merge, updates[middle:])[1]
    if not failures:
        return result, {}
    good = [update for update in updates if update.update_id not in failures]
    result, more = _search(merge, good)
    return result, failures | more


def _blames_nobody(error: Exception) -> bool:
    return isinstance(error, StoreError | OSError) or lacks_memory(error)


def _blamable(merge: Merge[ResultT], failures: dict[str, Exception]) -> dict[str, Exception]:
    """Of updates that all fail alone, keep those whose own values are the reason."""
    merge(())  # raises if the current version is the reason
    blamable = {
        update_id: error
        for update_id, error in failures.items()
        if isinstance(error, _ABOUT_VALUES)
    }
    if not blamable:
        raise next(iter(failures.values()))
    return blamable

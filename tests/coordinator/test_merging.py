"""One update that cannot be merged stops no other."""

import pytest
import torch

from coordinator.merging import lacks_memory, merge_without_culprits
from share_dist.errors import StoreFull, StoreUnavailable
from tests.coordinator.support import make_update

UPDATES = [make_update(f"task-{i}", f"u{i}") for i in range(8)]


def merging(*bad_groups):
    """A merge that fails whenever one of the groups is wholly among its updates."""
    calls = []

    def merge(updates):
        ids = {update.update_id for update in updates}
        calls.append(ids)
        for group in bad_groups:
            if group <= ids:
                raise ArithmeticError(f"cannot merge {sorted(group)}")
        return ids

    return merge, calls


@pytest.mark.parametrize("bad", [set(), {"u0"}, {"u7"}, {"u2", "u5"}, {f"u{i}" for i in range(8)}])
def test_culprits_are_found_and_the_others_merge(bad):
    """Whatever subset is bad, exactly it is named, and all others merge together."""
    merge, _ = merging(*({update_id} for update_id in bad))
    attempt = merge_without_culprits(merge, UPDATES)
    assert attempt.culprits.keys() == bad
    good = {update.update_id for update in UPDATES} - bad
    assert attempt.result == (good or None)


def test_the_reason_is_what_was_raised():
    """The operator reads the class and the message of the error."""
    merge, _ = merging({"u3"})
    reasons = merge_without_culprits(merge, UPDATES).culprits
    assert reasons == {"u3": "ArithmeticError: cannot merge ['u3']"}


def test_updates_that_only_fail_together_are_both_kept():
    """Nobody is blamed for a failure that neither causes alone; the other half waits."""
    merge, _ = merging({"u1", "u6"})
    attempt = merge_without_culprits(merge, UPDATES)
    assert attempt.culprits == {}
    assert attempt.result == {"u0", "u1", "u2", "u3"}


def test_a_good_merge_is_made_once():
    """Nothing is merged twice when nothing is wrong."""
    merge, calls = merging()
    merge_without_culprits(merge, UPDATES)
    assert len(calls) == 1


def test_lack_of_memory_blames_no_update():
    """A machine that is out of memory must not quarantine what it was given."""
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        merge_without_culprits(needing_memory(0), UPDATES)
    with pytest.raises(MemoryError):
        merge_without_culprits(needing_memory(0, MemoryError), UPDATES)


class TorchLacksMemory(RuntimeError):
    """What torch raises on a CPU, in its own words."""

    def __init__(self):
        super().__init__("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")  # fmt: skip


def needing_memory(most, error=TorchLacksMemory):
    """A merge that lacks memory for more than so many updates."""

    def merge(updates):
        if len(updates) > most:
            raise error
        return {update.update_id for update in updates}

    return merge


def test_the_words_of_torch_are_those_of_this_torch():
    """A real allocation that is too large is recognised."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert lacks_memory(caught.value)
    assert lacks_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not lacks_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_without_memory_for_all_fewer_are_merged():
    """A machine that can merge two at a time merges two, and blames nobody."""
    attempt = merge_without_culprits(needing_memory(2), UPDATES)
    assert (attempt.result, attempt.culprits) == ({"u0", "u1"}, {})


def test_one_update_that_needs_too_much_memory_stops_no_other():
    """What lacks memory alone stays pending while others merge."""

    def merge(updates):
        if any(update.update_id == "u0" for update in updates):
            raise TorchLacksMemory
        return [update.update_id for update in updates]

    attempt = merge_without_culprits(merge, UPDATES[:2])
    assert (attempt.result, attempt.culprits) == (["u1"], {})


@pytest.mark.parametrize(
    "error", [OSError("broken"), StoreUnavailable("broken"), StoreFull("full")]
)
def test_a_failing_disk_blames_no_update(error):
    """What the disk cannot do is raised as it is, after one attempt."""
    calls = []

    def merge(updates):
        calls.append(updates)
        raise error

    with pytest.raises(type(error)):
        merge_without_culprits(merge, UPDATES)
    assert len(calls) == 1


def test_a_damaged_current_version_blames_no_update():
    """When not even a merge of nothing works, the error is raised and nobody is quarantined."""

    def merge(_updates):
        raise torch.linalg.LinAlgError("did not converge")

    for updates in (UPDATES, UPDATES[:1]):
        with pytest.raises(torch.linalg.LinAlgError):
            merge_without_culprits(merge, updates)


def bug_with(*bad):
    def merge(updates):
        if any(update.update_id in bad for update in updates):
            raise TypeError("a bug of ours")
        return [update.update_id for update in updates]

    return merge


def test_a_bug_that_every_update_meets_blames_nobody():
    """A bug that shows with every update is raised: they stay pending for a release that mends it."""
    for updates in (UPDATES, UPDATES[:1]):
        with pytest.raises(TypeError, match="a bug of ours"):
            merge_without_culprits(bug_with(*(f"u{i}" for i in range(8))), updates)


def test_a_bug_that_one_update_meets_stops_no_other():
    """Beside an update that merges, the one that meets a bug is set aside."""
    attempt = merge_without_culprits(bug_with("u3"), UPDATES)
    assert attempt.culprits == {"u3": "TypeError: a bug of ours"}
    assert len(attempt.result) == 7

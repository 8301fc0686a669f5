"""One update that cannot be merged stops no other."""

import pytest

from coordinator.merging import merge_without_culprits
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
    assert attempt.outcome == (good or None)


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
    assert attempt.outcome == {"u0", "u1", "u2", "u3"}


def test_a_good_merge_is_made_once():
    """Nothing is merged twice when nothing is wrong."""
    merge, calls = merging()
    merge_without_culprits(merge, UPDATES)
    assert len(calls) == 1


def test_lack_of_memory_blames_no_update():
    """A machine that is out of memory must not quarantine what it was given."""

    def merge(_updates):
        raise MemoryError

    with pytest.raises(MemoryError):
        merge_without_culprits(merge, UPDATES)

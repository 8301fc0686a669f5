"""A handful of the moments of tests/system/test_no_bad_time.py: one in the middle of each act."""

import pytest

from tests.system.moments import (
    LAYOUTS,
    Moment,
    acts,
    copies,
    kill_and_repeat,
    make_template,
    trace,
)

FILES = LAYOUTS[1]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return make_template(tmp_path_factory.mktemp("template"), FILES)


@pytest.mark.parametrize(
    ("name", "point"),
    [
        ("push", "after-merge-blob-rename"),
        ("rollback", "after-merge-commit"),
        ("removal", "before-merge-commit"),
        ("compaction", "after-compaction-commit"),
        ("token", "after-change-commit"),
    ],
)
def test_killed_in_the_middle_the_same_comes_of_it(tmp_path, template, name, point):
    """A second try after the kill leads to the same store as an undisturbed run, bit for bit."""
    act = acts(template, FILES)[name]
    stores = copies(template, tmp_path)
    _, expected = trace(next(stores), FILES, act)
    assert kill_and_repeat(next(stores), FILES, act, Moment(point, 1)) == expected

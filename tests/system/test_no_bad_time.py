"""There is no bad time to kill a coordinator: at every moment of everything that changes its store."""

import pytest

from coordinator import faults
from tests.system.moments import LAYOUTS, acts, copies, kill_and_repeat, make_template, trace

ACTS = ("push", "replacing push", "rollback", "removal", "compaction", "token")

pytestmark = pytest.mark.system


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda layout: layout.name)
def layout(request):
    return request.param


@pytest.fixture(scope="module")
def template(layout, tmp_path_factory):
    return make_template(tmp_path_factory.mktemp("template"), layout)


@pytest.fixture(scope="module")
def passed():
    """Every point that was passed by any act in any layout."""
    return set()


@pytest.mark.parametrize("name", ACTS)
def test_killed_at_any_moment_the_same_comes_of_it(tmp_path, template, layout, passed, name):
    """Wherever it dies, the store is sound, and what comes of a second try equals an undisturbed run bit for bit."""
    act = acts(template, layout)[name]
    stores = copies(template, tmp_path)
    moments, expected = trace(next(stores), layout, act)
    passed |= {moment.point for moment in moments}
    print(f"{layout.name}, {name}: {len(moments)} moments")
    for moment in moments:
        assert kill_and_repeat(next(stores), layout, act, moment) == expected, moment


def test_every_point_is_a_moment_of_some_act(passed):
    """No point that the coordinator declares was left out."""
    assert passed == set(faults.POINTS)

"""A local Ray that does not come up at once."""

import pytest
import ray

from share_dist.errors import ConfigError
from worker.cluster import ray_cluster


@pytest.fixture
def starts(monkeypatch):
    """What each start of Ray does; how often it was let go of."""
    failures, ended = [], []

    def start(**_settings):
        if failures:
            raise failures.pop(0)

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    return failures, ended


def test_a_start_that_times_out_is_tried_again(starts):
    """One of Ray's processes may not come up on a machine that stands still for a moment."""
    failures, ended = starts
    failures += [Exception("The current node timed out during startup.")]
    with ray_cluster() as machines:
        assert machines == [{"CPU": 2.0}]
    assert len(ended) == 2


def test_a_machine_on_which_ray_never_starts_is_told(starts):
    """After two times it is an error with Ray's own words, and no traceback."""
    failures, _ = starts
    failures += [Exception("The current node timed out during startup.")] * 2
    with (
        pytest.raises(ConfigError, match=r"this machine: The current node timed out.* tried twice"),
        ray_cluster(),
    ):
        pass


def test_what_will_not_pass_is_not_tried_again(starts):
    """A wrong setting stays wrong."""
    failures, ended = starts
    failures += [ValueError("num_cpus must be positive")]
    with pytest.raises(ConfigError, match="num_cpus must be positive"), ray_cluster():
        pass
    assert not ended

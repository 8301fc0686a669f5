"""A clock that is set back by an hour, and forward again: nobody waits for it, and nothing is lost."""

from datetime import timedelta

import pytest

from share_dist.client import AdminClient
from share_dist.wire.records import TokenRequest, UpdateState
from tests.coordinator.support import client_of, make_update
from tests.system.moments import require_sound
from tests.system.shim import Shim
from tests.system.support import Coordinator

pytestmark = pytest.mark.system

HOUR = 3600
SOON_SECONDS = 30.0
"""What took so long waited for the clock."""


@pytest.fixture
def shim(tmp_path):
    return Shim(tmp_path, tmp_path / "store")


@pytest.fixture
def coordinator(tmp_path, shim):
    # a merge comes because an update has waited: not because there are enough
    waits = {"SHARE_DIST_MIN_UPDATES": "9", "SHARE_DIST_MAX_WAIT_SECONDS": "2"}
    with Coordinator(tmp_path, environment=shim.environment | waits) as coordinator:
        coordinator.start()
        yield coordinator


def time_of(coordinator):
    """The time that the coordinator writes down."""
    with AdminClient(coordinator.address) as admin:
        token, _ = admin.create_token(TokenRequest("somebody", "reader", ("*",)))
    return token.created_at


def push(client, task_id, lease_epoch, **options):
    update = make_update(task_id, base=client.pull(), lease_epoch=lease_epoch)
    return client.push(update, timeout_seconds=SOON_SECONDS, **options)


def test_a_clock_that_is_set_holds_nothing_up(coordinator, shim):
    """Set back and forward while it runs, leases hold, updates are merged in time and watchers hear of it."""
    with client_of(coordinator.address) as client, client.watch(after_version=0) as watch:
        epoch = client.register().lease_epoch
        push(client, "first", epoch, wait="merged")
        before = time_of(coordinator)
        for version, seconds in ((2, -HOUR), (3, HOUR), (4, 0)):
            shim.set_clock(seconds)
            wrong = time_of(coordinator) - before - timedelta(seconds=seconds)
            assert abs(wrong) < timedelta(minutes=5)
            client.heartbeat()
            assert push(client, f"task-{version}", epoch, wait="merged").version == version
        assert [next(watch).version for _ in range(4)] == [1, 2, 3, 4]
    assert coordinator.stop() == 0
    require_sound(coordinator.store)


def test_a_clock_that_is_set_back_across_a_restart_loses_nothing(coordinator, shim):
    """What waits was pushed an hour from now: the next process owns the store at once, and merges it in time."""
    with client_of(coordinator.address) as client:
        epoch = client.register().lease_epoch
        push(client, "first", epoch, wait="merged")
        waiting = make_update("waiting", base=client.pull(), lease_epoch=epoch)
        assert client.push(waiting).state is UpdateState.PENDING
        coordinator.kill()
        shim.set_clock(-HOUR)
        coordinator.start()
        merged = client.push(waiting, wait="merged", timeout_seconds=SOON_SECONDS)
        assert (merged.state, merged.version) == (UpdateState.MERGED, 2)
        assert client.register().lease_epoch == epoch + 1
        assert push(client, "later", epoch + 1, wait="merged").version == 3
        assert {task.task_id for task in client.tasks()} == {"first", "waiting", "later"}
    assert coordinator.stop() == 0
    require_sound(coordinator.store)

"""A disk that is full for a while: a clear error, nothing lost, and on it goes."""

import os
import subprocess

import pytest

from share_dist.errors import StoreFull
from share_dist.wire.records import UpdateState
from tests.coordinator.support import CoordinatorProcess, client_of, make_update, wait_until
from tests.system.moments import require_sound

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk of its own"),
]


@pytest.fixture
def disk(tmp_path):
    """A file system of four MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def mount(*arguments):
    subprocess.run(["mount", *arguments], check=True)


def push_until_refused(client, most):
    """Push without waiting for merges; return what was acknowledged, and what was not."""
    acknowledged = []
    for number in range(most):
        update = make_update(f"task-{number}", lease_epoch=0, pseudo_rank=64, num_temporary=64)
        try:
            client.push(update, timeout_seconds=3.0)
        except StoreFull:
            return acknowledged, update
        acknowledged.append(update.update_id)
    raise AssertionError(f"{most} updates were kept on a disk that has no room for them")


def test_what_was_acknowledged_outlives_a_full_disk(disk):
    """A push that cannot be kept gets StoreFull; once there is room it is merged with all before it."""
    store = disk / "store"
    with CoordinatorProcess(store) as process:
        with client_of(process.address) as client:
            client.register()
            client.push(make_update("first", lease_epoch=0), wait="merged")
            acknowledged, refused = push_until_refused(client, 2000)
            assert client.status().current_version >= 1
            mount("-o", "remount,size=64m", str(disk))
            wait_until(
                lambda: client.push(refused).state in {UpdateState.PENDING, UpdateState.MERGED}
            )
            wait_until(lambda: client.status().num_pending == 0)
            merged = {task.update_id for task in client.tasks() if task.state is UpdateState.MERGED}
            assert merged == {"update-of-first", refused.update_id, *acknowledged}
        assert process.stop() == 0
    require_sound(store)

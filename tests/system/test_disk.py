"""A disk that fails: clear errors, nothing that was acknowledged is lost, and on it goes."""

import contextlib
import ctypes
import errno
import os
import struct
import subprocess

import pytest

from share_dist.errors import ShareError, StoreError, StoreFull, StoreUnavailable
from share_dist.wire.records import UpdateState
from tests.coordinator.support import CoordinatorProcess, client_of, make_update, wait_until
from tests.system.moments import LAYOUTS, require_sound, start
from tests.system.shim import Shim
from tests.system.support import Coordinator

pytestmark = pytest.mark.system

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk of its own")

REFUSED_SECONDS = 3.0
"""For a push that is refused and tried again until then."""

FILES = {"SHARE_DIST_INLINE_BYTES": "0"}
"""Every payload in a file of its own."""


def mount(*arguments):
    subprocess.run(["mount", *map(str, arguments)], check=True)


def unmount(folder):
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of four MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", folder)
    yield folder
    unmount(folder)


class Disk:
    """A file system in a file, which can fail as a real one does."""

    def __init__(self, folder):
        self.folder = folder / "disk"
        self.folder.mkdir()
        self._image = folder / "disk.img"
        with self._image.open("wb") as file:
            file.truncate(64 * 2**20)
        subprocess.run(["mkfs.ext4", "-q", self._image], check=True)
        self.mount("rw")

    def mount(self, how):
        mount("-o", f"loop,errors=remount-ro,{how}", self._image, self.folder)

    def fail(self):
        """Be read-only from now on, as after an error of the device."""
        mount("-o", "remount,abort", self.folder)

    def repair(self):
        """Look for damage, as the next boot does."""
        self.unmount()
        # 1: there was some, and it is mended
        assert subprocess.run(["e2fsck", "-p", self._image], check=False).returncode <= 1

    def unmount(self):
        subprocess.run(["umount", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path):
    disk = Disk(tmp_path)
    yield disk
    if disk.folder.is_mount():
        unmount(disk.folder)


def push(client, task_id, **options):
    return client.push(make_update(task_id, lease_epoch=0), **options)


def push_until_refused(client, most):
    """Push without waiting for merges; return what was acknowledged, and what was not."""
    acknowledged = []
    for number in range(most):
        update = make_update(f"task-{number}", lease_epoch=0, pseudo_rank=64, num_temporary=64)
        try:
            client.push(update, timeout_seconds=REFUSED_SECONDS)
        except StoreFull:
            return acknowledged, update
        acknowledged.append(update.update_id)
    raise AssertionError(f"{most} updates were kept on a disk that has no room for them")


def require_refused(client, task_id):
    """Push in vain; return what is said of it."""
    with pytest.raises(StoreUnavailable) as caught:
        push(client, task_id, timeout_seconds=REFUSED_SECONDS)
    return str(caught.value)


def require_merged(address, *task_ids):
    """All of these are merged, once each, and nothing else is; another push is merged, too."""
    with client_of(address) as client:
        client.register()
        wait_until(lambda: client.status().num_pending == 0)
        push(client, "afterwards", wait="merged")
        current = client.status().current_version
        with client.watch(after_version=0) as watch:
            merged = [update_id for _ in range(current) for update_id in next(watch).update_ids]
    assert sorted(merged) == sorted(f"update-of-{task}" for task in (*task_ids, "afterwards"))


def require_no_start(store, layout):
    """It ends at once, and says in a sentence what is wrong where."""
    with start(store, layout) as process:
        assert process.wait() == StoreError.exit_code
        assert str(store) in process.stderr
        assert "check the disk" in process.stderr
        assert "Traceback" not in process.stderr


@needs_root
def test_what_was_acknowledged_outlives_a_full_disk(small_disk):
    """A push that cannot be kept gets StoreFull; once there is room it is merged with all before it."""
    store = small_disk / "store"
    with CoordinatorProcess(store) as process:
        with client_of(process.address) as client:
            client.register()
            push(client, "first", wait="merged")
            acknowledged, refused = push_until_refused(client, 2000)
            assert client.status().current_version >= 1
            mount("-o", "remount,size=64m", small_disk)
            wait_until(
                lambda: client.push(refused).state in {UpdateState.PENDING, UpdateState.MERGED}
            )
            wait_until(lambda: client.status().num_pending == 0)
            merged = {task.update_id for task in client.tasks() if task.state is UpdateState.MERGED}
            assert merged == {"update-of-first", refused.update_id, *acknowledged}
        assert process.stop() == 0
    require_sound(store)


@needs_root
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_disk_that_becomes_read_only_loses_nothing(disk, layout):
    """Pushes are StoreUnavailable, reads go on; no process starts on it; once repaired, all is there and goes on."""
    store = disk.folder / "store"
    with start(store, layout) as process:
        with client_of(process.address) as client:
            client.register()
            push(client, "first", wait="merged")
            push(client, "second", wait="merged")
            disk.fail()
            assert "check the disk" in require_refused(client, "third")
            assert client.pull().version == 2
            assert {task.task_id for task in client.tasks()} == {"first", "second"}
        process.kill()
        process.wait()
    require_no_start(store, layout)
    disk.repair()
    disk.mount("ro")
    require_no_start(store, layout)
    disk.unmount()
    disk.mount("rw")
    with start(store, layout) as process:
        require_merged(process.address, "first", "second")
        assert process.stop() == 0
    require_sound(store)


# --- permissions ----------------------------------------------------------------------------------


def obey_permissions():
    """In the coordinator's process: be bound by them, also as root; each payload is in a file."""
    os.environ.update(FILES)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        header = struct.pack("Ii", 0x20080522, 0)
        held = bytearray(24)
        buffer = (ctypes.c_char * 24).from_buffer(held)
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.capget(header, buffer) == 0
        for offset in (0, 4, 8):
            (bits,) = struct.unpack_from("I", held, offset)
            struct.pack_into("I", held, offset, bits & ~(1 << capability))
        assert libc.capset(header, buffer) == 0


@pytest.fixture
def owned(tmp_path):
    """A store on whose folders the coordinator depends."""
    yield tmp_path / "store"
    for folder in (tmp_path / "store", *(tmp_path / "store").glob("*/")):
        folder.chmod(0o755)


@pytest.mark.parametrize("mode", [0o000, 0o555], ids=oct)
@pytest.mark.parametrize("name", ["blobs", "uploads", "."])
def test_permissions_that_are_lost_lose_nothing(owned, name, mode):
    """Each push is kept or StoreUnavailable; a restart is refused with the reason or serves all; given back, on it goes."""
    folder, kept = owned / name, ["first"]
    with CoordinatorProcess(owned, prepare=obey_permissions) as process:
        with client_of(process.address) as client:
            client.register()
            push(client, "first", wait="merged")
            folder.chmod(mode)
            with (
                contextlib.nullcontext()
                if name == "uploads"
                else contextlib.suppress(StoreUnavailable)
            ):
                push(client, "second", timeout_seconds=REFUSED_SECONDS)
                kept.append("second")
            assert name != "blobs" or kept == ["first"]
            folder.chmod(0o755)
            push(client, "third", wait="merged")
            folder.chmod(mode)
        process.kill()
        process.wait()
    with CoordinatorProcess(owned, prepare=obey_permissions) as process:
        is_refused = not process.ready
        assert is_refused or mode == 0o555, "it serves what it cannot read"
        if is_refused:
            assert process.wait() == StoreError.exit_code
            assert "check the disk" in process.stderr
            assert "Traceback" not in process.stderr
    folder.chmod(0o755)
    with CoordinatorProcess(owned, prepare=obey_permissions) as process:
        require_merged(process.address, *kept, "third")
        assert process.stop() == 0
    require_sound(owned)


# --- errors of the device -------------------------------------------------------------------------


@pytest.fixture
def shim(tmp_path):
    return Shim(tmp_path, tmp_path / "store")


@pytest.fixture
def coordinator(tmp_path, shim):
    with Coordinator(tmp_path, environment=shim.environment | FILES) as coordinator:
        yield coordinator


@pytest.mark.parametrize("error", [errno.EIO, errno.EROFS])
def test_a_device_that_fails_for_a_while_stops_nothing(coordinator, shim, error):
    """Pushes are StoreUnavailable while it fails and reads go on; afterwards the same process merges all."""
    coordinator.start()
    with client_of(coordinator.address) as client:
        client.register()
        push(client, "first", wait="merged")
        shim.fail(error)
        require_refused(client, "second")
        assert client.pull().version == 1
        shim.fail(0)
        push(client, "second", wait="merged")
    require_merged(coordinator.address, "first", "second")
    assert coordinator.stop() == 0
    require_sound(coordinator.store)


@pytest.mark.parametrize("number", range(1, 5))
def test_a_commit_in_doubt_keeps_its_payload(coordinator, shim, number):
    """A sync fails, the push's file is let go of, and the process dies just then: nothing names what is gone."""
    coordinator.start(fault="after-compaction-unlink")
    with client_of(coordinator.address) as client:
        client.register()
        push(client, "first", wait="merged")
        shim.fail_sync(number)
        with contextlib.suppress(ShareError):
            push(client, "second", timeout_seconds=REFUSED_SECONDS)
    coordinator.kill()
    shim.fail_sync(0)
    require_sound(coordinator.store)
    coordinator.start()
    with client_of(coordinator.address) as client:
        client.register()
        assert push(client, "second", wait="merged").state is UpdateState.MERGED
    require_merged(coordinator.address, "first", "second")
    assert coordinator.stop() == 0
    require_sound(coordinator.store)

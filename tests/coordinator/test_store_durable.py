"""What only a store on disk can go through: crashes, corruption, a full disk, a second owner."""

import errno
import json
import os
import sqlite3
import subprocess
from pathlib import Path

import pytest

from coordinator.store import DurableStore, blobs
from coordinator.store.format import SCHEMA_VERSION
from share_dist.errors import (
    StoreCorrupt,
    StoreFull,
    StoreLocked,
    StoreTooNew,
    StoreUnavailable,
)
from tests.coordinator.support import FINGERPRINT, NOW, commit_of, make_update


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def store(path):
    store = DurableStore(path)
    store.bind(FINGERPRINT)
    yield store
    store.close()


def add(store, update):
    return store.add_update(update, worker_id="w", pushed_at=NOW).record


def test_every_commit_is_synced(store):
    """The database runs in WAL mode and waits for the disk at every commit."""
    with store._engine.connect() as rows:
        assert rows.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert rows.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert rows.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_a_second_owner_is_refused(store, path):
    """A store in use names its owner to whoever else opens it."""
    with pytest.raises(StoreLocked, match=f"is owned by process {os.getpid()} on ") as caught:
        DurableStore(path)
    assert caught.value.pid == os.getpid()
    assert add(store, make_update()).update_id == "update-of-cats"


def test_a_closed_store_can_be_opened(store, path):
    """Closing lets go of the lock."""
    store.close()
    DurableStore(path).close()


def test_a_newer_store_is_left_alone(store, path):
    """What a newer release wrote is neither read nor changed."""
    store.close()
    with sqlite3.connect(path / "rows.sqlite") as rows:
        rows.execute("UPDATE facts SET value = '99' WHERE name = 'schema_version'")
        rows.execute("DROP TABLE workers")
    rows.close()
    with pytest.raises(StoreTooNew, match=f"99, this release knows {SCHEMA_VERSION}") as caught:
        DurableStore(path)
    assert (caught.value.found, caught.value.supported) == (99, SCHEMA_VERSION)
    with sqlite3.connect(path / "rows.sqlite") as rows:
        assert "workers" not in {name for (name,) in rows.execute("SELECT name FROM sqlite_master")}
    rows.close()


def test_rows_that_are_no_database_are_corrupt(store, path):
    """A database of garbage is named, and the lock is let go."""
    store.close()
    (path / "rows.sqlite").write_bytes(b"garbage" * 1000)
    for suffix in ("-wal", "-shm"):
        (path / f"rows.sqlite{suffix}").unlink(missing_ok=True)
    for _ in range(2):
        with pytest.raises(StoreCorrupt, match=r"rows\.sqlite cannot be read"):
            DurableStore(path)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_blob_is_never_used(store, path, damage):
    """One wrong bit, a missing end, a missing file: path, digest expected and digest found."""
    add(store, make_update())
    (blob,) = (path / "blobs").iterdir()
    data = bytearray(blob.read_bytes())
    if damage == "remove":
        blob.unlink()
    else:
        data[-1] ^= 1
        blob.write_bytes(data if damage == "flip" else data[:-5])
    with pytest.raises(StoreCorrupt) as caught:
        store.load_update("update-of-cats")
    assert caught.value.path == str(blob)
    assert caught.value.expected == blob.stem
    assert caught.value.found != blob.stem


def test_a_damaged_version_is_never_used(store, path):
    """A version whose blob is damaged is an error, not another subspace."""
    add(store, make_update())
    before = set((path / "blobs").iterdir())
    store.commit(commit_of(store, ["update-of-cats"]))
    for blob in set((path / "blobs").iterdir()) - before:
        blob.write_bytes(blob.read_bytes()[:-1])
    for read in (lambda: store.subspace(1), store.merged_tasks):
        with pytest.raises(StoreCorrupt, match="restore this file from a copy"):
            read()


def test_what_a_crash_left_half_written_is_removed(store, path):
    """Unfinished blobs go at the next start, finished ones stay."""
    add(store, make_update())
    store.close()
    (path / "blobs" / "0123.tmp").write_bytes(b"half")
    store = DurableStore(path)
    assert {file.suffix for file in (path / "blobs").iterdir()} == {".safetensors"}
    assert store.load_update("update-of-cats").task_id == "cats"
    store.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_without_room_nothing_is_acknowledged(store, path, monkeypatch, number):
    """A full disk refuses the push, leaves nothing behind, and takes the same push later."""

    def full(_descriptor):
        raise OSError(number, os.strerror(number))

    update = make_update()
    with monkeypatch.context() as patched:
        patched.setattr(blobs.os, "fsync", full)
        with pytest.raises(StoreFull, match="nothing was acknowledged") as caught:
            add(store, update)
    assert caught.value.needed_bytes > 0
    assert caught.value.free_bytes > 0
    assert list((path / "blobs").iterdir()) == []
    assert store.pending() == ()
    assert add(store, update).update_id == update.update_id


def test_without_room_the_version_stays(store, monkeypatch):
    """A merge that cannot be written leaves the version and its pending updates as they were."""
    add(store, make_update())
    commit = commit_of(store, ["update-of-cats"])

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(blobs.os, "fsync", full)
        with pytest.raises(StoreFull):
            store.commit(commit)
    assert (store.current_version, len(store.pending())) == (0, 1)
    store.commit(commit)
    assert store.current_version == 1


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs more rights than this user has")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_really_fills_up(small_disk):
    """On a real full disk pushes fail as StoreFull, and all that was acknowledged is still there."""
    store = DurableStore(small_disk / "store")
    store.bind(FINGERPRINT)
    kept = []

    def fill():
        for index in range(1000):
            record = add(store, make_update(f"task-{index}", num_temporary=40))
            kept.append(record.update_id)

    with pytest.raises(StoreFull):
        fill()
    assert kept
    store.close()
    store = DurableStore(small_disk / "store")
    assert [record.update_id for record in store.pending()] == kept
    assert all(store.load_update(update_id).update_id == update_id for update_id in kept)
    store.close()


def test_other_failures_of_the_disk_keep_their_words(store, monkeypatch):
    """An I/O error is a StoreUnavailable that says what the system said."""

    def broken(_descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(blobs.os, "fsync", broken)
    with pytest.raises(StoreUnavailable, match="Input/output error") as caught:
        add(store, make_update())
    assert caught.value.path.startswith(str(store.path))


def test_folders_are_synced_when_they_are_made(tmp_path, monkeypatch):
    """A loss of power takes neither the store's folder nor a blob's name: each parent is synced."""
    synced, fsync = [], os.fsync

    def note(descriptor):
        synced.append(Path(f"/proc/self/fd/{descriptor}").resolve())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    path = tmp_path / "runs" / "demo" / "store"
    store = DurableStore(path)
    assert synced == [tmp_path, tmp_path / "runs", tmp_path / "runs" / "demo", path]
    store.bind(FINGERPRINT)
    synced.clear()
    add(store, make_update())
    assert synced[-1] == path / "blobs"
    store.close()


def test_a_blob_that_cannot_be_read_is_not_called_corrupt(store, path):
    """What the disk cannot read now may be read later: nobody is told to restore it."""
    add(store, make_update())
    (blob,) = (path / "blobs").iterdir()
    blob.unlink()
    blob.mkdir()
    with pytest.raises(StoreUnavailable, match="Is a directory") as caught:
        store.load_update("update-of-cats")
    assert caught.value.path == str(blob)


def test_a_version_is_committed_whole_or_not_at_all(store, monkeypatch):
    """An error in the middle of a commit's transaction leaves no trace in any table."""
    add(store, make_update("cats", "u1"))
    add(store, make_update("dogs", "u2"))
    commit = commit_of(store, ["u1", "u2"])

    def fail(point):
        if point == "before-merge-commit":
            raise StoreUnavailable("the last moment before the commit")

    with monkeypatch.context() as patched:
        patched.setattr("coordinator.store.durable.faults.reach", fail)
        with pytest.raises(StoreUnavailable, match="last moment"):
            store.commit(commit)
    assert (store.current_version, store.events(0, 9)) == (0, ())
    assert len(store.pending()) == 2
    assert store.merged_update_ids() == {}


def test_the_lock_tells_its_owner(store, path):
    """The lock file holds pid and host for an operator to read."""
    owner = json.loads((path / "lock").read_text())
    assert owner["pid"] == os.getpid()
    assert owner["host"]

"""What only a store on disk can go through: crashes, corruption, a full disk, a full database."""

import errno
import os
import sqlite3
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from coordinator.store import blobs as blobs_module
from coordinator.store import open_catalog
from coordinator.store.group import GroupWriter
from coordinator.store.tables import SCHEMA_VERSION, small_blobs, updates
from share_dist.errors import (
    ConfigError,
    StoreCorrupt,
    StoreFull,
    StoreTooNew,
    StoreUnavailable,
)
from tests.coordinator.store_support import abandon, add, commit, merged, rolled_back
from tests.coordinator.support import FINGERPRINT, make_update, wait_until


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def catalog(path):
    """A catalog whose payloads are all in files."""
    catalog = open_catalog(str(path), inline_bytes=0)
    yield catalog
    catalog.close()


@pytest.fixture
def store(catalog):
    store = catalog.create("default", by="root")
    store.bind(FINGERPRINT, by="w")
    return store


@pytest.fixture
def inline(path):
    """A store whose payloads are all in the database."""
    catalog = open_catalog(str(path))
    store = catalog.create("default", by="root")
    store.bind(FINGERPRINT, by="w")
    yield store
    catalog.close()


def files(path):
    return sorted((path / "blobs").glob("*")) if (path / "blobs").is_dir() else []


# --- the database ---------------------------------------------------------------------------


def test_every_commit_is_synced(catalog):
    """The database runs in WAL mode and waits for the disk at every commit."""
    with catalog.database.snapshot() as rows:
        assert rows.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert rows.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert rows.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        # two flushes for a checkpoint, which is due after 32 MiB
        pages = rows.exec_driver_sql("PRAGMA wal_autocheckpoint").scalar()
        assert pages * rows.exec_driver_sql("PRAGMA page_size").scalar() == 2**25


def test_a_newer_store_is_left_alone(catalog, path):
    """What a newer release wrote is neither read nor changed."""
    catalog.close()
    with sqlite3.connect(path / "rows.sqlite") as rows:
        rows.execute("UPDATE alembic_version SET version_num = '0099'")
        rows.execute("DROP TABLE workers")
    rows.close()
    with pytest.raises(StoreTooNew, match=f"99, this release knows {SCHEMA_VERSION}") as caught:
        open_catalog(str(path))
    assert (caught.value.found, caught.value.supported) == (99, SCHEMA_VERSION)
    with sqlite3.connect(path / "rows.sqlite") as rows:
        assert "workers" not in {name for (name,) in rows.execute("SELECT name FROM sqlite_master")}
    rows.close()


def test_rows_that_are_no_database_are_corrupt(catalog, path):
    """A database of garbage is named, again and again, and left as it is."""
    catalog.close()
    (path / "rows.sqlite").write_bytes(b"garbage" * 1000)
    for suffix in ("-wal", "-shm"):
        (path / f"rows.sqlite{suffix}").unlink(missing_ok=True)
    for _ in range(2):
        with pytest.raises(StoreCorrupt, match=r"rows\.sqlite cannot be read"):
            open_catalog(str(path))
    assert (path / "rows.sqlite").read_bytes() == b"garbage" * 1000


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"store": "mysql://host/db", "blobs": "b"}, "store"),
        ({"store": "postgresql://host/db"}, "blobs"),
        ({"store": "://", "blobs": "b"}, "store"),
        ({"store": "s", "owner_lease_seconds": 0.0}, "owner_lease_seconds"),
        ({"store": "s", "owner_lease_seconds": float("nan")}, "owner_lease_seconds"),
        ({"store": "s", "inline_bytes": -1}, "inline_bytes"),
        ({"store": "s", "blobs": "nosuch://place"}, "blobs"),
    ],
)
def test_a_place_that_cannot_be_is_refused(tmp_path, monkeypatch, options, key):
    """The key that is wrong is named, and whoever reads it hears what is needed."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        open_catalog(**options)
    assert caught.value.key == key


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    """A file in the way is a StoreUnavailable with the path, not a traceback."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailable, match="file/store"):
        open_catalog(str(tmp_path / "file" / "store"))


def test_a_closed_catalog_says_so(catalog, store):
    """A write after the end is refused; closing twice is no error."""
    catalog.close()
    catalog.close()
    with pytest.raises(StoreUnavailable, match="was closed"):
        add(store, make_update())


# --- group commit ---------------------------------------------------------------------------


def counting_commits(catalog):
    commits = []
    sa.event.listen(catalog.database._engine, "commit", lambda _: commits.append(1))
    return commits


def test_writes_at_once_cost_one_commit(inline):
    """All that wait are written together, in the order in which they came."""
    catalog = inline._catalog
    commits = counting_commits(catalog)
    entered, go_on = threading.Event(), threading.Event()

    def hold(_rows):
        entered.set()
        go_on.wait(30)

    threads = [threading.Thread(target=catalog.write, args=("change", hold))]
    threads[0].start()
    entered.wait(30)
    for index in range(20):
        update = make_update(f"task-{index}", f"u{index}")
        threads.append(threading.Thread(target=add, args=(inline, update)))
        threads[-1].start()
        while len(catalog._writer._jobs) <= index:
            threading.Event().wait(0.001)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert len(commits) == 2
    assert [record.update_id for record in inline.pending()] == [f"u{i}" for i in range(20)]


def test_what_is_refused_leaves_nothing_of_itself(catalog, store):
    """A write that fails is undone alone: what was written beside it in its commit stays."""

    def fail(rows):
        rows.execute(sa.insert(small_blobs).values(digest="d", payload=b"p"))
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        catalog.write("change", fail)
    add(store, make_update())
    with catalog.database.snapshot() as rows:
        assert rows.execute(sa.select(small_blobs)).all() == []
    assert len(store.pending()) == 1


def test_a_database_that_fails_in_one_write_lets_the_others_be(catalog, store, monkeypatch):
    """What ends a whole transaction is tried again one by one: only the culprit hears of it."""
    entered, go_on = threading.Event(), threading.Event()
    outcomes = {}

    def hold(_rows):
        entered.set()
        go_on.wait(30)

    def ruin(rows):
        rows.exec_driver_sql("ROLLBACK")
        raise sa.exc.OperationalError("write", {}, Exception("database or disk is full"))

    def run(name, act):
        try:
            act()
        except StoreFull:
            outcomes[name] = "full"
        else:
            outcomes[name] = "done"

    acts = {
        "hold": lambda: catalog.write("change", hold),
        "ruin": lambda: catalog.write("change", ruin),
        "push": lambda: add(store, make_update()),
    }
    threads = []
    for name, act in acts.items():
        threads.append(threading.Thread(target=run, args=(name, act)))
        threads[-1].start()
        entered.wait(30)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert outcomes == {"hold": "done", "ruin": "full", "push": "done"}
    assert len(store.pending()) == 1


# --- payloads -------------------------------------------------------------------------------


def test_small_payloads_make_no_file(inline, path):
    """Updates and versions of a few kilobytes are inside the database, which is one flush."""
    add(inline, make_update())
    commit(inline, merged(inline, ["update-of-cats"]))
    assert files(path) == []
    assert inline.load_update("update-of-cats").task_id == "cats"


@pytest.mark.parametrize("first", [0, 2**20])
def test_the_bound_of_small_payloads_may_change(path, first):
    """What was kept inside or in files is read under any other bound."""
    for inline_bytes, update_id in ((first, "u1"), (2**20 - first, "u2")):
        catalog = open_catalog(str(path), inline_bytes=inline_bytes)
        store = catalog.create("default", by="root")
        store.bind(FINGERPRINT, by="w")
        add(store, make_update(f"task of {update_id}", update_id))
        assert [store.load_update(r.update_id).update_id for r in store.pending()][:1] == ["u1"]
        assert list(catalog.verify()) == []
        catalog.close()
    assert len(files(path)) == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_blob_is_never_used(catalog, store, path, damage):
    """One wrong bit, a missing end, a missing file: path, digest expected and digest found."""
    add(store, make_update())
    (blob,) = files(path)
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
    (finding,) = catalog.verify()
    assert finding.subject == "update update-of-cats of subspace 'default'"
    assert not finding.is_harmless


def test_a_damaged_small_payload_is_never_used(inline):
    """The digest is compared inside the database too."""
    add(inline, make_update())
    catalog = inline._catalog
    catalog.write("change", lambda rows: rows.execute(sa.update(small_blobs).values(payload=b"x")))
    with pytest.raises(StoreCorrupt, match="small blob"):
        inline.load_update("update-of-cats")


def test_a_damaged_version_is_never_used(catalog, store, path):
    """A version whose blob is damaged is an error, not another subspace."""
    add(store, make_update())
    before = set(files(path))
    commit(store, merged(store, ["update-of-cats"]))
    for blob in set(files(path)) - before:
        blob.write_bytes(blob.read_bytes()[:-1])
    for read in (store.subspace, store.tasks, store.rotation):
        with pytest.raises(StoreCorrupt, match="restore it from a backup"):
            read(1)
    assert {finding.subject for finding in catalog.verify()} == {"version 1 of subspace 'default'"}


def test_what_a_crash_left_is_removed(catalog, store, path):
    """Unfinished blobs, and those that no row names, go at the next start; the others stay."""
    add(store, make_update())
    (kept,) = files(path)
    (path / "blobs" / "0123.tmp").write_bytes(b"half")
    leftover = path / "blobs" / f"{'0' * 64}.safetensors"
    leftover.write_bytes(b"no row names it")
    (finding,) = catalog.verify()
    assert (finding.subject, finding.is_harmless) == (str(leftover), True)
    abandon(catalog)
    again = open_catalog(str(path), inline_bytes=0)
    assert files(path) == [kept]
    assert again.store("default").load_update("update-of-cats").task_id == "cats"
    again.close()


def test_a_blob_that_cannot_be_read_is_not_called_corrupt(store, path):
    """What the disk cannot read now may be read later: nobody is told to restore it."""
    add(store, make_update())
    (blob,) = files(path)
    blob.unlink()
    blob.mkdir()
    with pytest.raises(StoreUnavailable, match="Is a directory") as caught:
        store.load_update("update-of-cats")
    assert caught.value.path == str(blob)


def test_what_is_refused_leaves_no_file(store, path):
    """Who pushes other content under a known id, again and again, does not fill the disk."""
    add(store, make_update("cats", "u1"))
    before = files(path)
    for seed in range(3):
        with pytest.raises(Exception, match="u1 is known"):
            add(store, make_update("cats", "u1", seed=seed))
    assert files(path) == before


def test_files_go_after_the_rows(catalog, store, path, monkeypatch):
    """A crash between a compaction's commit and its unlinks leaves files, which go later."""
    for task in ("cats", "dogs"):
        add(store, make_update(task))
        commit(store, merged(store, [f"update-of-{task}"]))
    before = set(files(path))
    with monkeypatch.context() as patched:
        patched.setattr(catalog, "remove_blobs", lambda digests: None)
        store.compact([1], by="root")
    assert set(files(path)) == before
    assert not store.is_kept(1)
    assert all(finding.is_harmless for finding in catalog.verify())
    abandon(catalog)
    again = open_catalog(str(path), inline_bytes=0)
    assert len(before - set(files(path))) == 3
    assert list(again.verify()) == []
    again.close()


def test_a_blob_that_is_arriving_is_not_taken_for_a_leftover(catalog, store, path):
    """An update that brings again what a compaction lets go of finds its payload kept."""
    update = make_update()
    payload = catalog.payloads
    described_digest = "0" * 64
    blob = path / "blobs" / f"{described_digest}.safetensors"
    add(store, update)
    with payload._held([described_digest]):
        blob.write_bytes(b"arriving")
        catalog.remove_blobs([described_digest])
        assert blob.exists()
        assert list(catalog.verify()) == []
    catalog.remove_blobs([described_digest])
    assert not blob.exists()


def test_a_payload_of_two_is_removed_with_the_second(catalog, store, path):
    """A version that a rollback made shares the files of the one that it went back to."""
    for task in ("cats", "dogs"):
        add(store, make_update(task))
        commit(store, merged(store, [f"update-of-{task}"]))
    commit(store, rolled_back(store, 1))
    store.compact([1, 2], by="root")
    assert store.subspace(3).version == 3
    assert list(catalog.verify()) == []


# --- a full disk ----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_without_room_nothing_is_acknowledged(store, path, monkeypatch, number):
    """A full disk refuses the push, leaves nothing behind, and takes the same push later."""

    def full(_descriptor):
        raise OSError(number, os.strerror(number))

    update = make_update()
    with monkeypatch.context() as patched:
        patched.setattr(blobs_module.os, "fsync", full)
        with pytest.raises(StoreFull, match="nothing was acknowledged") as caught:
            add(store, update)
    assert caught.value.needed_bytes > 0
    assert caught.value.free_bytes > 0
    assert files(path) == []
    assert store.pending() == ()
    assert add(store, update).update_id == update.update_id


def limit_pages(catalog, more):
    """Let the database grow by so many pages at most: SQLite then says that it is full."""

    def limit(connection, *_):
        cursor = connection.cursor()
        pages = cursor.execute("PRAGMA page_count").fetchone()[0] + more
        cursor.execute(f"PRAGMA max_page_count={pages}")
        cursor.close()

    sa.event.listen(catalog.database._engine, "checkout", limit)
    return lambda: sa.event.remove(catalog.database._engine, "checkout", limit)


def test_a_full_database_refuses_and_recovers(inline):
    """What was acknowledged before is there, what was refused is taken once there is room."""
    catalog = inline._catalog
    add(inline, make_update("cats", "u1"))
    remove_limit = limit_pages(catalog, 0)
    big = make_update("dogs", "u2", num_temporary=400)
    with pytest.raises(StoreFull):
        add(inline, big)
    assert [record.update_id for record in inline.pending()] == ["u1"]
    remove_limit()
    catalog.database._engine.dispose()
    add(inline, big)
    assert [record.update_id for record in inline.pending()] == ["u1", "u2"]
    assert list(catalog.verify()) == []


def test_without_room_the_version_stays(store, path, monkeypatch):
    """A merge that cannot be written leaves version, pending updates and files as they were."""
    add(store, make_update())
    before = files(path)
    version = merged(store, ["update-of-cats"])

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(blobs_module.os, "fsync", full)
        with pytest.raises(StoreFull):
            commit(store, version)
    assert (store.current_version, len(store.pending())) == (0, 1)
    assert files(path) == before
    commit(store, version)
    assert store.current_version == 1


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs more rights than this user has")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("inline_bytes", [0, 2**18])
def test_a_disk_that_really_fills_up(small_disk, inline_bytes):
    """On a real full disk pushes fail as StoreFull, and all that was acknowledged is still there."""
    catalog = open_catalog(str(small_disk / "store"), inline_bytes=inline_bytes)
    store = catalog.create("default", by="root")
    store.bind(FINGERPRINT, by="w")
    kept = []

    def fill():
        updates_without_end = (make_update(f"task-{i}", num_temporary=80) for i in range(1000))
        kept.extend(add(store, update).update_id for update in updates_without_end)

    with pytest.raises(StoreFull):
        fill()
    assert kept
    assert [record.update_id for record in store.pending()] == kept
    catalog.close()
    # a little room, as an operator makes: without any, nothing can be opened for writing
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    catalog = open_catalog(str(small_disk / "store"))
    store = catalog.store("default")
    assert [record.update_id for record in store.pending()] == kept
    assert list(catalog.verify()) == []
    assert all(store.load_update(update_id).update_id == update_id for update_id in kept)
    catalog.close()


def test_other_failures_of_the_disk_keep_their_words(store, path, monkeypatch):
    """An I/O error is a StoreUnavailable that says what the system said."""

    def broken(_descriptor):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(blobs_module.os, "fsync", broken)
        with pytest.raises(StoreUnavailable, match="Input/output error") as caught:
            add(store, make_update())
    assert caught.value.path.startswith(str(path))


def test_folders_are_synced_when_they_are_made(tmp_path, monkeypatch):
    """A loss of power takes neither the store's folder nor a blob's name: each parent is synced."""
    synced, fsync = [], os.fsync

    def note(descriptor):
        synced.append(Path(f"/proc/self/fd/{descriptor}").resolve())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    path = tmp_path / "runs" / "demo" / "store"
    catalog = open_catalog(str(path), inline_bytes=0)
    assert synced == [tmp_path, tmp_path / "runs", tmp_path / "runs" / "demo"]
    store = catalog.create("default", by="root")
    store.bind(FINGERPRINT, by="w")
    synced.clear()
    add(store, make_update())
    assert synced[0] == path
    assert synced[-1] == path / "blobs"
    catalog.close()


@pytest.mark.parametrize(
    "point", ["after-merge-version-row", "after-merge-update-rows", "before-merge-commit"]
)
def test_a_version_is_committed_whole_or_not_at_all(catalog, store, monkeypatch, point):
    """An error in the middle of a commit's transaction leaves no trace in any table."""
    add(store, make_update("cats", "u1"))
    add(store, make_update("dogs", "u2"))
    version = merged(store, ["u1", "u2"])
    before = catalog.audit(0, 100)

    def fail(reached):
        if reached == point:
            raise StoreUnavailable("the last moment before the commit")

    with monkeypatch.context() as patched:
        patched.setattr("coordinator.faults.reach", fail)
        with pytest.raises(StoreUnavailable, match="last moment"):
            commit(store, version)
    assert (store.current_version, store.events(0, 9)) == (0, ())
    assert len(store.pending()) == 2
    assert {summary.merged_version for summary in store.task_summaries()} == {0}
    assert catalog.audit(0, 100) == before
    assert list(catalog.verify()) == []


def test_an_answer_that_is_lost_is_asked_for_again(catalog, store, monkeypatch):
    """A commit whose outcome is unknown is looked up: nobody goes on from a stale version."""
    add(store, make_update())
    version = merged(store, ["update-of-cats"])
    run = GroupWriter.run

    def lose(self, occasion, write):
        result = run(self, occasion, write)
        if occasion == "merge":
            raise StoreUnavailable("the connection was lost")
        return result

    with monkeypatch.context() as patched:
        patched.setattr(GroupWriter, "run", lose)
        with pytest.raises(StoreUnavailable):
            commit(store, version)
    assert store.current_version == 1
    assert list(catalog.verify()) == []


def test_what_reached_the_disk_is_counted(catalog, store):
    """Each large payload is a file; writes that come while another is in hand share one commit."""
    add(store, make_update("cats"))
    before = catalog.counts
    begun, may_end = threading.Event(), threading.Event()

    def hold(_rows):
        begun.set()
        assert may_end.wait(60)

    with ThreadPoolExecutor(9) as threads:
        held = threads.submit(catalog.write, "change", hold)
        assert begun.wait(60)
        added = [threads.submit(add, store, make_update(f"task-{i}")) for i in range(8)]
        wait_until(lambda: len(catalog._writer._jobs) == len(added))
        may_end.set()
        for future in (held, *added):
            future.result(60)
    after = catalog.counts
    assert after.blobs - before.blobs == 8
    assert after.writes - before.writes == 9
    assert after.commits - before.commits == 2


# --- verify ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "subject"),
    [
        ("DELETE FROM versions WHERE version = 1", "version 2"),
        ("UPDATE versions SET digest = 'x' WHERE version = 1", "version 1"),
        ("UPDATE versions SET event = replace(event, 'cats', 'bats')", "version 1"),
        ("DELETE FROM updates WHERE update_id = 'update-of-cats'", "task 'cats'"),
        ("UPDATE tasks SET update_id = NULL WHERE task_id = 'dogs'", "task 'dogs'"),
        (
            "UPDATE updates SET metadata = replace(metadata, 'dogs', 'bats')",
            "update update-of-dogs",
        ),
    ],
)
def test_rows_that_were_tampered_with_are_found(inline, statement, subject):
    """A missing version, another digest, another event, a lost update: each is named."""
    for task in ("cats", "dogs"):
        add(inline, make_update(task))
        commit(inline, merged(inline, [f"update-of-{task}"]))
    catalog = inline._catalog
    assert list(catalog.verify()) == []
    catalog.write("change", lambda rows: rows.exec_driver_sql(statement))
    found = list(catalog.verify())
    assert any(finding.subject.startswith(subject) for finding in found), found
    assert all(finding.problem and finding.remedy for finding in found)


def test_the_schema_is_what_the_migrations_make(catalog):
    """The tables in the code and those in the database are the same, column for column."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with catalog.database.snapshot() as rows:
        assert compare_metadata(MigrationContext.configure(rows), updates.metadata) == []


def test_a_file_is_no_place_for_a_store(tmp_path):
    """Whoever names a file where a folder is needed is told so, and the file stays as it was."""
    place = tmp_path / "file"
    place.write_text("kept")
    with pytest.raises(ConfigError, match="which is a file: name a folder"):
        open_catalog(str(place))
    assert place.read_text() == "kept"

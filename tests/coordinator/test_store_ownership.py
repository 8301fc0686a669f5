"""One process may write: others are refused, the dead are buried at once, the hung are fenced."""

import os
import signal
import subprocess
import threading
from dataclasses import replace

import pytest
import sqlalchemy as sa

from coordinator.store import open_catalog, ownership
from coordinator.store.ownership import Process
from coordinator.store.tables import owner
from share_dist.errors import StoreFenced, StoreLocked
from tests.coordinator.store_support import Opener, add, merged
from tests.coordinator.support import _FORKS as FORKS
from tests.coordinator.support import FINGERPRINT, make_update, wait_until

ELSEWHERE = {"boot_id": "another boot", "host": "elsewhere", "pid": 4711}


@pytest.fixture(params=["sqlite-files", "postgres-files"])
def opener(request, tmp_path):
    url = ""
    if request.param.startswith("postgres"):
        url = request.getfixturevalue("postgres_server").make_database()
    opener = Opener(request.param, tmp_path, url)
    yield opener
    opener.catalog.close()


@pytest.fixture
def store(opener):
    opener.store.bind(FINGERPRINT, by="w")
    return opener.store


def set_owner(catalog, **values):
    """Change what is written about the owner, as time or another machine would."""
    with catalog.database.transaction() as rows:
        rows.execute(sa.update(owner).values(values))
        rows.commit()


def read_owner(catalog):
    with catalog.database.snapshot() as rows:
        return rows.execute(sa.select(owner)).one()


def test_a_second_owner_is_refused(opener, store):
    """Whoever opens a store in use hears of the owner, and for how long; the owner goes on."""
    with pytest.raises(StoreLocked, match=f"is owned by process {os.getpid()} on ") as caught:
        opener.open()
    assert caught.value.pid == os.getpid()
    assert 25 < caught.value.seconds_left <= 30
    assert add(store, make_update()).update_id == "update-of-cats"


def test_a_closed_catalog_is_free_at_once(opener):
    """Closing gives the lease up; the next owner has the next fence."""
    fence = read_owner(opener.catalog).fence
    assert read_owner(opener.reopen()).fence == fence + 1


def test_renewing_makes_the_lease_last(opener):
    """A lease that is nearly over lasts its whole time again."""
    set_owner(opener.catalog, expires_at=1.0, expires_since_boot=1.0)
    opener.catalog.renew()
    with pytest.raises(StoreLocked) as caught:
        opener.open()
    assert caught.value.seconds_left > 25


def test_who_was_taken_over_writes_nothing(opener, store):
    """After the lease is over another owner comes; every kind of write of the first is refused."""
    add(store, make_update("cats", "u1"))
    version = merged(store, ["u1"])
    first = opener.catalog
    set_owner(first, expires_at=1.0, expires_since_boot=1.0)
    second = opener.open()
    for write in (
        first.renew,
        lambda: add(store, make_update("dogs", "u2")),
        lambda: store.commit(version, by="coordinator"),
        lambda: store.compact([1], by="root"),
        lambda: store.next_epoch("w", by="w"),
        lambda: first.create("more", by="root"),
    ):
        with pytest.raises(StoreFenced, match="was taken over under fence 2") as caught:
            write()
        assert (caught.value.fence, caught.value.current_fence) == (1, 2)
    taken = second.store("default")
    assert [record.update_id for record in taken.pending()] == ["u1"]
    taken.commit(version, by="coordinator")
    assert all(finding.is_harmless for finding in second.verify())
    first.close()
    second.renew()
    second.close()


def test_a_hung_owner_does_not_remove_files(opener, store):
    """What the first owner had decided to unlink is not unlinked once there is a second."""
    add(store, make_update())
    first = opener.catalog
    (digest,) = first.payloads.blobs.digests()
    set_owner(first, expires_at=1.0, expires_since_boot=1.0)
    second = opener.open()
    with pytest.raises(StoreFenced):
        first.remove_blobs([digest])
    assert list(first.payloads.blobs.digests()) == [digest]
    second.close()


def test_a_process_elsewhere_is_never_proven_dead(opener):
    """Of another machine, or another boot, only the end of the lease tells."""
    set_owner(opener.catalog, **ELSEWHERE)
    with pytest.raises(StoreLocked, match="process 4711 on elsewhere"):
        opener.open()


def test_a_clock_that_was_set_back_locks_nobody_out(opener):
    """A lease that would last for years lasts, from the first refusal on, for its length."""
    seconds = read_owner(opener.catalog).lease_seconds
    set_owner(opener.catalog, **ELSEWHERE, expires_at=4e9, expires_since_boot=4e9)
    with pytest.raises(StoreLocked) as caught:
        opener.open()
    assert caught.value.seconds_left == seconds
    expires_at = read_owner(opener.catalog).expires_at
    with opener.catalog.database.snapshot() as rows:
        left = expires_at - opener.catalog.database.now(rows)
    assert 0 < left <= seconds


def test_two_that_open_at_once_do_not_both_get_it(opener):
    """Of several that find a free store one owns it; the others hear who."""
    opener.catalog.close()
    barrier = threading.Barrier(4)
    found = []

    def open_one():
        barrier.wait(30)
        try:
            found.append(opener.open())
        except StoreLocked as error:
            found.append(error)

    threads = [threading.Thread(target=open_one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    owners = [one for one in found if not isinstance(one, StoreLocked)]
    assert (len(owners), len(found)) == (1, 4)
    opener.catalog = owners[0]


def hold(options, pipe):
    """In another process: own a catalog, and make subspaces of the names that come."""
    catalog = open_catalog(**options)
    catalog.create("default", by="first")
    pipe.send("owner")
    while True:
        pipe.send(outcome(lambda: catalog.create(pipe.recv(), by="first")))


def outcome(write):
    try:
        write()
    except StoreFenced as error:
        return f"fenced {error.fence} {error.current_fence}"
    return "written"


class Holder:
    """Another process that owns the opener's place, and writes when it is told to."""

    def __init__(self, opener, lease_seconds):
        opener.catalog.close()
        self.pipe, theirs = FORKS.Pipe()
        options = opener.options | {"owner_lease_seconds": lease_seconds}
        self.process = FORKS.Process(target=hold, args=(options, theirs))
        self.process.start()
        assert self.said() == "owner"

    def said(self):
        assert self.pipe.poll(60), "it did not answer"
        return self.pipe.recv()

    def write(self, name):
        self.pipe.send(name)
        return self.said()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


def test_a_killed_owner_is_followed_at_once(opener):
    """After kill -9 nobody waits for the lease to end."""
    with Holder(opener, lease_seconds=3600) as holder:
        assert holder.write("kept") == "written"
        with pytest.raises(StoreLocked) as caught:
            opener.open()
        assert caught.value.pid == holder.process.pid
        assert caught.value.seconds_left > 3000
        holder.process.kill()
        holder.process.join()
        opener.catalog = opener.open()
        assert opener.catalog.names() == ("default", "kept")
    assert read_owner(opener.catalog).fence == 3


def test_a_hung_owner_that_wakes_up_writes_nothing(opener):
    """Stopped, taken over after its lease, continued: its write is refused, the second's are there."""
    with Holder(opener, lease_seconds=0.5) as holder:
        assert holder.write("before") == "written"
        os.kill(holder.process.pid, signal.SIGSTOP)
        try:
            wait_until(lambda: takes_over(opener), seconds=20)
            opener.catalog.create("of-the-second", by="second")
        finally:
            os.kill(holder.process.pid, signal.SIGCONT)
        assert holder.write("after") == "fenced 2 3"
    assert opener.catalog.names() == ("before", "default", "of-the-second")
    assert list(opener.catalog.verify()) == []


def takes_over(opener):
    try:
        opener.catalog = opener.open()
    except StoreLocked:
        return False
    return True


def test_a_number_that_is_used_again_is_another_process():
    """The time of its start tells one process from another with its number."""
    mine = Process.current()
    assert not mine.is_provably_dead()
    assert replace(mine, started="1").is_provably_dead()
    gone = subprocess.Popen(["/bin/sh"], stdin=subprocess.PIPE)
    running = replace(mine, pid=gone.pid, started=ownership._started(gone.pid))
    assert not running.is_provably_dead()
    gone.kill()
    # dead, and not yet waited for
    os.waitid(os.P_PID, gone.pid, os.WEXITED | os.WNOWAIT)
    assert running.is_provably_dead()
    gone.communicate()
    assert replace(mine, pid=gone.pid).is_provably_dead()
    assert not replace(mine, pid=gone.pid, boot_id="another").is_provably_dead()
    assert not replace(mine, pid=gone.pid, pid_namespace="another").is_provably_dead()
    assert not replace(mine, pid=gone.pid, boot_id="").is_provably_dead()


def test_an_abandoned_catalog_in_this_process_is_not_free(tmp_path):
    """A process that opens its own store twice is refused as any other."""
    catalog = open_catalog(str(tmp_path / "store"))
    with pytest.raises(StoreLocked):
        open_catalog(str(tmp_path / "store"))
    catalog.close()

"""Stores of earlier days, committed as files, stay readable: schema version 1 and those after it."""

import fcntl
import json
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.store import open_catalog
from coordinator.store.format import digest_of
from share_dist.errors import StoreCorrupt, StoreLocked, UpdateConflict
from share_dist.wire import codec
from tests.coordinator.golden.make_store import UPDATES, answers
from tests.coordinator.store_support import add, commit, merged, rolled_back
from tests.coordinator.support import make_update

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def path(tmp_path, request):
    shutil.copytree(GOLDEN / request.param / "store", tmp_path / "store")
    return tmp_path / "store"


first_release = pytest.mark.parametrize("path", ["store_v1"], indirect=True)
second = pytest.mark.parametrize("path", ["store_v2"], indirect=True)
current = pytest.mark.parametrize("path", ["store_v3"], indirect=True)
since_second = pytest.mark.parametrize("path", ["store_v2", "store_v3"], indirect=True)

ADDED_BY_THIRD = {"is_consented": False, "let_go_at": None}
"""What schema version 3 says of an update that was kept before."""


def expected_of(name):
    return json.loads((GOLDEN / name / "expected.json").read_text())


@first_release
def test_a_store_of_the_first_release_is_migrated(path):
    """All that it said it says still, as the subspace ``default``, now with a chain of digests."""
    expected = expected_of("store_v1")
    catalog = open_catalog(str(path))
    store = catalog.store("default")
    assert catalog.names() == ("default",)
    assert store.current_version == expected["current_version"]
    assert store.epochs() == expected["epochs"]
    assert [record.update_id for record in store.pending()] == expected["pending"]
    for version, digest in expected["subspaces"].items():
        assert digest_of(codec.subspace_to_bytes(store.subspace(int(version)))) == digest
        assert store.drift(int(version)) == expected["drift"][version]
    for update_id, digest in expected["updates"].items():
        assert digest_of(codec.update_to_bytes(store.load_update(update_id))) == digest
        assert store.update_record(update_id).state.value == expected["states"][update_id]
    for task in store.task_summaries():
        update_id, _, version, drift = expected["tasks"][task.task_id]
        assert (task.update_id, task.merged_version) == (update_id, version)
        assert task.cumulative_drift == pytest.approx(drift, rel=1e-12)
    assert store.events(2, 1)[0].parent_digest == store.digest(2)
    assert [entry.action for entry in catalog.audit(0, 9)] == ["store_migrated"]
    assert list(catalog.verify()) == []
    catalog.close()


@first_release
def test_a_migrated_store_goes_on(path):
    """Repeats are known, conflicts refused, workers keep their epochs, merges and rollbacks work."""
    catalog = open_catalog(str(path), inline_bytes=0)
    store = catalog.store("default")
    waiting = store.load_update("u6")
    assert add(store, waiting, "v", owner="v").sequence == 6
    with pytest.raises(UpdateConflict):
        add(store, replace(waiting, num_samples=1), "v", owner="v")
    assert store.next_epoch("w", by="local") == 3
    assert (store.owner("dogs"), store.owner("cats")) == ("v", "w")
    commit(store, merged(store, ["u6"], num_factors=4))
    commit(store, rolled_back(store, 2))
    assert store.update_record("u4").state.value == "rolled back"
    store.compact([1, 2], by="root")
    assert list(catalog.verify()) == []
    catalog.close()
    again = open_catalog(str(path))
    assert again.store("default").current_version == 5
    assert len(list((path / "blobs").glob("*.safetensors"))) == len(
        {*again.payloads.blobs.digests()}
    )
    again.close()


@first_release
def test_the_first_release_refuses_what_was_migrated(path):
    """It reads the schema version where it always did, and finds one that it does not know."""
    open_catalog(str(path)).close()
    with sqlite3.connect(path / "rows.sqlite") as rows:
        found = rows.execute("SELECT value FROM facts WHERE name = 'schema_version'").fetchone()
    rows.close()
    assert int(found[0]) > 1


@first_release
def test_a_store_that_the_first_release_has_open_is_left_alone(path):
    """Its lock is honoured, and tells who holds it; nothing is migrated."""
    with (path / "lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreLocked, match="process 1 on elsewhere, of an older release"):
            open_catalog(str(path))
    assert schema_of(path) == "1"
    open_catalog(str(path)).close()


@first_release
def test_a_migration_that_fails_changes_nothing(path):
    """A damaged payload is named, the old schema is whole, and is migrated once it is repaired."""
    blob = path / "blobs" / f"{expected_of('store_v1')['subspaces']['2']}.safetensors"
    payload = blob.read_bytes()
    blob.write_bytes(payload[:-1])
    with pytest.raises(StoreCorrupt, match=blob.stem):
        open_catalog(str(path))
    assert schema_of(path) == "1"
    blob.write_bytes(payload)
    catalog = open_catalog(str(path))
    assert list(catalog.verify()) == []
    catalog.close()


def schema_of(path):
    with sqlite3.connect(path / "rows.sqlite") as rows:
        (found,) = rows.execute("SELECT value FROM facts WHERE name = 'schema_version'").fetchone()
    rows.close()
    return found


@second
def test_a_store_of_schema_version_2_stays_readable(path):
    """Every answer is the one that was written down when the files were made."""
    catalog = open_catalog(str(path))
    assert list(catalog.verify()) == []
    expected = expected_of("store_v2") | {"refused": [], "seen_seconds": 0.0}
    expected["updates"] = [update | ADDED_BY_THIRD for update in expected["updates"]]
    assert json.loads(json.dumps(answers(catalog))) == expected
    catalog.close()


@second
def test_what_was_replayed_before_consents_were_kept_is_consented_to(path):
    """An update that waited with a reason was one that an operator had let through."""
    with sqlite3.connect(path / "rows.sqlite") as rows:
        rows.execute("UPDATE updates SET reason = 'replayed by root' WHERE state = 'pending'")
    rows.close()
    catalog = open_catalog(str(path))
    consented = {r.update_id: r.is_consented for r in catalog.store("default").updates()}
    assert consented == {"u1": False, "u2": False, "u3": False, "u5": False, "u6": True}
    catalog.close()


@current
def test_a_store_of_this_schema_stays_readable(path):
    """Every answer is the one that was written down when the files were made."""
    catalog = open_catalog(str(path))
    assert list(catalog.verify()) == []
    assert json.loads(json.dumps(answers(catalog))) == expected_of("store_v3")
    catalog.close()


@since_second
def test_what_is_pushed_again_is_known(path):
    """The digests of what workers said have not changed: their repeats are repeats."""
    catalog = open_catalog(str(path))
    store = catalog.store("default")
    for task_id, update_id in UPDATES.items():
        record = store.find_update(update_id)
        if record is None:
            continue  # this store is older than that update
        update = make_update(task_id, update_id)
        if record.base_version == 0:
            assert add(store, update) == record
    catalog.close()

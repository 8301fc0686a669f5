"""Copies of a store, made while it lives, and their way back; what the command line says of one."""

import json
import threading
from importlib.metadata import entry_points

import pytest
from typer.testing import CliRunner

from coordinator.store import open_catalog, tools
from coordinator.store.place import Place
from coordinator.store_cli import app
from share_dist.errors import ConfigError, StoreCorrupt, StoreTooNew, StoreUnavailable
from tests.coordinator.store_support import Opener, add, commit, merged, rolled_back
from tests.coordinator.support import FINGERPRINT, make_update
from tests.equality import first_difference

RESTORED_TO = ("sqlite", "postgres-memory")


def quiet(_done, _total):
    """Progress that nobody looks at."""


@pytest.fixture(params=["sqlite", "sqlite-files", "postgres-memory"])
def opener(request, tmp_path):
    opener = make_opener(request, request.param, tmp_path)
    yield opener
    opener.catalog.close()


def make_opener(request, kind, path):
    url = ""
    if kind.startswith("postgres"):
        url = request.getfixturevalue("postgres_server").make_database()
    return Opener(kind, path, url)


@pytest.fixture
def store(opener):
    store = opener.store
    store.bind(FINGERPRINT, by="w")
    for task in ("cats", "dogs", "eels"):
        add(store, make_update(task, base=store.subspace(store.current_version)))
        commit(store, merged(store, [f"update-of-{task}"], num_factors=3))
    commit(store, rolled_back(store, 2))
    store.compact([1], by="root")
    add(store, make_update("fish"))
    opener.catalog.create("other", by="root")
    return store


def place_of(opener):
    options = opener.options
    return Place(options["store"], options.get("blobs"))


def says(store):
    """All that a store says."""
    kept = [v for v in range(store.current_version + 1) if store.is_kept(v)]
    return (
        store.store_id,
        store.fingerprint(),
        store.epochs(),
        store.updates(),
        [store.load_update(record.update_id) for record in store.updates()],
        store.versions(0, 100),
        [(store.subspace(v), store.tasks(v), store.rotation(v), store.digest(v)) for v in kept],
        store.task_summaries(),
    )


@pytest.mark.parametrize("kind", RESTORED_TO)
def test_a_backup_comes_back_as_it_was(request, opener, store, tmp_path, kind):
    """Made while the store is owned, restored into any other kind: every answer is the same."""
    expected, audit = says(store), opener.catalog.audit(0, 100)
    copied = tools.backup(place_of(opener), tmp_path / "copy", quiet)
    assert copied.store_id == opener.catalog.store_id
    add(store, make_update("later"))
    assert list(tools.verify(Place(str(tmp_path / "copy")))) == []
    target = empty_place(request, kind, tmp_path / "restored")
    tools.restore(tmp_path / "copy", target, quiet)
    assert list(tools.verify(target)) == []
    restored = open_catalog(target.store, blobs=target.blobs_url)
    assert first_difference(says(restored.store("default")), expected) is None
    assert restored.audit(0, 100) == audit
    assert restored.names() == ("default", "other")
    add(restored.store("default"), make_update("goes-on"))
    restored.close()


def empty_place(request, kind, path):
    if kind.startswith("sqlite"):
        return Place(str(path))
    url = request.getfixturevalue("postgres_server").make_database()
    return Place(url, f"memory://{path.as_posix()}")


def test_a_backup_is_a_store_of_its_own(opener, store, tmp_path):
    """It can be opened where it lies, and nobody owns it before."""
    tools.backup(place_of(opener), tmp_path / "copy", quiet)
    assert tools.info(Place(str(tmp_path / "copy"))).owner is None
    assert tools.info(place_of(opener)).owner is not None
    copy = open_catalog(str(tmp_path / "copy"))
    add(copy.store("default"), make_update("goats"))
    assert [record.task_id for record in store.pending()] == ["fish"]
    copy.close()


def test_a_backup_is_of_one_moment(opener, store, tmp_path):
    """While pushes and merges go on, what is copied is whole: it verifies, and begins the history."""
    ended = threading.Event()

    def go_on():
        for index in range(200):
            if ended.is_set():
                return
            add(store, make_update(f"task-{index}", f"u{index}"))
            commit(store, merged(store, [f"u{index}"], num_factors=2))

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        for number in range(2):
            tools.backup(place_of(opener), tmp_path / f"copy-{number}", quiet)
    finally:
        ended.set()
        thread.join(60)
    for number in range(2):
        assert list(tools.verify(Place(str(tmp_path / f"copy-{number}")))) == []
        copy = open_catalog(str(tmp_path / f"copy-{number}"))
        kept = copy.store("default")
        assert kept.events(0, 1000) == store.events(0, kept.current_version)
        copy.close()


@pytest.fixture
def with_files(tmp_path):
    catalog = open_catalog(str(tmp_path / "store"), inline_bytes=0)
    store = catalog.create("default", by="root")
    store.bind(FINGERPRINT, by="w")
    for task in ("cats", "dogs", "eels"):
        add(store, make_update(task))
        commit(store, merged(store, [f"update-of-{task}"]))
    yield store
    catalog.close()


def test_a_compaction_meanwhile_makes_it_begin_again(with_files, tmp_path):
    """Files that are gone since the rows were read: the copy is begun anew, and is whole."""
    starts = []

    def compact(done, _total):
        if done == 0:
            starts.append(done)
            with_files.compact([len(starts)], by="root")

    place = Place(str(tmp_path / "store"))
    tools.backup(place, tmp_path / "copy", compact)
    assert len(starts) > 1
    assert list(tools.verify(Place(str(tmp_path / "copy")))) == []
    assert {child.name for child in tmp_path.iterdir()} == {"store", "copy"}


def test_a_backup_does_not_begin_again_for_ever(with_files, tmp_path, monkeypatch):
    """After three attempts it says that compactions are in the way; nothing is left behind."""
    monkeypatch.setattr(tools, "_read_unless_gone", lambda reader, digest: None)
    with pytest.raises(StoreUnavailable, match="during each of 3 attempts"):
        tools.backup(Place(str(tmp_path / "store")), tmp_path / "copy", quiet)
    assert {child.name for child in tmp_path.iterdir()} == {"store"}


def test_a_damaged_store_is_not_backed_up(with_files, tmp_path):
    """A copy of what is damaged would be no backup: it is named, and nothing is left behind."""
    blob = next((tmp_path / "store" / "blobs").iterdir())
    blob.write_bytes(b"damaged")
    with pytest.raises(StoreCorrupt, match=blob.stem):
        tools.backup(Place(str(tmp_path / "store")), tmp_path / "copy", quiet)
    assert not (tmp_path / "copy").exists()


def test_nothing_is_written_over(request, with_files, tmp_path):
    """Neither a backup nor a restore goes where anything is."""
    place = Place(str(tmp_path / "store"))
    tools.backup(place, tmp_path / "copy", quiet)
    for refused in (
        lambda: tools.backup(place, tmp_path / "copy", quiet),
        lambda: tools.restore(tmp_path / "copy", place, quiet),
    ):
        with pytest.raises(ConfigError, match="is there already"):
            refused()
    url = request.getfixturevalue("postgres_server").make_database()
    tools.restore(tmp_path / "copy", Place(url, str(tmp_path / "blobs")), quiet)
    with pytest.raises(ConfigError, match="holds payloads of this store already"):
        tools.restore(tmp_path / "copy", Place(url, str(tmp_path / "blobs")), quiet)
    with pytest.raises(ConfigError, match="holds a store of schema version 3 already"):
        tools.restore(tmp_path / "copy", Place(url, str(tmp_path / "blobs-2")), quiet)


def test_a_copy_that_was_cut_off_is_not_taken_for_one(with_files, tmp_path):
    """Whatever ends a backup, its folder has another name until it is complete."""

    def die(done, _total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tools.backup(Place(str(tmp_path / "store")), tmp_path / "copy", die)
    assert not (tmp_path / "copy").exists()
    assert list(tools.verify(Place(str(tmp_path / "store")))) == []


@pytest.mark.parametrize(
    "act", [tools.info, lambda place: list(tools.verify(place)), tools.bring_up_to_date]
)
def test_where_no_store_is_none_is_made(tmp_path, act):
    """Looking at a wrong folder says so and leaves it as it is."""
    with pytest.raises(ConfigError, match="there is no store at"):
        act(Place(str(tmp_path / "nowhere")))
    assert list(tmp_path.iterdir()) == []


# --- the command line -----------------------------------------------------------------------


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_info_tells_what_is_there(with_files, tmp_path):
    """Owner, subspaces, versions and updates, as JSON and for people."""
    found = json.loads(call("info", "--store", tmp_path / "store", "--json").output)
    assert found["owner"]["pid"]
    assert found["store_id"] == with_files.store_id
    (subspace,) = found["subspaces"]
    assert (subspace["name"], subspace["current_version"]) == ("default", 3)
    assert subspace["num_updates"] == {"merged": 3}
    told = call("info", "--store", tmp_path / "store").output
    assert "version 3, 3 kept, 3 tasks; updates: 3 merged" in told


def test_verify_ends_with_the_exit_code_of_stores(with_files, tmp_path):
    """0 while nothing is broken, leftovers included; 3 and the subject once something is."""
    blobs = tmp_path / "store" / "blobs"
    done = call("verify", "--store", tmp_path / "store")
    assert (done.exit_code, done.output.strip()) == (0, "nothing is broken")
    (blobs / f"{'0' * 64}.safetensors").write_bytes(b"left over")
    done = call("verify", "--store", tmp_path / "store", "--json")
    assert (done.exit_code, [f["is_harmless"] for f in json.loads(done.output)]) == (0, [True])
    next(file for file in blobs.iterdir() if not file.name.startswith("0" * 9)).unlink()
    done = call("verify", "--store", tmp_path / "store", "--json")
    assert done.exit_code == StoreCorrupt.exit_code
    assert "no file" in done.output
    assert call("verify", "--store", tmp_path / "store").exit_code == StoreCorrupt.exit_code


def test_backup_and_restore_from_the_command_line(with_files, tmp_path):
    """Both say where, and how much."""
    done = call("backup", tmp_path / "copy", "--store", tmp_path / "store", "--json")
    assert json.loads(done.output)["place"] == str(tmp_path / "copy")
    done = call("restore", tmp_path / "copy", "--store", tmp_path / "back")
    assert done.output.startswith(f"restored to {tmp_path / 'back'}: ")
    assert call("verify", "--store", tmp_path / "back").exit_code == 0


def test_a_newer_store_is_not_read(with_files, tmp_path):
    """The command line refuses what it does not know, with the number."""
    catalog = with_files._catalog
    change = "UPDATE alembic_version SET version_num = '9999'"
    catalog.write("change", lambda rows: rows.exec_driver_sql(change))
    with pytest.raises(StoreTooNew) as caught:
        tools.info(Place(str(tmp_path / "store")))
    assert caught.value.found == 9999


def test_the_program_has_these_commands():
    """``share-dist store`` is found through its entry point."""
    (entry,) = entry_points(group="share_dist.commands", name="store")
    assert entry.load() is app

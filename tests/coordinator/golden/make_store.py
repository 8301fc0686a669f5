"""
Makes the committed store of the current schema: `python -m tests.coordinator.golden.make_store`.

It is made once for each schema version, and never again: that it stays readable is the point.
"""

import contextlib
import json
import shutil
import sqlite3
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coordinator.store import open_catalog
from coordinator.store.base import Catalog, TokenRecord
from coordinator.store.format import digest_of
from coordinator.store.tables import SCHEMA_VERSION
from share_dist.commands.console import jsonable
from share_dist.wire import codec
from share_dist.wire.records import Token, UpdateState
from tests.coordinator.store_support import add, commit, merged, refuse, removed, rolled_back
from tests.coordinator.support import FINGERPRINT, NOW, make_update

UPDATES = {"cats": "u1", "dogs": "u2", "eels": "u3", "bats": "u5", "fish": "u6", "hens": "u7"}

INLINE_BYTES = 1600
"""Some payloads inside the database, some in files."""


def make(folder: Path) -> None:
    """Make a store with everything in it."""
    catalog = open_catalog(str(folder), inline_bytes=INLINE_BYTES)
    store = catalog.create("default", by="root")
    catalog.create("empty", by="root")
    store.bind(FINGERPRINT, by="w")
    store.next_epoch("w", by="w")
    for task_id in ("cats", "dogs", "eels"):
        add(store, make_update(task_id, UPDATES[task_id]))
        commit(store, merged(store, [UPDATES[task_id]], num_factors=3, oversample=1))
    commit(store, rolled_back(store, 2))
    commit(store, removed(store, "cats"))
    store.compact([1, 3], ["u3"], by="root")
    add(store, make_update("bats", "u5"), state=UpdateState.QUARANTINED, reason="norm")
    add(store, make_update("fish", "u6"))
    add(store, make_update("hens", "u7"), state=UpdateState.QUARANTINED, reason="norm")
    store.change_state("u7", UpdateState.PENDING, "replayed", by="root", consents=True)
    store.change_state("u7", UpdateState.PARKED, "drift", by="coordinator")
    refuse(store, "u8")
    catalog.renew(NOW.timestamp())
    token = Token("t1", "alice", "worker", ("default",), NOW)
    catalog.add_token(TokenRecord(token, digest_of(b"secret")), by="root")
    (folder.parent / "expected.json").write_text(
        json.dumps(answers(catalog), indent=1, sort_keys=True) + "\n"
    )
    catalog.close()
    _make_small(folder / "rows.sqlite")


def _make_small(path: Path) -> None:
    """Take small pages, and forget on which machine this was."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as rows:
        rows.execute("UPDATE owner SET host = 'elsewhere', boot_id = ''")
        for statement in ("PRAGMA journal_mode = DELETE", "PRAGMA page_size = 1024", "VACUUM"):
            rows.execute(statement)


def answers(catalog: Catalog) -> dict[str, Any]:
    """Say all that a catalog says, as JSON can hold it: tensors as the digests of their bytes."""
    store = catalog.store("default")
    kept = [v for v in range(1, store.current_version + 1) if store.is_kept(v)]
    return {
        "store_id": catalog.store_id,
        "names": list(catalog.names()),
        "fingerprint": store.fingerprint().digest,
        "epochs": store.epochs(),
        "updates": [jsonable(asdict(record)) for record in store.updates()],
        "payloads": {
            record.update_id: digest_of(codec.update_to_bytes(store.load_update(record.update_id)))
            for record in store.updates()
            if record.let_go_at is None
        },
        "versions": [jsonable(asdict(version)) for version in store.versions(0, 100)],
        "subspaces": {str(v): digest_of(codec.subspace_to_bytes(store.subspace(v))) for v in kept},
        "entries": {str(v): jsonable(dict(store.tasks(v).entries)) for v in kept},
        "rotations": {str(v): store.rotation(v).decode() for v in kept},
        "drift": {str(v): store.drift(v) for v in range(store.current_version + 1)},
        "tasks": [jsonable(asdict(task)) for task in store.task_summaries()],
        "tokens": jsonable(catalog.tokens()),
        "refused": [jsonable(asdict(record)) for record in store.refused()],
        "seen_seconds": catalog.seen_seconds(),
        "actions": [[e.principal, e.action, e.subject] for e in catalog.audit(0, 100)],
    }


if __name__ == "__main__":
    target = Path(__file__).parent / f"store_v{SCHEMA_VERSION}"
    shutil.rmtree(target, ignore_errors=True)
    make(target / "store")

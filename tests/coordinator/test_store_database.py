"""The connections of a database: few, whatever asks at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import sqlalchemy as sa

from coordinator.store.database import Database, sqlite_url

THREADS = 64


def test_many_readers_share_few_connections(tmp_path):
    """Sixty-four threads that read at once all get their answer, over sixteen connections."""
    database, opened = Database(sqlite_url(tmp_path)), []
    sa.event.listen(database._engine, "connect", lambda *_: opened.append(1))
    met = threading.Barrier(THREADS)

    def ask(number):
        met.wait()
        return database.read(lambda rows: rows.execute(sa.select(sa.literal(number))).scalar_one())

    with ThreadPoolExecutor(THREADS) as threads:
        assert list(threads.map(ask, range(THREADS))) == list(range(THREADS))
    assert 0 < len(opened) <= 16
    database.close()

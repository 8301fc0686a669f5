"""
One database: SQLite in a file, or PostgreSQL by URL; its transactions and its words for failure.

SQLite runs in WAL mode with ``synchronous=FULL``, PostgreSQL with ``synchronous_commit=on``:
what is committed survives a loss of power.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from coordinator.store.blobs import full
from share_dist.errors import ConfigError, StoreCorrupt, StoreError, StoreUnavailable

ResultT = TypeVar("ResultT")

ROWS_FILE = "rows.sqlite"

_BEGIN = "share_dist_begin"
"""Execution option: how a transaction on SQLite begins."""

_SQLITE_PRAGMAS = (
    "page_size=16384",
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "busy_timeout=10000",
    # 512 KiB for each connection: the system caches the same file for all of them
    "cache_size=-512",
    # 32 MiB: a checkpoint costs two flushes, and small payloads pass through the log
    "wal_autocheckpoint=2048",
    "journal_size_limit=67108864",
)

_POOL = {"pool_size": 16, "max_overflow": 0, "pool_timeout": 60.0, "pool_use_lifo": True}
"""Work on rows takes milliseconds, so that who finds all connections busy waits for one: each has a cache
of its own. Nobody asks for a second one while it holds one, or all could wait for each other."""


class Database:
    """
    A database.

    Args:
        url: SQLite or PostgreSQL.
        lease_seconds: On PostgreSQL: how long a process that hangs in the middle of a
            transaction may hold its locks.
        must_exist: Refuse an SQLite file that is not there rather than make it.

    Raises:
        ConfigError: The URL is of another kind, or its driver is not installed.
    """

    def __init__(
        self, url: sa.URL, *, lease_seconds: float = 30.0, must_exist: bool = False
    ) -> None:
        self.name = _name_of(url)
        self.is_sqlite = url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            self._engine = _sqlite_engine(url, must_exist=must_exist)
        else:
            self._engine = _postgresql_engine(url, lease_seconds)
        self._writing = self._engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})

    def read(self, read: Callable[[sa.Connection], ResultT]) -> ResultT:
        """
        Run a function that only reads, in a transaction of its own.

        Raises:
            StoreUnavailable: The database cannot be asked now.
            StoreCorrupt: It is damaged.
        """
        with self.errors(), self._engine.connect() as rows:
            return read(rows)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sa.Connection]:
        """Read for a while what was committed when this began, whatever is written meanwhile."""
        options: dict[str, Any] = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        with self.errors(), self._engine.connect().execution_options(**options) as rows:
            yield rows

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """
        Write in a transaction that no other writer can enter; committed by the caller.

        Raises:
            StoreFull: There is no room; nothing was written.
            StoreUnavailable: The database cannot be asked now; nothing was written.
            StoreCorrupt: It is damaged.
        """
        with self.errors(), self._writing.connect() as rows:
            yield rows

    def now(self, rows: sa.Connection) -> float:
        """Seconds since 1970 by the clock that all who may own this database share."""
        if self.is_sqlite:
            return time.time()
        now = sa.select(sa.extract("epoch", sa.func.clock_timestamp()))
        return float(rows.execute(now).scalar_one())

    def upsert(self, table: sa.Table) -> Any:
        """Begin an ``INSERT`` that may say what to do when the row is there."""
        return (sqlite.insert if self.is_sqlite else postgresql.insert)(table)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Say what the database says in the project's own errors."""
        try:
            yield
        except (sa.exc.IntegrityError, sa.exc.ProgrammingError):
            raise  # a bug of ours: no disk is to blame
        except sa.exc.DataError as error:
            raise ConfigError(f"{self.name} cannot keep this value: {error.orig}") from error
        except sa.exc.DBAPIError as error:
            raise self._error(str(error.orig).strip(), error) from error
        except sa.exc.TimeoutError as error:
            raise StoreUnavailable(
                f"{self.name}: all connections were busy for a minute: try again", path=self.name
            ) from error

    def _error(self, said: str, error: sa.exc.DBAPIError) -> StoreError:
        state = getattr(error.orig, "sqlstate", None)
        if state == "53100" or "database or disk is full" in said:
            return full(self.name, 4096)
        if state in {"XX001", "XX002"} or "malformed" in said or "not a database" in said:
            return StoreCorrupt(
                f"{self.name} cannot be read: {said}: restore it from a backup of the store",
                path=self.name,
                expected="a database",
                found=said,
            )
        return StoreUnavailable(
            f"{self.name}: {said}: check the disk or the server", path=self.name
        )


def sqlite_url(folder: Path) -> sa.URL:
    """Return the URL of the database in a store's folder."""
    return sa.URL.create("sqlite", database=str(folder / ROWS_FILE))


def _name_of(url: sa.URL) -> str:
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return url.render_as_string(hide_password=True)


def _sqlite_engine(url: sa.URL, *, must_exist: bool) -> sa.Engine:
    path = Path(str(url.database))
    if must_exist and not path.is_file():
        raise ConfigError(
            f"there is no store at {path.parent}: name the folder of one", key="store"
        )
    engine = sa.create_engine(url, **_POOL)
    sa.event.listen(engine, "connect", _make_durable)
    sa.event.listen(engine, "begin", _begin)
    return engine


def _postgresql_engine(url: sa.URL, lease_seconds: float) -> sa.Engine:
    if url.get_backend_name() != "postgresql":
        raise ConfigError(
            f"store is {_name_of(url)}: a folder or a postgresql:// URL is needed", key="store"
        )
    settings = {
        "synchronous_commit": "on",
        "lock_timeout": "10s",
        # a process that hangs in a transaction must not hold its locks for ever
        "idle_in_transaction_session_timeout": f"{lease_seconds:.3f}s",
    }
    asked = url.query.get("options", "")
    options = " ".join([str(asked), *(f"-c {name}={value}" for name, value in settings.items())])
    return sa.create_engine(
        url.set(drivername="postgresql+psycopg"),
        connect_args={"options": options},
        pool_pre_ping=True,
        **_POOL,
    )


def _make_durable(connection: Any, _record: object) -> None:
    # transactions begin as `_begin` says, also before statements that make tables
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in _SQLITE_PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(rows: sa.Connection) -> None:
    rows.exec_driver_sql(rows.get_execution_options().get(_BEGIN, "BEGIN"))

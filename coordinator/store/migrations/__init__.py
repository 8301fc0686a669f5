"""
How a database of an older release becomes one of this release: one migration per schema version.

``migrate`` runs them when a catalog is opened, all in the transaction that takes the catalog, so
a crash in the middle leaves the old schema whole.
"""

from pathlib import Path

import sqlalchemy as sa

from coordinator.store.tables import SCHEMA_VERSION
from share_dist.errors import StoreTooNew

_VERSION_TABLE = "alembic_version"


def schema_version(rows: sa.Connection) -> int:
    """
    Return the schema version of a database: 0 for an empty one.

    The first release had a version of its own, in ``facts``, and none of the migrations' table.
    """
    tables = sa.inspect(rows).get_table_names()
    if _VERSION_TABLE in tables:
        query = f"SELECT version_num FROM {_VERSION_TABLE}"  # noqa: S608 - a constant
    elif "facts" in tables:
        query = "SELECT value FROM facts WHERE name = 'schema_version'"
    else:
        return 0
    return int(rows.exec_driver_sql(query).scalar() or 0)


def require_known(name: str, found: int) -> None:
    """
    Raise if a schema is newer than this release.

    Args:
        name: Of the database, for people.
        found: Its schema version.

    Raises:
        StoreTooNew: It is.
    """
    if found > SCHEMA_VERSION:
        raise StoreTooNew(
            f"{name} has schema version {found}, this release knows {SCHEMA_VERSION}: install the "
            "release that wrote it, or a newer one",
            path=name,
            found=found,
            supported=SCHEMA_VERSION,
        )


def migrate(rows: sa.Connection, found: int, folder: Path | None) -> None:
    """
    Bring a database from a schema version to this release's.

    Args:
        rows: A transaction; committed by the caller.
        found: Its schema version.
        folder: The store's, for payloads that a migration must read; None for PostgreSQL.
    """
    if found == SCHEMA_VERSION:
        return
    # only here: it takes longer to import than a store takes to open
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    config.attributes |= {"rows": rows, "folder": folder}
    if found:
        command.stamp(config, f"{found:04}")
    command.upgrade(config, "head")

"""A PostgreSQL server for one session of tests, without network, as a user without rights."""

import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

WITHOUT = "SHARE_DIST_NO_POSTGRES"

_MISSING = (
    "PostgreSQL's server is not installed, and a store in it must be tested: run "
    f"`.ci/install-system-packages postgresql`, or set {WITHOUT}=1 where that cannot be"
)


def programs() -> Path | None:
    """Return the folder of the server's programs; Debian keeps them out of PATH."""
    found = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    candidates = [*folders, *([Path(found).resolve().parent] if found else [])]
    return next((folder for folder in reversed(candidates) if (folder / "postgres").exists()), None)


class Server:
    """
    A running server.

    Args:
        folder: Where its data and its socket are.
    """

    def __init__(self, folder: Path) -> None:
        self._numbers = itertools.count()
        self._url = f"postgresql+psycopg://postgres@/postgres?host={folder}"
        self._admin = sa.create_engine(self._url, isolation_level="AUTOCOMMIT")

    def make_database(self) -> str:
        """Make what is to a store an empty database, a schema; return its URL."""
        name = f"test_{next(self._numbers)}"
        with self._admin.connect() as rows:
            rows.exec_driver_sql(f"CREATE SCHEMA {name}")
        return f"{self._url}&options=-csearch_path%3D{name}"

    def close(self) -> None:
        self._admin.dispose()


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """
    Run a server for a while.

    Where none can be installed, tests of it are skipped only if the environment says so.
    """
    folder_of_programs = programs()
    if folder_of_programs is None:
        if os.environ.get(WITHOUT) == "1":
            pytest.skip(f"{WITHOUT}=1: nothing of a store in PostgreSQL is tested")
        pytest.fail(_MISSING)
    folder = Path(tempfile.mkdtemp(prefix="share-dist-postgres-"))
    try:
        yield from _running(folder_of_programs, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _running(folder_of_programs: Path, folder: Path) -> Iterator[Server]:
    # the server refuses to run as root
    as_user = []
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]

    def run(program: str, *arguments: str) -> None:
        command = [*as_user, str(folder_of_programs / program), *arguments]
        # not piped: the server, which lives on, would keep the pipe open
        with (folder.parent / f"{folder.name}.log").open("a+b") as log:
            done = subprocess.run(command, check=False, stdout=log, stderr=log, cwd="/")
            log.seek(0)
            assert done.returncode == 0, log.read().decode()

    data = str(folder / "data")
    # a language's rules, so that a test notices what is not sorted by code points
    locale = ("--encoding=UTF8", "--locale=C", "--locale-provider=icu", "--icu-locale=en")
    run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", *locale)
    settings = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    run("pg_ctl", "-D", data, "-w", "-o", settings, "start")
    server = Server(folder)
    try:
        yield server
    finally:
        server.close()
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")
        (folder.parent / f"{folder.name}.log").unlink()

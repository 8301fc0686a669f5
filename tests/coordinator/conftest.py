"""What the tests of a coordinator share."""

import pytest

from tests.coordinator import postgres, s3
from tests.coordinator.store_support import KINDS, OBJECT_STORE, Opener


@pytest.fixture(scope="session")
def postgres_server():
    """A PostgreSQL server for the whole session."""
    with postgres.running() as server:
        yield server


@pytest.fixture(scope="session")
def object_store():
    """A server of S3 for the whole session."""
    with s3.running() as server:
        yield server


@pytest.fixture(params=[*KINDS, pytest.param(OBJECT_STORE, marks=pytest.mark.system)])
def opener(request, tmp_path):
    """One catalog of every kind."""
    url = ""
    if request.param.startswith("postgres"):
        url = request.getfixturevalue("postgres_server").make_database()
    elif request.param == OBJECT_STORE:
        url = request.getfixturevalue("object_store").make_bucket()
    opener = Opener(request.param, tmp_path, url)
    yield opener
    opener.catalog.close()

"""What the tests of a coordinator share."""

import pytest

from tests.coordinator import postgres
from tests.coordinator.store_support import KINDS, Opener


@pytest.fixture(scope="session")
def postgres_server():
    """A PostgreSQL server for the whole session."""
    with postgres.running() as server:
        yield server


@pytest.fixture(params=KINDS)
def opener(request, tmp_path):
    """One catalog of every kind."""
    url = ""
    if request.param.startswith("postgres"):
        url = request.getfixturevalue("postgres_server").make_database()
    opener = Opener(request.param, tmp_path, url)
    yield opener
    opener.catalog.close()

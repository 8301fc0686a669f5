"""The wire's specification says what the code does: its tables, its calls, its roles, its bounds."""

import re

import pytest

from coordinator.admin_service import ADMIN_ROLE_NEEDED
from coordinator.service import ROLE_NEEDED
from share_dist.pb import admin_pb2, coordinator_pb2
from tests.house.readme_tables import block
from tests.interop.readme_tables import README, TABLES

TEXT = README.read_text()
SERVICES = {
    "Coordinator": coordinator_pb2.DESCRIPTOR.services_by_name["Coordinator"],
    "Admin": admin_pb2.DESCRIPTOR.services_by_name["Admin"],
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_what_the_code_says(name):
    """Errors with their facts, bounds and channel options are written from the code."""
    found = block(name).search(TEXT)
    assert found, f"the specification has no table {name!r}"
    assert found[1] == TABLES[name](), "run `python -m tests.interop.readme_tables` and commit"


@pytest.mark.parametrize("service", SERVICES)
def test_every_call_has_its_row(service):
    """Each RPC of a service is in its table, and nothing that is no RPC."""
    methods = {method.name for method in SERVICES[service].methods}
    found = set(
        re.findall(r"^\| `([A-Z]\w+)` \| .* \| (?:reader|worker|admin) \|", TEXT, re.MULTILINE)
    )
    assert methods <= found
    assert found <= {method.name for each in SERVICES.values() for method in each.methods}


def test_every_call_needs_the_role_that_is_said():
    """The role beside each call is the one that the coordinator asks for."""
    said = re.findall(r"^\| `([A-Z]\w+)` \| .* \| (reader|worker|admin) \|", TEXT, re.MULTILINE)
    needed = {**ROLE_NEEDED, **ADMIN_ROLE_NEEDED}
    assert {name: role for name, role in said if name in needed} == needed


def test_every_value_of_a_state_is_said():
    """A client that goes by the table of states meets none that is not in it."""
    states = set(coordinator_pb2.Receipt.State.keys()) - {"STATE_UNSPECIFIED"}
    assert states == set(re.findall(r"^\| `([A-Z_]+)` \| [a-z].* \| .* \|$", TEXT, re.MULTILINE))

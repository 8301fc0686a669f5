"""`share-dist tokens`: made once, said once, ended at once; the first without a coordinator."""

import json
import stat

import pytest

from share_dist.errors import StoreLocked
from tests.commands.conftest import share_dist
from tests.coordinator.support import make_config, running
from tests.pki import Authority


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def boss(tmp_path, store):
    """File with the token of an administrator, made before any coordinator ran."""
    path = tmp_path / "boss.token"
    ended = share_dist("tokens", "create", "boss", "--role", "admin", "--every-subspace", "--store", store, "--output", path)  # fmt: skip
    assert ended.code == 0, ended.text
    return path


@pytest.fixture
def asked(boss, store):
    """A coordinator that asks for tokens, and the options of its administrator."""
    with running(make_config(store, require_token=True)) as coordinator:
        yield coordinator.address, ("-c", coordinator.address, "--token-file", boss)


def test_the_first_token_is_made_in_the_store(asked, boss):
    """It is in a file that only its owner can read, and lets its owner in."""
    address, options = asked
    assert stat.S_IMODE(boss.stat().st_mode) == 0o600
    ended = share_dist("status", *options, "--json")
    assert (ended.json["principal"], ended.json["role"]) == ("boss", "admin")
    refused = share_dist("status", "-c", address, "--json")
    assert (refused.code, refused.json["error"]) == (6, "NotAuthenticated")


def test_a_store_that_a_coordinator_owns_is_left_alone(asked, store):
    """Then the coordinator is who makes tokens."""
    ended = share_dist("tokens", "create", "north", "--store", store, "--json")
    assert ended.json["error"] == StoreLocked.__name__


def test_a_token_is_said_once(asked):
    """Its secret is in what create prints, and in nothing that list prints."""
    _, options = asked
    made = share_dist("tokens", "create", "north", *options, "--json").json
    assert made["token"]["principal"] == "north"
    assert made["token"]["subspaces"] == ["default"]
    listed = share_dist("tokens", "list", *options, "--json")
    assert made["token"] in listed.json
    assert made["secret"] not in listed.stdout
    plain = share_dist("tokens", "create", "south", *options)
    assert plain.stdout.strip().startswith("sd_")


def test_a_secret_may_come_from_the_environment(asked, monkeypatch):
    """SHARE_DIST_TOKEN holds it; a file that is named wins."""
    address, options = asked
    secret = share_dist("tokens", "create", "north", *options, "--json").json["secret"]
    monkeypatch.setenv("SHARE_DIST_TOKEN", secret)
    assert share_dist("status", "-c", address, "--json").json["principal"] == "north"
    assert share_dist("status", *options, "--json").json["principal"] == "boss"


def test_a_revoked_token_is_refused_at_once(asked, tmp_path):
    """By the very next command, with exit code 6."""
    address, options = asked
    file = tmp_path / "north.token"
    made = share_dist("tokens", "create", "north", *options, "--output", file, "--json").json
    assert "secret" not in made
    assert share_dist("status", "-c", address, "--token-file", file).code == 0
    assert share_dist("tokens", "revoke", made["token"]["token_id"], *options).code == 0
    ended = share_dist("status", "-c", address, "--token-file", file, "--json")
    assert (ended.code, ended.json["error"]) == (6, "NotAuthenticated")
    assert "was revoked" in ended.json["message"]
    assert share_dist("tokens", "revoke", "nothing", *options, "--json").json["error"] == "UnknownToken"  # fmt: skip
    lines = share_dist("audit", *options, "--json").json
    assert {"token_created", "token_revoked", "access_refused"} <= {
        line["action"] for line in lines
    }


def test_a_file_that_is_there_is_not_written_over(asked, boss):
    """And no token is made whose secret nobody would then have."""
    _, options = asked
    before = share_dist("tokens", "list", *options, "--json").json
    for path in (boss, boss.parent / "nowhere" / "north.token"):
        ended = share_dist("tokens", "create", "north", *options, "--output", path)
        assert ended.code == 2
    assert share_dist("tokens", "list", *options, "--json").json == before


@pytest.mark.parametrize(
    "arguments",
    [("a b",), ("north", "--role", "king"), ("local",), ("north", "--days", "1e9")],
)
def test_what_cannot_be_meant_is_refused(asked, arguments):
    """With exit code 2, and nothing is made."""
    _, options = asked
    before = share_dist("tokens", "list", *options, "--json").json
    assert share_dist("tokens", "create", *arguments, *options).code == 2
    assert share_dist("tokens", "list", *options, "--json").json == before


def test_tokens_of_a_store_are_listed_and_ended_without_a_coordinator(boss, store):
    """As long as none runs."""
    (token,) = share_dist("tokens", "list", "--store", store, "--json").json
    assert (token["principal"], token["subspaces"], token["revoked_at"]) == ("boss", ["*"], None)
    ended = share_dist("tokens", "revoke", token["token_id"], "--store", store, "--json")
    assert json.loads(ended.stdout)["revoked_at"] is not None
    assert boss.read_text().strip() not in ended.stdout


def test_commands_reach_a_coordinator_with_mutual_tls(tmp_path, store):
    """By flags or by the environment; without them they say what is missing."""
    authority = Authority(tmp_path / "authority")
    shown = authority.client("north", "reader")
    keys = authority.server() | {"tls_client_ca": authority.certificate}
    flags = ("--ca", shown.ca, "--certificate", shown.certificate, "--key", shown.key)
    with running(make_config(store, **keys)) as coordinator:
        status = share_dist("status", "-c", coordinator.address, *flags, "--json").json
        assert (status["principal"], status["role"]) == ("north", "reader")
        plain = share_dist("status", "-c", coordinator.address, "--json")
        assert (plain.code, plain.json["error"]) == (4, "UntrustedCoordinator")
        ended = share_dist("tokens", "list", "-c", coordinator.address, *flags, "--json")
        assert (ended.code, ended.json["error"]) == (6, "NotPermitted")
    half = share_dist("status", "--certificate", shown.certificate, "--json")
    assert (half.code, half.json["key"]) == (2, "key")

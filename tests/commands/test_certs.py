"""`share-dist certs`: an authority and its certificates, made once and never by accident again."""

import stat
from datetime import datetime, timedelta, timezone

import pytest
from cryptography import x509
from cryptography.x509 import verification

from share_dist import certificates
from share_dist.errors import ConfigError
from share_dist.identity import Identity, identity_of
from tests.commands.conftest import share_dist


@pytest.fixture
def folder(tmp_path):
    """A folder with an authority."""
    folder = tmp_path / "certs"
    assert share_dist("certs", "init", "--folder", folder).code == 0
    return folder


def test_an_authority_is_made_once(folder):
    """A second init says what is there, and changes nothing; --force is the word for it."""
    before = (folder / "ca.crt").read_bytes()
    again = share_dist("certs", "init", "--folder", folder)
    assert (again.code, (folder / "ca.crt").read_bytes()) == (2, before)
    assert "there already" in again.text
    assert share_dist("certs", "init", "--folder", folder, "--force").code == 0
    assert (folder / "ca.crt").read_bytes() != before


def test_keys_are_their_owners_alone(folder):
    """600 for keys, whatever the umask; nothing unfinished stays behind."""
    share_dist("certs", "client", "north", "--folder", folder)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {"ca.crt": 0o644, "ca.key": 0o600, "north.crt": 0o644, "north.key": 0o600}


def test_a_client_is_named_with_its_role(folder):
    """As a coordinator will read it, with the days that it counts."""
    ended = share_dist("certs", "client", "north@example.org", "--role", "reader", "--days", "7", "--folder", folder, "--json")  # fmt: skip
    assert ended.code == 0
    assert (ended.json["name"], ended.json["role"], ended.json["kind"]) == (
        "north@example.org", "reader", "client",
    )  # fmt: skip
    assert 6.9 < ended.json["days_left"] <= 7
    assert ended.json["warnings"] == ["ends soon: renew it"]


def test_a_coordinator_is_named_by_its_hosts(folder):
    """Names and addresses of both kinds; the first is what it is called."""
    hosts = ["coordinator.example.org", "10.0.0.7", "::1"]
    ended = share_dist("certs", "server", *hosts, "--folder", folder, "--json")
    assert (ended.json["kind"], ended.json["hosts"]) == ("coordinator", hosts)


@pytest.mark.parametrize(
    "arguments",
    [
        ("client", "north", "--role", "king"),
        ("client", "../north"),
        ("client", ""),
        ("client", "a b"),
        ("client", "ca"),
        ("client", "local"),
        ("client", "x" * 101),
        ("server", "host:50551"),
        ("server", "https://host"),
        ("server", "a b"),
        ("server", "host", "--name", "ca"),
        ("server", "host", "--name", "../server"),
    ],
)
def test_what_cannot_be_meant_is_refused(folder, arguments):
    """With exit code 2, and no file made."""
    before = sorted(folder.rglob("*"))
    assert share_dist("certs", *arguments, "--folder", folder).code == 2
    assert sorted(folder.rglob("*")) == before


def test_without_an_authority_nothing_is_signed(tmp_path):
    """The error says how to make one."""
    ended = share_dist("certs", "client", "north", "--folder", tmp_path / "nowhere")
    assert ended.code == 2
    assert "certs init" in ended.text


def test_renewing_keeps_key_names_and_role(folder):
    """A new number and new days; whoever held the key goes on with it."""
    first = share_dist(
        "certs", "client", "north", "--days", "30", "--folder", folder, "--json"
    ).json
    key = (folder / "north.key").read_bytes()
    ended = share_dist("certs", "renew", folder / "north.crt", "--folder", folder, "--json")
    (renewed,) = ended.json
    assert (folder / "north.key").read_bytes() == key
    certificates.require_pair((folder / "north.crt").read_bytes(), key)
    assert {name: renewed[name] for name in ("name", "role", "issuer")} == {
        name: first[name] for name in ("name", "role", "issuer")
    }
    assert renewed["serial"] != first["serial"]
    assert 29.9 < renewed["days_left"] <= 30


def test_an_authority_is_not_renewed(folder):
    """All certificates name it: the error says what to do instead."""
    ended = share_dist("certs", "renew", folder / "ca.crt", "--folder", folder)
    assert ended.code == 2
    assert "trust both" in ended.text


def test_renewing_with_a_foreign_key_changes_nothing(folder):
    """Of several files none is replaced when one cannot be."""
    for name in ("north", "south"):
        share_dist("certs", "client", name, "--folder", folder)
    (folder / "south.key").write_bytes((folder / "north.key").read_bytes())
    before = (folder / "north.crt").read_bytes()
    files = (folder / "north.crt", folder / "south.crt")
    ended = share_dist("certs", "renew", *files, "--folder", folder)
    assert (ended.code, (folder / "north.crt").read_bytes()) == (2, before)
    assert "not the certificate's own" in ended.text


def test_show_warns_of_what_someone_should_see_to(folder):
    """Expired, ending soon, readable by others: each with what to do."""
    now = datetime.now(timezone.utc)
    authority = certificates.Issued(
        (folder / "ca.crt").read_bytes(), (folder / "ca.key").read_bytes()
    )
    late = certificates.make_client(
        Identity("late", "worker"), authority, timedelta(days=1), now - timedelta(days=9)
    )
    (folder / "late.crt").write_bytes(late.certificate)
    (folder / "late.key").write_bytes(late.key)
    (folder / "late.key").chmod(0o644)
    ended = share_dist("certs", "show", "--folder", folder, "--json")
    found = {each["name"]: each["warnings"] for each in ended.json}
    assert found["share-dist"] == []
    assert found["late"][0] == "has expired: renew it"
    assert "chmod 600" in found["late"][1]
    assert "has expired" in share_dist("certs", "show", "--folder", folder).text


@pytest.mark.parametrize("content", [b"", b"nothing", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_what_is_no_certificate_is_named(tmp_path, content):
    """With its path; an empty folder is told, too."""
    path = tmp_path / "x.crt"
    path.write_bytes(content)
    ended = share_dist("certs", "show", path)
    assert (ended.code, str(path) in ended.stderr.replace("\n", "")) == (2, True)
    assert share_dist("certs", "show", "--folder", tmp_path / "empty").code == 2


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    """A file stands where the folder should be."""
    (tmp_path / "file").touch()
    ended = share_dist("certs", "init", "--folder", tmp_path / "file" / "certs")
    assert ended.code == 2
    assert "cannot be written" in ended.text


def test_a_strict_verifier_takes_each_for_its_own_purpose(folder):
    """The chain is what the rules of the web ask for; a client's is none for a coordinator."""
    share_dist("certs", "client", "north", "--folder", folder)
    share_dist("certs", "server", "localhost", "--folder", folder)
    read = {
        path.stem: x509.load_pem_x509_certificate(path.read_bytes())
        for path in folder.glob("*.crt")
    }
    policy = verification.PolicyBuilder().store(verification.Store([read["ca"]]))
    found = policy.build_client_verifier().verify(read["north"], [])
    assert found.subjects == [x509.UniformResourceIdentifier("urn:share-dist:worker:north")]
    as_server = policy.build_server_verifier(x509.DNSName("localhost"))
    assert as_server.verify(read["server"], [])
    with pytest.raises(verification.VerificationError):
        as_server.verify(read["north"], [])


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["urn:share-dist:king:north"],
        ["urn:share-dist:worker:"],
        ["urn:share-dist:worker:a b"],
        ["urn:share-dist:worker:local"],
        ["urn:share-dist:worker"],
        ["URN:share-dist:worker:north"],
        ["urn:share-dist:worker:north", "urn:share-dist:admin:north"],
    ],
)
def test_uris_that_name_nobody(uris):
    """Not quite ours, or more than one: nobody, rather than a guess."""
    assert identity_of(uris) is None


def test_a_key_that_needs_a_password_is_told(folder):
    """Nobody is there to type one when a coordinator starts."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    with pytest.raises(ConfigError, match="password"):
        certificates.require_pair((folder / "ca.crt").read_bytes(), key)

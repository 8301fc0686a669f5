"""Handshakes that fail leave a line in the audit log, though no code of ours is called for them."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from coordinator.handshakes import FailedHandshake, Tap, read_entry, split
from share_dist.client import AdminClient, Credentials, ShareClient
from share_dist.errors import NotAuthenticated, ShareError
from tests.coordinator.support import wait_until
from tests.pki import Authority

BEGINNING = b"I1122 09:24:50.406441   25893 "

FAILED = (
    BEGINNING + b"handshaker.cc:155] CallNextHandshakerLocked: error=UNKNOWN: Ssl handshake failed "
    b"(TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL routines:OPENSSL_internal:"
    b"CERTIFICATE_VERIFY_FAILED: certificate has expired: OK\n"
    b"=== Source Location Trace: ===\nsrc/core/util/status_helper.cc:68\n"
    b" shutdown=false index=2, args={endpoint=0x1, args={grpc.internal.endpoint_local_address="
    b"ipv4:127.0.0.1:38369, grpc.internal.endpoint_peer_address=ipv4:10.0.0.7:59086, "
    b"grpc.resource_quota=0x2}, read_buffer.Length()=0, exit_early=0}\n"
)
WENT_ON = FAILED.replace(FAILED[FAILED.index(b"UNKNOWN") : FAILED.index(b" shutdown")], b"OK")
OF_SOMEBODY_ELSE = BEGINNING + b"server.cc:12] something else\nin two lines\n"


def test_a_failure_is_read_with_its_peer_and_its_reason():
    """Of all that gRPC logs about a handshake, one entry has both."""
    expected = FailedHandshake(
        "ipv4:10.0.0.7:59086", "the client's certificate was refused: certificate has expired"
    )
    assert read_entry(FAILED) == expected
    assert read_entry(WENT_ON) is None
    assert read_entry(OF_SOMEBODY_ELSE) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (b"PEER_DID_NOT_RETURN_A_CERTIFICATE: Invalid certificate verification context", "no client certificate was shown"),
        (b"HTTP_REQUEST: Invalid certificate verification context", "the client does not speak TLS"),
        (b"SOMETHING_NEW: more", "something new"),
    ],
)  # fmt: skip
def test_reasons_are_in_words(name, words):
    """BoringSSL's names are for those who read its source."""
    entry = FAILED.replace(b"CERTIFICATE_VERIFY_FAILED: certificate has expired", name)
    found = read_entry(entry)
    assert found is not None
    assert found.reason == words


def test_who_only_knocks_was_not_refused():
    """A balancer that connects and leaves every few seconds must not fill the audit log."""
    said = FAILED[FAILED.index(b"UNKNOWN") : FAILED.index(b" shutdown")]
    for why in (b"Socket closed", b"recvmsg:Connection reset by peer"):
        left = b"UNAVAILABLE: Handshake read failed (" + why + b")"
        assert read_entry(FAILED.replace(said, left)) is None


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_entries_are_whole_however_they_are_read(size):
    """A pipe gives what it has; an entry of several lines is one entry all the same."""
    written = FAILED + OF_SOMEBODY_ELSE + WENT_ON + FAILED
    held, entries = b"", []
    for start in range(0, len(written), size):
        found, held = split(held + written[start : start + size])
        entries += found
    assert [read_entry(entry) for entry in entries].count(read_entry(FAILED)) == 2
    assert b"".join(entries) + held == written


def test_what_has_no_end_is_not_held_for_ever():
    """A line of any length is passed on in pieces: memory has a bound."""
    entries, held = split(b"x" * 2**20)
    assert (len(b"".join(entries)), held) == (2**20, b"")


def test_what_others_say_still_reaches_standard_error():
    """Only entries about handshakes are kept back."""
    reader, writer = os.pipe()
    rest, standard_error = os.pipe()
    told: list[FailedHandshake] = []
    Tap(reader, standard_error).tell(told.append)
    os.write(writer, FAILED + OF_SOMEBODY_ELSE + b"a line of no known form\n" + WENT_ON)
    wait_until(lambda: told, 10)
    os.close(writer)
    passed = b""
    while b"no known form\n" not in passed:
        passed += os.read(rest, 1000)
    assert passed == OF_SOMEBODY_ELSE + b"a line of no known form\n"
    os.close(rest)
    os.close(standard_error)


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    """A coordinator with mutual TLS in a process of its own; its address and authority."""
    folder = tmp_path_factory.mktemp("serving")
    authority = Authority(folder / "authority")
    keys = authority.server()
    flags = [
        *("--store", folder / "store", "--listen", "127.0.0.1:0", "--json"),
        *("--tls-certificate", keys["tls_certificate"], "--tls-key", keys["tls_key"]),
        *("--tls-client-ca", authority.certificate, "--log-format", "json"),
    ]
    with (
        (folder / "stderr").open("wb") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "coordinator", "serve", *map(str, flags)],
            stdout=subprocess.PIPE,
            stderr=errors,
            # a word of the user's own must not silence what is listened for
            env=os.environ | {"GRPC_VERBOSITY": "NONE", "OMP_NUM_THREADS": "1"},
        ) as process,
    ):
        try:
            assert process.stdout
            address = json.loads(process.stdout.readline())["address"]
            yield address, authority, folder / "stderr"
        finally:
            process.terminate()
            assert process.wait(60) == 0


def refusals(address: str, authority: Authority) -> list[str]:
    boss = authority.client("boss", "admin")
    with AdminClient(address, credentials=boss, timeout_seconds=10) as admin:
        return [entry.detail for entry in admin.audit() if entry.action == "handshake_refused"]


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ("none", "no client certificate was shown"),
        ("foreign", "unable to get local issuer certificate"),
        ("expired", "certificate has expired"),
        ("of a coordinator", "unsupported certificate purpose"),
        ("plaintext", "the client does not speak TLS"),
    ],
)
def test_a_failed_handshake_leaves_a_line(serving, tmp_path, which, words):
    """With where it came from and why, in the audit log and in the log."""
    address, authority, errors = serving
    keys = authority.server(name="stolen")
    shown = {
        "none": Credentials(authority.certificate),
        "foreign": replace(Authority(tmp_path / "f").client(), ca=authority.certificate),
        "expired": authority.client("late", began_days_ago=9, days=1),
        "of a coordinator": Credentials(
            authority.certificate, keys["tls_certificate"], keys["tls_key"]
        ),
        "plaintext": Credentials(),
    }[which]
    kind = ShareError if which == "plaintext" else NotAuthenticated
    with (
        ShareClient(address, credentials=shown, timeout_seconds=10) as client,
        pytest.raises(kind),
    ):
        client.status()
    wait_until(lambda: any(words in detail for detail in refusals(address, authority)), 20)
    line = next(detail for detail in refusals(address, authority) if words in detail)
    assert line.startswith("from ipv4:127.0.0.1:")
    log = [json.loads(text) for text in errors.read_text().splitlines()]
    assert any(words in entry.get("reason", "") for entry in log), "its log is JSON, and has it"


def test_a_connection_that_only_knocks_does_no_harm(serving):
    """Port scans and health checks of a load balancer: the coordinator goes on."""
    address, authority, _ = serving
    host, _, port = address.rpartition(":")
    for greeting in (b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n", os.urandom(1000)):
        with socket.create_connection((host, int(port))) as knocking:
            knocking.sendall(greeting)
    with ShareClient(address, credentials=authority.client(), timeout_seconds=10) as client:
        assert client.status().principal == "north"

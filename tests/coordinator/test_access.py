"""Who may do what: credentials that count, credentials that do not, roles, owners, audit lines."""

import contextlib
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from coordinator.access import LOCAL, Access, Principal
from coordinator.administration_tokens import new_token
from coordinator.clock import Clock
from coordinator.refusals import (
    MAX_ALIKE,
    MAX_IN_ALL,
    MAX_PER_HOST,
    WINDOW_SECONDS,
    Refusals,
    Window,
)
from coordinator.store.memory import MemoryCatalog
from share_dist.client import AdminClient, Credentials, ShareClient
from share_dist.client.retry import RetryPolicy
from share_dist.errors import (
    ConfigError,
    LeaseExpired,
    NotAuthenticated,
    NotPermitted,
    ShareError,
    StoreUnavailable,
    UnknownToken,
    UntrustedCoordinator,
    UpdateConflict,
)
from share_dist.pb import coordinator_pb2 as pb
from share_dist.pb.coordinator_pb2_grpc import CoordinatorStub
from share_dist.telemetry import get_logger
from share_dist.wire.records import AuditEntry, TokenRequest
from tests.coordinator.support import (
    FINGERPRINT,
    NOW,
    make_config,
    make_update,
    running,
    wait_until,
)
from tests.pki import Authority

QUICK = RetryPolicy(0.01, 0.05)


class Clocks:
    """Clocks that a test sets."""

    def __init__(self) -> None:
        self.seconds = NOW.timestamp()

    def read(self) -> float:
        return self.seconds

    @property
    def clock(self) -> Clock:
        return Clock(self.read, self.read)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def catalog():
    return MemoryCatalog()


@contextlib.contextmanager
def serving(tmp_path: Path, catalog: MemoryCatalog, **values):
    with running(make_config(tmp_path / "store", **values), catalog=catalog) as app:
        yield app


@pytest.fixture
def mutual(tmp_path, catalog, authority):
    """A coordinator that asks everybody for a certificate."""
    keys = authority.server() | {"tls_client_ca": authority.certificate}
    with serving(tmp_path, catalog, **keys) as app:
        yield app


@pytest.fixture
def with_tokens(tmp_path, catalog):
    """A coordinator that asks everybody for a token."""
    with serving(tmp_path, catalog, require_token=True) as app:
        yield app


def client_of(app, credentials: Credentials, worker_id: str = "w", **options) -> ShareClient:
    return ShareClient(
        app.address,
        worker_id=worker_id,
        fingerprint=FINGERPRINT,
        credentials=credentials,
        timeout_seconds=10,
        retry=QUICK,
        **options,
    )


def admin_of(app, credentials: Credentials) -> AdminClient:
    return AdminClient(app.address, credentials=credentials, timeout_seconds=10, retry=QUICK)


def token_in(
    catalog, principal="north", role="worker", subspaces=("default",), valid_seconds=0, now=NOW
):
    """Put a token into a catalog; return what a client shows."""
    made = new_token(TokenRequest(principal, role, tuple(subspaces), valid_seconds), now)
    catalog.add_token(made.record, by="tests")
    return Credentials(token=made.secret)


def refused(catalog, action: str = "access_refused") -> list[AuditEntry]:
    return [entry for entry in catalog.audit(0, 1000) if entry.action == action]


def one_refusal(catalog, *words: str) -> AuditEntry:
    """Wait for a line of the audit log with all of these words in its detail."""

    def found() -> list[AuditEntry]:
        return [entry for entry in refused(catalog) if all(word in entry.detail for word in words)]

    wait_until(found, 10)
    return found()[0]


# --- certificates -------------------------------------------------------------------------------


def test_a_certificate_says_who_calls_and_what_they_may_do(mutual, authority):
    """The name in it owns what is pushed, and the status tells both to the caller."""
    with client_of(mutual, authority.client("north")) as client:
        client.register()
        client.push(make_update("cats"), wait="merged")
        status = client.status()
        assert (status.principal, status.role) == ("north", "worker")
        assert [task.owner for task in client.tasks()] == ["north"]
        assert client.pull() is not None


def test_streams_carry_the_credentials_too(mutual, authority):
    """A watch and a pull of a task are let in as any other call is."""
    with (
        client_of(mutual, authority.client("north")) as north,
        client_of(mutual, authority.client("eve", "reader")) as reader,
    ):
        north.register()
        north.push(make_update("cats"), wait="merged")
        with reader.watch(0) as watch:
            assert next(watch).task_ids == ("cats",)
        assert reader.pull_task("cats").summary.owner == "north"


def test_a_reader_cannot_push_and_cannot_register(mutual, authority, catalog):
    """Both are refused with the role held and the role needed, and leave a line."""
    with client_of(mutual, authority.client("eve", "reader")) as reader:
        with pytest.raises(NotPermitted, match="eve is a reader") as caught:
            reader.register()
        assert (caught.value.held, caught.value.needed) == ("reader", "worker")
        with pytest.raises(NotPermitted):
            reader.push(make_update("cats"))
        assert reader.status().num_pending == 0
    entry = one_refusal(catalog, "NotPermitted", "eve is a reader")
    assert (entry.principal, entry.subject) == ("eve", "Register")


@pytest.mark.parametrize(
    ("rpc", "request_"),
    [
        ("GetStatus", pb.GetStatusRequest(subspace="s" * 2**20)),
        ("Heartbeat", pb.HeartbeatRequest(worker_id="w" * 2**20)),
    ],
)
def test_a_name_without_end_is_refused_before_it_is_repeated(with_tokens, rpc, request_):
    """What a peer makes up is kept neither in the log of refusals nor in what bounds it."""
    north = token_in(with_tokens.coordinator.catalog, role="worker")
    with_tokens.coordinator.access.remember(with_tokens.coordinator.catalog.tokens()[-1])
    shown = [("authorization", f"Bearer {north.token}")]
    with grpc.insecure_channel(with_tokens.address) as channel:
        stub = CoordinatorStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            getattr(stub, rpc)(request_, timeout=60, metadata=shown)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not refused(with_tokens.coordinator.catalog)


def test_a_worker_cannot_do_what_an_administrator_does(mutual, authority, catalog):
    """Rolling back, compacting, listing the audit log and making tokens are refused, each with a line."""
    with admin_of(mutual, authority.client("north", "worker")) as admin:
        for what in (
            lambda: admin.rollback(0),
            lambda: admin.compact(1),
            admin.updates,
            admin.audit,
            lambda: admin.create_token(TokenRequest("me", "admin", ("default",))),
            admin.tokens,
            lambda: admin.revoke_token("some"),
        ):
            with pytest.raises(NotPermitted):
                what()
    for rpc in ("Rollback", "ListAudit", "CreateToken"):
        wait_until(lambda rpc=rpc: any(each.subject == rpc for each in refused(catalog)), 10)
    assert {each.principal for each in refused(catalog)} == {"north"}


def test_another_ones_task_can_be_neither_overwritten_nor_removed(mutual, authority, catalog):
    """Not by another worker, not with the same update again; an administrator may remove it."""
    with (
        client_of(mutual, authority.client("north"), "n1") as north,
        client_of(mutual, authority.client("south"), "s1") as south,
    ):
        north.register()
        south.register()
        update = make_update("cats")
        north.push(update, wait="merged")
        with pytest.raises(NotPermitted, match="cats") as caught:
            south.push(make_update("cats", "another"))
        assert (caught.value.principal, caught.value.owner) == ("south", "north")
        # the very same bytes, replayed by somebody else
        with pytest.raises(NotPermitted):
            south.push(update)
        with admin_of(mutual, authority.client("south")) as admin, pytest.raises(NotPermitted):
            admin.remove_task("cats")
        assert [task.task_id for task in north.tasks()] == ["cats"]
        with admin_of(mutual, authority.client("boss", "admin")) as admin:
            admin.remove_task("cats")
    assert one_refusal(catalog, "NotPermitted", "cats").principal == "south"


def test_another_ones_worker_cannot_be_taken_over(mutual, authority, catalog):
    """A worker_id belongs to who registered it first; nobody else gets, keeps or uses its lease."""
    with (
        client_of(mutual, authority.client("north"), "n1") as north,
        client_of(mutual, authority.client("south"), "n1") as south,
    ):
        lease = north.register()
        with pytest.raises(NotPermitted, match="n1"):
            south.register()
        south.lease = lease
        with pytest.raises(NotPermitted, match="n1"):
            south.heartbeat()
        with pytest.raises(NotPermitted, match="n1"):
            south.pull()
        with pytest.raises(NotPermitted, match="n1"):
            south.push(make_update("dogs", lease_epoch=lease.lease_epoch))
        assert north.heartbeat().lease_epoch == lease.lease_epoch
        assert north.status().num_pending == 0
    assert one_refusal(catalog, "n1").principal == "south"


def test_a_captured_epoch_is_worthless_after_a_take_over(mutual, authority, catalog):
    """The push that says it is refused, and the log says who tried."""
    with client_of(mutual, authority.client("north")) as north:
        captured = north.register().lease_epoch
        north.register()
        with pytest.raises(LeaseExpired):
            north.push(make_update("cats", lease_epoch=captured))
        assert north.status().num_pending == 0
    assert one_refusal(catalog, "LeaseExpired", "taken over").principal == "north"


def test_an_update_id_with_other_content_is_a_conflict_in_the_log(mutual, authority, catalog):
    """Whoever reuses the id of a known update is told, and so is the log."""
    with client_of(mutual, authority.client("north")) as north:
        north.register()
        north.push(make_update("cats", "one", seed=1))
        with pytest.raises(UpdateConflict):
            north.push(make_update("cats", "one", seed=2))
    assert one_refusal(catalog, "UpdateConflict").principal == "north"


def test_a_certificate_that_names_nobody_is_not_let_in(mutual, authority, catalog):
    """One for a coordinator comes from the right authority, and says no role."""
    keys = authority.server(name="stolen")
    shown = Credentials(authority.certificate, keys["tls_certificate"], keys["tls_key"])
    with client_of(mutual, shown) as client, pytest.raises(NotAuthenticated):
        client.status()


def test_a_certificate_that_ends_ends_what_it_began(tmp_path, catalog, authority):
    """A connection that stands is refused from the moment on at which the certificate is over."""
    clocks = Clocks()
    keys = authority.server() | {"tls_client_ca": authority.certificate}
    config = make_config(tmp_path / "store", **keys)
    clocks.seconds = authority.now.timestamp()
    with (
        running(config, catalog=catalog, clock=clocks.clock) as app,
        client_of(app, authority.client("north", days=1)) as client,
    ):
        client.status()
        clocks.seconds += timedelta(days=2).total_seconds()
        with pytest.raises(NotAuthenticated, match="expired"):
            client.status()
    assert one_refusal(catalog, "expired").principal == "unknown"


# --- handshakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["none", "foreign", "self-made", "expired"])
def test_a_wrong_certificate_is_not_retried_and_says_why(mutual, authority, tmp_path, which):
    """By gRPC it is only that nobody answers; the client looks, and raises at once with the reason."""
    foreign = Authority(tmp_path / "foreign")
    shown = {
        "none": Credentials(authority.certificate),
        "foreign": replace(foreign.client(), ca=authority.certificate),
        "self-made": replace(
            Authority(tmp_path / "own", "tests").client(), ca=authority.certificate
        ),
        "expired": authority.client("late", began_days_ago=10, days=1),
    }[which]
    words = {"none": "asks for a client certificate", "expired": "it expired at"}
    with (
        ShareClient(mutual.address, credentials=shown, timeout_seconds=60) as client,
        pytest.raises(NotAuthenticated, match=words.get(which, "another authority")),
    ):
        client.status()


@pytest.mark.parametrize("which", ["foreign", "expired", "other name", "plaintext client"])
def test_a_coordinator_that_proves_nothing_is_not_trusted(tmp_path, catalog, authority, which):
    """Nothing is sent to it, nothing is retried, and the error says what to do."""
    keys = {
        "foreign": Authority(tmp_path / "foreign").server(),
        "expired": authority.server(name="expired", began_days_ago=30, days=1),
        "other name": authority.server("example.org", name="other"),
        "plaintext client": authority.server(),
    }[which]
    shown = Credentials(None if which == "plaintext client" else authority.certificate)
    words = {
        "foreign": "Give --ca",
        "expired": "expired",
        "other name": "mismatch",
        "plaintext client": "speaks TLS",
    }
    with (
        serving(tmp_path, catalog, **keys, require_token=True) as app,
        ShareClient(app.address, credentials=shown, timeout_seconds=60) as client,
        pytest.raises(UntrustedCoordinator, match=words[which]),
    ):
        client.status()


def test_a_client_with_tls_does_not_talk_to_a_coordinator_without(tmp_path, catalog, authority):
    """It names what is missing at the other end."""
    with (
        serving(tmp_path, catalog) as app,
        ShareClient(app.address, credentials=authority.client(), timeout_seconds=60) as client,
        pytest.raises(UntrustedCoordinator, match="does not speak TLS"),
    ):
        client.status()


def test_a_renewed_certificate_counts_without_a_restart(tmp_path, catalog):
    """New connections see the new files; a half-written pair changes nothing."""
    authority = Authority(tmp_path / "authority")
    keys = authority.server(days=30)
    trusting = Credentials(authority.certificate, token=token_in(catalog).token)
    with serving(tmp_path, catalog, **keys) as app:

        def serial() -> int:
            return _serial_of(app.address)

        first = serial()
        whole = keys["tls_certificate"].read_bytes()
        keys["tls_certificate"].write_bytes(whole[: len(whole) // 2])
        assert serial() == first
        other = authority.server(name="other")
        keys["tls_certificate"].write_bytes(other["tls_certificate"].read_bytes())
        assert serial() == first, "a certificate without its key"
        keys["tls_key"].write_bytes(other["tls_key"].read_bytes())
        assert serial() != first
        keys["tls_certificate"].unlink()
        with client_of(app, trusting) as client:
            assert client.status().principal == "north"


def _serial_of(address: str) -> str:
    import ssl

    from share_dist.certificates import describe

    host, _, port = address.rpartition(":")
    return describe(ssl.get_server_certificate((host, int(port)), timeout=10).encode()).serial


def test_a_new_authority_for_clients_counts_without_a_restart(tmp_path, catalog):
    """Whom nobody knew is let in once the authority is in the file."""
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new", "new")
    trusted = tmp_path / "clients.crt"
    trusted.write_bytes(old.certificate.read_bytes())
    shown = replace(new.client("south"), ca=old.certificate)
    with serving(tmp_path, catalog, **old.server(), tls_client_ca=trusted) as app:
        with client_of(app, shown) as south, pytest.raises(NotAuthenticated):
            south.status()
        trusted.write_bytes(old.certificate.read_bytes() + new.certificate.read_bytes())
        with client_of(app, shown) as south, client_of(app, old.client("north")) as north:
            assert south.status().principal == "south"
            assert north.status().principal == "north"


# --- tokens -------------------------------------------------------------------------------------


def test_a_token_says_who_calls(with_tokens):
    """One that an administrator makes counts at once, for whom and where it was made."""
    catalog = with_tokens.coordinator.catalog
    with admin_of(with_tokens, _boss(with_tokens)) as admin:
        token, secret = admin.create_token(TokenRequest("north", "worker", ("default",)))
        assert token in admin.tokens()
    assert secret not in repr(catalog.audit(0, 1000)) + repr(catalog.tokens())
    with client_of(with_tokens, Credentials(token=secret)) as north:
        north.register()
        north.push(make_update("cats"), wait="merged")
        assert (north.status().principal, north.status().role) == ("north", "worker")


def _boss(app, subspaces=("*",), role="admin", name="boss") -> Credentials:
    """What an administrator shows whose token was there before the coordinator started."""
    made = new_token(TokenRequest(name, role, tuple(subspaces)), NOW)
    app.coordinator.catalog.add_token(made.record, by="tests")
    app.coordinator.access.remember(made.record.token)
    return Credentials(token=made.secret)


def test_a_revoked_token_ends_at_once(with_tokens):
    """The next call is refused with a line, and a watch that it began ends with its next event."""
    catalog = with_tokens.coordinator.catalog
    with (
        admin_of(with_tokens, _boss(with_tokens)) as admin,
        client_of(with_tokens, _boss(with_tokens, ["default"], "worker", "south")) as south,
    ):
        token, secret = admin.create_token(TokenRequest("north", "worker", ("default",)))
        with client_of(with_tokens, Credentials(token=secret)) as north, north.watch(0) as watch:
            assert north.status().principal == "north"
            assert admin.revoke_token(token.token_id).revoked_at is not None
            assert admin.revoke_token(token.token_id) == admin.revoke_token(token.token_id)
            with pytest.raises(NotAuthenticated, match="was revoked at"):
                north.status()
            south.register()
            south.push(make_update("cats"), wait="merged")
            with pytest.raises(NotAuthenticated, match="was revoked at"):
                next(watch)
    assert one_refusal(catalog, "revoked", token.token_id).principal == "unknown"


def test_an_expired_token_is_refused(tmp_path, catalog):
    """To the second at which it ends, with a line."""
    clocks = Clocks()
    shown = token_in(catalog, valid_seconds=60)
    config = make_config(tmp_path / "store", require_token=True)
    with (
        running(config, catalog=catalog, clock=clocks.clock) as app,
        client_of(app, shown) as client,
    ):
        clocks.seconds += 59
        client.status()
        clocks.seconds += 1
        with pytest.raises(NotAuthenticated, match="expired at"):
            client.status()
    assert one_refusal(catalog, "expired").subject == "GetStatus"


def test_an_expired_token_stays_expired_where_the_clock_is_set_back(tmp_path, catalog):
    """Also after a restart; and none is made that would have ended by the time that was seen."""
    clocks = Clocks()
    shown = token_in(catalog, valid_seconds=60)
    config = make_config(tmp_path / "store", require_token=True, owner_lease_seconds=0.05)
    with running(config, catalog=catalog, clock=clocks.clock):
        clocks.seconds += 100
        wait_until(lambda: catalog.seen_seconds() == clocks.seconds)
    clocks.seconds -= 90
    with (
        running(config, catalog=catalog, clock=clocks.clock) as app,
        client_of(app, shown) as client,
    ):
        with pytest.raises(NotAuthenticated, match="expired at"):
            client.status()
        with admin_of(app, _boss(app)) as boss:
            with pytest.raises(ConfigError, match="clock was set back"):
                boss.create_token(TokenRequest("w", "worker", ("*",), 60))
            assert boss.create_token(TokenRequest("w", "worker", ("*",), 100))[0].expires_at


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ("", "none was shown"),
        ("sd_000000000000_nothing", "not known here"),
        ("nothing", "not known here"),
        ("the id of another", "secret of token"),
    ],
)
def test_a_token_that_is_none_is_refused(with_tokens, shown, words):
    """No token, an unknown one, and a known one with a wrong secret: each with what was presented."""
    if shown == "the id of another":
        real = _boss(with_tokens).token
        shown = real[:-1] + ("A" if real[-1] != "A" else "B")
    with (
        client_of(with_tokens, Credentials(token=shown)) as client,
        pytest.raises(NotAuthenticated, match=words) as caught,
    ):
        client.status()
    assert shown not in str(caught.value) or not shown
    assert shown not in one_refusal(with_tokens.coordinator.catalog, words).detail or not shown


@pytest.mark.parametrize(
    "metadata",
    [
        [("authorization", "Basic abc")],
        [("authorization", "Bearer a"), ("authorization", "Bearer b")],
        [("authorization", "Bearer")],
        [("authorization", "")],
        [("authorization", "Bearer " + "sd_" * 2000)],
    ],
)
def test_an_authorization_that_is_no_single_token_is_refused(with_tokens, metadata):
    """Whatever stands there: UNAUTHENTICATED, and nothing else."""
    from share_dist.pb import coordinator_pb2, coordinator_pb2_grpc

    with grpc.insecure_channel(with_tokens.address) as channel:
        stub = coordinator_pb2_grpc.CoordinatorStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetStatus(coordinator_pb2.GetStatusRequest(), metadata=metadata, timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_who_is_not_known_hears_nothing_of_what_there_is(with_tokens):
    """A wrong name of a subspace tells a stranger, and who has no role there, no right one."""
    with_scope = _boss(with_tokens, ["cats"], "worker", "north")
    for shown, kind in ((Credentials(), NotAuthenticated), (with_scope, NotPermitted)):
        with AdminClient(
            with_tokens.address, "nothing", credentials=shown, timeout_seconds=10
        ) as client:
            with pytest.raises(kind) as caught:
                client.status()
            assert "default" not in str(caught.value)


def test_an_administrator_of_one_subspace_is_none_of_another(with_tokens):
    """It makes, sees and ends tokens of its own subspace only."""
    with (
        admin_of(with_tokens, _boss(with_tokens)) as boss,
        admin_of(with_tokens, _boss(with_tokens, ["cats"], name="felix")) as felix,
    ):
        own, _ = felix.create_token(TokenRequest("north", "worker", ("cats",)))
        for subspaces in (("default",), ("cats", "default"), ("*",)):
            with pytest.raises(NotPermitted):
                felix.create_token(TokenRequest("north", "worker", subspaces))
        other, _ = boss.create_token(TokenRequest("south", "worker", ("default",)))
        assert {token.principal for token in felix.tokens()} == {"felix", "north"}
        with pytest.raises(UnknownToken):
            felix.revoke_token(other.token_id)
        assert felix.revoke_token(own.token_id).revoked_at is not None
        with pytest.raises(NotPermitted):
            felix.audit()


def test_tokens_survive_a_restart(tmp_path, catalog):
    """So do their ends: what was revoked stays revoked."""
    shown, gone = token_in(catalog), token_in(catalog, "south")
    catalog.revoke_token(catalog.tokens()[1].token_id, at=NOW, by="tests")
    with serving(tmp_path, catalog, require_token=True) as app:
        with client_of(app, shown) as client:
            assert client.status().principal == "north"
        with client_of(app, gone) as client, pytest.raises(NotAuthenticated, match="revoked"):
            client.status()


def test_a_token_counts_beside_a_certificate(tmp_path, catalog, authority):
    """Where both are shown, the token says who calls; a wrong one is not forgiven for the certificate."""
    shown = token_in(catalog, "boss", "admin", ["*"])
    keys = authority.server() | {"tls_client_ca": authority.certificate}
    with serving(tmp_path, catalog, **keys) as app:
        with client_of(app, authority.client("north", token=shown.token)) as client:
            assert (client.status().principal, client.status().role) == ("boss", "admin")
        with (
            client_of(app, authority.client("north", token="sd_wrong_one")) as client,
            pytest.raises(NotAuthenticated),
        ):
            client.status()


def test_tls_without_client_certificates_asks_for_tokens(tmp_path, catalog, authority):
    """Encryption alone lets nobody in."""
    with serving(tmp_path, catalog, **authority.server()) as app:
        trusting = Credentials(authority.certificate)
        with client_of(app, trusting) as client, pytest.raises(NotAuthenticated, match="token"):
            client.status()
        with client_of(app, replace(trusting, token=_boss(app).token)) as client:
            assert client.status().principal == "boss"


@pytest.mark.parametrize(
    ("principal", "role", "subspaces", "valid_seconds"),
    [
        ("", "worker", ("default",), 0),
        ("local", "worker", ("default",), 0),
        ("a b", "worker", ("default",), 0),
        ("../etc", "worker", ("default",), 0),
        ("x" * 101, "worker", ("default",), 0),
        ("north", "king", ("default",), 0),
        ("north", "worker", (), 0),
        ("north", "worker", ("",), 0),
        ("north", "worker", ("x",) * 101, 0),
        ("north", "worker", ("default",), -1),
        ("north", "worker", ("default",), 2**62),
    ],
)
def test_a_token_that_could_not_be_meant_is_not_made(principal, role, subspaces, valid_seconds):
    """Names, roles, subspaces and times that no token has are refused by name."""
    with pytest.raises(ConfigError):
        new_token(TokenRequest(principal, role, subspaces, valid_seconds), NOW)


def test_secrets_are_never_the_same_twice():
    """256 bits of them, after an id that says nothing."""
    secrets = {new_token(TokenRequest("n", "worker", ("a",)), NOW).secret for _ in range(100)}
    assert len(secrets) == 100
    assert all(len(secret.split("_", 2)[2]) >= 43 for secret in secrets)


# --- roles --------------------------------------------------------------------------------------


def access_of(tmp_path, **values) -> Access:
    config = make_config(tmp_path / "store", require_token=True, **values)
    refusals = Refusals(lambda _: None, get_logger("coordinator"), Clock())
    refusals.close()
    return Access(config, MemoryCatalog(), Clock(), refusals)


def test_the_table_of_a_subspace_narrows_what_credentials_say(tmp_path):
    """Who is not in it is nobody there; who is gets the lesser of both roles."""
    access = access_of(
        tmp_path, subspaces={"cats": {"roles": {"north": "admin", "south": "reader"}}}
    )
    north, south, east = (
        Principal(name, "certificate", most="worker") for name in ("north", "south", "east")
    )
    assert [access.role(who, "cats") for who in (north, south, east)] == ["worker", "reader", None]
    assert [access.role(who, "dogs") for who in (north, south, east)] == ["worker"] * 3
    assert access.role(LOCAL, "cats") == "admin"
    with pytest.raises(NotPermitted, match="east is nobody in subspace 'cats'"):
        access.require(east, "cats", "reader")


def test_a_table_at_the_top_holds_for_every_subspace(tmp_path):
    """Also for those that are made later."""
    access = access_of(tmp_path, roles={"north": "reader"})
    assert access.role(Principal("north", "token", most="admin"), "made-later") == "reader"
    assert access.role(Principal("south", "token", most="admin"), "made-later") is None


def test_a_token_of_one_subspace_opens_no_other(tmp_path):
    """Nor one whose name begins alike."""
    who = Principal("north", "token", most="admin", subspaces=("cats",))
    access = access_of(tmp_path)
    assert access.role(who, "cats") == "admin"
    assert access.role(who, "cats2") is None
    assert access.role(who, "*") is None


def test_where_nobody_has_to_say_who_they_are_everybody_is_local(tmp_path, catalog):
    """Then a task belongs to the worker that pushed it first."""
    with serving(tmp_path, catalog) as app:
        with client_of(app, Credentials(token="sd_some_token"), "w1") as client:
            client.register()
            client.push(make_update("cats"), wait="merged")
            assert (client.status().principal, client.status().role) == ("local", "admin")
            assert client.tasks()[0].owner == "w1"
        with client_of(app, Credentials(), "w2") as other:
            other.register()
            with pytest.raises(NotPermitted):
                other.push(make_update("cats", "again"))


# --- the log of refusals ------------------------------------------------------------------------


def test_a_flood_of_refusals_is_summed_up():
    """A few lines of each reason and host, then their number; another host is not drowned."""
    window = Window()
    taken = [window.take("10.0.0.7", "unknown token", 5.0) for _ in range(5000)]
    assert sum(taken) == MAX_ALIKE
    assert window.take("10.0.0.7", "expired", 6.0)
    assert window.take("10.0.0.8", "unknown token", 6.0)
    assert window.remaining_seconds(5.0 + WINDOW_SECONDS / 2) == WINDOW_SECONDS / 2
    assert window.close() == {"10.0.0.7": 5000 - MAX_ALIKE}
    assert window.remaining_seconds(100.0) is None


def test_many_hosts_and_many_reasons_are_bounded_too():
    """However many invent how much: lines and memory have an end."""
    window = Window()
    of_one = sum(window.take("10.0.0.7", f"reason {n}", 0.0) for n in range(1000))
    of_all = sum(window.take(f"10.1.{n // 256}.{n % 256}", "why", 0.0) for n in range(5000))
    assert of_one == MAX_PER_HOST
    assert of_one + of_all == MAX_IN_ALL
    omitted = window.close()
    assert len(omitted) <= 1001
    assert sum(omitted.values()) == 6000 - MAX_IN_ALL


def test_what_was_left_out_is_written_at_the_end():
    """When the window ends or the coordinator stops, one line says how many there were."""
    written: list[AuditEntry] = []
    refusals = Refusals(written.extend, get_logger("coordinator"), Clock())
    for _ in range(50):
        refusals.add("access_refused", peer="ipv4:10.0.0.7:4000", detail="unknown\ntoken")
    refusals.close()
    assert len(written) == MAX_ALIKE + 1
    assert written[0].detail == "from ipv4:10.0.0.7:4000: unknown token"
    assert f"from 10.0.0.7: {50 - MAX_ALIKE} more" in written[-1].detail


def test_a_log_that_cannot_be_written_stops_nobody():
    """A full disk loses lines about refusals, not the thread that writes them."""
    written: list[AuditEntry] = []

    def note(entries) -> None:
        if not written:
            written.extend(entries)
            raise StoreUnavailable("the disk is full")
        written.extend(entries)

    refusals = Refusals(note, get_logger("coordinator"), Clock())
    refusals.add("access_refused", peer="a:1", detail="one")
    wait_until(lambda: written)
    refusals.add("access_refused", peer="a:1", detail="two")
    refusals.close()
    assert [entry.detail for entry in written] == ["from a:1: one", "from a:1: two"]


# --- configuration ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"tls_certificate": "a.crt"}, "tls_key"),
        ({"tls_key": "a.key"}, "tls_certificate"),
        ({"tls_client_ca": "ca.crt"}, "tls_certificate"),
    ],
)
def test_half_of_tls_is_refused(tmp_path, given, missing):
    """What is missing is named before anything listens."""
    with pytest.raises(ConfigError, match=missing):
        make_config(tmp_path, **given)


def test_beyond_this_machine_only_with_tls_or_in_so_many_words(tmp_path):
    """Plaintext, metrics and page stay on loopback unless --insecure says otherwise."""
    keys = {"tls_certificate": "a.crt", "tls_key": "a.key"}
    with pytest.raises(ConfigError, match="share-dist certs"):
        make_config(tmp_path, listen="0.0.0.0:0")
    with pytest.raises(ConfigError, match="share-dist certs"):
        make_config(tmp_path, listen="0.0.0.0:0", require_token=True)
    assert make_config(tmp_path, listen="0.0.0.0:0", insecure=True).is_authenticated is False
    assert make_config(tmp_path, listen="0.0.0.0:0", **keys).needs_token
    assert not make_config(tmp_path, **keys, tls_client_ca="ca.crt").needs_token
    assert not make_config(tmp_path, **keys, insecure=True).needs_token
    for key in ("metrics_listen", "web_listen"):
        with pytest.raises(ConfigError, match=key):
            make_config(tmp_path, **{key: "0.0.0.0:0"}, **keys)


@pytest.mark.parametrize("broken", ["missing", "empty", "swapped", "of another"])
def test_files_of_tls_that_cannot_be_used_end_the_start(tmp_path, catalog, authority, broken):
    """With the path in the error, before a port is open."""
    keys = authority.server(name="broken")
    if broken == "missing":
        keys["tls_key"] = tmp_path / "nothing.key"
    elif broken == "empty":
        keys["tls_certificate"] = tmp_path / "empty.crt"
        keys["tls_certificate"].touch()
    elif broken == "swapped":
        keys = dict(zip(keys, reversed(keys.values()), strict=True))
    else:
        keys["tls_key"] = authority.server(name="another")["tls_key"]
    with pytest.raises(ConfigError, match=r"\.(key|crt)"), serving(tmp_path, catalog, **keys):
        pass


def test_a_key_for_everybody_and_a_late_certificate_are_warned_about(tmp_path, catalog, authority):
    """The coordinator starts, and says what someone should see to."""
    keys = authority.server(name="warned", days=3)
    keys["tls_key"].chmod(0o644)
    with capture_logs() as log, serving(tmp_path, catalog, **keys):
        pass
    reasons = [entry["reason"] for entry in log if entry["event"] == "tls_warning"]
    assert str(keys["tls_key"]) in reasons[0]
    assert "ends in 3.0 days" in reasons[1]


def test_every_error_that_is_raised_here_has_its_own_status():
    """A refusal is never taken for something that may pass by itself."""
    kinds: list[type[ShareError]] = [NotAuthenticated, NotPermitted]
    assert [kind.status for kind in kinds] == ["UNAUTHENTICATED", "PERMISSION_DENIED"]

"""What a client asks of a coordinator, over a real connection."""

import socket
import threading
from dataclasses import replace

import grpc
import pytest

from share_dist.client import ShareClient, new_update_id
from share_dist.core.values import LayerShape
from share_dist.errors import (
    ChecksumMismatch,
    ConfigError,
    CoordinatorUnreachable,
    DeadlineExceeded,
    FingerprintMismatch,
    LeaseExpired,
    MalformedMessage,
    MessageTooLarge,
    NotFinite,
    Overloaded,
    ShapeMismatch,
    StreamTruncated,
    UnknownTask,
    VersionCompacted,
    VersionInFuture,
)
from share_dist.wire.chunks import cut
from share_dist.wire.codec import update_to_bytes
from share_dist.wire.records import UpdateState
from tests.client.conftest import FINGERPRINT, QUICK, Q, subspace_of, task_of, update_of
from tests.equality import first_difference
from tests.fakes import Fail, Hang, LoseReply


def test_a_lease_is_got_kept_and_lost(client, coordinator):
    """Registering gives a lease, a heartbeat keeps it, another registration takes it over."""
    lease = client.register(fingerprint=FINGERPRINT)
    assert (lease.worker_id, lease.lease_epoch, lease.fingerprint) == ("w0", 1, FINGERPRINT)

    assert client.heartbeat() == lease
    coordinator.lease_epoch = 2
    with pytest.raises(LeaseExpired) as caught:
        client.heartbeat()
    assert caught.value.current_epoch == 2


def test_a_heartbeat_needs_a_lease(client):
    """Without a registration there is nothing to keep."""
    with pytest.raises(ConfigError, match="register first"):
        client.heartbeat()


def test_another_model_may_not_register(client):
    """The coordinator's refusal arrives with the field that differs."""
    other = replace(FINGERPRINT, base_model="cd" * 32)

    with pytest.raises(FingerprintMismatch) as caught:
        client.register(fingerprint=other)
    assert caught.value.field == "base_model"


def test_a_worker_needs_a_name(server):
    """An empty or endless worker id is refused before anything is sent."""
    with ShareClient(server.address) as client, pytest.raises(MalformedMessage, match="worker_id"):
        client.register()


def test_an_update_arrives_whole(client, coordinator):
    """What was pushed is what the coordinator holds, under the client's lease."""
    client.register(fingerprint=FINGERPRINT)
    receipt = client.push(update_of())

    assert receipt.state is UpdateState.PENDING
    expected = replace(update_of(), lease_epoch=1)
    assert first_difference(coordinator.updates["u1"], expected) is None


def test_a_push_can_wait_for_its_merge(client):
    """What the caller waits for travels with the update."""
    assert client.push(update_of(), wait="merged").state is UpdateState.MERGED


def test_an_update_keeps_the_lease_it_names(client, coordinator):
    """The client's lease is only a default."""
    client.register()
    client.push(replace(update_of(), lease_epoch=9))

    assert coordinator.updates["u1"].lease_epoch == 9


def test_a_push_whose_reply_is_lost_is_sent_again_and_counts_once(client, coordinator):
    """The same bytes are sent under the same id, so that twice is once."""
    coordinator.fail_next("PushUpdate", LoseReply(), LoseReply())
    receipt = client.push(update_of())

    assert receipt.state is UpdateState.PENDING
    assert coordinator.payloads == [update_to_bytes(update_of())] * 3
    assert list(coordinator.updates) == ["u1"]


def large_update():
    update = update_of()
    vector = subspace_of(1).layers[Q].a.vectors[:1]
    return replace(update, head=replace(update.head, tensors={"weight": vector.expand(2**20, 2)}))


def test_a_large_update_comes_in_chunks(client, coordinator):
    """An update of several chunks arrives whole."""
    client.push(large_update())

    assert len(coordinator.payloads[0]) > 8 * 2**20


def test_a_large_update_is_hashed_while_it_is_sent(client, coordinator):
    """Where the lease says that its coordinator takes that; a small one has its digest before it."""
    client.register()
    client.push(large_update())
    client.push(update_of())

    assert coordinator.digests == [b"", cut(update_to_bytes(update_of())).header.sha256]
    assert coordinator.payloads[0] == update_to_bytes(large_update())


@pytest.mark.parametrize("is_registered", [False, True])
def test_who_does_not_take_a_late_digest_has_it_first(client, coordinator, is_registered):
    """An older coordinator says nothing of it; nor is anything known without a lease."""
    coordinator.takes_late_digest = False
    if is_registered:
        client.register()
    client.push(large_update())

    assert coordinator.digests == [cut(update_to_bytes(large_update())).header.sha256]


def test_a_large_push_whose_reply_is_lost_is_the_same_again(client, coordinator):
    """It is announced as before, so that what came of it counts."""
    client.register()
    coordinator.fail_next("PushUpdate", LoseReply())
    client.push(large_update())

    assert coordinator.digests == [b"", b""]
    assert coordinator.payloads == [update_to_bytes(large_update())] * 2


def test_a_refused_push_is_not_repeated(client, coordinator):
    """An answer that will not change is raised at once."""
    coordinator.fail_next("PushUpdate", Fail(NotFinite("NaN", layer=Q)))

    with pytest.raises(NotFinite) as caught:
        client.push(update_of())
    assert caught.value.layer == Q
    assert coordinator.calls["PushUpdate"] == 1


def test_ids_of_updates_are_never_the_same():
    """Each update has an id of its own."""
    assert len({new_update_id() for _ in range(1000)}) == 1000


def test_the_newest_subspace_is_pulled(client):
    """Without a version, the newest comes, to the bit."""
    assert first_difference(client.pull(), subspace_of(2)) is None


def test_an_older_version_is_pulled(client):
    """A version that is named is the one that comes."""
    assert first_difference(client.pull(version=1), subspace_of(1)) is None


def test_nothing_is_pulled_twice(client):
    """A caller who holds the newest version gets None."""
    assert client.pull(held_version=2) is None
    assert client.pull(held_version=1).version == 2


def test_versions_that_are_not_there_are_told_apart(client, coordinator):
    """Too old and not yet are two errors."""
    del coordinator.subspaces[1]

    with pytest.raises(VersionCompacted):
        client.pull(version=1)
    with pytest.raises(VersionInFuture):
        client.pull(version=3)


@pytest.mark.parametrize("version", [-1, 2**63, 2**64])
def test_what_can_be_no_version_is_not_asked_for(client, coordinator, version):
    """A number that the wire cannot say is refused in words, before a call."""
    for ask in (
        lambda: client.pull(version=version),
        lambda: client.pull(held_version=version),
        lambda: client.watch(after_version=version),
    ):
        with pytest.raises(MalformedMessage, match=f"version is {version}"):
            ask()
    assert not coordinator.calls


def test_a_subspace_of_another_model_is_not_taken(server):
    """A worker refuses bases that are not of its model, before they are sent."""
    other = replace(FINGERPRINT, layers={Q: LayerShape(6, 5)})

    with (
        ShareClient(server.address, fingerprint=other) as client,
        pytest.raises(FingerprintMismatch, match=r"\(6, 4\), this worker has .* \(6, 5\)"),
    ):
        client.pull()


def test_bases_must_be_those_of_the_fingerprint(client, coordinator):
    """Bases of other layers than the header names are refused."""
    coordinator.fingerprint = replace(FINGERPRINT, layers={})

    with pytest.raises(MalformedMessage, match="not those of the layers"):
        client.pull()


def test_a_coordinator_without_a_model_serves_the_empty_subspace(client, coordinator):
    """Before the first worker there is no fingerprint, and nothing to say."""
    coordinator.fingerprint = None
    coordinator.subspaces = {0: replace(subspace_of(1), layers={}, version=0)}
    pulled = client.pull()

    assert (pulled.version, dict(pulled.layers), pulled.metric) == (0, {}, "delta")


def damaged(chunks):
    data = bytearray(chunks[-1].data)
    data[-1] ^= 1
    chunks[-1].data = bytes(data)
    return chunks


def renumbered(chunks):
    chunks[0].index = 1
    return chunks


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda chunks: chunks[:-1], StreamTruncated),
        (lambda chunks: [*chunks, chunks[-1]], StreamTruncated),
        (renumbered, MalformedMessage),
        (damaged, ChecksumMismatch),
    ],
    ids=["cut short", "too long", "out of order", "one bit"],
)
def test_a_pull_that_is_not_what_was_announced_is_refused(client, coordinator, change, error):
    """Length, order and digest of what comes are checked."""
    coordinator.change_chunks = change

    with pytest.raises(error):
        client.pull()


def test_a_subspace_over_the_limit_is_refused_by_its_header(server):
    """A client takes no more bytes than it was made to take."""
    with (
        ShareClient(server.address, max_payload_bytes=100) as client,
        pytest.raises(MessageTooLarge, match="at most 100"),
    ):
        client.pull()


def test_a_task_comes_with_the_subspace_of_its_version(client):
    """Coefficients, head and bases belong together."""
    task = client.pull_task("movies")

    assert first_difference(task.subspace, subspace_of(2)) is None
    assert first_difference((task.summary, task.coefficients, task.head), task_of(2)) is None


def test_a_subspace_that_is_held_is_not_pulled_for_a_task(client, coordinator):
    """Many tasks of one version need its bases once."""
    held = client.pull()

    assert client.pull_task("movies", held=held).subspace is held
    assert client.pull_task("movies", held=subspace_of(1)).subspace.version == 2
    assert coordinator.calls["PullSubspace"] == 2


def test_a_merge_between_two_pulls_is_waited_out(client, coordinator):
    """When the version is compacted meanwhile, the task is pulled again."""
    coordinator.fail_next("PullSubspace", Fail(VersionCompacted("merged meanwhile", version=2)))

    assert client.pull_task("movies").subspace.version == 2
    assert coordinator.calls["PullTask"] == 2


def test_a_version_that_stays_compacted_is_raised(client, coordinator):
    """There is an end to pulling again."""
    del coordinator.subspaces[2]
    coordinator.subspaces[3] = subspace_of(3)

    with pytest.raises(VersionCompacted):
        client.pull_task("movies")
    assert coordinator.calls["PullTask"] == 3


def test_coefficients_must_fit_their_bases(client, coordinator):
    """A task whose rows are not the principal factors of its version is refused."""
    summary, coefficients, head = task_of(2)
    layer = coefficients.layers[Q]
    short = replace(layer, a=layer.a[:1])
    coordinator.tasks["movies"] = (summary, replace(coefficients, layers={Q: short}), head)
    with pytest.raises(ShapeMismatch, match="1 rows of coefficients for 2"):
        client.pull_task("movies")

    coordinator.tasks["movies"] = (summary, replace(coefficients, layers={"x": layer}), head)
    with pytest.raises(ShapeMismatch, match="no such layer"):
        client.pull_task("movies")


def test_an_unknown_task_is_named(client):
    """The error of the coordinator arrives."""
    with pytest.raises(UnknownTask) as caught:
        client.pull_task("cinema")
    assert caught.value.task_id == "cinema"


def test_tasks_and_status_are_told(client):
    """Lists and figures come as records."""
    assert client.tasks() == [task_of(2)[0]]
    assert (client.status().current_version, client.status().release) == (2, "fake")


def test_an_absent_coordinator_is_tried_until_the_time_is_up():
    """The error says whom, how often and how long."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with (
            ShareClient(address, timeout_seconds=3.0, retry=QUICK) as client,
            pytest.raises(CoordinatorUnreachable, match="no coordinator answers at") as caught,
        ):
            client.status()
    assert caught.value.address == address
    assert caught.value.attempts > 1
    assert caught.value.seconds > 0


def test_a_coordinator_that_comes_back_is_found(server, client):
    """A call that begins while the coordinator is down ends well when it is up again."""
    server.stop()
    threading.Timer(0.3, server.start).start()

    assert client.status().current_version == 2


def test_an_overloaded_coordinator_is_asked_again(client, coordinator):
    """Overload is waited out."""
    coordinator.fail_next("GetStatus", Fail(Overloaded("busy", retry_after_seconds=0.01)))

    assert client.status().current_version == 2


def test_a_coordinator_that_does_not_answer_is_left_at_the_deadline(server, coordinator):
    """Every call has an end."""
    coordinator.fail_next("PushUpdate", Hang())
    coordinator.fail_next("PullSubspace", Hang())

    with ShareClient(server.address, timeout_seconds=0.5) as client:
        with pytest.raises(DeadlineExceeded) as caught:
            client.pull()
        assert caught.value.address == server.address
        with pytest.raises(DeadlineExceeded):
            client.push(update_of(), timeout_seconds=0.3)


def test_a_stream_that_breaks_is_begun_again(client, coordinator):
    """A pull that is unavailable at first is repeated from its beginning."""
    coordinator.fail_next("PullSubspace", Fail(grpc.StatusCode.UNAVAILABLE))

    assert client.pull().version == 2
    assert coordinator.calls["PullSubspace"] == 2


def test_a_closed_client_says_so(client):
    """Using a client after its end is an error of ours."""
    client.close()

    with pytest.raises(ConfigError, match="is closed"):
        client.status()

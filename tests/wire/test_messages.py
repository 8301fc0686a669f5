"""Records to protobuf messages and back."""

from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone

import pytest
import torch
from google.protobuf.internal.encoder import _VarintBytes
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from share_dist.core.values import Fingerprint, Head, LayerShape, TaskUpdate
from share_dist.errors import MalformedMessage, ShareError, UpdateRefused
from share_dist.pb import admin_pb2, tensor_pb2
from share_dist.pb import coordinator_pb2 as pb
from share_dist.wire import codec
from share_dist.wire.chunks import cut
from share_dist.wire.records import PRECISIONS, Lease, VersionEvent, VersionKind
from tests import strategies
from tests.equality import first_difference

FINGERPRINT = Fingerprint("ab" * 32, {"q": LayerShape(4, 3)})

PAIRS = {
    "fingerprint": (
        strategies.fingerprints,
        codec.fingerprint_to_pb,
        lambda message, _: codec.fingerprint_from_pb(message),
    ),
    "lease": (
        strategies.leases,
        codec.lease_to_pb,
        lambda message, lease: codec.lease_from_pb(message, worker_id=lease.worker_id),
    ),
    "heartbeat": (
        strategies.leases,
        codec.heartbeat_to_pb,
        lambda message, lease: codec.heartbeat_from_pb(
            message, lease=replace(lease, duration_seconds=0.0, current_version=0)
        ),
    ),
    "receipt": (
        strategies.receipts,
        codec.receipt_to_pb,
        lambda message, _: codec.receipt_from_pb(message),
    ),
    "task summary": (
        strategies.task_summaries,
        codec.task_summary_to_pb,
        lambda message, _: codec.task_summary_from_pb(message),
    ),
    "version event": (
        strategies.version_events,
        codec.version_event_to_pb,
        lambda message, _: codec.version_event_from_pb(message),
    ),
    "status": (
        strategies.coordinator_statuses,
        codec.status_to_pb,
        lambda message, _: codec.status_from_pb(message),
    ),
    "head": (
        strategies.heads(),
        codec.head_info_to_pb,
        lambda message, head: codec.head_info_from_pb(message, head.tensors),
    ),
    "wait": (
        st.sampled_from(["durable", "merged"]),
        codec.wait_to_pb,
        lambda value, _: codec.wait_from_pb(value),
    ),
    "precision": (
        st.sampled_from(PRECISIONS),
        codec.precision_to_pb,
        lambda value, _: codec.precision_from_pb(value),
    ),
    "states": (
        st.frozensets(strategies.states),
        codec.update_states_to_pb,
        lambda values, _: codec.update_states_from_pb(values),
    ),
    "upload progress": (
        strategies.upload_progresses,
        codec.upload_progress_to_pb,
        lambda message, _: codec.upload_progress_from_pb(message),
    ),
    "subspace summary": (
        strategies.subspace_summaries,
        codec.subspace_summary_to_pb,
        lambda message, _: codec.subspace_summary_from_pb(message),
    ),
    "version summary": (
        strategies.version_summaries,
        codec.version_summary_to_pb,
        lambda message, _: codec.version_summary_from_pb(message),
    ),
    "version diff": (
        strategies.version_diffs,
        codec.version_diff_to_pb,
        lambda message, _: codec.version_diff_from_pb(message),
    ),
    "task history": (
        strategies.task_histories,
        codec.task_history_to_pb,
        lambda message, _: codec.task_history_from_pb(message),
    ),
    "compaction": (
        strategies.compactions,
        codec.compaction_to_pb,
        lambda message, _: codec.compaction_from_pb(message),
    ),
    "removal": (
        strategies.removals,
        codec.removal_to_pb,
        lambda message, _: codec.removal_from_pb(message),
    ),
    "update summary": (
        strategies.update_summaries,
        codec.update_summary_to_pb,
        lambda message, _: codec.update_summary_from_pb(message),
    ),
    "update inspection": (
        strategies.update_inspections,
        codec.update_inspection_to_pb,
        lambda message, _: codec.update_inspection_from_pb(message),
    ),
    "token": (
        strategies.tokens,
        codec.token_to_pb,
        lambda message, _: codec.token_from_pb(message),
    ),
    "token request": (
        strategies.token_requests,
        codec.token_request_to_pb,
        lambda message, _: codec.token_request_from_pb(message),
    ),
    "audit entry": (
        strategies.audit_entries,
        codec.audit_entry_to_pb,
        lambda message, _: codec.audit_entry_from_pb(message),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_records_come_back(name, data):
    """Every record comes back from its message with every field."""
    values, to_message, from_message = PAIRS[name]
    value = data.draw(values)

    assert first_difference(from_message(to_message(value), value), value) is None


@given(strategies.updates())
@settings(deadline=None, max_examples=50)
def test_an_update_comes_back_from_header_and_payload(update):
    """What the wire carries is the whole update."""
    payload = codec.update_to_bytes(update)
    header = codec.update_header(
        update,
        worker_id="w0",
        fingerprint_digest=FINGERPRINT.digest,
        payload=cut(payload).header,
        wait="durable",
    )
    received = pb.UpdateHeader.FromString(header.SerializeToString())

    assert first_difference(codec.update_from_wire(received, payload), update) is None
    assert received.fingerprint_digest == FINGERPRINT.digest
    assert received.payload.num_bytes == len(payload)


def test_every_encoder_has_its_decoder():
    """The codec offers pairs, never one half."""
    names = set(codec.__all__)
    halves = {
        "update_to_bytes": "update_tensors_from_bytes",
        "update_to_parts": "update_tensors_from_bytes",
        "update_header": "update_from_wire",
    }
    for name in names:
        if "_to_" in name:
            assert halves.get(name, name.replace("_to_", "_from_")) in names


def header() -> pb.UpdateHeader:
    return pb.UpdateHeader(update_id="u", task_id="t", weight=1.0)


EMPTY_PAYLOAD = b"\x08" + bytes(7) + b"{}      "


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"update_id": ""}, "update_id has 0 characters"),
        ({"task_id": "t" * 201}, "task_id has 201 characters, needed are 1 to 200"),
        ({"scores": {"accuracy": float("nan")}}, "score 'accuracy' is nan"),
        ({"scores": {"accuracy": float("-inf")}}, "score 'accuracy' is -inf"),
        ({"scores": {"a" * 101: 1.0}}, r"scores\.key has 101 characters, needed are 0 to 100"),
        ({"scores": {f"{i}": 1.0 for i in range(65)}}, "65 scores, at most 64"),
        ({"worker_id": "w" * 201}, "worker_id has 201 characters"),
        ({"fingerprint_digest": "f" * 201}, "fingerprint_digest has 201 characters"),
        ({"head": pb.HeadInfo(task_type="x" * 101)}, r"head\.task_type has 101 characters"),
        (
            {"head": pb.HeadInfo(label_names=["x" * 2**16])},
            "1 label names take 65537 bytes, at most 65536",
        ),
        (
            {"head": pb.HeadInfo(label_names=["é"] * 30_000)},
            "30000 label names take 90000 bytes, at most 65536",
        ),
        ({"head": pb.HeadInfo(label_names=[""] * 65_537)}, "65537 label names take 65537 bytes"),
        ({"num_samples": 2**63}, f"num_samples is {2**63}, needed is 0 to {2**63 - 1}"),
        ({"base_version": 2**64 - 1}, f"base_version is {2**64 - 1}"),
        ({"lease_epoch": 2**63}, f"lease_epoch is {2**63}"),
        ({"base_digest": "a" * 63}, "base_digest is no SHA-256"),
        ({"base_digest": "A" * 64}, "base_digest is no SHA-256"),
    ],
)
def test_malformed_headers_are_refused(changes, message):
    """Every field of an update's header that may grow has a bound, and numbers are numbers."""
    damaged = header()
    damaged.MergeFrom(pb.UpdateHeader(**changes))
    if changes.get("update_id") == "":
        damaged.ClearField("update_id")

    with pytest.raises(MalformedMessage, match=message):
        codec.update_from_wire(damaged, EMPTY_PAYLOAD)


def test_a_header_at_its_bounds_is_taken():
    """What is as long and as large as may be passes both ways."""
    update = TaskUpdate(
        "u" * 200,
        "t" * 200,
        2**63 - 1,
        {},
        Head({}, "x" * 100, 2**32 - 1, ("é" * 16_383, "") * 2),
        num_samples=2**63 - 1,
        scores={f"{i:0100}": 1.0 for i in range(64)},
        lease_epoch=2**63 - 1,
    )
    sent = codec.update_header(
        update,
        worker_id="w" * 200,
        fingerprint_digest="f" * 64,
        payload=cut(b"").header,
        wait="durable",
    )

    assert first_difference(codec.update_from_wire(sent, EMPTY_PAYLOAD), update) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"base_version": 2**63},
        {"lease_epoch": -1},
        {"num_samples": 2**64},
        {"scores": {"accuracy": float("inf")}},
        {"head": Head({}, "", 0, ("x" * 2**16,))},
    ],
)
def test_what_would_be_refused_is_not_sent(fields):
    """The bounds hold for the sender, too, in the same words."""
    update = TaskUpdate(
        **{"update_id": "u", "task_id": "t", "base_version": 1, "layers": {}} | fields
    )

    with pytest.raises(MalformedMessage):
        codec.update_header(
            update, worker_id="w", fingerprint_digest="", payload=cut(b"").header, wait="durable"
        )


@pytest.mark.parametrize(
    ("decode", "message", "field"),
    [
        (codec.receipt_from_pb, pb.Receipt(lag=2**63), "lag"),
        (codec.task_summary_from_pb, pb.TaskSummary(merged_version=2**63), "merged_version"),
        (codec.version_event_from_pb, pb.VersionEvent(version=2**63), "version"),
        (codec.status_from_pb, pb.GetStatusResponse(current_version=2**63), "current_version"),
        (
            codec.status_from_pb,
            pb.GetStatusResponse(workers=[pb.WorkerStatus(lease_epoch=2**63)]),
            "lease_epoch",
        ),
        (
            lambda message: codec.lease_from_pb(message, worker_id="w"),
            pb.RegisterResponse(lease_epoch=2**63),
            "lease_epoch",
        ),
        (
            lambda message: codec.heartbeat_from_pb(message, lease=Lease("w", 1, 2.0, 3, None)),
            pb.HeartbeatResponse(current_version=2**63),
            "current_version",
        ),
        (codec.upload_progress_from_pb, pb.GetUploadResponse(num_bytes=2**63), "num_bytes"),
        (
            codec.subspace_summary_from_pb,
            admin_pb2.SubspaceSummary(first_version=2**63),
            "first_version",
        ),
        (
            codec.version_summary_from_pb,
            admin_pb2.VersionSummary(stored_bytes=2**63),
            "stored_bytes",
        ),
        (codec.version_diff_from_pb, admin_pb2.VersionDiff(version_b=2**63), "version_b"),
        (
            codec.task_history_from_pb,
            admin_pb2.TaskHistory(moves=[admin_pb2.TaskMove(version=2**63)]),
            "version",
        ),
        (codec.compaction_from_pb, admin_pb2.CompactResponse(versions=[1, 2**63]), "versions"),
        (
            codec.compaction_from_pb,
            admin_pb2.CompactResponse(kept=[admin_pb2.KeptVersion(version=2**63)]),
            "version",
        ),
        (codec.update_summary_from_pb, admin_pb2.UpdateSummary(sequence=2**63), "sequence"),
        (codec.audit_entry_from_pb, admin_pb2.AuditEntry(sequence=2**63), "sequence"),
        (
            codec.token_request_from_pb,
            admin_pb2.CreateTokenRequest(valid_seconds=2**63),
            "valid_seconds",
        ),
    ],
)
def test_counts_above_63_bits_are_refused(decode, message, field):
    """A number that no database can keep is refused where it is read, with its name."""
    with pytest.raises(MalformedMessage, match=f"{field} is {2**63}") as caught:
        decode(message)
    assert caught.value.field == field


def test_a_header_without_a_weight_is_refused():
    """The weight that protobuf makes of nothing is not taken for a weight."""
    damaged = header()
    damaged.ClearField("weight")

    with pytest.raises(UpdateRefused, match=r"weight 0\.0"):
        codec.update_from_wire(damaged, EMPTY_PAYLOAD)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.Fingerprint(metric="delta"), "fingerprint.base_model"),
        (pb.Fingerprint(base_model="x"), "fingerprint.metric"),
        (pb.Fingerprint(base_model="x", metric="cosine"), "fingerprint.metric"),
        (
            pb.Fingerprint(base_model="x", metric="delta", layers=[pb.LayerShape(name="q")] * 2),
            "fingerprint.layers",
        ),
        (pb.Fingerprint(base_model="x" * 201, metric="delta"), "fingerprint.base_model"),
        (
            pb.Fingerprint(base_model="x", metric="delta", layers=[pb.LayerShape(name="q" * 501)]),
            "fingerprint.layers.name",
        ),
        (
            pb.Fingerprint(
                base_model="x",
                metric="delta",
                layers=[pb.LayerShape(name=f"{i}") for i in range(10_001)],
            ),
            "fingerprint.layers",
        ),
    ],
)
def test_malformed_fingerprints_are_refused(message, field):
    """A fingerprint is whole, or it is none."""
    with pytest.raises(MalformedMessage) as caught:
        codec.fingerprint_from_pb(message)
    assert caught.value.field == field


def test_values_of_a_newer_release_are_refused_by_name():
    """Unknown enum values and impossible times are errors of ours."""
    with pytest.raises(MalformedMessage, match="unknown state 0"):
        codec.receipt_from_pb(pb.Receipt())
    with pytest.raises(MalformedMessage, match="unknown state 99"):
        codec.receipt_from_pb(pb.Receipt.FromString(b"\x10\x63"))
    with pytest.raises(MalformedMessage, match="unknown value 99"):
        codec.wait_from_pb(99)
    event = pb.VersionEvent()
    event.merged_at.seconds = 10**15
    with pytest.raises(MalformedMessage, match="merged_at is no time"):
        codec.version_event_from_pb(event)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"principal": ""}, "principal"),
        ({"principal": "p" * 201}, "principal"),
        ({"role": ""}, "role"),
        ({"role": "owner"}, "role"),
        ({"subspaces": []}, "subspaces"),
        ({"subspaces": ["s"] * 101}, "subspaces"),
        ({"subspaces": [""]}, "subspaces"),
        ({"subspaces": ["s" * 101]}, "subspaces"),
    ],
)
def test_malformed_token_requests_are_refused(changes, field):
    """A token has somebody it speaks for, a role that is known, and subspaces."""
    fields = {"principal": "p", "role": "worker", "subspaces": ["*"]} | changes

    with pytest.raises(MalformedMessage) as caught:
        codec.token_request_from_pb(admin_pb2.CreateTokenRequest(**fields))
    assert caught.value.field == field


def test_what_an_older_release_leaves_out_means_what_it_meant():
    """Fields that came later have defaults: the default subspace, float32, a merge."""
    status = pb.GetStatusResponse()
    status.started_at.seconds = 1

    assert codec.status_from_pb(status).subspace == "default"
    assert codec.status_from_pb(status).newest_version_at is None
    assert codec.status_from_pb(status).merge_failure == ""
    assert codec.status_from_pb(status).merges_fail_since is None
    assert codec.precision_from_pb(tensor_pb2.PRECISION_UNSPECIFIED) == "float32"
    assert codec.version_event_from_pb(pb.VersionEvent()).kind is VersionKind.MERGE


def test_an_event_tells_the_largest_drifts_only():
    """However many tasks a version moved, the event names the hundred that moved most."""
    drift = {f"task {index}": float(index) for index in range(250)}
    event = VersionEvent(1, datetime.now(timezone.utc), (), (), 1.0, 1.0, 0.0, 1, 1, drift=drift)

    told = codec.version_event_from_pb(codec.version_event_to_pb(event)).drift

    assert sorted(told.values()) == [float(index) for index in range(150, 250)]


@pytest.mark.parametrize(
    ("check", "bad"),
    [
        (lambda: codec.require_subspace("s" * 101), "subspace has 101 characters"),
        (lambda: codec.require_reason("r" * 2001), "reason has 2001 characters"),
        (lambda: codec.require_digest_bytes(b"x" * 31, "sha256"), "sha256 has 31"),
        (lambda: codec.require_hex_digest("zz" * 32, "held_digest"), "held_digest is no SHA-256"),
    ],
)
def test_names_reasons_and_digests_have_bounds(check, bad):
    """What a request says beside tensors is checked before anything is looked up."""
    with pytest.raises(MalformedMessage, match=bad):
        check()
    assert codec.require_subspace("") == "default"
    assert codec.require_hex_digest("", "held_digest") == ""
    assert codec.require_digest_bytes(b"", "sha256") == b""


def test_no_wait_means_durable():
    """A client that does not say what it waits for gets the safe answer."""
    assert codec.wait_from_pb(pb.WAIT_UNSPECIFIED) == "durable"


def test_a_lease_of_a_reader_has_no_fingerprint():
    """An absent fingerprint is None, not an empty one."""
    lease = Lease("w", 1, 2.0, 3, None)

    assert codec.lease_from_pb(codec.lease_to_pb(lease), worker_id="w").fingerprint is None


decoders = st.sampled_from(
    [
        (pb.Fingerprint, codec.fingerprint_from_pb),
        (pb.RegisterResponse, lambda message: codec.lease_from_pb(message, worker_id="w")),
        (pb.Receipt, codec.receipt_from_pb),
        (pb.TaskSummary, codec.task_summary_from_pb),
        (pb.VersionEvent, codec.version_event_from_pb),
        (pb.GetStatusResponse, codec.status_from_pb),
        (pb.UpdateHeader, lambda message: codec.update_from_wire(message, EMPTY_PAYLOAD)),
        (pb.GetUploadResponse, codec.upload_progress_from_pb),
        (admin_pb2.SubspaceSummary, codec.subspace_summary_from_pb),
        (admin_pb2.VersionSummary, codec.version_summary_from_pb),
        (admin_pb2.VersionDiff, codec.version_diff_from_pb),
        (admin_pb2.TaskHistory, codec.task_history_from_pb),
        (admin_pb2.CompactResponse, codec.compaction_from_pb),
        (admin_pb2.RemoveTaskResponse, codec.removal_from_pb),
        (admin_pb2.UpdateSummary, codec.update_summary_from_pb),
        (admin_pb2.UpdateInspection, codec.update_inspection_from_pb),
        (admin_pb2.Token, codec.token_from_pb),
        (admin_pb2.CreateTokenRequest, codec.token_request_from_pb),
        (admin_pb2.AuditEntry, codec.audit_entry_from_pb),
    ]
)
varints = st.integers(0, 2**64 - 1)


@st.composite
def encoded_fields(draw) -> bytes:
    """Bytes in protobuf's own grammar: some fields with some values."""
    out = b""
    for _ in range(draw(st.integers(0, 5))):
        number, wire_type = draw(st.integers(1, 17)), draw(st.sampled_from([0, 1, 2]))
        out += _VarintBytes(number << 3 | wire_type)
        if wire_type == 0:
            out += _VarintBytes(draw(varints))
        elif wire_type == 1:
            out += draw(st.binary(min_size=8, max_size=8))
        else:
            text = draw(st.binary(max_size=8))
            out += _VarintBytes(len(text)) + text
    return out


@given(decoders, encoded_fields())
@settings(deadline=None, max_examples=400)
def test_any_message_is_a_record_or_an_error_of_ours(decoder, data):
    """Whatever protobuf takes, a decoder turns into a record or a ShareError."""
    kind, decode = decoder
    try:
        message = kind.FromString(data)
    except DecodeError:
        return
    with suppress(ShareError):
        decode(message)


def test_the_cost_of_a_push_is_as_specified():
    """The messages of a push are its payload, a header below 1 KiB, and at most 50 bytes a chunk."""
    head = Head({"weight": torch.zeros(2**20)})
    update = TaskUpdate("u" * 200, "t" * 200, 2**40, {}, head, scores={"accuracy": 0.5})
    payload = codec.update_to_bytes(update)
    header = codec.update_header(
        update,
        worker_id="w" * 200,
        fingerprint_digest="f" * 64,
        payload=cut(payload).header,
        wait="merged",
    )
    chunks = [pb.PushUpdateRequest(chunk=chunk).ByteSize() for chunk in cut(payload).chunks()]

    assert len(chunks) == 5
    assert len(payload) < sum(chunks) <= len(payload) + 50 * len(chunks)
    assert pb.PushUpdateRequest(header=header).ByteSize() < 1024


@pytest.mark.parametrize("text", ["\0", "cats\0", "\0" * 9])
def test_a_name_with_a_nul_is_refused(text):
    """What PostgreSQL cannot keep, no store is asked to: the field is named."""
    with pytest.raises(MalformedMessage, match="task_id holds a NUL"):
        codec.require_id(text, "task_id")

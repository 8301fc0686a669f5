"""
What the durable store looks like on disk.

::

    STORE/
      lock                        who owns the store: pid and host
      rows.sqlite                 everything but tensors; the tables below
      blobs/<sha256>.safetensors  tensors, named by the digest of their bytes

A row names a blob only once the blob is on disk under its final name. So a
crash can leave a blob without a row, which is harmless, and never a row
without its blob.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any, Final

from sqlalchemy import Column, Float, ForeignKey, Integer, MetaData, Row, Table, Text

from coordinator.store.base import EncodedVersion, MergeMark, UpdateRecord, VersionCommit
from share_dist.core.values import Fingerprint, Head, LayerShape, TaskUpdate
from share_dist.wire import codec
from share_dist.wire.records import UpdateState, VersionEvent

SCHEMA_VERSION: Final = 1
"""Version of the tables and of the blobs' tensor names."""

tables = MetaData()

facts = Table(
    "facts",
    tables,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
"""Single values: ``schema_version`` and ``fingerprint``."""

workers = Table(
    "workers",
    tables,
    Column("worker_id", Text, primary_key=True),
    Column("lease_epoch", Integer, nullable=False),
)

updates = Table(
    "updates",
    tables,
    Column("sequence", Integer, primary_key=True),
    Column("update_id", Text, nullable=False, unique=True),
    Column("task_id", Text, nullable=False, index=True),
    Column("worker_id", Text, nullable=False),
    Column("base_version", Integer, nullable=False),
    Column("pushed_at", Float, nullable=False),
    Column("content_digest", Text, nullable=False),
    Column("update_bytes", Integer, nullable=False),
    Column("head_bytes", Integer, nullable=False),
    Column("num_samples", Integer, nullable=False),
    Column("scores", Text, nullable=False),
    Column("head", Text, nullable=False),
    Column("state", Text, nullable=False, index=True),
    Column("reason", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("lag", Integer, nullable=False),
    Column("angle", Float, nullable=False),
    Column("truncation", Float, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("blob", Text, nullable=False),
    sqlite_autoincrement=True,
)

versions = Table(
    "versions",
    tables,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("metric", Text, nullable=False),
    Column("subspace_blob", Text, nullable=False),
    Column("tasks_blob", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("report", Text, nullable=False),
)

tasks = Table(
    "tasks",
    tables,
    Column("task_id", Text, primary_key=True),
    Column("update_id", Text, ForeignKey("updates.update_id"), nullable=False),
    Column("cumulative_drift", Float, nullable=False),
)
"""Merged tasks: the update that the current version holds of each."""


@dataclass(frozen=True, slots=True)
class EncodedUpdate:
    """An update as it is kept: small facts, tensors, and the digest of both."""

    metadata: str
    payload: bytes
    content_digest: str


@dataclass(frozen=True, slots=True)
class DescribedUpdate:
    """An update as it is kept, with its record; the sequence is given by the store."""

    encoded: EncodedUpdate
    record: UpdateRecord


def encode_update(update: TaskUpdate) -> EncodedUpdate:
    """
    Make an update's metadata, payload and content digest.

    The lease epoch is left out: a worker that registered again and repeats its
    push says the same as before.
    """
    fields, payload = codec.update_to_record(replace(update, lease_epoch=0))
    metadata = to_json(fields)
    digest = hashlib.sha256(payload)
    digest.update(metadata.encode())
    return EncodedUpdate(metadata, payload, digest.hexdigest())


def describe_update(update: TaskUpdate, *, worker_id: str, pushed_at: datetime) -> DescribedUpdate:
    """Make the record of an update that has just been admitted."""
    encoded = encode_update(update)
    head_bytes = sum(tensor.nbytes for tensor in update.head.tensors.values())
    record = UpdateRecord(
        sequence=0,
        update_id=update.update_id,
        task_id=update.task_id,
        worker_id=worker_id,
        base_version=update.base_version,
        pushed_at=pushed_at,
        content_digest=encoded.content_digest,
        update_bytes=len(encoded.payload),
        head_bytes=head_bytes,
        num_samples=update.num_samples,
        scores=update.scores,
        head=replace(update.head, tensors={}),
    )
    return DescribedUpdate(encoded, record)


def record_to_row(described: DescribedUpdate, blob: str) -> dict[str, Any]:
    """Turn a new record into a row of ``updates``."""
    record = described.record
    row = {name: getattr(record, name) for name in _PLAIN_FIELDS} | asdict(record.mark)
    return row | {
        "pushed_at": record.pushed_at.timestamp(),
        "scores": to_json(record.scores),
        "head": to_json(asdict(record.head)),
        "state": record.state.value,
        "metadata": described.encoded.metadata,
        "blob": blob,
    }


def record_from_row(row: Row[Any]) -> UpdateRecord:
    """Turn a row of ``updates`` into a record."""
    head = json.loads(row.head)
    return UpdateRecord(
        sequence=row.sequence,
        pushed_at=datetime.fromtimestamp(row.pushed_at, timezone.utc),
        scores=json.loads(row.scores),
        head=Head({}, head["task_type"], head["num_labels"], tuple(head["label_names"])),
        state=UpdateState(row.state),
        mark=MergeMark(row.lag, row.angle, row.truncation),
        **{name: getattr(row, name) for name in _PLAIN_FIELDS},
    )


_PLAIN_FIELDS: Final = (
    "update_id",
    "task_id",
    "worker_id",
    "base_version",
    "content_digest",
    "update_bytes",
    "head_bytes",
    "num_samples",
    "reason",
    "version",
)
"""Fields of a record that are columns as they are."""


def fingerprint_to_json(fingerprint: Fingerprint) -> str:
    """Write a fingerprint as JSON."""
    return to_json(asdict(fingerprint))


def fingerprint_from_json(text: str) -> Fingerprint:
    """Read what ``fingerprint_to_json`` wrote."""
    fields = json.loads(text)
    layers = {name: LayerShape(*shape) for name, shape in fields.pop("layers").items()}
    return Fingerprint(layers=layers, **fields)


def event_to_json(event: VersionEvent) -> str:
    """Write a version event as JSON."""
    return to_json(asdict(event) | {"merged_at": event.merged_at.timestamp()})


def event_from_json(text: str) -> VersionEvent:
    """Read what ``event_to_json`` wrote."""
    fields = json.loads(text)
    fields["merged_at"] = datetime.fromtimestamp(fields["merged_at"], timezone.utc)
    for name in ("update_ids", "task_ids"):
        fields[name] = tuple(fields[name])
    return VersionEvent(**fields)


def encode_version(commit: VersionCommit) -> EncodedVersion:
    """
    Make everything that is kept of a version, so that only the disk can refuse it.

    Raises:
        ValueError: A number is none, which JSON cannot say.
    """
    return EncodedVersion(
        commit,
        codec.subspace_to_bytes(commit.subspace),
        codec.merged_tasks_to_bytes(commit.tasks),
        event_to_json(commit.event),
        to_json(commit.report),
    )


def to_json(value: Mapping[str, Any]) -> str:
    """
    Write values as JSON whose bytes depend on nothing but the values.

    Raises:
        ValueError: A number is none.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)

"""Updates, versions and records as bytes and JSON: what the durable catalog keeps."""

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime, timezone
from typing import Any

from coordinator.store.base import (
    DescribedUpdate,
    EncodedVersion,
    KeptTasks,
    ReadyFile,
    TaskEntry,
    UpdateRecord,
    VersionCommit,
)
from share_dist.core.values import Fingerprint, LayerShape, TaskUpdate
from share_dist.wire import codec
from share_dist.wire.records import UpdateState, VersionEvent, VersionKind
from share_dist.wire.tensors import Buffer


def content_digest(metadata: str, payload_digest: str) -> str:
    """
    Make the digest (hex) of all that a worker said.

    The lease epoch is no part of the metadata: a worker that registered again and
    repeats its push says the same as before.
    """
    return digest_of(f"{payload_digest}\n{metadata}".encode())


def digest_of(data: Buffer) -> str:
    """SHA-256 (hex)."""
    return hashlib.sha256(data).hexdigest()


def describe_update(
    update: TaskUpdate,
    *,
    worker_id: str,
    pushed_at: datetime,
    owner: str = "",
    payload: Buffer | None = None,
    payload_digest: str = "",
    file: ReadyFile | None = None,
    state: UpdateState = UpdateState.PENDING,
    reason: str = "",
) -> DescribedUpdate:
    """
    Make what is kept of an update that has just been admitted.

    Args:
        update: What was pushed.
        worker_id: Who pushed it.
        pushed_at: When.
        owner: The principal that pushed it; the worker where absent.
        payload: Its tensors as they came; made anew when absent.
        payload_digest: SHA-256 (hex) of the payload, where it is known already.
        file: Has the payload on disk already, where it does.
        state: PENDING, or what admission set it aside as.
        reason: Why it was set aside.
    """
    payload = codec.update_to_bytes(update) if payload is None else payload
    payload_digest = payload_digest or digest_of(payload)
    metadata = to_json(codec.update_metadata(update) | {"lease_epoch": 0})
    record = UpdateRecord(
        sequence=0,
        update_id=update.update_id,
        task_id=update.task_id,
        worker_id=worker_id,
        owner=owner or worker_id,
        base_version=update.base_version,
        pushed_at=pushed_at,
        content_digest=content_digest(metadata, payload_digest),
        update_bytes=len(payload),
        head_bytes=sum(tensor.nbytes for tensor in update.head.tensors.values()),
        num_samples=update.num_samples,
        scores=update.scores,
        head=replace(update.head, tensors={}),
        state=state,
        reason=reason,
    )
    return DescribedUpdate(record, metadata, payload, payload_digest, file)


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
    return to_json(
        asdict(event) | {"merged_at": event.merged_at.timestamp(), "kind": event.kind.value}
    )


def event_from_json(text: str) -> VersionEvent:
    """Read what ``event_to_json`` wrote; an older release left some fields out."""
    fields = json.loads(text)
    fields["merged_at"] = datetime.fromtimestamp(fields["merged_at"], timezone.utc)
    fields["kind"] = VersionKind(fields.get("kind", VersionKind.MERGE.value))
    for name in ("update_ids", "task_ids"):
        fields[name] = tuple(fields[name])
    return VersionEvent(**fields)


def encode_version(commit: VersionCommit, *, parent_digest: str) -> EncodedVersion:
    """
    Make everything that is kept of a version, so that only the disk can refuse it.

    Args:
        commit: What the version brings about.
        parent_digest: Digest of the version before.

    Raises:
        ValueError: A number is none, which JSON cannot say.
    """
    subspace, tasks = codec.subspace_to_bytes(commit.subspace), tasks_to_bytes(commit)
    event = replace(commit.event, parent_digest=parent_digest)
    event = replace(event, digest=version_digest(event, digest_of(subspace), digest_of(tasks)))
    return EncodedVersion(
        commit=replace(commit, event=event),
        subspace=subspace,
        tasks=tasks,
        drift=drift_to_bytes(commit.drift),
        event=event_to_json(event),
        report=to_json(commit.report),
    )


def version_digest(event: VersionEvent, subspace_digest: str, tasks_digest: str) -> str:
    """
    Make the digest (hex) of a version: it covers its number, its content and its parent's digest.

    So two stores never agree about a version by chance: the chain begins with ``origin_digest``.
    """
    said = {
        "version": event.version,
        "kind": event.kind.value,
        "content_version": event.content_version,
        "parent": event.parent_digest,
        "subspace": subspace_digest,
        "tasks": tasks_digest,
        "update_ids": event.update_ids,
        "task_ids": event.task_ids,
    }
    return digest_of(to_json(said).encode())


def origin_digest(store_id: str, name: str) -> str:
    """Make the digest (hex) of version 0 of a named subspace."""
    return digest_of(to_json({"store_id": store_id, "subspace": name, "version": 0}).encode())


def tasks_to_bytes(kept: VersionCommit | KeptTasks) -> bytes:
    """
    Write every task of a version and its entry.

    The payload of ``codec.merged_tasks_to_bytes`` follows the entries, which are JSON deflated
    by zlib; 8 bytes, little-endian, say how long they are.
    """
    entries = {
        task_id: [entry.update_id, entry.cumulative_drift]
        for task_id, entry in kept.entries.items()
    }
    head = zlib.compress(to_json(entries).encode(), 1)
    return len(head).to_bytes(8, "little") + head + codec.merged_tasks_to_bytes(kept.tasks)


def tasks_from_bytes(data: bytes, *, version: int) -> KeptTasks:
    """Read what ``tasks_to_bytes`` wrote."""
    start = 8 + int.from_bytes(data[:8], "little")
    tasks = codec.merged_tasks_from_bytes(data[start:], version=version)
    return KeptTasks(tasks, entries_from_bytes(data))


def entries_from_bytes(data: bytes) -> dict[str, TaskEntry]:
    """Read only the entries of what ``tasks_to_bytes`` wrote."""
    start = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(zlib.decompress(data[8:start]))
    return {task_id: TaskEntry(*entry) for task_id, entry in entries.items()}


def drift_to_bytes(drift: Mapping[str, float]) -> bytes:
    """Write how far a version moved each task: JSON deflated by zlib."""
    return zlib.compress(to_json(dict(drift)).encode(), 1)


def drift_from_bytes(data: bytes) -> dict[str, float]:
    """Read what ``drift_to_bytes`` wrote."""
    drift: dict[str, float] = json.loads(zlib.decompress(data))
    return drift


def to_json(value: Mapping[str, Any]) -> str:
    """
    Write values as JSON whose bytes depend on nothing but the values.

    Raises:
        ValueError: A number is none.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)

"""
Every error of the project, each a letter to the person who must act.

```
ShareError                        exit 1
├─ ConfigError                    exit 2    INVALID_ARGUMENT
├─ SubspaceError (ValueError)     a value cannot be what it claims to be
│  ├─ ShapeMismatch                         INVALID_ARGUMENT
│  ├─ RankTooLarge                          INVALID_ARGUMENT
│  ├─ NotOrthonormal                        INVALID_ARGUMENT
│  ├─ NotFinite                             INVALID_ARGUMENT
│  ├─ UpdateRefused                         INVALID_ARGUMENT
│  └─ AdapterFormatError                    no status: raised while reading local files
├─ WireError                      bytes cannot be a value
│  ├─ ChecksumMismatch                      DATA_LOSS
│  ├─ StreamTruncated                       DATA_LOSS
│  ├─ MessageTooLarge                       RESOURCE_EXHAUSTED
│  ├─ MalformedMessage                      INVALID_ARGUMENT
│  └─ UnsupportedWireVersion                UNIMPLEMENTED
├─ VersionError
│  ├─ BaseVersionTooOld                     ABORTED
│  ├─ VersionCompacted                      OUT_OF_RANGE
│  ├─ VersionInFuture                       OUT_OF_RANGE
│  └─ VersionMismatch                       FAILED_PRECONDITION
├─ FingerprintMismatch                      FAILED_PRECONDITION
├─ LeaseExpired                             FAILED_PRECONDITION
├─ UpdateConflict                           ALREADY_EXISTS
├─ WrongState                               FAILED_PRECONDITION
├─ AccessError
│  ├─ NotAuthenticated                      UNAUTHENTICATED
│  └─ NotPermitted                          PERMISSION_DENIED
├─ UnknownTask                              NOT_FOUND
├─ UnknownUpdate                            NOT_FOUND
├─ UnknownSubspace                          NOT_FOUND
├─ UnknownToken                             NOT_FOUND
├─ Overloaded                               RESOURCE_EXHAUSTED
├─ TooManySetAside                          RESOURCE_EXHAUSTED
├─ StoreError                     exit 3
│  ├─ StoreCorrupt                          DATA_LOSS
│  ├─ StoreFull                             RESOURCE_EXHAUSTED
│  ├─ StoreUnavailable                      UNAVAILABLE
│  ├─ StoreFenced                           UNAVAILABLE
│  ├─ StoreLocked                           no status: met before a server listens
│  └─ StoreTooNew                           no status: met before a server listens
├─ TransportError                 exit 4    raised by the client only
│  ├─ CoordinatorUnreachable                UNAVAILABLE
│  ├─ UntrustedCoordinator                  no status: what a client finds in the handshake
│  ├─ DeadlineExceeded                      DEADLINE_EXCEEDED
│  └─ UnexpectedStatus                      no status: what a client makes of a foreign status
└─ WorkerError                    exit 5    no status: a worker's own affair
   ├─ StreamError                           a task stream file or its data cannot be used
   └─ TrainingDiverged                      loss or parameters stopped being finite
```

A class exists only if some caller acts differently on it. The gRPC status is
chosen by gRPC's own litmus test: UNAVAILABLE if the same call may be retried,
ABORTED if a larger sequence must be restarted, FAILED_PRECONDITION if something
must be fixed first. ``share_dist.wire.status`` carries an error with its fields
over the wire and back.
"""

from __future__ import annotations

import enum
from typing import ClassVar, TypeAlias

Detail: TypeAlias = int | float | str


class ExitCode(enum.IntEnum):
    """How a command ends. ``share_dist/errors.md`` has a section for each."""

    OK = 0
    FAILED = 1
    """Something was refused, is broken, or did not reach what it had to."""
    USAGE = 2
    """A flag, an argument or a configuration cannot be used."""
    STORE = 3
    """The store cannot do what was asked of it."""
    TRANSPORT = 4
    """The coordinator could not be asked."""
    WORKER = 5
    """A worker cannot go on."""
    ACCESS = 6
    """The coordinator does not let this caller do this."""
    FINDINGS = 7
    """A check ran to its end, and found something to act upon."""
    INTERRUPTED = 130
    """Ctrl-C, as shells have it."""
    TERMINATED = 143
    """SIGTERM, as shells have it: the machine or its manager wants it back."""


class ShareError(Exception):
    """
    Something that the person or program at the other end must act upon.

    Args:
        message: What happened, with the numbers, and what to do next.
        details: The same facts for programs. The names are those that the
            class declares in ``fields``; each becomes an attribute.

    Examples:
        >>> error = VersionInFuture("version 9 is ahead of 7", current_version=7)
        >>> error.current_version
        7
    """

    status: ClassVar[str | None] = None
    """Name of the gRPC status code, or None when it never crosses the wire."""

    no_status_reason: ClassVar[str] = "an umbrella: only its subclasses are raised"
    """Why there is no status; read by the test that walks this tree."""

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED
    """Exit code of the command line when this error ends a command."""

    fields: ClassVar[dict[str, type[int | float | str]]] = {}
    """Names and types of the facts that travel with the message."""

    def __init__(self, message: str, **details: Detail) -> None:
        super().__init__(message)
        unknown = details.keys() - self.fields.keys()
        if unknown:
            raise TypeError(f"{type(self).__name__} has no field {sorted(unknown)}")
        self.message = message
        self.details: dict[str, Detail] = {
            name: kind(details.get(name, kind())) for name, kind in self.fields.items()
        }

    def __getattr__(self, name: str) -> Detail:
        details: dict[str, Detail] = self.__dict__.get("details", {})
        if name in details:
            return details[name]
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.details)


def _rebuild(kind: type[ShareError], message: str, details: dict[str, Detail]) -> ShareError:
    return kind(message, **details)


class ConfigError(ShareError):
    """A configuration, a flag or a call's arguments cannot be used: which key, what was read."""

    status = "INVALID_ARGUMENT"
    exit_code = ExitCode.USAGE
    fields: ClassVar = {"key": str}


class SubspaceError(ShareError, ValueError):
    """A value cannot be what it claims to be."""


class ShapeMismatch(SubspaceError):
    """Two shapes that must agree do not; the message names layer, side and both shapes."""

    status = "INVALID_ARGUMENT"
    fields: ClassVar = {"layer": str, "side": str}


class RankTooLarge(SubspaceError):
    """More factors were asked for than the data can have."""

    status = "INVALID_ARGUMENT"
    fields: ClassVar = {"asked": int, "largest": int}


class NotOrthonormal(SubspaceError):
    """The columns of a basis are not orthonormal."""

    status = "INVALID_ARGUMENT"
    fields: ClassVar = {"layer": str, "side": str, "deviation": float}


class NotFinite(SubspaceError):
    """NaN or infinity where only numbers may be: which layer, which side, how many entries."""

    status = "INVALID_ARGUMENT"
    fields: ClassVar = {"layer": str, "side": str, "num_entries": int}


class UpdateRefused(SubspaceError):
    """An update is well formed, yet may not be merged: zero norm, norm out of bounds, bad weight."""

    status = "INVALID_ARGUMENT"
    fields: ClassVar = {"update_id": str, "task_id": str, "reason": str}


class AdapterFormatError(SubspaceError):
    """An adapter on disk has missing or unexpected keys, or options that cannot be represented."""

    no_status_reason = "raised while reading local files, before anything is sent"
    fields: ClassVar = {"path": str}


class WireError(ShareError):
    """Bytes cannot be a value."""


class ChecksumMismatch(WireError):
    """The digest of what arrived is not the digest that was announced."""

    status = "DATA_LOSS"
    fields: ClassVar = {"expected": str, "found": str}


class StreamTruncated(WireError):
    """A stream ended before, or went on after, the length that its header announced."""

    status = "DATA_LOSS"
    fields: ClassVar = {"expected_chunks": int, "received_chunks": int}


class MessageTooLarge(WireError):
    """More bytes were announced or sent than the receiver takes."""

    status = "RESOURCE_EXHAUSTED"
    fields: ClassVar = {"size_bytes": int, "limit_bytes": int}


class MalformedMessage(WireError):
    """A message lacks a field, repeats one, or holds bytes that are no tensor."""

    status = "INVALID_ARGUMENT"
    fields: ClassVar = {"field": str}


class UnsupportedWireVersion(WireError):
    """The peer speaks a wire version that this side does not know."""

    status = "UNIMPLEMENTED"
    fields: ClassVar = {"found": int, "supported": int}


class VersionError(ShareError):
    """A version is not one that can be used here."""


class BaseVersionTooOld(VersionError):
    """An update was trained on a version that is no longer kept: pull, rebase, push again."""

    status = "ABORTED"
    fields: ClassVar = {"base_version": int, "first_version": int, "current_version": int}


class VersionCompacted(VersionError):
    """A version that was asked for is no longer kept: take the current one."""

    status = "OUT_OF_RANGE"
    fields: ClassVar = {"version": int, "first_version": int, "current_version": int}


class VersionInFuture(VersionError):
    """A version that was asked for does not exist yet: you know a coordinator that this one is not."""

    status = "OUT_OF_RANGE"
    fields: ClassVar = {"version": int, "current_version": int}


class VersionMismatch(VersionError):
    """A version number is known here with another content: what the caller holds came from another store."""

    status = "FAILED_PRECONDITION"
    fields: ClassVar = {"version": int, "expected": str, "found": str}


class FingerprintMismatch(ShareError):
    """Base model, target layers, metric or wire version differ: the first field that does, and both values."""

    status = "FAILED_PRECONDITION"
    fields: ClassVar = {"field": str, "expected": str, "found": str}


class LeaseExpired(ShareError):
    """The worker's lease has ended or was taken over: register again."""

    status = "FAILED_PRECONDITION"
    fields: ClassVar = {"worker_id": str, "lease_epoch": int, "current_epoch": int}


class UpdateConflict(ShareError):
    """An ``update_id`` that is known was pushed again with other content."""

    status = "ALREADY_EXISTS"
    fields: ClassVar = {"update_id": str}


class WrongState(ShareError):
    """What was asked cannot be done to an update or a task in the state that it is in."""

    status = "FAILED_PRECONDITION"
    fields: ClassVar = {"subject": str, "state": str}


class AccessError(ShareError):
    """The coordinator does not let this caller do this."""

    exit_code = ExitCode.ACCESS


class NotAuthenticated(AccessError):
    """Who calls is not known: what was presented, and why it does not count."""

    status = "UNAUTHENTICATED"
    fields: ClassVar = {"presented": str}


class NotPermitted(AccessError):
    """Who calls is known and may not do this: role held, role needed, owner of the task."""

    status = "PERMISSION_DENIED"
    fields: ClassVar = {"principal": str, "held": str, "needed": str, "owner": str}


class UnknownTask(ShareError):
    """No such task; the message names the nearest known ids."""

    status = "NOT_FOUND"
    fields: ClassVar = {"task_id": str, "nearest": str}


class UnknownUpdate(ShareError):
    """No update of this id was ever kept."""

    status = "NOT_FOUND"
    fields: ClassVar = {"update_id": str}


class UnknownSubspace(ShareError):
    """The coordinator serves no subspace of this name; the message names those that it serves."""

    status = "NOT_FOUND"
    fields: ClassVar = {"subspace": str, "nearest": str}


class UnknownToken(ShareError):
    """No token of this id was ever made."""

    status = "NOT_FOUND"
    fields: ClassVar = {"token_id": str}


class Overloaded(ShareError):
    """The coordinator holds as much unfinished work as it takes: try again after the delay."""

    status = "RESOURCE_EXHAUSTED"
    fields: ClassVar = {"retry_after_seconds": float}


class TooManySetAside(ShareError):
    """More updates wait for a person to decide than are kept: which bound, and how many there are."""

    status = "RESOURCE_EXHAUSTED"
    fields: ClassVar = {"key": str, "limit": int, "found": int}


class StoreError(ShareError):
    """The store cannot do what was asked of it."""

    exit_code = ExitCode.STORE


class StoreCorrupt(StoreError):
    """What is on disk is not what was written: path, version, digest expected and found."""

    status = "DATA_LOSS"
    fields: ClassVar = {"path": str, "expected": str, "found": str}


class StoreFull(StoreError):
    """No room for what must be written; nothing was acknowledged."""

    status = "RESOURCE_EXHAUSTED"
    fields: ClassVar = {"path": str, "needed_bytes": int, "free_bytes": int}


class StoreUnavailable(StoreError):
    """The disk failed at something that may succeed the next time; nothing was acknowledged."""

    status = "UNAVAILABLE"
    fields: ClassVar = {"path": str}


class StoreFenced(StoreError):
    """Another coordinator took this store over while this one hung: nothing was written."""

    status = "UNAVAILABLE"
    fields: ClassVar = {"path": str, "fence": int, "current_fence": int}


class StoreLocked(StoreError):
    """Another coordinator owns this store."""

    no_status_reason = "met when a coordinator starts, before it listens"
    fields: ClassVar = {"path": str, "pid": int, "host": str, "seconds_left": float}


class StoreTooNew(StoreError):
    """The store was written by a newer release."""

    no_status_reason = "met when a coordinator starts, before it listens"
    fields: ClassVar = {"path": str, "found": int, "supported": int}


class TransportError(ShareError):
    """The coordinator could not be asked. Raised by the client only."""

    exit_code = ExitCode.TRANSPORT


class CoordinatorUnreachable(TransportError):
    """No answer from the coordinator: address, attempts, seconds spent."""

    status = "UNAVAILABLE"
    fields: ClassVar = {"address": str, "attempts": int, "seconds": float}


class UntrustedCoordinator(TransportError):
    """Who answers did not prove to be the coordinator: wrong authority, expired, other name, no TLS."""

    no_status_reason = "found by a client in the handshake, before any call"
    fields: ClassVar = {"address": str, "reason": str}


class DeadlineExceeded(TransportError):
    """The coordinator did not finish in the time that the caller gave."""

    status = "DEADLINE_EXCEEDED"
    fields: ClassVar = {"address": str, "seconds": float}


class UnexpectedStatus(TransportError):
    """A gRPC status that no error of ours carries: a proxy on the way, or a bug at the other end."""

    no_status_reason = "made by a client out of a foreign status"
    fields: ClassVar = {"address": str, "code": str}


class WorkerError(ShareError):
    """A worker cannot go on."""

    exit_code = ExitCode.WORKER
    no_status_reason = "a worker's own affair: it never crosses the wire"


class StreamError(WorkerError):
    """A task stream's file or data cannot be used: file, task, what was found."""

    no_status_reason = WorkerError.no_status_reason
    fields: ClassVar = {"path": str, "task_id": str}


class TrainingDiverged(WorkerError):
    """Loss or parameters stopped being finite: task and step."""

    no_status_reason = WorkerError.no_status_reason
    fields: ClassVar = {"task_id": str, "step": int}


__all__ = [
    name for name, value in list(globals().items())
    if isinstance(value, type) and issubclass(value, ShareError)
]  # fmt: skip

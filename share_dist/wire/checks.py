"""What every message is checked for beyond what protobuf can say: counts, lengths, names, moments."""

import math
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from share_dist.errors import MalformedMessage
from share_dist.wire.records import DEFAULT_SUBSPACE, MAX_TOLD_DRIFTS

MAX_COUNT = 2**63 - 1
"""Largest count, version or epoch: what a database can keep."""

MAX_ID_CHARACTERS = 200
"""Longest id of an update, a task, a worker or a principal; ids come back inside errors, which are short."""

MAX_NAME_CHARACTERS = 100
"""Longest name of a score or of a subspace, and longest task type."""

MAX_REASON_CHARACTERS = 2000
"""Longest reason that a person may give for what they ask."""

_DIGEST_BYTES = 32
_HEX_DIGITS = frozenset("0123456789abcdef")


def require_id(text: str, field: str) -> str:
    """
    Return an id that may be sent.

    Raises:
        MalformedMessage: It is empty or longer than ``MAX_ID_CHARACTERS``.
    """
    return require_length(text, 1, MAX_ID_CHARACTERS, field)


def require_reason(text: str) -> str:
    """
    Return a reason that may be sent.

    Raises:
        MalformedMessage: It is longer than ``MAX_REASON_CHARACTERS``.
    """
    return require_length(text, 0, MAX_REASON_CHARACTERS, "reason")


def require_subspace(name: str) -> str:
    """
    Return the name of the subspace that is meant; none means the default.

    Raises:
        MalformedMessage: It is longer than ``MAX_NAME_CHARACTERS``.
    """
    return require_length(name, 0, MAX_NAME_CHARACTERS, "subspace") or DEFAULT_SUBSPACE


def require_hex_digest(text: str, field: str) -> str:
    """
    Return a SHA-256 in hex, or the empty text of one who does not say.

    Raises:
        MalformedMessage: It is neither.
    """
    if text and (len(text) != 2 * _DIGEST_BYTES or not _HEX_DIGITS.issuperset(text)):
        raise MalformedMessage(
            f"{field} is no SHA-256: send {2 * _DIGEST_BYTES} lower-case hex digits, or nothing",
            field=field,
        )
    return text


def require_digest_bytes(data: bytes, field: str) -> bytes:
    """
    Return a SHA-256, or the empty bytes of one who does not say.

    Raises:
        MalformedMessage: It is neither.
    """
    if len(data) not in (0, _DIGEST_BYTES):
        raise MalformedMessage(
            f"a SHA-256 has {_DIGEST_BYTES} bytes, {field} has {len(data)}", field=field
        )
    return data


def require_count(value: int, field: str) -> int:
    """
    Return a count, a version or an epoch that may be sent.

    Raises:
        MalformedMessage: It is negative or greater than ``MAX_COUNT``.
    """
    if not 0 <= value <= MAX_COUNT:
        raise MalformedMessage(f"{field} is {value}, needed is 0 to {MAX_COUNT}", field=field)
    return value


def require_counts(message: Message) -> None:
    """
    Refuse a message if a number of its own that may fill 64 bits is greater than a count may be.

    Raises:
        MalformedMessage: One is; names it.
    """
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_UINT64:
            for number in value if field.is_repeated else (value,):
                require_count(number, field.name)


def require_length(text: str, fewest: int, most: int, field: str) -> str:
    """
    Return a text of a length that may be sent.

    Raises:
        MalformedMessage: It has fewer or more characters.
    """
    if not fewest <= len(text) <= most:
        raise MalformedMessage(
            f"{field} has {len(text)} characters, needed are {fewest} to {most}", field=field
        )
    if "\0" in text:
        raise MalformedMessage(
            f"{field} holds a NUL character, which no database keeps: leave it out", field=field
        )
    return text


def require_finite_values(values: Mapping[str, float], field: str) -> dict[str, float]:
    """
    Return named numbers, each of which is one.

    Raises:
        MalformedMessage: One is infinite or NaN.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise MalformedMessage(f"{field} of {name!r} is {value}, not a number", field=field)
    return dict(values)


def told_drifts(drift: Mapping[str, float]) -> dict[str, float]:
    """Choose the drifts that are told: the largest, at most ``MAX_TOLD_DRIFTS``."""
    if len(drift) <= MAX_TOLD_DRIFTS:
        return dict(drift)
    largest_first = sorted(drift, key=lambda task_id: (-drift[task_id], task_id))
    return {task_id: drift[task_id] for task_id in largest_first[:MAX_TOLD_DRIFTS]}


def time_to_pb(moment: datetime) -> Timestamp:
    """Write a moment."""
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def time_from_pb(message: Timestamp, field: str) -> datetime:
    """
    Read a moment, in UTC.

    Raises:
        MalformedMessage: It lies outside of what a calendar has.
    """
    try:
        return message.ToDatetime(tzinfo=timezone.utc)
    except (ValueError, OverflowError) as exc:
        raise MalformedMessage(f"{field} is no time: {exc}", field=field) from exc


def optional_time_to_pb(moment: datetime | None) -> Timestamp | None:
    """Write a moment that may not be."""
    return None if moment is None else time_to_pb(moment)


def optional_time_from_pb(message: Message, field: str) -> datetime | None:
    """
    Read a field that may hold a moment.

    Raises:
        MalformedMessage: It lies outside of what a calendar has.
    """
    return time_from_pb(getattr(message, field), field) if message.HasField(field) else None


def duration_to_pb(seconds: float) -> Duration:
    """Write a duration."""
    message = Duration()
    message.FromTimedelta(timedelta(seconds=seconds))
    return message


def seconds_from_pb(message: Duration) -> float:
    """Read a duration, in seconds."""
    return (message.seconds * 10**9 + message.nanos) / 10**9

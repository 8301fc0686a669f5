"""
The one table between errors and gRPC statuses, used in both directions.

An error crosses as its status, its message as the status' details, and itself,
with its fields, as an ``ErrorDetail`` in the trailing metadata. What comes without
such a detail was not said by a coordinator of ours, and is told by its code.
"""

import inspect
from typing import TypeAlias

import grpc
from google.protobuf.message import DecodeError

from share_dist import errors
from share_dist.core.values import WIRE_VERSION
from share_dist.errors import (
    CoordinatorUnreachable,
    DeadlineExceeded,
    Detail,
    MessageTooLarge,
    Overloaded,
    ShareError,
    UnexpectedStatus,
    UnsupportedWireVersion,
)
from share_dist.pb import error_pb2 as pb

DETAIL_KEY = "share-dist-error-bin"
"""Key of the trailing metadata that holds an ``ErrorDetail``."""

Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]

FOREIGN_RETRY_SECONDS = 1.0
"""How long to wait when gRPC itself, not a coordinator of ours, says that it is overloaded."""

_INTEGERS = range(-(2**63), 2**63)  # what protobuf's sint64 can say

# gRPC takes about 8 KiB of metadata in all, after percent- and base64-coding.
_MAX_DETAILS_BYTES = 500
_MAX_MESSAGE_BYTES = 2000
_MAX_TEXT_BYTES = 500

_ERRORS: dict[str, type[ShareError]] = {
    name: value
    for name, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, ShareError)
}


def status_of(error: ShareError) -> grpc.StatusCode | None:
    """Tell an error's gRPC status; None for one that never crosses the wire."""
    return None if error.status is None else grpc.StatusCode[error.status]


def error_to_trailers(error: ShareError) -> tuple[grpc.StatusCode, str, Metadata]:
    """
    Say an error as gRPC says it: code, details, trailing metadata, as ``context.abort`` takes them.

    An error without a status of its own is sent as INTERNAL.
    """
    code = status_of(error) or grpc.StatusCode.INTERNAL
    detail = _error_to_pb(error).SerializeToString(deterministic=True)
    return code, _shorten(error.message, _MAX_DETAILS_BYTES), ((DETAIL_KEY, detail),)


def error_from_rpc(
    rpc_error: grpc.RpcError, *, address: str, attempts: int = 1, seconds: float = 0.0
) -> ShareError:
    """
    Tell what a failed call means.

    Args:
        rpc_error: What grpc raised.
        address: Whom was called.
        attempts: How often, so far.
        seconds: How long, so far.

    Returns:
        The error that the coordinator sent, with its fields; or what the bare
        status means when it was sent by something else on the way.
    """
    for key, value in rpc_error.trailing_metadata() or ():
        if key == DETAIL_KEY:
            error = _error_from_detail(value)
            if error is not None:
                return error
    return _foreign_error(rpc_error.code(), rpc_error.details() or "", address, attempts, seconds)


def _error_to_pb(error: ShareError) -> pb.ErrorDetail:
    return pb.ErrorDetail(
        name=type(error).__name__,
        message=_shorten(error.message, _MAX_MESSAGE_BYTES),
        fields={name: _value_to_pb(value) for name, value in error.details.items()},
    )


def _value_to_pb(value: Detail) -> pb.DetailValue:
    if isinstance(value, int):
        return pb.DetailValue(integer=min(max(value, _INTEGERS[0]), _INTEGERS[-1]))
    if isinstance(value, float):
        return pb.DetailValue(number=value)
    return pb.DetailValue(text=_shorten(value, _MAX_TEXT_BYTES))


def _error_from_detail(data: bytes) -> ShareError | None:
    """The error inside; None when it is no detail, or of a class that only a newer peer knows."""
    try:
        detail = pb.ErrorDetail.FromString(data)
    except DecodeError:
        return None
    kind = _ERRORS.get(detail.name)
    if kind is None:
        return None
    fields = {name: _value_from_pb(value) for name, value in detail.fields.items()}
    known = {
        name: value
        for name, value in fields.items()
        if name in kind.fields and isinstance(value, kind.fields[name])
    }
    return kind(detail.message, **known)


def _value_from_pb(value: pb.DetailValue) -> Detail | None:
    name = value.WhichOneof("value")
    return None if name is None else getattr(value, name)


def _foreign_error(
    code: grpc.StatusCode, details: str, address: str, attempts: int, seconds: float
) -> ShareError:
    said = f"{code.name}: {details}" if details else code.name
    if code is grpc.StatusCode.UNAVAILABLE:
        return CoordinatorUnreachable(
            f"no coordinator answers at {address} after {attempts} attempts in {seconds:.1f} s "
            f"({said}): see that it runs and that the address is right",
            address=address,
            attempts=attempts,
            seconds=seconds,
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(
            f"the coordinator at {address} did not finish in {seconds:.1f} s: give it more time, "
            "or ask for its status",
            address=address,
            seconds=seconds,
        )
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return UnsupportedWireVersion(
            f"{address} does not know this call ({said}): it is no coordinator of share-dist, or "
            "one of another release",
            supported=WIRE_VERSION,
        )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        if "larger than max" in details:
            return MessageTooLarge(f"a single message is too large for {address} ({said})")
        return Overloaded(
            f"{address} takes no more calls at present ({said}): "
            f"try again in {FOREIGN_RETRY_SECONDS:.0f} s",
            retry_after_seconds=FOREIGN_RETRY_SECONDS,
        )
    return UnexpectedStatus(
        f"{address} answered with gRPC status {said}, and with no error of share-dist: see the "
        "coordinator's log, and what lies between you and it",
        address=address,
        code=code.name,
    )


def _shorten(text: str, max_bytes: int) -> str:
    encoded = text.encode(errors="replace")
    if len(encoded) <= max_bytes:
        return encoded.decode()
    return encoded[: max_bytes - 3].decode(errors="ignore") + "..."

"""The stub of the coordinator's service, with streams that carry large payloads as they are."""

from typing import Any

import grpc

from share_dist.pb import coordinator_pb2 as pb
from share_dist.pb.coordinator_pb2_grpc import CoordinatorStub
from share_dist.wire.frames import reader

_SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Coordinator"].full_name


def coordinator_stub(channel: grpc.Channel) -> Any:
    """
    Make the stub that all calls to a coordinator go through.

    ``PushUpdate`` takes messages that are written already, ``PullSubspace`` and ``PullTask`` give
    a ``LentChunk`` for each chunk; the rest is as it was generated.
    """
    stub: Any = CoordinatorStub(channel)  # type: ignore[no-untyped-call]
    stub.PushUpdate = channel.stream_unary(
        f"/{_SERVICE_NAME}/PushUpdate", response_deserializer=pb.Receipt.FromString
    )
    stub.PullSubspace = channel.unary_stream(
        f"/{_SERVICE_NAME}/PullSubspace",
        request_serializer=pb.PullSubspaceRequest.SerializeToString,
        response_deserializer=reader(pb.PullSubspaceResponse),
    )
    stub.PullTask = channel.unary_stream(
        f"/{_SERVICE_NAME}/PullTask",
        request_serializer=pb.PullTaskRequest.SerializeToString,
        response_deserializer=reader(pb.PullTaskResponse),
    )
    return stub

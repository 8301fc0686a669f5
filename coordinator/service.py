"""The gRPC service: decode, call a handler, encode; nothing else."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from typing_extensions import override

from coordinator import handlers
from coordinator.answering import Servicer, answering
from coordinator.state import Call, Coordinator
from coordinator.versions import ServedPayload
from share_dist.core.values import Fingerprint
from share_dist.errors import MalformedMessage
from share_dist.pb import coordinator_pb2 as pb
from share_dist.pb import coordinator_pb2_grpc as pb_grpc
from share_dist.wire import codec
from share_dist.wire.chunks import ChunkJoiner
from share_dist.wire.records import Role

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Coordinator"].full_name

ROLE_NEEDED: Mapping[str, Role] = {
    "Register": "worker",
    "Heartbeat": "worker",
    "PushUpdate": "worker",
    "GetUpload": "worker",
    "PullSubspace": "reader",
    "PullTask": "reader",
    "ListTasks": "reader",
    "WatchVersions": "reader",
    "GetStatus": "reader",
}
"""What a caller must be in the subspace that it names."""


async def attach(server: grpc.aio.Server, coordinator: Coordinator) -> health.aio.HealthServicer:
    """
    Put the coordinator's service, health and reflection on a server.

    Returns:
        The health service; it says SERVING once the server does.
    """
    coordinator_service = CoordinatorService(coordinator)
    pb_grpc.add_CoordinatorServicer_to_server(coordinator_service, server)  # type: ignore[no-untyped-call]
    # in place of two generated ones, which would serialise every chunk anew for every reader
    server.add_registered_method_handlers(SERVICE_NAME, _payload_handlers(coordinator_service))
    health_service = health.aio.HealthServicer()
    await health_service.set(SERVICE_NAME, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    return health_service


def _payload_handlers(
    coordinator_service: "CoordinatorService",
) -> "dict[str, grpc.RpcMethodHandler[Any, Any]]":
    """Let the calls that send payloads yield messages that are serialised already."""
    streams = {
        "PullSubspace": (coordinator_service.PullSubspace, pb.PullSubspaceRequest),
        "PullTask": (coordinator_service.PullTask, pb.PullTaskRequest),
    }
    return {
        name: grpc.unary_stream_rpc_method_handler(method, request_deserializer=request.FromString)
        for name, (method, request) in streams.items()
    }


class CoordinatorService(Servicer, pb_grpc.CoordinatorServicer):
    """The protocol's methods, under the protocol's names."""

    @override
    @answering
    async def Register(self, request: pb.RegisterRequest, context: Any) -> pb.RegisterResponse:
        fingerprint = (
            codec.fingerprint_from_pb(request.fingerprint)
            if request.HasField("fingerprint")
            else None
        )
        worker_id = codec.require_id(request.worker_id, "worker_id")
        principal = self.let_in(context, request.subspace, ROLE_NEEDED["Register"])
        await handlers.open_lineage(self._coordinator, principal, request.subspace)
        call = self._call("Register", request, context)
        return codec.lease_to_pb(await handlers.register(call, worker_id, fingerprint))

    @override
    @answering
    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Any) -> pb.HeartbeatResponse:
        lease = await handlers.heartbeat(
            self._call("Heartbeat", request, context), request.worker_id, request.lease_epoch
        )
        return codec.heartbeat_to_pb(lease)

    @override
    @answering
    async def PushUpdate(
        self, requests: AsyncIterator[pb.PushUpdateRequest], context: Any
    ) -> pb.Receipt:
        header = await _push_header(requests)
        call = self._call("PushUpdate", header, context)
        push = await _receive_push(header, requests, call)
        return codec.receipt_to_pb(await handlers.push_update(call, push))

    @override
    @answering
    async def PullSubspace(
        self, request: pb.PullSubspaceRequest, context: Any
    ) -> AsyncIterator[bytes]:
        served = await handlers.pull_subspace(
            self._call("PullSubspace", request, context),
            _optional(request, "version"),
            _optional(request, "held_version"),
            request.held_digest,
        )
        sent = served.served or ServedPayload.of(b"")
        header = pb.PullSubspaceResponse(
            header=pb.SubspaceHeader(
                version=served.version,
                not_modified=served.served is None,
                fingerprint=_optional_fingerprint(served.fingerprint),
                payload=sent.header,
                digest=served.digest,
                store_id=self._coordinator.catalog.store_id,
            )
        )
        yield header.SerializeToString()
        for message in sent.messages:
            yield message

    @override
    @answering
    async def PullTask(self, request: pb.PullTaskRequest, context: Any) -> AsyncIterator[bytes]:
        served = await handlers.pull_task(
            self._call("PullTask", request, context),
            codec.require_id(request.task_id, "task_id"),
            _optional(request, "version"),
        )
        header = pb.PullTaskResponse(
            header=pb.TaskHeader(
                task=codec.task_summary_to_pb(served.summary),
                version=served.version,
                payload=served.served.header,
            )
        )
        yield header.SerializeToString()
        for message in served.served.messages:
            yield message

    @override
    @answering
    async def ListTasks(self, request: pb.ListTasksRequest, context: Any) -> pb.ListTasksResponse:
        summaries, version = await handlers.list_tasks(self._call("ListTasks", request, context))
        tasks = [codec.task_summary_to_pb(summary) for summary in summaries]
        return pb.ListTasksResponse(tasks=tasks, current_version=version)

    @override
    @answering
    async def WatchVersions(
        self, request: pb.WatchVersionsRequest, context: Any
    ) -> AsyncIterator[pb.VersionEvent]:
        call = self._call("WatchVersions", request, context)
        after_version = _optional(request, "after_version")
        async for event in handlers.watch_versions(call, after_version, request.after_digest):
            # a watch lasts: what its caller was let in with may have ended since
            self._coordinator.access.require_still(call.principal)
            yield codec.version_event_to_pb(event)

    @override
    @answering
    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        return codec.status_to_pb(
            await handlers.get_status(self._call("GetStatus", request, context))
        )

    def _call(self, rpc: str, request: Any, context: Any) -> Call:
        """Say who calls, and on which named subspace."""
        principal = self.let_in(context, request.subspace, ROLE_NEEDED[rpc])
        lineage = self._coordinator.lineages.get(request.subspace)
        return Call(self._coordinator, lineage, principal, context.peer())


async def _push_header(requests: AsyncIterator[pb.PushUpdateRequest]) -> pb.UpdateHeader:
    first = await anext(requests, None)
    if first is None or first.WhichOneof("part") != "header":
        raise MalformedMessage("a push begins with its header: send it first", field="header")
    return first.header


async def _receive_push(
    header: pb.UpdateHeader, requests: AsyncIterator[pb.PushUpdateRequest], call: Call
) -> handlers.Push:
    joiner = ChunkJoiner(header.payload, call.lineage.config.max_update_bytes)
    await handlers.announce_push(call, _announced(header))
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise MalformedMessage("after its header a push has chunks only", field="chunk")
        joiner.add(request.chunk)
    payload = joiner.finish()
    # in a thread: reading the tensors of a large update would stop all other calls
    update = await asyncio.to_thread(codec.update_from_wire, header, payload)
    return handlers.Push(
        update=update,
        payload=payload,
        base_digest=header.base_digest,
        worker_id=header.worker_id,
        fingerprint_digest=header.fingerprint_digest,
        wait=codec.wait_from_pb(header.wait),
    )


def _announced(header: pb.UpdateHeader) -> handlers.AnnouncedPush:
    return handlers.AnnouncedPush(
        update_id=codec.require_id(header.update_id, "update_id"),
        task_id=codec.require_id(header.task_id, "task_id"),
        worker_id=codec.require_id(header.worker_id, "worker_id"),
        lease_epoch=header.lease_epoch,
        base_version=header.base_version,
        fingerprint_digest=header.fingerprint_digest,
        base_digest=header.base_digest,
    )


def _optional(request: Any, field: str) -> int | None:
    return getattr(request, field) if request.HasField(field) else None


def _optional_fingerprint(fingerprint: Fingerprint | None) -> pb.Fingerprint | None:
    return None if fingerprint is None else codec.fingerprint_to_pb(fingerprint)

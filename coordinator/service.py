"""The gRPC service: decode, call a handler, encode; nothing else."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from typing_extensions import override

from coordinator import handlers, pulling, streams
from coordinator.admin_service import ADMIN_SERVICE_NAME, AdminService
from coordinator.answering import Servicer, answering
from coordinator.state import Call, Coordinator
from coordinator.versions import Form
from share_dist.errors import MessageTooLarge
from share_dist.pb import admin_pb2_grpc as pb_admin_grpc
from share_dist.pb import coordinator_pb2 as pb
from share_dist.pb import coordinator_pb2_grpc as pb_grpc
from share_dist.wire import codec
from share_dist.wire.checks import MAX_ID_CHARACTERS, require_length
from share_dist.wire.chunks import cut
from share_dist.wire.frames import reader
from share_dist.wire.options import MAX_MESSAGE_BYTES
from share_dist.wire.records import Role, TaskSummary

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


MAX_PAGE_BYTES = MAX_MESSAGE_BYTES // 2
"""Bytes of tasks in one message, at most."""

_BYTES_OF_A_FIELD = 8
_SHARE_OF_DEADLINE = 0.8
"""Share of a call's time that it may spend waiting for a version: the rest is for the answer."""


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
    pb_admin_grpc.add_AdminServicer_to_server(AdminService(coordinator), server)  # type: ignore[no-untyped-call]
    health_service = health.aio.HealthServicer()
    await health_service.set(SERVICE_NAME, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    names = (SERVICE_NAME, ADMIN_SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    return health_service


def _payload_handlers(
    coordinator_service: "CoordinatorService",
) -> "dict[str, grpc.RpcMethodHandler[Any, Any]]":
    """Let the calls that carry payloads write messages that are serialised already, and read chunks in place."""
    methods: dict[str, tuple[Any, Any]] = {
        "PullSubspace": (coordinator_service.PullSubspace, pb.PullSubspaceRequest),
        "PullTask": (coordinator_service.PullTask, pb.PullTaskRequest),
    }
    push = grpc.stream_unary_rpc_method_handler(
        coordinator_service.PushUpdate,
        request_deserializer=reader(pb.PushUpdateRequest),
        response_serializer=pb.Receipt.SerializeToString,
    )
    return {
        name: grpc.unary_stream_rpc_method_handler(method, request_deserializer=request.FromString)
        for name, (method, request) in methods.items()
    } | {"PushUpdate": push}


class CoordinatorService(Servicer, pb_grpc.CoordinatorServicer):
    """The protocol's methods, under the protocol's names."""

    @override
    @answering
    async def Register(self, request: pb.RegisterRequest, context: Any) -> pb.RegisterResponse:
        principal = self.let_in(context, request.subspace, ROLE_NEEDED["Register"])
        fingerprint = (
            codec.fingerprint_from_pb(request.fingerprint)
            if request.HasField("fingerprint")
            else None
        )
        worker_id = codec.require_id(request.worker_id, "worker_id")
        await handlers.open_lineage(self._coordinator, principal, request.subspace)
        call = self._call("Register", request, context)
        return codec.lease_to_pb(await handlers.register(call, worker_id, fingerprint))

    @override
    @answering
    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Any) -> pb.HeartbeatResponse:
        call = self._call("Heartbeat", request, context)
        worker_id = codec.require_id(request.worker_id, "worker_id")
        lease = await handlers.heartbeat(call, worker_id, request.lease_epoch)
        return codec.heartbeat_to_pb(lease)

    @override
    @answering
    async def PushUpdate(
        self, requests: AsyncIterator[pb.PushUpdateRequest], context: Any
    ) -> pb.Receipt:
        # a stranger's header is not waited for
        self._coordinator.access.identify(context)
        header = await streams.header_of(requests, self._coordinator.config)
        call = self._call("PushUpdate", header, context)
        async with streams.receiving(call, header, requests) as push:
            record = await handlers.keep_update(call, push)
        # the payload is let go of here: a merge may be waited for long
        return codec.receipt_to_pb(await handlers.answer_push(call, record, push.wait))

    @override
    @answering
    async def GetUpload(self, request: pb.GetUploadRequest, context: Any) -> pb.GetUploadResponse:
        call = self._call("GetUpload", request, context)
        update_id = codec.require_id(request.update_id, "update_id")
        sha256 = codec.require_digest_bytes(request.sha256, "sha256")
        progress = await handlers.upload_progress(call, update_id, sha256)
        return codec.upload_progress_to_pb(progress)

    @override
    @answering
    async def PullSubspace(self, request: pb.PullSubspaceRequest, context: Any) -> None:
        call = self._call("PullSubspace", request, context)
        served = await pulling.pull_subspace(call, _wanted(request, context))
        header = pb.PullSubspaceResponse(
            header=pb.SubspaceHeader(
                version=served.version,
                not_modified=served.served is None,
                fingerprint=codec.optional_fingerprint_to_pb(served.fingerprint),
                payload=served.served.header if served.served else cut(b"").header,
                digest=served.digest,
                store_id=self._coordinator.catalog.store_id,
                precision=codec.precision_to_pb(served.form.precision),
                precision_loss=served.served.loss if served.served else 0.0,
                has_tail=served.form.with_tail,
                rotated_from_version=served.rotated_from,
                chain=served.chain,
            )
        )
        await streams.send(call, context, "PullSubspace", header.SerializeToString(), served.served)

    @override
    @answering
    async def PullTask(self, request: pb.PullTaskRequest, context: Any) -> None:
        call = self._call("PullTask", request, context)
        served = await pulling.pull_task(
            call,
            codec.require_id(request.task_id, "task_id"),
            _optional(request, "version"),
            codec.precision_from_pb(request.precision),
        )
        header = pb.PullTaskResponse(
            header=pb.TaskHeader(
                task=codec.task_summary_to_pb(served.summary),
                version=served.version,
                payload=served.served.header,
                precision=request.precision,
                precision_loss=served.served.loss,
                digest=served.digest,
            )
        )
        await streams.send(call, context, "PullTask", header.SerializeToString(), served.served)

    @override
    @answering
    async def ListTasks(self, request: pb.ListTasksRequest, context: Any) -> pb.ListTasksResponse:
        call = self._call("ListTasks", request, context)
        # one more than a page tells whether there is another
        limit = request.page_size + 1 if request.page_size else 0
        after = require_length(request.page_token, 0, MAX_ID_CHARACTERS, "page_token")
        summaries, version = await pulling.list_tasks(call, after, limit)
        return await asyncio.to_thread(_task_page, summaries, request.page_size, version)

    @override
    @answering
    async def WatchVersions(
        self, request: pb.WatchVersionsRequest, context: Any
    ) -> AsyncIterator[pb.VersionEvent]:
        call = self._call("WatchVersions", request, context)
        after_version = _optional(request, "after_version")
        async for event in pulling.watch_versions(
            call, after_version, codec.require_hex_digest(request.after_digest, "after_digest")
        ):
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


def _wanted(request: pb.PullSubspaceRequest, context: Any) -> pulling.Wanted:
    held_chain = codec.require_digest_bytes(request.held_chain, "held_chain")
    # gRPC says None, or a very long time, where the caller set no deadline
    patience_seconds = (context.time_remaining() or pulling.MAX_WAIT_SECONDS) * _SHARE_OF_DEADLINE
    return pulling.Wanted(
        version=_optional(request, "version"),
        held_version=_optional(request, "held_version"),
        held_digest=codec.require_hex_digest(request.held_digest, "held_digest"),
        min_version=_optional(request, "min_version"),
        form=Form(codec.precision_from_pb(request.precision), request.with_tail),
        held_chain=held_chain if request.accept_rotation else b"",
        patience_seconds=min(patience_seconds, pulling.MAX_WAIT_SECONDS),
        worker_id=codec.require_id(request.worker_id, "worker_id") if request.worker_id else "",
        lease_epoch=request.lease_epoch,
    )


def _task_page(
    summaries: Sequence[TaskSummary], page_size: int, version: int
) -> pb.ListTasksResponse:
    """Write as many tasks as one message holds; all of them, where no page was asked for."""
    response, num_bytes = pb.ListTasksResponse(current_version=version), 0
    for summary in summaries[: page_size or len(summaries)]:
        task = codec.task_summary_to_pb(summary)
        num_bytes += task.ByteSize() + _BYTES_OF_A_FIELD
        if num_bytes > MAX_PAGE_BYTES:
            break
        response.tasks.append(task)
    if len(response.tasks) == len(summaries):
        return response
    if not page_size:
        raise MessageTooLarge(
            f"{len(summaries)} tasks do not fit into one message: list them in pages, with a page_size",
            size_bytes=num_bytes,
            limit_bytes=MAX_PAGE_BYTES,
        )
    response.next_page_token = response.tasks[-1].task_id
    return response


def _optional(request: Any, field: str) -> int | None:
    return getattr(request, field) if request.HasField(field) else None

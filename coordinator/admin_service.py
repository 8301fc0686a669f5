"""The gRPC service for operators: decode, call a function of ``administration``, encode; nothing else."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from google.protobuf.message import Message
from typing_extensions import override

from coordinator import administration, administration_tokens
from coordinator.access import EVERY_SUBSPACE
from coordinator.answering import Servicer, answering
from coordinator.state import Call
from share_dist.pb import admin_pb2 as pb
from share_dist.pb import admin_pb2_grpc as pb_grpc
from share_dist.pb import coordinator_pb2
from share_dist.wire import codec
from share_dist.wire.records import Role

ADMIN_SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Admin"].full_name

ADMIN_ROLE_NEEDED: Mapping[str, Role] = {
    "ListVersions": "reader",
    "DiffVersions": "reader",
    "GetTaskHistory": "reader",
    "Rollback": "admin",
    "Compact": "admin",
    # and the task must be the caller's own, or the caller an administrator
    "RemoveTask": "worker",
    "ListUpdates": "admin",
    "InspectUpdate": "admin",
    "ReplayUpdate": "admin",
    "DropUpdate": "admin",
}
"""What a caller must be in the subspace that it names."""

MAX_ANSWER_BYTES = 8 * 2**20
"""A list is cut short of this; whoever asks goes on from its last line."""

MessageT = TypeVar("MessageT", bound=Message)


class AdminService(Servicer, pb_grpc.AdminServicer):
    """The protocol's methods for operators, under the protocol's names."""

    @override
    @answering
    async def ListSubspaces(
        self, request: pb.ListSubspacesRequest, context: Any
    ) -> pb.ListSubspacesResponse:
        principal = self._coordinator.access.identify(context)
        found = await administration.list_subspaces(self._coordinator, principal)
        return pb.ListSubspacesResponse(subspaces=map(codec.subspace_summary_to_pb, found))

    @override
    @answering
    async def ListVersions(
        self, request: pb.ListVersionsRequest, context: Any
    ) -> pb.ListVersionsResponse:
        call = self._call("ListVersions", request, context)
        after_version = codec.require_count(request.after_version, "after_version")
        found, current = await administration.list_versions(call, after_version, request.page_size)
        return pb.ListVersionsResponse(
            versions=fitting(map(codec.version_summary_to_pb, found)), current_version=current
        )

    @override
    @answering
    async def DiffVersions(self, request: pb.DiffVersionsRequest, context: Any) -> pb.VersionDiff:
        call = self._call("DiffVersions", request, context)
        version_a = codec.require_count(request.version_a, "version_a")
        version_b = codec.require_count(request.version_b, "version_b")
        return codec.version_diff_to_pb(
            await administration.diff_versions(call, version_a, version_b)
        )

    @override
    @answering
    async def GetTaskHistory(
        self, request: pb.GetTaskHistoryRequest, context: Any
    ) -> pb.TaskHistory:
        call = self._call("GetTaskHistory", request, context)
        task_id = codec.require_id(request.task_id, "task_id")
        return codec.task_history_to_pb(await administration.task_history(call, task_id))

    @override
    @answering
    async def Rollback(
        self, request: pb.RollbackRequest, context: Any
    ) -> coordinator_pb2.VersionEvent:
        call = self._call("Rollback", request, context)
        version = codec.require_count(request.version, "version")
        reason = codec.require_reason(request.reason)
        return codec.version_event_to_pb(await administration.rollback(call, version, reason))

    @override
    @answering
    async def Compact(self, request: pb.CompactRequest, context: Any) -> pb.CompactResponse:
        call = self._call("Compact", request, context)
        return codec.compaction_to_pb(
            await administration.compact(call, request.keep_versions, dry_run=request.dry_run)
        )

    @override
    @answering
    async def RemoveTask(
        self, request: pb.RemoveTaskRequest, context: Any
    ) -> pb.RemoveTaskResponse:
        call = self._call("RemoveTask", request, context)
        worker_id = codec.require_id(request.worker_id, "worker_id") if request.worker_id else ""
        return codec.removal_to_pb(
            await administration.remove_task(
                call,
                codec.require_id(request.task_id, "task_id"),
                codec.require_reason(request.reason),
                worker_id,
            )
        )

    @override
    @answering
    async def ListUpdates(
        self, request: pb.ListUpdatesRequest, context: Any
    ) -> pb.ListUpdatesResponse:
        found = await administration.list_updates(
            self._call("ListUpdates", request, context),
            codec.update_states_from_pb(request.states),
            codec.require_count(request.before_sequence, "before_sequence"),
            request.page_size,
        )
        return pb.ListUpdatesResponse(updates=fitting(map(codec.update_summary_to_pb, found)))

    @override
    @answering
    async def InspectUpdate(
        self, request: pb.InspectUpdateRequest, context: Any
    ) -> pb.UpdateInspection:
        call = self._call("InspectUpdate", request, context)
        update_id = codec.require_id(request.update_id, "update_id")
        return codec.update_inspection_to_pb(await administration.inspect_update(call, update_id))

    @override
    @answering
    async def ReplayUpdate(
        self, request: pb.ReplayUpdateRequest, context: Any
    ) -> coordinator_pb2.Receipt:
        call = self._call("ReplayUpdate", request, context)
        update_id = codec.require_id(request.update_id, "update_id")
        reason = codec.require_reason(request.reason)
        return codec.receipt_to_pb(await administration.replay_update(call, update_id, reason))

    @override
    @answering
    async def DropUpdate(
        self, request: pb.DropUpdateRequest, context: Any
    ) -> coordinator_pb2.Receipt:
        call = self._call("DropUpdate", request, context)
        update_id = codec.require_id(request.update_id, "update_id")
        reason = codec.require_reason(request.reason)
        return codec.receipt_to_pb(await administration.drop_update(call, update_id, reason))

    @override
    @answering
    async def CreateToken(
        self, request: pb.CreateTokenRequest, context: Any
    ) -> pb.CreateTokenResponse:
        principal = self._coordinator.access.identify(context)
        token, secret = await administration_tokens.create_token(
            self._coordinator, principal, codec.token_request_from_pb(request)
        )
        return pb.CreateTokenResponse(token=codec.token_to_pb(token), secret=secret)

    @override
    @answering
    async def ListTokens(
        self, request: pb.ListTokensRequest, context: Any
    ) -> pb.ListTokensResponse:
        principal = self._coordinator.access.identify(context)
        tokens = await administration_tokens.list_tokens(self._coordinator, principal)
        return pb.ListTokensResponse(tokens=map(codec.token_to_pb, tokens))

    @override
    @answering
    async def RevokeToken(self, request: pb.RevokeTokenRequest, context: Any) -> pb.Token:
        principal = self._coordinator.access.identify(context)
        token_id = codec.require_id(request.token_id, "token_id")
        return codec.token_to_pb(
            await administration_tokens.revoke_token(self._coordinator, principal, token_id)
        )

    @override
    @answering
    async def ListAudit(self, request: pb.ListAuditRequest, context: Any) -> pb.ListAuditResponse:
        access = self._coordinator.access
        # the log tells of every subspace
        access.require_admin(access.identify(context), (EVERY_SUBSPACE,))
        after_sequence = codec.require_count(request.after_sequence, "after_sequence")
        is_from_end = request.HasField("before_sequence")
        before_sequence = codec.require_count(request.before_sequence, "before_sequence")
        found = await administration.list_audit(
            self._coordinator,
            after_sequence,
            request.page_size,
            before_sequence if is_from_end else None,
        )
        if is_from_end:
            # cut short at its older end, from which whoever asks goes on
            newest_first = fitting(map(codec.audit_entry_to_pb, reversed(found)))
            return pb.ListAuditResponse(entries=reversed(newest_first))
        return pb.ListAuditResponse(entries=fitting(map(codec.audit_entry_to_pb, found)))

    def _call(self, rpc: str, request: Any, context: Any) -> Call:
        """Say who calls, and on which named subspace."""
        principal = self.let_in(context, request.subspace, ADMIN_ROLE_NEEDED[rpc])
        lineage = self._coordinator.lineages.get(request.subspace)
        return Call(self._coordinator, lineage, principal, context.peer())


def fitting(messages: Iterable[MessageT]) -> list[MessageT]:
    """Return as many messages, from the first on, as one answer holds; at least one if there is one."""
    taken: list[MessageT] = []
    num_bytes = 0
    for message in messages:
        num_bytes += message.ByteSize()
        if taken and num_bytes > MAX_ANSWER_BYTES:
            break
        taken.append(message)
    return taken

"""What an operator asks of a coordinator, blocking until it is answered."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar, final

from share_dist.client.caller import Caller
from share_dist.client.credentials import Credentials
from share_dist.client.retry import RetryPolicy
from share_dist.pb import admin_pb2 as pb
from share_dist.pb import coordinator_pb2
from share_dist.pb.admin_pb2_grpc import AdminStub
from share_dist.pb.coordinator_pb2_grpc import CoordinatorStub
from share_dist.wire.codec import (
    audit_entry_from_pb,
    compaction_from_pb,
    receipt_from_pb,
    removal_from_pb,
    require_count,
    require_id,
    require_reason,
    status_from_pb,
    subspace_summary_from_pb,
    task_history_from_pb,
    token_from_pb,
    token_request_to_pb,
    update_inspection_from_pb,
    update_states_to_pb,
    update_summary_from_pb,
    version_diff_from_pb,
    version_event_from_pb,
    version_summary_from_pb,
)
from share_dist.wire.records import (
    DEFAULT_SUBSPACE,
    AuditEntry,
    Compaction,
    CoordinatorStatus,
    Receipt,
    Removal,
    SubspaceSummary,
    TaskMove,
    Token,
    TokenRequest,
    UpdateInspection,
    UpdateState,
    UpdateSummary,
    VersionDiff,
    VersionEvent,
    VersionSummary,
)

RecordT = TypeVar("RecordT")

_MOST = 2**32 - 1
"""Largest number of a field that counts lines or versions."""


@final
class AdminClient(Caller):
    """
    A connection to one coordinator, for its operator. It connects when it is first used.

    Every call may be repeated: what was done the first time is answered, not done again.

    Args:
        address: ``host:port`` of the coordinator.
        subspace: Which of its named subspaces.
        timeout_seconds: Deadline of a call, retries included.
        retry: Waits between attempts.
        credentials: Who this is to the coordinator, and which one it trusts.

    Examples:
        It connects only when something is asked.

        >>> with AdminClient("127.0.0.1:7077") as admin:
        ...     admin.subspace
        'default'
    """

    def __init__(
        self,
        address: str,
        subspace: str = DEFAULT_SUBSPACE,
        *,
        timeout_seconds: float = 60.0,
        retry: RetryPolicy | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        super().__init__(address, timeout_seconds, retry, credentials)
        self.subspace = subspace
        self._stub: Any = AdminStub(self._channel)  # type: ignore[no-untyped-call]
        self._reading: Any = CoordinatorStub(self._channel)  # type: ignore[no-untyped-call]

    # --- what is there ----------------------------------------------------------------------

    def status(self) -> CoordinatorStatus:
        """Ask how the coordinator is."""
        request = coordinator_pb2.GetStatusRequest(subspace=self.subspace)
        return status_from_pb(self._ask(self._reading.GetStatus, request))

    def subspaces(self) -> tuple[SubspaceSummary, ...]:
        """List every named subspace, and what the caller may do there."""
        response = self._ask(self._stub.ListSubspaces, pb.ListSubspacesRequest())
        return tuple(map(subspace_summary_from_pb, response.subspaces))

    def versions(self, after_version: int = 0, limit: int | None = None) -> list[VersionSummary]:
        """
        List versions, oldest first.

        Args:
            after_version: Only those after this one.
            limit: At most so many.
        """

        def page(found: Sequence[VersionSummary], size: int) -> Iterable[VersionSummary]:
            after = found[-1].event.version if found else after_version
            request = pb.ListVersionsRequest(
                after_version=require_count(after, "after_version"),
                page_size=size,
                subspace=self.subspace,
            )
            response = self._ask(self._stub.ListVersions, request)
            return map(version_summary_from_pb, response.versions)

        return _collect(page, limit)

    def diff(self, version_a: int, version_b: int) -> VersionDiff:
        """
        Ask what lies between two versions.

        Raises:
            VersionInFuture: One does not exist yet.
            VersionCompacted: One is no longer kept.
        """
        request = pb.DiffVersionsRequest(
            version_a=require_count(version_a, "version_a"),
            version_b=require_count(version_b, "version_b"),
            subspace=self.subspace,
        )
        return version_diff_from_pb(self._ask(self._stub.DiffVersions, request))

    def task_history(self, task_id: str) -> tuple[TaskMove, ...]:
        """
        Ask how far each version moved a task, oldest first.

        Raises:
            UnknownTask: It was never pushed.
        """
        request = pb.GetTaskHistoryRequest(
            task_id=require_id(task_id, "task_id"), subspace=self.subspace
        )
        return task_history_from_pb(self._ask(self._stub.GetTaskHistory, request))

    def audit(self, after_sequence: int = 0, limit: int | None = None) -> list[AuditEntry]:
        """
        List lines of the audit log, oldest first; of all subspaces.

        Args:
            after_sequence: Only those after this one.
            limit: At most so many.
        """

        def page(found: Sequence[AuditEntry], size: int) -> Iterable[AuditEntry]:
            after = found[-1].sequence if found else after_sequence
            request = pb.ListAuditRequest(
                after_sequence=require_count(after, "after_sequence"), page_size=size
            )
            return map(audit_entry_from_pb, self._ask(self._stub.ListAudit, request).entries)

        return _collect(page, limit)

    def newest_audit(self, limit: int) -> list[AuditEntry]:
        """List the newest lines of the audit log, at most ``limit``, oldest first; of all subspaces."""

        def page(found: Sequence[AuditEntry], size: int) -> Iterable[AuditEntry]:
            before = found[-1].sequence if found else 0
            if before == 1:
                return ()
            request = pb.ListAuditRequest(before_sequence=before, page_size=size)
            entries = self._ask(self._stub.ListAudit, request).entries
            return map(audit_entry_from_pb, reversed(entries))

        return _collect(page, limit)[::-1]

    # --- what is changed --------------------------------------------------------------------

    def rollback(self, version: int, reason: str = "") -> VersionEvent:
        """
        Make a new version with the content of an old one.

        Raises:
            VersionInFuture: There is no such version yet.
            VersionCompacted: It is no longer kept.
            WrongState: It holds a task that was removed since.
            ConfigError: It is the current version.
        """
        request = pb.RollbackRequest(
            version=require_count(version, "version"),
            reason=require_reason(reason),
            subspace=self.subspace,
        )
        return version_event_from_pb(self._ask(self._stub.Rollback, request))

    def compact(self, keep_versions: int, *, dry_run: bool = False) -> Compaction:
        """
        Let go of old versions, but for those that someone still needs, and of payloads of updates.

        Args:
            keep_versions: Keep so many of the newest.
            dry_run: Only say what would go.
        """
        request = pb.CompactRequest(
            keep_versions=min(require_count(keep_versions, "keep_versions"), _MOST),
            dry_run=dry_run,
            subspace=self.subspace,
        )
        return compaction_from_pb(self._ask(self._stub.Compact, request))

    def remove_task(self, task_id: str, reason: str = "", worker_id: str = "") -> Removal:
        """
        Take a task out of the subspace, and drop all updates of it.

        Args:
            task_id: Which.
            reason: Kept with the new version's report.
            worker_id: Who asks, where nobody is authenticated; empty for the operator.

        Raises:
            UnknownTask: It was never pushed, or is gone.
            NotPermitted: It belongs to somebody else.
        """
        request = pb.RemoveTaskRequest(
            task_id=require_id(task_id, "task_id"),
            reason=require_reason(reason),
            worker_id=worker_id,
            subspace=self.subspace,
        )
        return removal_from_pb(self._ask(self._stub.RemoveTask, request))

    # --- updates ----------------------------------------------------------------------------

    def updates(
        self, states: Collection[UpdateState] = (), limit: int | None = None
    ) -> list[UpdateSummary]:
        """
        List updates, newest first; also the last pushes that were refused.

        Args:
            states: Only those in one of these states; empty for all.
            limit: At most so many.
        """

        def page(found: Sequence[UpdateSummary], size: int) -> Iterable[UpdateSummary]:
            if found and found[-1].sequence <= 1:
                return ()
            request = pb.ListUpdatesRequest(
                states=update_states_to_pb(states),
                before_sequence=found[-1].sequence if found else 0,
                page_size=size,
                subspace=self.subspace,
            )
            return map(update_summary_from_pb, self._ask(self._stub.ListUpdates, request).updates)

        return _collect(page, limit)

    def inspect_update(self, update_id: str) -> UpdateInspection:
        """
        Measure an update, and what it alone would do to others; nothing of one without a payload.

        Raises:
            UnknownUpdate: It was never kept.
        """
        request = pb.InspectUpdateRequest(
            update_id=require_id(update_id, "update_id"), subspace=self.subspace
        )
        return update_inspection_from_pb(self._ask(self._stub.InspectUpdate, request))

    def replay_update(self, update_id: str, reason: str = "") -> Receipt:
        """
        Let an update that was set aside or rolled back be merged after all.

        Raises:
            UnknownUpdate: It was never kept.
            WrongState: It was dropped or refused, or a compaction let go of its payload.
            VersionCompacted: The version that it was trained on is no longer kept.
        """
        request = pb.ReplayUpdateRequest(
            update_id=require_id(update_id, "update_id"),
            reason=require_reason(reason),
            subspace=self.subspace,
        )
        return receipt_from_pb(self._ask(self._stub.ReplayUpdate, request))

    def drop_update(self, update_id: str, reason: str = "") -> Receipt:
        """
        Give an update that waits or was set aside up for good.

        Raises:
            UnknownUpdate: It was never kept.
            WrongState: It is merged.
        """
        request = pb.DropUpdateRequest(
            update_id=require_id(update_id, "update_id"),
            reason=require_reason(reason),
            subspace=self.subspace,
        )
        return receipt_from_pb(self._ask(self._stub.DropUpdate, request))

    # --- tokens -----------------------------------------------------------------------------

    def create_token(self, request: TokenRequest) -> tuple[Token, str]:
        """
        Make a token.

        Returns:
            The token, and its secret, which is said this once. Asked again, as when the
            answer is lost, another token is made.
        """
        response = self._ask(self._stub.CreateToken, token_request_to_pb(request))
        return token_from_pb(response.token), response.secret

    def tokens(self) -> tuple[Token, ...]:
        """List every token ever made, oldest first, without secrets."""
        response = self._ask(self._stub.ListTokens, pb.ListTokensRequest())
        return tuple(map(token_from_pb, response.tokens))

    def revoke_token(self, token_id: str) -> Token:
        """
        End a token at once.

        Raises:
            UnknownToken: There is none of this id.
        """
        request = pb.RevokeTokenRequest(token_id=require_id(token_id, "token_id"))
        return token_from_pb(self._ask(self._stub.RevokeToken, request))

    def _ask(self, method: Any, request: Any) -> Any:
        return self._call(lambda seconds: method(request, timeout=seconds))


def _collect(
    page: Callable[[Sequence[RecordT], int], Iterable[RecordT]], limit: int | None
) -> list[RecordT]:
    """Ask for page after page; ``page`` is given what came so far, and how many more are wanted."""
    found: list[RecordT] = []
    while limit is None or len(found) < limit:
        more = list(page(found, 0 if limit is None else min(limit - len(found), _MOST)))
        if not more:
            break
        found += more
    return found

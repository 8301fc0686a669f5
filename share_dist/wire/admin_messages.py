"""
Records of an operator's calls to protobuf messages and back: one ``to``/``from`` pair per record.

Every ``from`` checks what protobuf cannot say, and raises only errors of ours.
"""

from collections.abc import Collection

from share_dist.errors import MalformedMessage
from share_dist.pb import admin_pb2 as pb
from share_dist.pb import coordinator_pb2
from share_dist.wire.checks import (
    MAX_NAME_CHARACTERS,
    optional_time_from_pb,
    optional_time_to_pb,
    require_count,
    require_counts,
    require_id,
    require_length,
    time_from_pb,
    time_to_pb,
    told_drifts,
)
from share_dist.wire.messages import (
    optional_fingerprint_from_pb,
    optional_fingerprint_to_pb,
    receipt_from_pb,
    receipt_to_pb,
    state_from_pb,
    state_to_pb,
    version_event_from_pb,
    version_event_to_pb,
)
from share_dist.wire.records import (
    ROLES,
    AuditEntry,
    Compaction,
    LayerDiff,
    LayerMeasure,
    Removal,
    Role,
    SubspaceSummary,
    TaskMove,
    Token,
    TokenRequest,
    UpdateInspection,
    UpdateState,
    UpdateSummary,
    VersionDiff,
    VersionSummary,
)

MAX_TOKEN_SUBSPACES = 100
"""Most subspaces that one token may name."""


def subspace_summary_to_pb(summary: SubspaceSummary) -> pb.SubspaceSummary:
    """Write one named subspace."""
    return pb.SubspaceSummary(
        name=summary.name,
        fingerprint=optional_fingerprint_to_pb(summary.fingerprint),
        current_version=summary.current_version,
        first_version=summary.first_version,
        num_tasks=summary.num_tasks,
        num_pending=summary.num_pending,
        role=summary.role,
    )


def subspace_summary_from_pb(message: pb.SubspaceSummary) -> SubspaceSummary:
    """Read one named subspace."""
    require_counts(message)
    return SubspaceSummary(
        name=message.name,
        fingerprint=optional_fingerprint_from_pb(message),
        current_version=message.current_version,
        first_version=message.first_version,
        num_tasks=message.num_tasks,
        num_pending=message.num_pending,
        role=message.role,
    )


def version_summary_to_pb(summary: VersionSummary) -> pb.VersionSummary:
    """Write a version in its lineage."""
    return pb.VersionSummary(
        event=version_event_to_pb(summary.event),
        is_kept=summary.is_kept,
        stored_bytes=summary.stored_bytes,
    )


def version_summary_from_pb(message: pb.VersionSummary) -> VersionSummary:
    """Read a version in its lineage."""
    require_counts(message)
    return VersionSummary(
        version_event_from_pb(message.event), message.is_kept, message.stored_bytes
    )


def version_diff_to_pb(diff: VersionDiff) -> pb.VersionDiff:
    """Write what lies between two versions."""
    return pb.VersionDiff(
        version_a=diff.version_a,
        version_b=diff.version_b,
        layers=[
            pb.LayerDiff(
                layer=layer.layer,
                side=layer.side,
                angle=layer.angle,
                num_factors_a=layer.num_factors_a,
                num_factors_b=layer.num_factors_b,
            )
            for layer in diff.layers
        ],
        angle=diff.angle,
        added_task_ids=diff.added_task_ids,
        removed_task_ids=diff.removed_task_ids,
        drift=told_drifts(diff.drift),
        num_moved=diff.num_moved,
    )


def version_diff_from_pb(message: pb.VersionDiff) -> VersionDiff:
    """Read what lies between two versions."""
    require_counts(message)
    return VersionDiff(
        version_a=message.version_a,
        version_b=message.version_b,
        layers=tuple(
            LayerDiff(
                layer=layer.layer,
                side=layer.side,
                angle=layer.angle,
                num_factors_a=layer.num_factors_a,
                num_factors_b=layer.num_factors_b,
            )
            for layer in message.layers
        ),
        angle=message.angle,
        added_task_ids=tuple(message.added_task_ids),
        removed_task_ids=tuple(message.removed_task_ids),
        drift=dict(message.drift),
        num_moved=message.num_moved,
    )


def task_history_to_pb(moves: Collection[TaskMove]) -> pb.TaskHistory:
    """Write how far each version moved one task."""
    return pb.TaskHistory(
        moves=[
            pb.TaskMove(
                version=move.version,
                drift=move.drift,
                is_own_merge=move.is_own_merge,
                update_ids=move.update_ids,
            )
            for move in moves
        ]
    )


def task_history_from_pb(message: pb.TaskHistory) -> tuple[TaskMove, ...]:
    """Read how far each version moved one task."""
    return tuple(
        TaskMove(
            version=require_count(move.version, "version"),
            drift=move.drift,
            is_own_merge=move.is_own_merge,
            update_ids=tuple(move.update_ids),
        )
        for move in message.moves
    )


def compaction_to_pb(compaction: Compaction) -> pb.CompactResponse:
    """Write what compacting did or would do."""
    return pb.CompactResponse(
        versions=compaction.versions,
        freed_bytes=compaction.freed_bytes,
        first_version=compaction.first_version,
        kept=[
            pb.KeptVersion(version=version, reason=reason)
            for version, reason in compaction.kept.items()
        ],
        num_updates=compaction.num_updates,
    )


def compaction_from_pb(message: pb.CompactResponse) -> Compaction:
    """Read what compacting did or would do."""
    require_counts(message)
    return Compaction(
        versions=tuple(message.versions),
        freed_bytes=message.freed_bytes,
        first_version=message.first_version,
        kept={require_count(kept.version, "version"): kept.reason for kept in message.kept},
        num_updates=message.num_updates,
    )


def removal_to_pb(removal: Removal) -> pb.RemoveTaskResponse:
    """Write what taking a task out came to."""
    return pb.RemoveTaskResponse(
        event=version_event_to_pb(removal.event), residue_bound=removal.residue_bound
    )


def removal_from_pb(message: pb.RemoveTaskResponse) -> Removal:
    """Read what taking a task out came to."""
    return Removal(version_event_from_pb(message.event), message.residue_bound)


def update_summary_to_pb(summary: UpdateSummary) -> pb.UpdateSummary:
    """Write one update as the coordinator knows it."""
    return pb.UpdateSummary(
        sequence=summary.sequence,
        receipt=receipt_to_pb(summary.receipt),
        task_id=summary.task_id,
        worker_id=summary.worker_id,
        base_version=summary.base_version,
        pushed_at=time_to_pb(summary.pushed_at),
        update_bytes=summary.update_bytes,
        digest=summary.digest,
        let_go_at=summary.let_go_at,
    )


def update_summary_from_pb(message: pb.UpdateSummary) -> UpdateSummary:
    """Read one update as the coordinator knows it."""
    require_counts(message)
    return UpdateSummary(
        sequence=message.sequence,
        receipt=receipt_from_pb(message.receipt),
        task_id=message.task_id,
        worker_id=message.worker_id,
        base_version=message.base_version,
        pushed_at=time_from_pb(message.pushed_at, "pushed_at"),
        update_bytes=message.update_bytes,
        digest=message.digest,
        let_go_at=message.let_go_at if message.HasField("let_go_at") else None,
    )


def update_inspection_to_pb(inspection: UpdateInspection) -> pb.UpdateInspection:
    """Write one update with its measures."""
    return pb.UpdateInspection(
        update=update_summary_to_pb(inspection.update),
        layers=[
            pb.LayerMeasure(
                layer=layer.layer,
                norm=layer.norm,
                largest_singular=layer.largest_singular,
                smallest_singular=layer.smallest_singular,
                energy_outside=layer.energy_outside,
            )
            for layer in inspection.layers
        ],
        influence=told_drifts(inspection.influence),
    )


def update_inspection_from_pb(message: pb.UpdateInspection) -> UpdateInspection:
    """Read one update with its measures."""
    return UpdateInspection(
        update=update_summary_from_pb(message.update),
        layers=tuple(
            LayerMeasure(
                layer=layer.layer,
                norm=layer.norm,
                largest_singular=layer.largest_singular,
                smallest_singular=layer.smallest_singular,
                energy_outside=layer.energy_outside,
            )
            for layer in message.layers
        ),
        influence=dict(message.influence),
    )


def update_states_to_pb(states: Collection[UpdateState]) -> list[coordinator_pb2.Receipt.State]:
    """Say which updates are asked for."""
    return [state_to_pb(state) for state in states]


def update_states_from_pb(
    values: Collection[coordinator_pb2.Receipt.State],
) -> frozenset[UpdateState]:
    """
    Read which updates are asked for.

    Raises:
        MalformedMessage: One state is none that this release knows.
    """
    return frozenset(state_from_pb(value) for value in values)


def token_request_to_pb(request: TokenRequest) -> pb.CreateTokenRequest:
    """Ask for a token."""
    return pb.CreateTokenRequest(
        principal=request.principal,
        role=request.role,
        subspaces=request.subspaces,
        valid_seconds=request.valid_seconds,
    )


def token_request_from_pb(message: pb.CreateTokenRequest) -> TokenRequest:
    """
    Read which token is asked for.

    Raises:
        MalformedMessage: It has no principal, no known role, or too many subspaces.
    """
    require_counts(message)
    if not 1 <= len(message.subspaces) <= MAX_TOKEN_SUBSPACES:
        raise MalformedMessage(
            f"a token for {len(message.subspaces)} subspaces was asked for, possible are 1 to "
            f'{MAX_TOKEN_SUBSPACES}: name them, or "*" for all',
            field="subspaces",
        )
    return TokenRequest(
        principal=require_id(message.principal, "principal"),
        role=role_from_text(message.role),
        subspaces=tuple(
            require_length(name, 1, MAX_NAME_CHARACTERS, "subspaces") for name in message.subspaces
        ),
        valid_seconds=message.valid_seconds,
    )


def token_to_pb(token: Token) -> pb.Token:
    """Write a token; its secret is no part of it."""
    return pb.Token(
        token_id=token.token_id,
        principal=token.principal,
        role=token.role,
        subspaces=token.subspaces,
        created_at=time_to_pb(token.created_at),
        expires_at=optional_time_to_pb(token.expires_at),
        revoked_at=optional_time_to_pb(token.revoked_at),
    )


def token_from_pb(message: pb.Token) -> Token:
    """Read a token; its secret is no part of it."""
    return Token(
        token_id=message.token_id,
        principal=message.principal,
        role=role_from_text(message.role),
        subspaces=tuple(message.subspaces),
        created_at=time_from_pb(message.created_at, "created_at"),
        expires_at=optional_time_from_pb(message, "expires_at"),
        revoked_at=optional_time_from_pb(message, "revoked_at"),
    )


def audit_entry_to_pb(entry: AuditEntry) -> pb.AuditEntry:
    """Write a line of the audit log."""
    return pb.AuditEntry(
        sequence=entry.sequence,
        at=time_to_pb(entry.at),
        principal=entry.principal,
        action=entry.action,
        subspace=entry.subspace,
        subject=entry.subject,
        digest=entry.digest,
        detail=entry.detail,
    )


def audit_entry_from_pb(message: pb.AuditEntry) -> AuditEntry:
    """Read a line of the audit log."""
    require_counts(message)
    return AuditEntry(
        sequence=message.sequence,
        at=time_from_pb(message.at, "at"),
        principal=message.principal,
        action=message.action,
        subspace=message.subspace,
        subject=message.subject,
        digest=message.digest,
        detail=message.detail,
    )


def role_from_text(text: str) -> Role:
    """
    Read a role.

    Raises:
        MalformedMessage: It is none that this release knows.
    """
    if text in ROLES:
        return text
    raise MalformedMessage(
        f"role {text[:MAX_NAME_CHARACTERS]!r} is not known: known are {', '.join(ROLES)}",
        field="role",
    )

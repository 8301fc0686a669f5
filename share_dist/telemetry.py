"""
The catalogue of events that programs of share-dist log, and how logging is set up.

One id follows an update through all of its life: every event about it carries
``update_id``, from ``update_admitted`` to ``version_committed``. Field names are
those of the glossary; durations end in ``_seconds``, sizes in ``_bytes``.
"""

import contextlib
import enum
import logging
import sys
from typing import Literal, TextIO, TypeAlias, cast

import structlog
from structlog.typing import FilteringBoundLogger, Processor

LogFormat: TypeAlias = Literal["console", "json"]


class Event(str, enum.Enum):
    """Everything that is logged; the value is the ``event`` field of the line."""

    COORDINATOR_READY = "coordinator_ready"
    """Serving: ``address``, ``version``, ``num_pending``."""
    COORDINATOR_STOPPING = "coordinator_stopping"
    """Told to stop: the merge in hand is finished first."""
    COORDINATOR_STOPPED = "coordinator_stopped"
    """All is on disk: ``version``, ``num_pending``."""
    STORE_BOUND = "store_bound"
    """The first worker's fingerprint is now the store's: ``fingerprint_digest``."""
    WORKER_REGISTERED = "worker_registered"
    """``worker_id``, ``lease_epoch``."""
    UPDATE_ADMITTED = "update_admitted"
    """On disk and pending: ``update_id``, ``task_id``, ``worker_id``, ``base_version``, ``update_bytes``."""
    UPDATE_REPEATED = "update_repeated"
    """A push that is already known: ``update_id``, ``state``."""
    UPDATE_REFUSED = "update_refused"
    """Not kept: ``update_id``, ``task_id``, ``error``, ``reason``."""
    UPDATE_QUARANTINED = "update_quarantined"
    """Kept aside for an operator: ``update_id``, ``task_id``, ``reason``."""
    UPDATE_PARKED = "update_parked"
    """It would move a task beyond its drift budget: ``update_id``, ``task_id``, ``reason``."""
    UPDATE_REPLAYED = "update_replayed"
    """Let be merged after all: ``update_id``, ``task_id``, ``principal``, ``reason``."""
    UPDATE_DROPPED = "update_dropped"
    """Given up for good: ``update_id``, ``task_id``, ``principal``, ``reason``."""
    UPDATE_MERGED = "update_merged"
    """``update_id``, ``task_id``, ``version``, ``lag``, ``angle``, ``truncation``."""
    VERSION_COMMITTED = "version_committed"
    """``version``, ``kind``, ``update_ids``, ``task_ids``, ``mean_energy_kept``, ``merge_seconds``, ``reason``."""
    VERSIONS_COMPACTED = "versions_compacted"
    """Old versions were let go of, and payloads of ``num_updates`` updates: ``versions``, ``freed_bytes``, ``kept`` with the reasons."""
    MERGE_POSTPONED = "merge_postponed"
    """A merge failed and no update is to blame: ``error``, ``reason``, ``retry_after_seconds``, traceback."""
    REPORT_FAILED = "report_failed"
    """A version is committed and published, yet counting or logging it failed: traceback."""
    TIDYING_FAILED = "tidying_failed"
    """Old versions could not be let go of, or parked updates not be tried again; merging goes on: traceback."""
    WRITER_FAILED = "writer_failed"
    """A bug of ours ended the merging: the coordinator stops, traceback."""
    RENEWAL_FAILED = "renewal_failed"
    """This process could not renew that it owns the store, and will try again: ``reason``."""
    WATCHER_SLOW = "watcher_slow"
    """A watcher did not keep up and reads history again: ``after_version``."""
    ACCESS_REFUSED = "access_refused"
    """Somebody was not let in: ``action``, ``principal``, ``rpc``, ``reason``; at most 20 a minute of each host."""
    AUDIT_FAILED = "audit_failed"
    """Refusals could not be written into the audit log or remembered: ``num_entries``, ``reason``."""
    TLS_RELOADED = "tls_reloaded"
    """The files of TLS have changed and are used from the next connection on: ``certificate``, ``days_left``."""
    TLS_KEPT = "tls_kept"
    """They have changed and cannot be used, those from before still are: ``reason``."""
    TLS_WARNING = "tls_warning"
    """They can be used, yet someone should see to them: ``reason``."""
    REQUEST_FAILED = "request_failed"
    """A bug of ours met while answering: ``rpc``, ``incident_id``, traceback."""


class _Unfailing:
    """A stream whose lines are lost when its disk is full or its reader gone, as with ``logging``."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def configure_logging(
    log_format: LogFormat = "console", level: str = "INFO", stream: TextIO | None = None
) -> None:
    """
    Send one line per event to a stream.

    Args:
        log_format: ``"json"`` for machines, ``"console"`` for people.
        level: The least severe level that is written, such as ``"INFO"``.
        stream: Standard error when absent, so that standard output stays free for results.
    """
    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        # plain: the default one takes seconds, and writes local variables, tensors too
        else structlog.dev.ConsoleRenderer(
            colors=(stream or sys.stderr).isatty(),
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    tracebacks: list[Processor] = (
        [structlog.processors.format_exc_info] if log_format == "json" else []
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *tracebacks,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(
            cast("TextIO", _Unfailing(stream or sys.stderr))
        ),
        cache_logger_on_first_use=False,
    )


def get_logger(program: str) -> FilteringBoundLogger:
    """
    Return a logger whose lines say which program wrote them.

    Args:
        program: ``"coordinator"`` or ``"worker"``.
    """
    return cast("FilteringBoundLogger", structlog.get_logger(program=program))

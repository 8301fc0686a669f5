"""
How every servicer answers: who calls is let in or not, and what is raised becomes a status.

Whatever a method raises becomes a status in one place, ``Servicer.refuse``.
"""

import functools
import inspect
import uuid
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import grpc

from coordinator.access import Principal
from coordinator.state import Coordinator
from share_dist.errors import ShareError
from share_dist.telemetry import Event
from share_dist.wire.checks import require_subspace
from share_dist.wire.records import Role
from share_dist.wire.status import error_to_trailers, status_of

MethodT = TypeVar("MethodT", bound=Callable[..., Any])


def answering(method: MethodT) -> MethodT:
    """Let a servicer's method raise errors of ours: the peer gets each as its status."""
    if inspect.isasyncgenfunction(method):

        @functools.wraps(method)
        async def stream(self: "Servicer", request: Any, context: Any) -> Any:
            try:
                async for response in method(self, request, context):
                    yield response
            except Exception as error:  # noqa: BLE001 - all are said as a status, none to the peer in full
                await self.refuse(context, method.__name__, error)

        return stream  # type: ignore[return-value]

    @functools.wraps(method)
    async def unary(self: "Servicer", request: Any, context: Any) -> Any:
        try:
            return await method(self, request, context)
        except Exception as error:  # noqa: BLE001 - all are said as a status, none to the peer in full
            return await self.refuse(context, method.__name__, error)

    return unary  # type: ignore[return-value]


class Servicer:
    """What all servicers of a coordinator share."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def let_in(self, context: Any, subspace: str, needed: Role) -> Principal:
        """
        Say who makes a call, if they may.

        Raises:
            NotAuthenticated: Who calls is not known.
            MalformedMessage: The subspace has a name that none can have.
            NotPermitted: Who calls has not the role that the call needs in the subspace.
        """
        access = self._coordinator.access
        principal = access.identify(context)
        # before the subspace is looked for: who has no role there need not hear which ones there are
        access.require(principal, require_subspace(subspace), needed)
        return principal

    async def refuse(self, context: Any, rpc: str, error: Exception) -> NoReturn:
        """End a call with the status of an error; a bug of ours is logged and only named."""
        if isinstance(error, ShareError) and status_of(error) is not None:
            self._coordinator.access.note_refusal(context, rpc, error)
            await context.abort(*error_to_trailers(error))
        incident_id = uuid.uuid4().hex[:12]
        self._coordinator.log.error(
            Event.REQUEST_FAILED.value, rpc=rpc, incident_id=incident_id, exc_info=error
        )
        await context.abort(
            grpc.StatusCode.INTERNAL,
            f"{rpc} failed inside the coordinator: look for incident {incident_id} in its log",
        )
        raise AssertionError("abort always raises")

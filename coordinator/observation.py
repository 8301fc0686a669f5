"""What the metrics say is now: of each named subspace the same as ``GetStatus``."""

import contextlib
from collections.abc import Iterator

from coordinator import handlers
from coordinator.access import LOCAL
from coordinator.metrics import Observation, Observed
from coordinator.state import Call, Coordinator
from coordinator.store.base import Store
from share_dist.errors import StoreError
from share_dist.wire.records import VersionEvent


def observe(coordinator: Coordinator) -> Observation:
    """Read what is now; a named subspace whose store cannot be read now is left out."""
    return Observation(
        tuple(_subspaces(coordinator)),
        coordinator.access.refusals.num_refused,
        coordinator.catalog.counts,
    )


def _subspaces(coordinator: Coordinator) -> Iterator[Observed]:
    for lineage in coordinator.lineages.all():
        with contextlib.suppress(StoreError):
            call = Call(coordinator, lineage, LOCAL, peer="metrics")
            yield Observed(handlers.describe(call), _newest(lineage.store))


def _newest(store: Store) -> VersionEvent | None:
    events = store.events(max(store.current_version - 1, 0), 1)
    return events[0] if events else None

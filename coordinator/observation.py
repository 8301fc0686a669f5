"""What the metrics say of each named subspace: the same as ``GetStatus``, and its newest version."""

import contextlib
from collections.abc import Iterator

from coordinator import handlers
from coordinator.access import Principal
from coordinator.metrics import Observed
from coordinator.state import Call, Coordinator
from coordinator.store.base import COORDINATOR, Store
from share_dist.errors import StoreError
from share_dist.wire.records import VersionEvent


def observe(coordinator: Coordinator) -> Iterator[Observed]:
    """Yield every named subspace as it is now; one whose store cannot be read now is left out."""
    for lineage in coordinator.lineages.all():
        with contextlib.suppress(StoreError):
            call = Call(coordinator, lineage, Principal(COORDINATOR, "local"), peer="metrics")
            yield Observed(handlers.describe(call), _newest(lineage.store))


def _newest(store: Store) -> VersionEvent | None:
    events = store.events(max(store.current_version - 1, 0), 1)
    return events[0] if events else None

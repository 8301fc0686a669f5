"""Where updates and versions are kept: one contract, a body in memory and a durable one."""

from coordinator.store.base import EncodedVersion, Store, UpdateRecord, VersionCommit
from coordinator.store.durable import DurableStore
from coordinator.store.memory import MemoryStore

__all__ = [
    "DurableStore",
    "EncodedVersion",
    "MemoryStore",
    "Store",
    "UpdateRecord",
    "VersionCommit",
]

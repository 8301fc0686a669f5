"""Where updates and versions are kept: one contract, a body in memory and a durable one."""

from coordinator.store.base import Catalog, EncodedVersion, Store, UpdateRecord, VersionCommit
from coordinator.store.durable import open_catalog
from coordinator.store.memory import MemoryCatalog, MemoryStore

__all__ = [
    "Catalog",
    "EncodedVersion",
    "MemoryCatalog",
    "MemoryStore",
    "Store",
    "UpdateRecord",
    "VersionCommit",
    "open_catalog",
]

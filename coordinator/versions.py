"""Versions at hand: the few that are asked for most are kept in memory, beside the store."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from coordinator.store.base import Store, TaskEntry
from share_dist.core.values import MergedTask, Subspace
from share_dist.errors import StoreCorrupt, VersionCompacted
from share_dist.wire import codec
from share_dist.wire.chunks import PayloadHeader, cut
from share_dist.wire.records import Precision, UpdateState

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")

OLDER_SUBSPACE_BYTES = 2**26
"""Older versions that late updates are read against: so many bytes in memory, or one version."""

OLDER_PAYLOAD_BYTES = 2**24
"""Older versions as they are sent: nearly everybody asks for the newest."""


@dataclass(frozen=True, slots=True)
class ServedPayload:
    """
    A payload that is ready to be sent: hashed, cut and serialised once, for every reader.

    Args:
        header: What announces it.
        messages: Its chunks, as they are written to a stream.
        loss: What its precision costs: largest relative Frobenius error; 0 for float32.
    """

    header: PayloadHeader
    messages: tuple[bytes, ...] = ()
    loss: float = 0.0

    @property
    def num_bytes(self) -> int:
        """Length of the payload."""
        return self.header.num_bytes

    @staticmethod
    def of(payload: bytes, loss: float = 0.0) -> "ServedPayload":
        """Announce a payload; takes as long as its digest and a copy."""
        pieces = cut(payload)
        return ServedPayload(pieces.header, tuple(pieces.messages()), loss)


@dataclass(frozen=True)
class Snapshot:
    """
    The current version as a whole; replaced, never changed.

    Args:
        subspace: With its oversampled tail.
        tasks: Every merged task.
        entries: The same tasks -> the update that each comes from, and how far it has moved.
        digest: Of the version.
    """

    subspace: Subspace
    tasks: Mapping[str, MergedTask]
    entries: Mapping[str, TaskEntry]
    digest: str = ""

    @property
    def version(self) -> int:
        """The current version."""
        return self.subspace.version

    @staticmethod
    def load(store: Store, version: int | None = None) -> "Snapshot":
        """Read a version from the store; the current one where none is named."""
        version = store.current_version if version is None else version
        kept = store.tasks(version)
        return Snapshot(store.subspace(version), kept.tasks, kept.entries, store.digest(version))


class Form(NamedTuple):
    """How a version is sent: how its numbers are written, and whether with its oversampled tail."""

    precision: Precision = "float32"
    with_tail: bool = False


AS_KEPT = Form()
"""Float32, without the tail: what workers train on."""

WHOLE = Form(with_tail=True)
"""With the tail: what rotations begin at."""


@dataclass(frozen=True, slots=True)
class ServedSteps:
    """The steps from one version to another as one payload, and each by itself."""

    served: ServedPayload
    payloads: tuple[bytes, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes in memory."""
        return self.served.num_bytes + sum(map(len, self.payloads))

    def chain_after(self, chain: bytes) -> bytes:
        """Follow the chain of who holds the first version."""
        for payload in self.payloads:
            chain = codec.next_chain(chain, payload)
        return chain


class VersionCache:
    """
    Subspaces by version, and the bytes in which each is sent.

    All but the newest share bounds of their own in bytes, so that large versions do not add up.

    Args:
        store: Where versions come from.
        size: How many of each to keep, at most.
    """

    def __init__(self, store: Store, size: int = 4) -> None:
        self._store = store
        self._subspaces: _AtHand[int, Subspace] = _AtHand(
            size, _bytes_of_subspace, OLDER_SUBSPACE_BYTES, least_older=1
        )
        self._payloads: _AtHand[tuple[int, Form], ServedPayload] = _AtHand(
            size, lambda served: served.num_bytes, OLDER_PAYLOAD_BYTES
        )
        self._steps: _AtHand[tuple[int, int], ServedSteps] = _AtHand(
            size, lambda steps: steps.num_bytes, OLDER_PAYLOAD_BYTES
        )
        self._merged: tuple[int, Counter[str]] = -1, Counter()
        self._reading = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Bytes of all that is kept here."""
        return self._subspaces.num_bytes + self._payloads.num_bytes + self._steps.num_bytes

    def remember(self, subspace: Subspace, served: ServedPayload) -> None:
        """Keep a version that has just been made."""
        self._subspaces.put(subspace.version, subspace.version, subspace)
        self._payloads.put((subspace.version, AS_KEPT), subspace.version, served)

    def subspace(self, version: int) -> Subspace:
        """Return a version; raises what ``Store.subspace`` raises."""
        held = self._subspaces.get(version)
        if held is not None:
            return held
        # one at a time: many late updates of one version would each read it, and hold it at once
        with self._reading:
            subspace = self._subspaces.get(version) or self._store.subspace(version)
            # version 0 gets its layers only when the store is bound
            if version > 0:
                self._subspaces.put(version, version, subspace)
        return subspace

    def served(self, version: int, form: Form = AS_KEPT) -> ServedPayload:
        """Return a version as it is sent, once and for all who ask for this form."""
        held = self._payloads.get((version, form))
        if held is not None:
            return held
        served = encode_served(self.subspace(version), form)
        if version > 0:
            self._payloads.put((version, form), version, served)
        return served

    def merged_by_worker(self, version: int) -> Counter[str]:
        """Count the updates of each worker that the current version contains."""
        known, merged = self._merged
        if known != version:
            merged = Counter(
                task.worker_id
                for task in self._store.task_summaries()
                if task.state is UpdateState.MERGED
            )
            self._merged = version, merged
        return merged

    def steps(self, held_version: int, version: int, below_bytes: int) -> ServedSteps | None:
        """
        Return the steps from one version to a later one.

        Args:
            held_version: Where they begin.
            version: Where they lead.
            below_bytes: What the whole subspace takes.

        Returns:
            None where a step between is not there, was let go of or is damaged, or where the
            steps are no smaller than the whole: that can be sent all the same.
        """
        held = self._steps.get((held_version, version))
        if held is None:
            numbers = range(held_version + 1, version + 1)
            try:
                payloads = tuple(self._store.rotation(number) for number in numbers)
            except (VersionCompacted, StoreCorrupt):
                return None
            if not all(payloads) or sum(map(len, payloads)) >= below_bytes:
                return None
            held = ServedSteps(ServedPayload.of(codec.steps_to_bytes(payloads)), payloads)
            self._steps.put((held_version, version), version, held)
        return held if held.served.num_bytes < below_bytes else None


def encode_served(subspace: Subspace, form: Form = AS_KEPT) -> ServedPayload:
    """Write a subspace as it is sent; to workers, the broadcast factors without the tail."""
    sent = subspace if form.with_tail else subspace.without_tail()
    short = codec.subspace_to_precision(sent, form.precision)
    return ServedPayload.of(short.payload, short.loss)


def _bytes_of_subspace(subspace: Subspace) -> int:
    return sum(basis.vectors.nbytes for layer in subspace.layers.values() for _, basis in layer)


class _AtHand(Generic[KeyT, ValueT]):
    """
    The values that were used last; safe to use from several threads.

    Args:
        size: How many, at most.
        bytes_of: Says how large one is.
        older_bytes: What those of all but the newest version may take together.
        least_older: How many of these stay, however large they are.
    """

    def __init__(
        self,
        size: int,
        bytes_of: Callable[[ValueT], int],
        older_bytes: int,
        least_older: int = 0,
    ) -> None:
        self._size = size
        self._bytes_of = bytes_of
        self._older_bytes = older_bytes
        self._least_older = least_older
        self._values: OrderedDict[KeyT, tuple[int, ValueT]] = OrderedDict()
        self._newest = 0
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        with self._lock:
            return self._bytes_in([*self._values])

    def get(self, key: KeyT) -> ValueT | None:
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][1]

    def put(self, key: KeyT, version: int, value: ValueT) -> None:
        with self._lock:
            self._newest = max(self._newest, version)
            self._values[key] = version, value
            self._values.move_to_end(key)
            while len(self._values) > self._size:
                self._values.popitem(last=False)
            self._let_go_of_older()

    def _let_go_of_older(self) -> None:
        older = [key for key, (version, _) in self._values.items() if version < self._newest]
        while len(older) > self._least_older and self._bytes_in(older) > self._older_bytes:
            del self._values[older.pop(0)]

    def _bytes_in(self, keys: "list[KeyT]") -> int:
        return sum(self._bytes_of(self._values[key][1]) for key in keys)

"""
A subspace that is kept as the coordinator has it, by rotations where they are smaller than the whole.

::

    advance     nothing held       version 4 whole, with its tail       48 MB
    advance     4 held             the step from 4 to 5                  3 MB
    advance     5 held             the steps from 5 to 9                14 MB
    advance     9 held             nothing is newer                      0
    advance     9 held             a step that leads elsewhere: version 10 whole
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import final

from share_dist.client.client import ShareClient, subspace_of
from share_dist.core.steps import advance
from share_dist.core.values import Subspace
from share_dist.errors import MalformedMessage, SubspaceError, VersionError, WireError
from share_dist.pb import coordinator_pb2 as pb
from share_dist.wire.codec import next_chain, rotation_from_bytes, steps_from_bytes
from share_dist.wire.tensors import Buffer


@dataclass(frozen=True, slots=True)
class Advance:
    """
    What it took to get to a version.

    Args:
        version: Which.
        num_bytes: Payload that came for it, also in vain.
        num_steps: How many rotations lead there; 0 when it came whole, or was held.
    """

    version: int
    num_bytes: int
    num_steps: int = 0


@final
class Mirror:
    """
    Follows one subspace of a coordinator, with its oversampled tail.

    What is held differs from the coordinator's bases by float32 rounding only: every
    version reached by rotations is checked by probes, and the whole comes now and then. Where
    anything does not fit, the whole comes at once.

    Args:
        client: Whom to ask; its fingerprint is checked as in any pull.

    Attributes:
        num_bytes: Payload that came in all.
    """

    def __init__(self, client: ShareClient) -> None:
        self.num_bytes = 0
        self._client = client
        self._held: Subspace | None = None
        self._chain = b""

    @property
    def subspace(self) -> Subspace:
        """What is held, with its tail; the current version is fetched where nothing is yet."""
        if self._held is None:
            self.advance()
        assert self._held is not None, "an advance always brings a version"
        return self._held

    def advance(self, min_version: int | None = None) -> Advance:
        """
        Get to the newest version.

        Args:
            min_version: Wait a while for this one.

        Raises:
            VersionInFuture: ``min_version`` did not come.
            FingerprintMismatch: The coordinator works on another model.
        """
        before = self.num_bytes
        num_steps = self._take(min_version)
        assert self._held is not None, "an advance always brings a version"
        return Advance(self._held.version, self.num_bytes - before, num_steps)

    def follow(self) -> Iterator[Advance]:
        """Yield one advance for each version that is told, beginning with what is current now."""
        yield self.advance()
        watch = self._client.watch(self.subspace.version, after_digest=self.subspace.digest)
        with watch:
            for event in watch:
                if event.version > self.subspace.version:
                    yield self.advance(event.version)

    def _take(self, min_version: int | None) -> int:
        header, payload = self._fetch(self._held, min_version)
        if header.not_modified:
            return 0
        if self._held is not None and header.HasField("rotated_from_version"):
            try:
                self._held, num_steps = self._rotated(self._held, header, payload)
            except (WireError, SubspaceError, VersionError):
                header, payload = self._fetch(None, min_version)
            else:
                self._chain = header.chain
                return num_steps
        self._held, self._chain = subspace_of(header, payload), header.chain
        return 0

    def _fetch(
        self, held: Subspace | None, min_version: int | None
    ) -> tuple[pb.SubspaceHeader, memoryview]:
        request = pb.PullSubspaceRequest(with_tail=True, min_version=min_version)
        if held is not None:
            request.held_version, request.held_digest = held.version, held.digest
            request.accept_rotation, request.held_chain = bool(self._chain), self._chain
        header, payload = self._client.fetch_subspace(request)
        self.num_bytes += len(payload)
        return header, payload

    def _rotated(
        self, held: Subspace, header: pb.SubspaceHeader, payload: Buffer
    ) -> tuple[Subspace, int]:
        payloads, chain = steps_from_bytes(payload), self._chain
        for each in payloads:
            chain = next_chain(chain, each)
        reached = held.version + len(payloads)
        if (header.rotated_from_version, header.version, header.chain) != (
            held.version,
            reached,
            chain,
        ):
            raise MalformedMessage(
                f"{len(payloads)} steps from version {header.rotated_from_version} to "
                f"{header.version} came, version {held.version} is held: pull the whole subspace",
                field="rotated_from_version",
            )
        steps = [
            rotation_from_bytes(each, version=version)
            for version, each in enumerate(payloads, held.version + 1)
        ]
        return replace(advance(held, steps), digest=header.digest), len(steps)

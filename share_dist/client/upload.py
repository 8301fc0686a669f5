"""One push until it is answered: each attempt goes on where the one before was cut off."""

import time
from collections.abc import Iterator
from typing import Any

import grpc

from share_dist.errors import ChecksumMismatch, StreamTruncated
from share_dist.pb import coordinator_pb2 as pb
from share_dist.wire.chunks import CutPayload
from share_dist.wire.codec import upload_progress_from_pb
from share_dist.wire.status import error_from_rpc


class Upload:
    """
    A push and its attempts.

    Args:
        stub: Of the coordinator.
        header: Of the update.
        pieces: Its payload.

    Attributes:
        num_sent_chunks: Chunks handed to gRPC in all attempts together.
    """

    def __init__(self, stub: Any, header: pb.UpdateHeader, pieces: CutPayload) -> None:
        self.num_sent_chunks = 0
        self._stub = stub
        self._header = header
        self._pieces = pieces
        self._can_resume = pieces.num_chunks > 1

    def attempt(self, seconds: float) -> pb.Receipt:
        """
        Push what is not there yet.

        Args:
            seconds: For all of it.
        """
        deadline = time.monotonic() + seconds
        self._header.first_chunk = self._num_chunks_there(seconds)
        try:
            return self._push(deadline - time.monotonic())
        except grpc.RpcError as error:
            is_damaged = isinstance(
                error_from_rpc(error, address=""), ChecksumMismatch | StreamTruncated
            )
            if not (is_damaged and self._can_resume):
                raise
        # what was there is not what was sent, or is there no longer
        self._can_resume, self._header.first_chunk = False, 0
        return self._push(deadline - time.monotonic())

    def _push(self, seconds: float) -> pb.Receipt:
        receipt: pb.Receipt = self._stub.PushUpdate(self._requests(), timeout=max(seconds, 0.0))
        return receipt

    def _requests(self) -> Iterator[bytes]:
        yield pb.PushUpdateRequest(header=self._header).SerializeToString()
        for message in self._pieces.messages(self._header.first_chunk):
            self.num_sent_chunks += 1
            yield message

    def _num_chunks_there(self, seconds: float) -> int:
        """Ask how much of this payload is there; nothing counts that is not the same."""
        if not self._can_resume:
            return 0
        request = pb.GetUploadRequest(
            update_id=self._header.update_id,
            sha256=self._header.payload.sha256,
            subspace=self._header.subspace,
        )
        try:
            progress = upload_progress_from_pb(self._stub.GetUpload(request, timeout=seconds))
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            self._can_resume = False
            return 0
        is_same = (
            progress.num_chunks <= self._pieces.num_chunks
            and progress.num_bytes == progress.num_chunks * self._pieces.chunk_bytes
            and progress.prefix_sha256 == self._pieces.prefix_sha256(progress.num_chunks)
        )
        # the last one is sent in any case: it may be what says the digest
        return min(progress.num_chunks, self._pieces.num_chunks - 1) if is_same else 0

"""
A large pull and a large push against bare streams of the same bytes: part of `make bench`.

The baselines move the same bytes: a gRPC server that only sends, to a client that gathers the
chunks in one buffer; one that only receives, hashes, writes and syncs; and a bare TCP connection, which
does not even that. Each is a process of its own, as the coordinator is; all are measured in turn.

A pull is measured twice: `fetch` is what the wire does, up to verified bytes and tensors; `pull` is all
of it, with the proof that the bases are orthonormal. So is a push: `send` begins with the update
encoded and hashed, and ends with its receipt, admission and disk included; `push` encodes and hashes as well.

Files are removed after each push, the baseline's like ours. Where they were left to pile up on a virtual machine, both sides
took 100 to 160 ms at first and 200 to 400 ms later, by turns: the ratio was that of fresh pages, and not of the wire.
"""

import argparse
import asyncio
import hashlib
import itertools
import multiprocessing
import os
import socket
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
from typing_extensions import Self

from share_dist.client import ShareClient
from share_dist.client.client import new_update_id
from share_dist.core.values import TaskUpdate
from share_dist.pb import coordinator_pb2
from share_dist.wire.buffers import keep_a_spare
from share_dist.wire.chunks import CutPayload, cut
from share_dist.wire.codec import update_to_bytes
from share_dist.wire.options import CHANNEL_OPTIONS, SERVER_OPTIONS
from share_dist.wire.tensors import tensors_from_bytes
from tests.benchmarks.measuring import (
    coordinator,
    fingerprint_of,
    interleaved,
    ratios,
    rss_mib,
    shapes_of,
    spread,
    update_of,
    write,
)

CHUNK_BYTES = 2**20
FACTORS = 32
LAYERS = 8


def main() -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args()
    # as a worker does, which receives one version after another
    keep_a_spare()
    features = options.mib * 2**20 // (LAYERS * 2 * FACTORS * 4)
    shapes = shapes_of(LAYERS, features)
    fingerprint = fingerprint_of(shapes)
    update = update_of(shapes, "big", pseudo_rank=FACTORS, num_temporary=FACTORS)
    payload = update_to_bytes(update)
    size, count = len(payload), options.repeats + 1
    with tempfile.TemporaryDirectory(prefix="share-dist-bench-") as folder:
        config = {"num_factors": FACTORS, "oversample": 0}
        unmerged = {"min_updates": 10**6, "max_wait_seconds": 10**6}
        with (
            coordinator(Path(folder, "pulled"), **config) as (pulled, pid),
            coordinator(Path(folder, "pushed"), **config, **unmerged) as (pushed, _),
            _bare(size, folder) as (grpc_port, tcp_port),
            ShareClient(
                pulled, worker_id="w", fingerprint=fingerprint, timeout_seconds=300
            ) as puller,
            ShareClient(
                pushed, worker_id="w", fingerprint=fingerprint, timeout_seconds=300
            ) as pusher,
            grpc.insecure_channel(f"127.0.0.1:{grpc_port}", options=CHANNEL_OPTIONS) as channel,
        ):
            for client in (puller, pusher):
                client.register()
            puller.push(update, wait="merged")
            works = {
                "TCP pull": partial(_tcp_pull, tcp_port, size),
                "gRPC pull": partial(_grpc_pull, channel, size),
                "fetch": partial(_fetch, puller),
                "pull": puller.pull,
                "TCP push": partial(_tcp_push, tcp_port, payload),
                "gRPC push": partial(_grpc_push, channel, payload),
                "send": partial(_send, pusher, _anew(update, count), _different(payload, count)),
                "push": partial(_push, pusher, _anew(update, count)),
            }
            taken = interleaved(works, options.repeats, partial(_remove_files, Path(folder)))
            resident = rss_mib(pid)
    report: dict[str, Any] = {
        "payload_bytes": size,
        "repeats": options.repeats,
        "load_average": os.getloadavg(),
    }
    report["seconds"] = {name: spread(each) for name, each in taken.items()}
    report["ratios"] = {
        f"{what} to {base}": ratios(taken[f"{base} {like}"], taken[what])
        for what, like in (("fetch", "pull"), ("pull", "pull"), ("send", "push"), ("push", "push"))
        for base in ("gRPC", "TCP")
    }
    report["coordinator_rss_mib"] = resident
    report["coordinator_rss_over_held_bytes"] = round(resident * 2**20 / size, 2)
    for name, each in report["seconds"].items():
        print(
            f"{name:10} {each['median'] * 1e3:8.1f} ms ({each['smallest'] * 1e3:.1f} to {each['largest'] * 1e3:.1f})"
        )
    for name, each in report["ratios"].items():
        print(f"{name:15} {each['median']:.2f} ({each['smallest']:.2f} to {each['largest']:.2f})")
    print(f"coordinator: {resident} MiB resident with a version of {size / 2**20:.0f} MiB")
    write(report, options.output)


def _remove_files(folder: Path) -> None:
    """Remove what pushes have left; none of it is read again."""
    for path in (*folder.glob("bare-*"), *folder.glob("pushed/blobs/*")):
        path.unlink()


def _fetch(client: ShareClient) -> None:
    _, payload = client.fetch_subspace(coordinator_pb2.PullSubspaceRequest())
    tensors_from_bytes(payload)


def _anew(update: TaskUpdate, count: int) -> Iterator[TaskUpdate]:
    """Make updates that differ in their id: to make one looks at all of its numbers."""
    return iter([replace(update, update_id=new_update_id()) for _ in range(count)])


def _different(payload: bytes, count: int) -> Iterator[CutPayload]:
    """Make payloads that differ in their last number: a store keeps the same bytes only once."""
    return iter([cut(payload[:-4] + struct.pack("<f", number)) for number in range(1, count + 1)])


def _send(client: ShareClient, updates: Iterator[TaskUpdate], pieces: Iterator[CutPayload]) -> None:
    client.push(next(updates), pieces=next(pieces))


def _push(client: ShareClient, updates: Iterator[TaskUpdate]) -> None:
    client.push(next(updates))


def _grpc_pull(channel: grpc.Channel, size: int) -> None:
    buffer, end = bytearray(size), 0
    for piece in channel.unary_stream("/bare/Pull")(b""):
        buffer[end : end + len(piece)] = piece
        end += len(piece)


def _grpc_push(channel: grpc.Channel, payload: bytes) -> None:
    channel.stream_unary("/bare/Push")(_pieces(payload))


def _pieces(payload: bytes) -> Iterator[bytes]:
    return (payload[at : at + CHUNK_BYTES] for at in range(0, len(payload), CHUNK_BYTES))


def _tcp_pull(port: int, size: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"<")
        left = memoryview(bytearray(size))
        while left:
            left = left[connection.recv_into(left) :]


def _tcp_push(port: int, payload: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b">")
        connection.sendall(payload)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)


class _bare:  # noqa: N801 - used as a function
    """Run the baselines in a process of their own; the ports of gRPC and of TCP."""

    def __init__(self, size: int, folder: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve_bare, args=(theirs, size, folder), daemon=True
        )

    def __enter__(self) -> tuple[int, int]:
        self._process.start()
        ports: tuple[int, int] = self._ours.recv()
        return ports

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


class _Kept:
    """A new file that is hashed as it is written, and synced at the end."""

    def __init__(self, path: Path) -> None:
        self.digest = hashlib.sha256()
        self._path = path
        self._file = path.open("wb")

    def take(self, piece: bytes) -> None:
        self.digest.update(piece)
        self._file.write(piece)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def _serve_bare(ports: Connection, size: int, folder: str) -> None:
    asyncio.run(_serve_both(ports, size, folder))


async def _serve_both(ports: Connection, size: int, folder: str) -> None:
    payload = os.urandom(size)
    pieces, numbers = [*_pieces(payload)], itertools.count()

    async def pull(_request: bytes, _context: Any) -> Any:
        for piece in pieces:
            yield piece

    async def push(requests: Any, _context: Any) -> bytes:
        with _Kept(Path(folder, f"bare-{next(numbers)}")) as kept:
            async for piece in requests:
                kept.take(piece)
        return kept.digest.digest()

    async def tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readexactly(1) == b"<":
            writer.write(payload)
        else:
            while await reader.read(CHUNK_BYTES):
                pass
            writer.write(b".")
        await writer.drain()
        writer.close()

    server = grpc.aio.server(options=SERVER_OPTIONS)
    methods = {
        "Pull": grpc.unary_stream_rpc_method_handler(pull),
        "Push": grpc.stream_unary_rpc_method_handler(push),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    listener = await asyncio.start_server(tcp, "127.0.0.1", 0, limit=4 * CHUNK_BYTES)
    ports.send((port, listener.sockets[0].getsockname()[1]))
    await listener.serve_forever()


if __name__ == "__main__":
    main()

"""
A large pull and a large push against bare streams of the same bytes: part of `make bench`.

The baselines: a gRPC server that only sends, or only receives, hashes and syncs; and a bare TCP
connection. Each is a process of its own, as the coordinator is; all are measured in turn.
"""

import argparse
import asyncio
import hashlib
import multiprocessing
import os
import socket
import tempfile
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
from share_dist.wire.codec import update_to_bytes
from share_dist.wire.options import CHANNEL_OPTIONS, SERVER_OPTIONS
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
    features = options.mib * 2**20 // (LAYERS * 2 * FACTORS * 4)
    shapes = shapes_of(LAYERS, features)
    fingerprint = fingerprint_of(shapes)
    update = update_of(shapes, "big", pseudo_rank=FACTORS, num_temporary=FACTORS)
    size = len(update_to_bytes(update))
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
                "gRPC pull": partial(_grpc_pull, channel),
                "pull": puller.pull,
                "TCP push": partial(_tcp_push, tcp_port, size),
                "gRPC push": partial(_grpc_push, channel, size),
                "push": partial(_push, pusher, update),
            }
            taken = interleaved(works, options.repeats)
            resident = rss_mib(pid)
    report: dict[str, Any] = {"payload_bytes": size, "repeats": options.repeats}
    report["seconds"] = {name: spread(each) for name, each in taken.items()}
    report["ratios"] = {
        f"{what} to {base}": ratios(taken[f"{base} {what}"], taken[what])
        for what in ("pull", "push")
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


def _push(client: ShareClient, update: TaskUpdate) -> None:
    client.push(replace(update, update_id=new_update_id()))


def _grpc_pull(channel: grpc.Channel) -> None:
    for _ in channel.unary_stream("/bare/Pull")(b""):
        pass


def _grpc_push(channel: grpc.Channel, size: int) -> None:
    piece = bytes(CHUNK_BYTES)
    channel.stream_unary("/bare/Push")(piece for _ in range(-(-size // CHUNK_BYTES)))


def _tcp_pull(port: int, size: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"<")
        buffer, left = bytearray(CHUNK_BYTES), size
        while left > 0:
            left -= connection.recv_into(buffer)


def _tcp_push(port: int, size: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b">" + bytes(size))
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
    """A file that is hashed as it is written, and synced at the end."""

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
        self._path.unlink()


def _serve_bare(ports: Connection, size: int, folder: str) -> None:
    asyncio.run(_serve_both(ports, size, folder))


async def _serve_both(ports: Connection, size: int, folder: str) -> None:
    pieces = [bytes(CHUNK_BYTES)] * (-(-size // CHUNK_BYTES))

    async def pull(_request: bytes, _context: Any) -> Any:
        for piece in pieces:
            yield piece

    async def push(requests: Any, _context: Any) -> bytes:
        with _Kept(Path(folder, "bare")) as kept:
            async for piece in requests:
                kept.take(piece)
        return kept.digest.digest()

    async def tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readexactly(1) == b"<":
            writer.write(bytes(size))
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

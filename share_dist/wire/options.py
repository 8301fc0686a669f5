"""
Channel options of both ends: message sizes, and keepalive that notices a cut.

The two lists belong together: a client that pings more often than its server
allows is sent away with GOAWAY "too_many_pings".
"""

from typing import TypeAlias

Options: TypeAlias = list[tuple[str, int]]

KEEPALIVE_SECONDS = 10
"""How often a client asks whether the connection still stands, also when it is idle."""

KEEPALIVE_TIMEOUT_SECONDS = 10
"""How long the answer may take before the connection counts as cut."""

MAX_MESSAGE_BYTES = 16 * 2**20
"""Largest single message; tensors come in chunks far below it."""

_MESSAGE_SIZES: Options = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]

_KEEPALIVE: Options = [
    ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
    # the answer to a ping has a limit of its own, a minute unless it is said
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]

CHANNEL_OPTIONS: Options = [
    *_MESSAGE_SIZES,
    *_KEEPALIVE,
    # A coordinator that restarts is found again within two seconds.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
]
"""For every client."""

SERVER_OPTIONS: Options = [
    *_MESSAGE_SIZES,
    *_KEEPALIVE,
    # Half of the client's interval, so that a ping that comes early is forgiven.
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_SECONDS * 500),
    # A second coordinator on the same port must fail, not share the port.
    ("grpc.so_reuseport", 0),
]
"""For every server."""

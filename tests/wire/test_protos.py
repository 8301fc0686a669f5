"""The schema and its specification agree."""

from pathlib import Path

import pytest

from share_dist.pb import coordinator_pb2
from share_dist.wire.options import CHANNEL_OPTIONS, SERVER_OPTIONS
from share_dist.wire.status import DETAIL_KEY

ROOT = Path(__file__).parents[2]
PROTOS = sorted((ROOT / "protos/share_dist/pb").glob("*.proto"))
SPECIFICATION = (ROOT / "protos/README.md").read_text()


def test_every_call_is_specified():
    """Every RPC has its row in the specification."""
    methods = coordinator_pb2.DESCRIPTOR.services_by_name["Coordinator"].methods

    assert [method.name for method in methods if f"| `{method.name}` |" not in SPECIFICATION] == []


@pytest.mark.parametrize(
    "word",
    [
        DETAIL_KEY,
        *(f"{{layer}}.{{side}}.{kind}" for kind in (
            "vectors", "energies", "tail", "coefficients", "temporary", "temporary_coefficients",
        )),
        *(path.name for path in PROTOS),
    ],
)  # fmt: skip
def test_every_name_is_specified(word):
    """Names on the wire are the names of the specification."""
    assert f"`{word}`" in SPECIFICATION or f"`share_dist/pb/{word}`" in SPECIFICATION


def test_a_client_pings_no_more_often_than_its_server_allows():
    """Otherwise gRPC sends it away with too_many_pings."""
    client, server = dict(CHANNEL_OPTIONS), dict(SERVER_OPTIONS)

    allowed = server["grpc.http2.min_ping_interval_without_data_ms"]
    assert client["grpc.keepalive_time_ms"] > allowed
    assert server["grpc.keepalive_permit_without_calls"] == 1
    assert client["grpc.max_send_message_length"] <= server["grpc.max_receive_message_length"]

"""
Record a release's conversation: ``python -m tests.interop.record 0.1``.

A proxy between the release's own client and its own coordinator writes down every byte of every
message. It is done once for a release, from the release's own code; the file is never changed afterwards.
"""

import sys
import tempfile
from pathlib import Path

import grpc

from share_dist.pb import admin_pb2, coordinator_pb2, error_pb2
from tests.coordinator.support import make_config, running
from tests.interop.conversation import FOLDER, Conversation, Schema
from tests.interop.scenarios import CONFIG, SCENARIOS
from tests.interop.servers import BytesServer, Recorder


def record(release: str) -> Conversation:
    """Let the client and the coordinator that are installed talk, and write it down."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running(make_config(Path(folder) / "store", **CONFIG)) as app,
        grpc.insecure_channel(app.address) as channel,
    ):
        recorder = Recorder(channel)
        with BytesServer(recorder) as proxy:
            results = SCENARIOS[release](proxy.address)
    schema = Schema.of([admin_pb2.DESCRIPTOR, coordinator_pb2.DESCRIPTOR, error_pb2.DESCRIPTOR])
    return Conversation(release, schema, results, recorder.calls)


if __name__ == "__main__":
    target = FOLDER / f"release-{sys.argv[1]}.jsonl.gz"
    if target.exists():
        sys.exit(f"{target} is there: what a release has said is never changed")
    record(sys.argv[1]).save(target)

"""A real coordinator process: killed, stopped, started twice, started again."""

import json
import os
import signal
import subprocess
import sys
import threading

import grpc
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from share_dist.client import ShareClient
from share_dist.core.values import Head
from share_dist.errors import ConfigError, StoreLocked
from share_dist.pb import coordinator_pb2 as pb
from share_dist.pb.coordinator_pb2_grpc import CoordinatorStub
from share_dist.wire import codec
from share_dist.wire.chunks import cut
from share_dist.wire.records import UpdateState
from tests.commands.conftest import share_dist
from tests.coordinator.support import (
    FINGERPRINT,
    CoordinatorProcess,
    client_of,
    make_update,
    wait_until,
)

SIGKILL = -signal.SIGKILL


def test_acknowledged_updates_survive_kill_minus_nine(tmp_path):
    """Many updates are acknowledged, the process is killed at once: the next one has them all."""
    store = tmp_path / "store"
    names = [f"task-{i}" for i in range(12)]
    with CoordinatorProcess(store) as process:
        with client_of(process.address) as client:
            client.register()
            for name in names:
                client.push(make_update(name, lease_epoch=0))
            process.kill()
        assert process.wait() == SIGKILL
    with CoordinatorProcess(store) as process, client_of(process.address) as client:
        wait_until(lambda: client.status().num_pending == 0)
        tasks = client.tasks()
        assert sorted(task.task_id for task in tasks) == sorted(names)
        assert {task.state for task in tasks} == {UpdateState.MERGED}
        current = client.status().current_version
        watch = client.watch(after_version=0)
        merged = [update for _ in range(current) for update in next(watch).update_ids]
        watch.close()
        assert sorted(merged) == sorted(f"update-of-{name}" for name in names)


def test_a_restart_goes_on_where_it_was(tmp_path):
    """Version, subspace, fingerprint and lease epochs are as before; the old lease still holds."""
    store = tmp_path / "store"
    with CoordinatorProcess(store) as process, client_of(process.address) as client:
        lease = client.register()
        client.push(make_update("cats", lease_epoch=0), wait="merged")
        before = client.pull()
        assert process.stop() == 0
    with CoordinatorProcess(store) as process:
        assert (process.ready["version"], process.ready["num_pending"]) == (1, 0)
        with client_of(process.address) as client:
            assert client.status().fingerprint == FINGERPRINT
            after = client.pull()
            for name, layer in before.layers.items():
                assert layer.a.vectors.equal(after.layers[name].a.vectors)
            held = make_update("dogs", base=before, lease_epoch=lease.lease_epoch)
            assert client.push(held, wait="merged").version == 2
            assert client.register().lease_epoch == lease.lease_epoch + 1


def test_a_second_coordinator_is_refused(tmp_path):
    """The store's owner is named, the exit code says that the store is to blame, the first goes on."""
    with CoordinatorProcess(tmp_path / "store") as first:
        with CoordinatorProcess(tmp_path / "store") as second:
            assert second.wait() == StoreLocked.exit_code
            assert f"is owned by process {first.pid} on" in second.stderr
            assert "Traceback" not in second.stderr
        with ShareClient(first.address) as client:
            assert client.status().current_version == 0


def test_a_store_in_postgresql_is_served_by_flags(tmp_path, postgres_server, monkeypatch):
    """--store takes its URL and --blobs a folder; the tools find the same store, with its owner."""
    monkeypatch.chdir(tmp_path)
    url = postgres_server.make_database()
    with CoordinatorProcess(url) as without:
        assert without.wait() == ConfigError.exit_code
        assert "needs a place for large payloads" in without.stderr
    place = ("--store", url, "--blobs", str(tmp_path / "blobs"))
    with CoordinatorProcess(url, "--blobs", str(tmp_path / "blobs")) as process:
        with client_of(process.address) as client:
            client.register()
            client.push(make_update("cats", lease_epoch=0), wait="merged")
        info = share_dist("store", "info", *place, "--json").json
        checks = share_dist("doctor", *place, "-c", process.address, "--json").json
        pid = process.pid
    assert info["owner"]["pid"] == pid
    outcomes = {check["number"]: check["outcome"] for check in checks}
    assert (outcomes[17], outcomes[18]) == ("well", "well")
    assert {path.name for path in tmp_path.iterdir()} <= {"blobs"}, "a URL is no folder"


def test_a_bad_configuration_ends_at_once(tmp_path):
    """A wrong address ends with the exit code of configurations, without a traceback."""
    with CoordinatorProcess(tmp_path / "store", "--listen", "0.0.0.0:0") as process:
        assert process.wait() == ConfigError.exit_code
        assert "pass --insecure" in process.stderr
        assert "Traceback" not in process.stderr
    assert not (tmp_path / "store").exists()


def test_a_signal_stops_it_gracefully(tmp_path):
    """The port file comes and goes, health answers, the log is JSON and tells the whole story."""
    port_file = tmp_path / "port"
    flags = ("--port-file", str(port_file), "--metrics-listen", "127.0.0.1:0")
    with CoordinatorProcess(tmp_path / "store", *flags) as process:
        assert int(port_file.read_text()) == process.ready["port"]
        with client_of(process.address) as client:
            client.register()
            client.push(make_update("cats", "u1", lease_epoch=0), wait="merged")
            with grpc.insecure_channel(process.address) as channel:
                answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            assert process.stop() == 0
        assert not port_file.exists()
        lines = [json.loads(line) for line in process.stderr.splitlines()]
        story = [line["event"] for line in lines]
        assert story[0] == "coordinator_ready"
        assert story[-2:] == ["coordinator_stopping", "coordinator_stopped"]
        life = [line["event"] for line in lines if "u1" in line.get("update_id", "")]
        assert life == ["update_admitted", "update_merged"]


def held_back(update, may_end):
    """The messages of a push, of which the last waits until it may go."""
    pieces = cut(codec.update_to_bytes(update))
    header = codec.update_header(
        update,
        worker_id="w",
        fingerprint_digest=FINGERPRINT.digest,
        payload=pieces.header,
        wait="durable",
    )
    *sent, last = pieces.chunks(0)
    yield pb.PushUpdateRequest(header=header)
    for chunk in sent:
        yield pb.PushUpdateRequest(chunk=chunk)
    assert may_end.wait(60)
    yield pb.PushUpdateRequest(chunk=last)


def test_an_upload_on_its_way_ends_well_though_it_is_told_to_stop(tmp_path):
    """SIGTERM in the middle of a push: health says NOT_SERVING at once, the push is acknowledged, then comes the end."""
    store, may_end = tmp_path / "store", threading.Event()
    head = Head({"weight": torch.ones(4, 2**18)}, "text-classification", 3)
    update = make_update("large", head=head)
    with CoordinatorProcess(store) as process, grpc.insecure_channel(process.address) as channel:
        with client_of(process.address) as client:
            client.register()
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(health).status == health_pb2.HealthCheckResponse.SERVING
        stub = CoordinatorStub(channel)
        pushing = stub.PushUpdate.future(held_back(update, may_end), timeout=60)
        payload = cut(codec.update_to_bytes(update)).header
        asked = pb.GetUploadRequest(update_id=update.update_id, sha256=payload.sha256)
        wait_until(lambda: stub.GetUpload(asked).num_chunks == payload.num_chunks - 1)
        os.kill(process.pid, signal.SIGTERM)
        assert next(health).status == health_pb2.HealthCheckResponse.NOT_SERVING
        health.cancel()
        assert process.is_alive
        assert not pushing.done()
        may_end.set()
        assert pushing.result(60).update_id == update.update_id
        assert process.wait() == 0
    with CoordinatorProcess(store) as process, client_of(process.address) as client:
        wait_until(lambda: client.status().num_pending == 0)
        assert [task.update_id for task in client.tasks()] == [update.update_id]
        assert process.stop() == 0


def test_the_help_names_every_flag():
    """``serve --help`` is quick to come, for nothing heavy is imported for it."""
    code = (
        "import sys; from typer.testing import CliRunner; from coordinator.cli import app;"
        "print(CliRunner().invoke(app, ['serve', '--help']).output);"
        "sys.exit('torch' in sys.modules or 'grpc' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for flag in ("--store", "--listen", "--num-factors", "--insecure", "--json"):
        assert flag in done.stdout

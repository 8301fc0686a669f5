"""A worker whose network is cut without anybody being told, until every connection of before is dead."""

import pytest
import torch

from tests.coordinator.support import wait_until
from tests.worker import toys
from tests.worker.afield import Coordinator, Worker, check_all_is_merged_once
from tests.worker.proxy import Proxy
from worker.backbone import load_backbone
from worker.progress import WorkerEvent
from worker.stream import read_stream

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


def test_connections_that_are_dead_are_noticed_and_made_anew(tmp_path):
    """
    With its connections dead for good, its lease ended and its watch silent, a worker trains on.

    Only keepalive tells that they are dead. Once there is a network again, all it learnt is merged once, and it
    hears of the versions that came meanwhile and after.
    """
    path = tmp_path / "north.toml"
    model = toys.make_model(tmp_path / "model")
    path.write_text(toys.stream_text(model, "north", ("mood", "food", "motion")))
    stream, coordinator = read_stream(path), Coordinator(tmp_path)
    coordinator.start()
    try:
        with Proxy(coordinator.address) as proxy:
            backbone = load_backbone(stream, torch.device("cpu"))
            worker = Worker(stream, backbone, proxy.address, tmp_path / "work")
            worker.at[WorkerEvent.TASK_PROGRESSED, "mood"] = lambda: proxy.cut(for_good=True)
            running = worker.in_background()
            wait_until(lambda: len(worker.named(WorkerEvent.TASK_LEARNT)) == 3, 240)
            wait_until(lambda: worker.named(WorkerEvent.COORDINATOR_AWAY), 240)
            with coordinator.ask() as client:
                wait_until(lambda: not any(each.is_live for each in client.status().workers))
            proxy.heal()
            running.join(240)
            assert not running.is_alive()
        check_all_is_merged_once(coordinator, worker)
        with coordinator.ask() as client:
            newest = client.status().current_version
        assert worker.named(WorkerEvent.VERSION_FOLLOWED)[-1]["version"] == newest
    finally:
        coordinator.kill()

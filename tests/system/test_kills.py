"""Processes that are killed in the middle of their work: what was acknowledged is there, once."""

import os
import signal

import pytest

from tests.system.support import (
    Coordinator,
    Workers,
    actors_below,
    check_all_is_merged_once,
    descendants,
    has_ended,
    wait_until,
)
from tests.worker import toys

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toys.make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def coordinator(tmp_path):
    with Coordinator(tmp_path) as coordinator:
        yield coordinator


def test_a_coordinator_that_is_killed_loses_and_doubles_nothing(tmp_path, model, coordinator):
    """Killed before a reply, from outside and after a merge, a coordinator merges each update once, and the run ends well."""
    last = ("north-motion", "south-motion")
    coordinator.start(fault="before-reply")
    with Workers(tmp_path, model, coordinator.address, gated=last) as workers:
        workers.start()
        coordinator.wait_killed()
        coordinator.start()
        coordinator.wait_for_version(2)
        coordinator.kill()
        coordinator.start(fault="after-merge-commit")
        for task_id in last:
            workers.open(task_id)
        coordinator.wait_killed()
        coordinator.start()
        assert workers.wait() == 0, workers.log.read_text()
        check_all_is_merged_once(coordinator, workers)


def test_an_actor_that_is_killed_goes_on(tmp_path, model, coordinator):
    """Killed while it loads a task and while it trains one, an actor is started anew and ends its stream."""
    coordinator.start()
    with Workers(tmp_path, model, coordinator.address, gated=("north-food",), epochs=8) as workers:
        workers.start()
        first = workers.loading_pid("north-food")
        os.kill(first, signal.SIGKILL)
        second = workers.loading_pid("north-food", other_than=first)
        workers.open("north-food")
        workers.wait_for_file("north-food", "epoch.safetensors")
        os.kill(second, signal.SIGKILL)
        assert workers.wait() == 0, workers.log.read_text()
        check_all_is_merged_once(coordinator, workers)


def test_a_driver_that_is_killed_is_resumed(tmp_path, model, coordinator):
    """With its driver killed no actor stays behind, and ``--resume`` ends the streams with nothing merged twice."""
    coordinator.start()
    with Workers(tmp_path, model, coordinator.address, gated=("south-food",)) as workers:
        workers.start()
        actor = workers.loading_pid("south-food")
        assert actor in actors_below(workers.pid)
        left = descendants(workers.pid)
        os.kill(workers.pid, signal.SIGKILL)
        assert workers.wait() == -signal.SIGKILL
        wait_until(lambda: all(map(has_ended, left)), f"the end of all of {left}")
        workers.open("south-food")
        workers.start("--resume")
        assert workers.wait() == 0, workers.log.read_text()
        check_all_is_merged_once(coordinator, workers)


def test_ctrl_c_and_resume(tmp_path, model, coordinator):
    """Interrupted, a run ends with 130 and its checkpoints; ``--resume`` ends the streams."""
    coordinator.start()
    with Workers(tmp_path, model, coordinator.address, gated=("south-food",)) as workers:
        workers.start()
        workers.loading_pid("south-food")
        workers.interrupt()
        workers.open("south-food")
        assert workers.wait() == 130, workers.log.read_text()
        workers.start("--resume")
        assert workers.wait() == 0, workers.log.read_text()
        check_all_is_merged_once(coordinator, workers)

"""What an actor tells: Prometheus by a real scrape, TensorBoard by a real event file."""

import socket
import urllib.request
from pathlib import Path

import pytest
import transformers
from prometheus_client.parser import text_string_to_metric_families

from share_dist.errors import ConfigError
from tests.worker.readme_tables import README, written
from worker.actor import WorkerActor, WorkerConfig
from worker.driver import RunRequest
from worker.loop import LoopOptions
from worker.metrics import ActorMetrics
from worker.reporting import SCALARS

LOOPBACK = "127.0.0.1"


@pytest.fixture
def make_actor(make_stream, tmp_path, coordinator, monkeypatch):
    """Actors in this process, before a coordinator in it."""
    monkeypatch.setattr("share_dist.client.ShareClient", lambda *_, **__: coordinator)

    def make(*topics, training="", workdir="work", **asked):
        stream = make_stream(*topics, training=training)
        config = WorkerConfig(
            str(stream.path), "127.0.0.1:1", str(tmp_path / workdir), LoopOptions(), 1, **asked
        )
        return WorkerActor(config)

    return make


def scraped(address):
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return {each.name: each for family in families for each in family.samples}


def test_a_scrape_says_what_an_actor_has_done(make_actor):
    """Over HTTP stand the numbers of the actor's events: steps, rows, loss, task, lag, updates."""
    actor = make_actor("mood", "food", metrics=(LOOPBACK, 0))
    actor.run()
    events = actor.drain()
    steps = [each for each in events if each["event"] == "task_progressed"]
    served = next(each for each in events if each["event"] == "metrics_served")
    found = scraped(served["address"])
    assert {each.labels.get("worker_id") for name, each in found.items() if "worker" in name} == {
        "north"
    }
    values = {name.removeprefix("share_dist_worker_"): each.value for name, each in found.items()}
    last = steps[-1]
    told = [each for each in events if each["event"] in {"task_progressed", "version_followed"}][-1]
    assert values["steps_total"] == 2 * last["num_steps"] == 2 * last["steps"]
    assert values["samples_total"] == sum(
        each["samples"] for each in steps if each["step"] == each["num_steps"]
    )
    assert values["loss"] == last["loss"]
    assert values["seconds_per_step"] == last["seconds_per_step"] > 0
    for name, value in {
        "tasks": 2,
        "task_index": 2,
        "task_step": last["num_steps"],
        "task_steps": last["num_steps"],
        "eta_seconds": 0,
        "version": told["version"],
        "lag": told.get("lag", 0),
        "updates_waiting": 0,
        "updates_pushed_total": 2,
        "tasks_learnt_total": 2,
    }.items():
        assert values[name] == value, name
    assert values["process_resident_memory_bytes"] > 0


def test_what_waits_and_what_was_lost_is_counted():
    """An update waits from when it is learnt until it is pushed; steps that are rolled back still count."""
    metrics = ActorMetrics("north")
    step = {"event": "task_progressed", "task_id": "movies", "num_steps": 9, "loss": 0.5}
    step |= {"version": 3, "lag": 4, "seconds_per_step": 0.5, "eta_seconds": 2.0}

    def now(name):
        return metrics.registry.get_sample_value(
            f"share_dist_worker_{name}", {"worker_id": "north"}
        )

    metrics.take({"event": "task_started", "task_id": "movies", "task_index": 1, "base_version": 3})
    metrics.take(step | {"step": 5, "steps": 5, "samples": 40})
    metrics.take({"event": "rolled_back", "back_to_step": 3})
    metrics.take(step | {"step": 5, "steps": 7, "samples": 56})
    assert (now("task_step"), now("steps_total"), now("samples_total")) == (5, 7, 56)
    assert (now("rollbacks_total"), now("lag"), now("eta_seconds")) == (1, 4, 2.0)
    metrics.take({"event": "task_learnt", "task_id": "movies"})
    assert (now("updates_waiting"), now("updates_pushed_total")) == (1, 0)
    metrics.take({"event": "update_pushed", "task_id": "movies"})
    assert (now("updates_waiting"), now("updates_pushed_total")) == (0, 1)
    metrics.take({"event": "coordinator_away"})
    assert now("coordinator_away") == 1
    metrics.take({"event": "coordinator_back"})
    metrics.take({"event": "update_lost", "task_id": "movies"})
    assert (now("coordinator_away"), now("updates_waiting"), now("updates_lost_total")) == (0, 1, 1)


def test_each_actor_of_a_run_has_a_port_of_its_own(tmp_path):
    """The first actor has the port that was asked for, the others those after it; 0 is a free one for each."""
    request = RunRequest((tmp_path / "a", tmp_path / "b"), "c:1", tmp_path, 2, None, LoopOptions())
    assert request.config_of(1, 1).metrics is None
    for port, expected in ((9400, [9400, 9401]), (0, [0, 0])):
        asked = RunRequest(**{**vars(request), "metrics": (LOOPBACK, port)})
        assert [asked.config_of(index, 1).metrics[1] for index in (0, 1)] == expected


def test_what_is_set_reaches_the_actor(make_actor, tmp_path):
    """An actor learns by the changed settings, as the run that places it was asked."""
    changes = ("training.epochs=1", "training.num_temporary=1")
    asked = RunRequest((tmp_path / "a",), "c:1", tmp_path, 1, None, LoopOptions(), changes=changes)
    assert asked.config_of(0, 1).changes == changes
    actor = make_actor("mood", changes=changes)
    actor.run()
    plain = make_actor("mood", workdir="plain")
    plain.run()
    ends = [
        [each for each in told.drain() if each["event"] == "task_progressed"][-1]
        for told in (actor, plain)
    ]
    assert 2 * ends[0]["num_steps"] == ends[1]["num_steps"]


def test_a_port_that_is_taken_is_refused_before_anything_is_learnt(make_actor, coordinator):
    """An address that cannot be listened on is named, and nobody was asked for a lease."""
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--metrics-port is {LOOPBACK}:{port}"):
            make_actor("mood", metrics=(LOOPBACK, port)).run()
    assert not coordinator.calls


def event_files(folder: Path, task_id: str):
    # its protocol buffers are imported for this test alone
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = folder.glob(f"reports/**/{task_id}")
    return EventAccumulator(str(run)).Reload()


def test_tensorboard_has_a_run_of_each_task(make_actor, tmp_path):
    """The event file of each task holds the scalars of its progress at its steps, and its score at the end."""
    actor = make_actor("mood", "food", training='report_to = ["tensorboard"]')
    results = actor.run().results
    steps = [each for each in actor.drain() if each["event"] == "task_progressed"]
    for result in results["tasks"]:
        told = event_files(tmp_path / "work" / "north", result["task_id"])
        own = [each for each in steps if each["task_id"] == result["task_id"]]
        for name in SCALARS:
            found = [(each.step, each.value) for each in told.Scalars(f"train/{name}")]
            assert found == [(each["step"], pytest.approx(each[name])) for each in own]
        (score,) = told.Scalars("test/accuracy")
        assert (score.step, score.value) == (own[-1]["step"], pytest.approx(result["learnt"]))


def test_a_reporter_that_fails_is_left_out(make_actor, monkeypatch):
    """A reporter whose service is away is told nothing more, which is said once; training goes on."""

    class Away(transformers.TrainerCallback):
        def on_log(self, *_, **__):
            raise OSError("no route to host")

    known = "transformers.integrations.integration_utils.INTEGRATION_TO_CALLBACK"
    monkeypatch.setitem(_resolved(known), "away", Away)
    actor = make_actor("mood", report_to=("away",))
    assert actor.run().state == "finished"
    failed = [each for each in actor.drain() if each["event"] == "reporter_failed"]
    assert [(each["reporter"], each["reason"]) for each in failed] == [
        ("away", "OSError: no route to host")
    ]


def _resolved(name):
    from transformers.integrations import integration_utils

    return getattr(integration_utils, name.rpartition(".")[2])


def test_a_reporter_that_is_not_there_is_named(make_actor, coordinator):
    """An unknown reporter ends the actor before it asks for a lease, with what to install."""
    with pytest.raises(
        ConfigError, match=r"'tensorbord' is not to be had .*\[reporting\]"
    ) as error:
        make_actor("mood", report_to=("tensorbord",)).run()
    assert error.value.key == "report_to"
    assert not coordinator.calls


def test_the_readme_lists_all_that_is_told():
    """Events and metrics in the README are those of the code."""
    text = README.read_text()
    assert written(text) == text

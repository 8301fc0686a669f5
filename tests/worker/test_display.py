import io
import json
from datetime import datetime

import pytest
from rich.console import Console

from share_dist.errors import ConfigError
from tests.worker import toys
from worker.cluster import plan_places
from worker.display import ProgressDisplay
from worker.driver import Driver, RunRequest
from worker.loop import LoopOptions
from worker.progress import WorkerEvent

EVENTS = [
    {
        "event": "task_started",
        "worker_id": "north",
        "task_id": "movies",
        "task_index": 2,
        "num_tasks": 8,
        "base_version": 3,
    },
    {
        "event": "task_progressed",
        "worker_id": "north",
        "task_id": "movies",
        "step": 5,
        "num_steps": 81,
        "loss": 0.6931,
        "version": 3,
        "lag": 6,
        "eta_seconds": 41.4,
    },
    {
        "event": "task_learnt",
        "worker_id": "south",
        "task_id": "tweets",
        "metric": "accuracy",
        "score": 0.9155,
    },
    {"event": "version_followed", "worker_id": "south", "version": 4, "task_ids": []},
    {
        "event": "task_rescored",
        "worker_id": "south",
        "task_id": "tweets",
        "metric": "accuracy",
        "score": 0.9,
        "lag": 1,
    },
]


for number, event in enumerate(EVENTS):
    event["seconds"] = 10.0 * number


def test_lines_stay_where_there_is_no_terminal():
    """Written to a file, every event is one line with its worker; steps are told now and then only."""
    text = io.StringIO()
    step = EVENTS[1]
    soon, later = step | {"seconds": 21.0}, step | {"seconds": 60.0}
    console = Console(file=text, width=120, force_terminal=False)
    with ProgressDisplay(["north", "south"], as_json=False, console=console) as display:
        display.show([EVENTS[0], step | {"seconds": 20.0}, soon, later, EVENTS[2]])
    lines = text.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["0.0", "20.0", "60.0", "20.0"]
    assert "north: task movies doing started of 2/8 version 3" in lines[0]
    assert "step 5/81 loss 0.693 ETA 41 s version 3 lag 6" in lines[1]
    assert "south: task tweets doing learnt score accuracy 0.915" in lines[3]


def test_the_table_shows_where_every_worker_is():
    """Task, step, loss, remaining time, accuracy, version and lag appear in the worker's line."""
    text = io.StringIO()
    console = Console(file=text, width=120, force_terminal=False)
    with ProgressDisplay(["north", "south"], as_json=False, console=console) as display:
        display.show(EVENTS)
        console.print(display.table())
    last = text.getvalue().splitlines()[-4:]
    north = next(line for line in last if "north" in line)
    south = next(line for line in last if "south" in line)
    for cell in ("movies", "2/8", "5/81", "0.693", "41 s", "3", "6"):
        assert cell in north
    for cell in ("tweets", "0.900", "rescored", "4", "1"):
        assert cell in south


def test_an_absence_stays_in_the_line_while_training_goes_on():
    """Since when the coordinator is away and how many updates wait is there beside the step, until it is back."""
    away = {"event": "coordinator_away", "worker_id": "north", "since": "2026-01-01T12:00:00+00:00"}
    away |= {"num_waiting": 2, "reason": "nobody answers", "seconds": 11.0}
    back = {"event": "coordinator_back", "worker_id": "north", "seconds": 12.0}
    back |= {"away_seconds": 3600.0, "num_waiting": 2}
    clock = f"{datetime.fromisoformat(away['since']).astimezone():%H:%M:%S}"
    text = io.StringIO()
    console = Console(file=text, width=200, force_terminal=False)
    with ProgressDisplay(["north"], as_json=False, console=console) as display:
        display.show([EVENTS[0], away, EVENTS[1]])
        console.print(display.table())
        display.show([back])
        console.print(display.table())
    said, between, after = text.getvalue().partition("back after 3600 s")
    assert f"north: coordinator away since {clock}, updates waiting: 2" in said
    row = next(line for line in said.splitlines() if "| north" in line or "│ north" in line)
    assert "5/81" in row
    assert f"away since {clock}, updates waiting: 2" in row
    assert between
    assert "away" not in after


def test_json_is_one_event_a_line(capsys):
    """With JSON, standard output holds every event, one a line, and nothing else."""
    with ProgressDisplay(["north", "south"], as_json=True) as display:
        display.show(EVENTS)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == EVENTS


def test_every_event_is_known():
    """Events in these examples are those of the catalogue."""
    names = {each.value for each in WorkerEvent}
    assert {each["event"] for each in EVENTS} <= names


@pytest.mark.parametrize(
    ("machines", "num_actors", "expected"),
    [
        ([{"CPU": 2.0}], 2, (1.0, 0.0, 1)),
        ([{"CPU": 2.0}], 3, (2 / 3, 0.0, 1)),
        ([{"CPU": 16.0, "GPU": 4.0}], 4, (4.0, 1.0, 4)),
        ([{"CPU": 16.0, "GPU": 8.0}], 4, (4.0, 1.0, 4)),
        ([{"CPU": 16.0, "GPU": 1.0}], 2, (8.0, 0.5, 8)),
        ([{}], 1, (1.0, 0.0, 1)),
        ([{}, {"CPU": 2.0}, {"CPU": 2.0}], 1, (2.0, 0.0, 2)),
        ([{"CPU": 16.0}, {"CPU": 16.0}], 3, (8.0, 0.0, 8)),
        ([{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}], 3, (2.0, 0.5, 2)),
        ([{"CPU": 6.0, "GPU": 3.0}], 7, (6 / 7, 1 / 3, 1)),
        ([{"CPU": 64.0}, {"CPU": 4.0, "GPU": 1.0}], 2, (2.0, 0.5, 2)),
        ([{"CPU": 1.0}, {"CPU": 1.0}], 3, (0.5, 0.0, 1)),
    ],
)
def test_places_share_a_cluster(machines, num_actors, expected):
    """Every actor fits onto one machine, with the most processors and one accelerator or its share of one."""
    place = plan_places(machines, num_actors, num_actors)
    assert (place.num_cpus, place.num_gpus, place.num_threads) == pytest.approx(expected)


def test_two_streams_of_one_worker_are_refused(tmp_path, model_folder):
    """Streams that would fight for one lease are refused before anything starts."""
    paths = (tmp_path / "a.toml", tmp_path / "b.toml")
    for path in paths:
        path.write_text(toys.stream_text(model_folder, "north", ("mood",)))
    request = RunRequest(paths, "127.0.0.1:1", tmp_path, 2, None, LoopOptions())
    with pytest.raises(ConfigError, match="2 streams are of worker 'north'"):
        Driver(request).run()

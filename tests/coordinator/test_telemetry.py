"""The catalogue of events and metrics is the one that is used, and the one that is written down."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
import structlog

import coordinator
from coordinator.store import MemoryCatalog
from share_dist.client import AdminClient
from share_dist.telemetry import Event, configure_logging, get_logger
from share_dist.wire.records import UpdateState
from tests.coordinator.readme_tables import README, written
from tests.coordinator.support import client_of, make_config, make_update, running


def test_the_tables_of_the_readme_are_those_of_the_code():
    """Events, metrics and fault points of the README are made of the code."""
    text = README.read_text()
    assert text == written(text), "run: python -m tests.coordinator.readme_tables"


def test_the_readme_names_every_file():
    """Every module of the coordinator has its line in the README."""
    text = README.read_text()
    files = {path.name for path in Path(coordinator.__file__).parent.glob("[!_]*.py")}
    assert files <= set(re.findall(r"(\w+\.py)", text))


def test_every_event_of_the_catalogue_is_logged_somewhere():
    """No event is documented that nobody logs."""
    sources = Path(coordinator.__file__).parent.rglob("*.py")
    used = set(re.findall(r"Event\.([A-Z_]+)\b", "".join(p.read_text() for p in sources)))
    assert used == {event.name for event in Event}


def test_a_line_of_json_holds_all_its_fields():
    """A machine reads event, level, time, program, fields and the traceback of an error."""
    stream = io.StringIO()
    before = structlog.get_config()
    try:
        configure_logging("json", "INFO", stream)
        log = get_logger("coordinator")
        log.debug("unseen")
        log.warning(Event.UPDATE_REFUSED.value, update_id="u1")
        log.error(Event.REQUEST_FAILED.value, exc_info=ValueError("odd"))
    finally:
        structlog.configure(**before)
    refused, failed = map(json.loads, stream.getvalue().splitlines())
    assert refused.pop("timestamp").endswith("Z")
    assert refused == {
        "event": "update_refused",
        "level": "warning",
        "program": "coordinator",
        "update_id": "u1",
    }
    assert "ValueError: odd" in failed["exception"]


def test_the_console_is_for_people():
    """The console format is one line of words."""
    stream = io.StringIO()
    before = structlog.get_config()
    try:
        configure_logging("console", "INFO", stream)
        get_logger("worker").info(Event.COORDINATOR_READY.value, address="here")
    finally:
        structlog.configure(**before)
    assert "coordinator_ready" in stream.getvalue()
    assert "address=here" in stream.getvalue()


def logged(log_format, stream, **fields):
    before = structlog.get_config()
    try:
        configure_logging(log_format, "INFO", stream)
        get_logger("coordinator").error(Event.REQUEST_FAILED.value, **fields)
    finally:
        structlog.configure(**before)


def fail_with_a_secret():
    secret = "a local value"  # noqa: F841 - what must not be in the log
    raise ValueError("odd")


def test_a_traceback_for_people_shows_no_values():
    """The console's traceback is Python's own: without the values of local variables."""
    stream = io.StringIO()
    try:
        fail_with_a_secret()
    except ValueError as error:
        logged("console", stream, exc_info=error)
    assert "ValueError: odd" in stream.getvalue()
    assert "in fail_with_a_secret" in stream.getvalue()
    assert "a local value" not in stream.getvalue()


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_log_without_room_loses_lines_and_stops_nothing(log_format):
    """A line that cannot be written is lost; whoever logged goes on."""
    with Path("/dev/full").open("w") as full:
        logged(log_format, full)
        with contextlib.suppress(OSError):
            full.close()


@contextlib.contextmanager
def logging_to(stream):
    """Have everything that is logged written to a stream, as JSON."""
    before = structlog.get_config()
    configure_logging("json", "INFO", stream)
    try:
        yield
    finally:
        structlog.configure(**before)


def test_one_id_follows_an_update_to_its_end():
    """Pushed, set aside at the door, let in by a person, merged, taken out: each line has its id."""
    stream = io.StringIO()
    config = make_config(Path("unused"), quarantine_norm=1e-6, min_updates=1)
    with (
        logging_to(stream),
        running(config, catalog=MemoryCatalog()) as app,
        client_of(app.address) as worker,
        AdminClient(app.address) as operator,
    ):
        worker.register()
        assert worker.push(make_update("cats", "u1")).state is UpdateState.QUARANTINED
        assert worker.push(make_update("cats", "u1")).state is UpdateState.QUARANTINED
        operator.replay_update("u1", "looked at")
        worker.pull(min_version=1)
        operator.remove_task("cats", "withdrawn")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    told = [
        line
        for line in lines
        if line.get("update_id") == "u1" or "u1" in line.get("update_ids", ())
    ]
    assert [line["event"] for line in told] == [
        "update_quarantined",
        "update_repeated",
        "update_replayed",
        "update_merged",
        "version_committed",
        "update_dropped",
    ]
    assert {line["subspace"] for line in told} == {"default"}
    assert all(line["task_id"] == "cats" for line in told if "task_id" in line)

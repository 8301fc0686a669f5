"""What an operator does from the command line, against a real coordinator."""

import contextlib
import json
import socket
from datetime import datetime, timedelta, timezone

import pytest
from rich.text import Text

from coordinator.store.format import describe_update
from coordinator.store.memory import MemoryCatalog
from share_dist.commands import console, diagnosis
from share_dist.commands.live import show_live
from share_dist.commands.top import age_of
from share_dist.errors import CoordinatorUnreachable
from share_dist.wire.records import CoordinatorStatus, UpdateState, WorkerStatus
from tests.commands.conftest import share_dist
from tests.coordinator.support import (
    EMPTY,
    client_of,
    make_config,
    make_update,
    running,
    wait_until,
)

TASKS = ("cats", "dogs", "birds", "fish")


def push_one_by_one(app, tasks=TASKS):
    """Push one update of each task; each makes a version."""
    writer = app.coordinator.lineages.get("").writer
    with client_of(app.address, "north") as client:
        lease = client.register()
        for task_id in tasks:
            base = writer.snapshot.subspace.without_tail() if writer.snapshot.version else EMPTY
            update = make_update(task_id, f"of-{task_id}", base=base, lease_epoch=lease.lease_epoch)
            client.push(update, wait="merged")


def set_aside(app, update_id, task_id, state=UpdateState.QUARANTINED):
    """Put an update beside the door."""
    described = describe_update(
        make_update(task_id, update_id),
        worker_id="west",
        owner="west",
        pushed_at=datetime.now(timezone.utc),
        state=state,
        reason="its norm is odd",
    )
    app.coordinator.lineages.get("").store.add_update(described, by="west")


@contextlib.contextmanager
def stocked_coordinator():
    config = make_config("unused", subspaces={"vision": {}}, metrics_listen="127.0.0.1:0")
    with running(config, catalog=MemoryCatalog()) as served:
        push_one_by_one(served)
        set_aside(served, "odd", "mice")
        yield served


@pytest.fixture(scope="module")
def seen():
    """A coordinator with four versions, one update set aside, and a second subspace; only to be read."""
    with stocked_coordinator() as served:
        yield served


@pytest.fixture
def app():
    """The same, to be changed."""
    with stocked_coordinator() as served:
        yield served


@pytest.fixture
def look(seen):
    """Run a command on the coordinator that is only read."""
    return lambda *arguments: share_dist(*arguments, "-c", seen.address)


@pytest.fixture
def ask(app):
    """Run a command on the coordinator that may be changed."""
    return lambda *arguments: share_dist(*arguments, "-c", app.address)


# --- looking ------------------------------------------------------------------------------------


def test_versions_are_listed_with_what_made_them(look):
    """Oldest first, each with its task, energy and digest; --limit keeps the newest."""
    found = look("versions", "--json").json
    assert [version["event"]["version"] for version in found] == [1, 2, 3, 4]
    assert [version["event"]["task_ids"] for version in found] == [[task] for task in TASKS]
    assert [each["event"]["version"] for each in look("versions", "--limit", 2, "--json").json] == [
        3,
        4,
    ]
    assert [each["event"]["version"] for each in look("versions", "--after", 3, "--json").json] == [
        4
    ]
    text = look("versions").text
    assert "versions of default" in text
    assert found[0]["event"]["digest"][:12] in text


def test_versions_can_be_read_in_a_narrow_terminal(look, monkeypatch):
    """Within 80 columns each version has a line, and it is said where the other columns are."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = look("versions").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(" merge " in line for line in lines) == 4
    assert any("--json shows all" in line for line in lines)


def test_a_diff_says_what_came_went_and_moved(look):
    """Tasks that are in both have a drift, the new ones are named, every side has its angle."""
    found = look("diff", 2, 4, "--json").json
    assert found["added_task_ids"] == ["birds", "fish"]
    assert found["removed_task_ids"] == []
    assert set(found["drift"]) <= {"cats", "dogs"}
    assert {(layer["layer"], layer["side"]) for layer in found["layers"]} == {
        (name, side) for name in ("encoder.query", "encoder.value") for side in "ab"
    }
    assert "tasks that came: birds, fish" in look("diff", 2, 4).text
    ended = look("diff", 1, 99)
    assert ended.code == 1
    assert "VersionInFuture: " in ended.stderr


def test_bisect_names_the_merge_that_moved_a_task_most(look):
    """The merges are ranked by how far each moved the task; its own merge is not among them."""
    moves = look("bisect", "--task", "cats", "--json").json
    drifts = [move["drift"] for move in moves]
    assert drifts == sorted(drifts, reverse=True)
    assert 1 not in {move["version"] for move in moves}
    assert moves
    assert "merges that moved 'cats' most" in look("bisect", "--task", "cats").text
    ended = look("bisect", "--task", "cat")
    assert ended.code == 1
    assert "UnknownTask: " in ended.stderr
    assert "cats" in ended.stderr


def test_subspaces_say_what_one_may_do(look):
    """Every subspace with its version, and the caller's role."""
    found = {each["name"]: each for each in look("subspaces", "--json").json}
    assert (found["default"]["current_version"], found["default"]["role"]) == (4, "admin")
    assert found["vision"]["current_version"] == 0
    assert "vision" in look("subspaces").text


def test_a_command_works_on_the_subspace_that_is_named(look):
    """--subspace chooses; an unknown one is named with those that there are."""
    assert look("versions", "--subspace", "vision").text.startswith("nothing has been merged yet")
    ended = look("versions", "--subspace", "visio")
    assert ended.code == 1
    assert "UnknownSubspace: " in ended.stderr
    assert "vision" in ended.stderr


def test_the_audit_log_is_read_in_pieces(look):
    """Lines come oldest first, and go on after the last that was seen."""
    first = look("audit", "--after", 0, "--limit", 3, "--json").json
    assert len(first) == 3
    rest = look("audit", "--after", first[-1]["sequence"], "--json").json
    assert rest[0]["sequence"] == first[-1]["sequence"] + 1
    assert {"update_admitted", "version_merge"} <= {each["action"] for each in first + rest}
    assert "go on with --after" in look("audit").text
    assert first + rest == look("audit", "--limit", 1000, "--json").json
    newest = look("audit", "--limit", 3, "--json").json
    assert newest == rest[-3:], "who does not say from where is told what happened last"
    assert look("audit", "--after", 10**6).text == "there is no line after 1,000,000"


def test_top_and_status_look_again(look):
    """Each look shows workers, versions and what waits; as JSON each is one line."""
    text = look("top", "--count", 2, "--every", 0.2).text
    for part in ("north", "newest versions", "odd", "its norm is odd", "vision"):
        assert part in text
    looks = [json.loads(line) for line in look("top", "--count", 2, "--every", 0.2, "--json").stdout.splitlines()]  # fmt: skip
    assert [look["status"]["current_version"] for look in looks] == [4, 4]
    lines = look("status", "--live", "--count", 2, "--every", 0.2, "--json").stdout.splitlines()
    assert [json.loads(line)["num_quarantined"] for line in lines] == [1, 1]
    assert "you are local, admin" in look("status").text


def test_top_needs_a_coordinator_that_answers():
    """One that never answered is the error of every command."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    ended = share_dist("top", "-c", address, "--timeout", 0.5, "--count", 1)
    assert ended.code == 4
    assert "no coordinator answers" in ended.text


def test_a_live_view_waits_for_a_coordinator_that_went_away(capsys):
    """Where nobody answers for a while it is said so, and asked again; a program gets the error."""
    gone = CoordinatorUnreachable("no coordinator answers at there")
    found = iter([1, gone, 3])
    show_live(
        lambda: raised(next(found)),
        lambda number: Text(f"look {number}"),
        every=0,
        count=3,
        as_json=False,
    )
    assert "look 3" in capsys.readouterr().out
    found = iter([1, gone])
    with pytest.raises(CoordinatorUnreachable):
        show_live(lambda: raised(next(found)), Text, every=0, count=3, as_json=True)
    assert capsys.readouterr().out == "1\n"


def raised(value):
    """Return a value, or raise it if it is an error."""
    if isinstance(value, Exception):
        raise value
    return value


# --- changing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [("rollback", "2"), ("compact", "--keep", "1"), ("remove", "cats"), ("updates", "drop", "odd")],
    ids=" ".join,
)
def test_nothing_is_done_where_nobody_can_be_asked(ask, command):
    """What cannot simply be undone needs --yes in a script, and says what it would do."""
    before = ask("status", "--json").json
    ended = ask(*command)
    assert ended.code == 2
    assert "say --yes" in ended.stderr
    ended = ask(*command, "--json")
    assert (ended.code, ended.json["key"]) == (2, "yes")
    after = ask("status", "--json").json
    assert after["digest"] == before["digest"]
    assert [each["is_kept"] for each in ask("versions", "--json").json] == [True] * 4


def test_a_rollback_is_a_new_version_with_old_content(ask):
    """The lineage is kept; what was merged since is rolled back and can be let in again."""
    event = ask("rollback", 2, "--yes", "--reason", "a bad batch", "--json").json
    assert (event["version"], event["kind"], event["content_version"]) == (5, "rollback", 2)
    assert [task["task_id"] for task in ask("tasks", "--json").json if task["state"] == "merged"] == ["cats", "dogs"]  # fmt: skip
    states = ask("updates", "list", "--state", "rolled-back", "--json").json
    assert {each["task_id"] for each in states} == {"birds", "fish"}
    assert "content of version 2" in ask("versions").text
    watched = ask("watch", "--after", 4, "--count", 1).text
    assert watched.startswith("version 5, rollback: content of version 2; k ")
    assert ask("updates", "replay", "of-birds").code == 0


def test_compaction_says_first_what_would_go(ask):
    """A dry run changes nothing; afterwards old versions have no tensors and keep their lines."""
    planned = ask("compact", "--keep", 1, "--dry-run", "--json").json
    assert planned["versions"]
    assert all(each["is_kept"] for each in ask("versions", "--json").json)
    done = ask("compact", "--keep", 1, "--yes", "--json").json
    assert done["versions"] == planned["versions"]
    kept = {each["event"]["version"]: each["is_kept"] for each in ask("versions", "--json").json}
    assert [number for number, is_kept in kept.items() if not is_kept] == done["versions"]
    assert ask("compact", "--keep", 1, "--yes").text.startswith("nothing can go")


def test_a_task_is_removed(ask):
    """The next version is without it, and the answer bounds what may be left."""
    removal = ask("remove", "cats", "--yes", "--reason", "withdrawn", "--json").json
    assert removal["event"]["kind"] == "removal"
    assert removal["residue_bound"] >= 0
    assert "cats" not in [task["task_id"] for task in ask("tasks", "--json").json if task["state"] == "merged"]  # fmt: skip
    assert "UnknownTask: " in ask("remove", "cows", "--yes").stderr


def test_updates_are_listed_inspected_replayed_and_dropped(ask, app):
    """From quarantine an update goes back into the queue, or is given up; each step is audited."""
    (odd,) = ask("updates", "list", "--state", "quarantined", "--json").json
    assert (odd["receipt"]["update_id"], odd["receipt"]["reason"]) == ("odd", "its norm is odd")
    inspected = ask("updates", "inspect", "odd", "--json").json
    assert {layer["layer"] for layer in inspected["layers"]} == {"encoder.query", "encoder.value"}
    assert "its norm is odd" in ask("updates", "inspect", "odd").text
    assert ask("updates", "replay", "odd", "--reason", "looked at").code == 0
    set_aside(app, "worse", "rats", UpdateState.PARKED)
    assert ask("updates", "drop", "worse", "--yes", "--json").json["state"] == "dropped"
    ended = ask("updates", "replay", "worse")
    assert ended.code == 1
    assert "WrongState: " in ended.stderr
    assert "UnknownUpdate: " in ask("updates", "inspect", "nothing").stderr
    assert ask("updates", "list", "--state", "lost").code == 2


def test_a_person_is_asked(monkeypatch, capsys):
    """In a terminal the answer decides; no is no."""
    import typer

    monkeypatch.setattr(console.sys, "stdin", _Terminal("n\n"))
    with pytest.raises(typer.Abort):
        console.confirm("end the world", yes=False, as_json=False)
    assert "This will end the world. Go on?" in capsys.readouterr().err
    monkeypatch.setattr(console.sys, "stdin", _Terminal("y\n"))
    console.confirm("end the world", yes=False, as_json=False)


class _Terminal:
    def __init__(self, answer):
        self._answer = answer

    def isatty(self):
        return True

    def readline(self, *_):
        return self._answer


# --- the doctor ---------------------------------------------------------------------------------


def test_the_doctor_finds_what_needs_a_person(look, seen):
    """Each finding has its number, what was seen and a remedy; the exit code says that there are some."""
    ended = look("doctor", "--metrics", seen.metrics_address, "--json")
    assert ended.code == 7
    checks = {check["number"]: check for check in ended.json}
    assert {number for number, check in checks.items() if check["outcome"] == "finding"} == {9}
    assert "1 updates are quarantined" in checks[9]["said"]
    assert "share-dist updates list" in checks[9]["remedy"]
    assert {number for number, check in checks.items() if check["outcome"] == "not checked"} == {
        2,
        3,
    }
    assert checks[13]["outcome"] == "well"


def test_the_doctor_is_content(tmp_path):
    """With nothing to find the exit code is 0; with --store the disk and its contents are looked at."""
    with running(make_config(tmp_path / "store")) as served:
        push_one_by_one(served, ["cats"])
        ended = share_dist("doctor", "-c", served.address, "--store", tmp_path / "store", "--json")
    outcomes = {check["number"]: check["outcome"] for check in ended.json}
    # a disk that others use at the time may be slow
    slow = {16} if outcomes[16] == "finding" else set()
    assert {number for number, outcome in outcomes.items() if outcome == "finding"} == slow
    assert {15, 16, 17, 18} <= outcomes.keys()
    assert ended.code == (7 if slow else 0)


def test_the_doctor_says_where_the_way_ends():
    """A coordinator that cannot be reached is the first finding, and nothing else is guessed."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    ended = share_dist("doctor", "-c", address, "--json")
    assert ended.code == 7
    assert [(check["number"], check["outcome"]) for check in ended.json] == [(1, "finding")]


def test_the_doctor_tells_another_program_from_a_coordinator(seen):
    """What answers and is none of ours is a finding, not a crash."""
    ended = share_dist("doctor", "-c", seen.metrics_address, "--timeout", 1, "--json")
    assert ended.code == 7
    assert [check["outcome"] for check in ended.json][-1] == "finding"


OWNER = {"pid": 1, "host": "here", "fence": 3, "seconds_left": 20.0, "is_provably_dead": False}


@pytest.mark.parametrize(
    ("owner", "is_found"),
    [
        (OWNER, False),
        (None, True),
        (OWNER | {"seconds_left": -1.0}, True),
        (OWNER | {"is_provably_dead": True}, True),
    ],
)
def test_a_store_that_nobody_owns_is_found(owner, is_found):
    """A store without a living owner takes no update: its coordinator must be started."""
    check = diagnosis.of_store({"schema_version": 2, "subspaces": [{}], "owner": owner})
    assert (check.outcome == "finding") == is_found


def test_what_is_broken_in_a_store_is_found():
    """The first broken thing is named with its remedy; harmless leftovers are none."""
    broken = {
        "subject": "blob 12",
        "problem": "damaged",
        "remedy": "restore it",
        "is_harmless": False,
    }
    assert diagnosis.of_verify([broken | {"is_harmless": True}]).outcome == "well"
    check = diagnosis.of_verify([broken])
    assert (check.outcome, check.remedy) == ("finding", "restore it")


NOW = datetime(2030, 1, 1, tzinfo=timezone.utc)


def status_of(**changes):
    known = {
        "current_version": 100, "first_version": 0, "fingerprint": None, "num_tasks": 3,
        "num_pending": 0, "num_quarantined": 0, "workers": (), "num_watchers": 0,
        "started_at": NOW, "release": "1.0",
    }  # fmt: skip
    return CoordinatorStatus(**known | changes)


def worker(**changes):
    known = {"worker_id": "w", "lease_epoch": 1, "is_live": True, "last_heartbeat_at": NOW}
    return WorkerStatus(**known | changes)


@pytest.mark.parametrize(
    ("changes", "number", "said"),
    [
        ({}, None, ""),
        ({"release": "2.0"}, 4, "runs 2.0, this is 1.0"),
        ({"started_at": NOW + timedelta(minutes=2)}, 5, "120 s ahead"),
        ({"newest_version_at": NOW + timedelta(hours=1)}, 5, "3,600 s ahead"),
        ({"workers": (worker(is_live=False),)}, 6, "1 of 1"),
        ({"workers": (worker(base_version=10, num_merged=1),)}, 7, "90 behind"),
        ({"workers": (worker(base_version=10),)}, None, "never pushed is not behind"),
        ({"num_watchers": 5, "num_slow_watchers": 2}, 8, "2 of 5"),
        ({"num_quarantined": 3}, 9, "3 updates are quarantined"),
        ({"num_parked": 4}, 10, "4 updates are parked"),
    ],
)
def test_what_the_status_tells_the_doctor(changes, number, said):
    """One thing that is wrong is one finding, with its numbers and a remedy."""
    checks = list(diagnosis.of_status(status_of(**changes), NOW, "1.0"))
    found = [check for check in checks if check.outcome == "finding"]
    assert [check.number for check in found] == ([] if number is None else [number])
    assert all(said in check.said and check.remedy for check in found)


def test_that_merging_fails_is_found(monkeypatch):
    """The status says since when and why, and the doctor that it needs a person."""

    def fail(*_args, **_named):
        raise RuntimeError("no such stride")

    monkeypatch.setattr("coordinator.preparation.candidate_of_merge", fail)
    with (
        running(make_config("unused"), catalog=MemoryCatalog()) as app,
        client_of(app.address) as client,
    ):
        client.register()
        client.push(make_update("cats"))
        wait_until(lambda: client.status().merge_failure)
        address = ["--coordinator", app.address]
        shown = share_dist("status", *address).stdout
        found = json.loads(share_dist("doctor", *address, "--json").stdout)
    assert "fails since" in shown
    assert "RuntimeError: no such stride" in " ".join(shown.split())
    (check,) = [each for each in found if each["number"] == 11]
    assert check["outcome"] == "finding"
    assert "no such stride" in check["said"]


@pytest.mark.parametrize(("days", "is_found"), [(-1, True), (3, True), (13.9, True), (30, False)])
def test_a_certificate_that_ends_soon_is_found(days, is_found):
    """Two weeks before its end a certificate is a finding, and after its end as well."""
    check = diagnosis.of_certificate(2, "its certificate", NOW + timedelta(days=days), NOW)
    assert (check.outcome == "finding") == is_found


def test_ages_do_not_go_below_zero():
    """A clock that is behind makes nothing younger than now."""
    assert age_of(NOW + timedelta(seconds=5), NOW) == 0
    assert age_of(NOW - timedelta(seconds=5.9), NOW) == 5

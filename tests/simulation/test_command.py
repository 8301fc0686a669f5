"""`share-dist simulate` before a real coordinator."""

import json
import signal

import pytest

from share_dist.simulation.link import KEPT_VERSIONS
from tests.commands.conftest import end_of, share_dist, start_share_dist
from tests.simulation.support import NUM_RECORDED, write_adapters

OPTIONS = (
    *("--workers", 6, "--tasks", 4, "--num-factors", 4, "--oversample", 4),
    *("--present-seconds", 400, "--stragglers", 0.3, "--straggler-factor", 50),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_adapters(tmp_path_factory.mktemp("recorded"))


@pytest.fixture(scope="module")
def traced(folder, tmp_path_factory):
    """A run with rounds beside it: its report, and its trace."""
    path = tmp_path_factory.mktemp("traced") / "trace.jsonl"
    ended = share_dist(
        "simulate", folder, *OPTIONS, "--rounds", "--leaves", 1, "--trace", path, "--json"
    )
    assert ended.code == 0, ended.stderr
    return ended.json, path


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_tells_what_a_real_coordinator_made_of_it(traced):
    """Every update is merged by real merges, whose energy, time and bytes are measured."""
    report, _ = traced
    for kind in ("asynchronous", "rounds"):
        run = report[kind]
        assert run["updates"] == {"merged": 24, "asked": 24, "recorded": NUM_RECORDED, "synthetic": 19}  # fmt: skip
        assert 0.5 < run["energy"]["captured"] <= 1.0 + 1e-6
        assert run["measured_service_seconds"]["smallest"] > 0
        assert run["coordinator"]["received_bytes_per_1000"] > 1000 * 4 * 3 * (24 + 20 + 24 + 16)
    assert report["rounds"]["energy"]["curve"][-1]["updates"] == 24
    assert [each["share"] for each in report["comparison"]["until_merged"]][-1] == 1.0
    assert report["asynchronous"]["angle"]["largest"] > 0
    assert report["asynchronous"]["lag"]["largest"] > 0 == report["rounds"]["lag"]["largest"]


def test_a_root_gets_what_a_leaf_has_learnt(traced):
    """Above a single leaf it holds what that holds: the same work before one coordinator, but for its timing."""
    report, _ = traced
    assert report["tree"]["is_whole"]
    assert [leaf["updates"]["merged"] for leaf in report["tree"]["leaves"]] == [24]
    single = report["asynchronous"]["energy"]["captured"]
    assert report["tree"]["captured"] == pytest.approx(single, abs=0.02)
    assert report["tree"]["received_bytes"] > 0


def test_a_trace_is_replayed_to_the_letter(traced, folder, tmp_path):
    """Same order, bases, lags, versions and times; only what the machine takes is another."""
    _, path = traced
    again = tmp_path / "again.jsonl"
    ended = share_dist("simulate", folder, *OPTIONS, "--replay", path, "--trace", again)
    assert ended.code == 0, ended.stderr
    first, second = lines_of(path), lines_of(again)
    assert len(first) == 25
    for one, other in zip(first, second, strict=True):
        angles = (one.pop("angle", 0.0), other.pop("angle", 0.0))
        assert one == other
        assert angles[0] == pytest.approx(angles[1], abs=1e-3)
    assert f"24 updates, {NUM_RECORDED} recorded (of {NUM_RECORDED}), 19 synthetic" in ended.text
    assert "energy captured, of the batch optimum" in ended.text


def test_a_base_version_stays_kept_however_late_an_update_comes(traced):
    """A straggler's update is merged on the version it was trained in, when others of its time are gone."""
    _, path = traced
    assert max(line["lag"] for line in lines_of(path)[1:]) > KEPT_VERSIONS


def test_ctrl_c_ends_with_what_was_measured(folder):
    """The report of what was merged by then is printed, and the exit code says interrupted."""
    process = start_share_dist("simulate", folder, *OPTIONS, "--tasks", 2000, "--json")
    assert "of 12,000" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    ended = end_of(process)
    assert ended.code == 130
    assert ended.json["asynchronous"]["is_whole"] is False
    assert 0 < ended.json["asynchronous"]["updates"]["merged"] < 12_000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--rounds", "--pushes", 3), "drop --rounds"),
        (("--leaves", 2, "--pushes", 3), "drop --leaves"),
        (("--leaves", 3, "--workers", 2), "ask for fewer leaves"),
        (("--workers", 0), "workers is 0"),
        (("--layers", 0), "layers is 0"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_starts(folder, options, words):
    """The letter names the option."""
    ended = share_dist("simulate", folder, *options)
    assert ended.code == 2
    assert words in ended.text


def test_one_of_two_ways_to_say_what_a_push_takes(traced, folder):
    """A replay and a constant contradict each other."""
    _, path = traced
    ended = share_dist("simulate", folder, *OPTIONS, "--replay", path, "--service-seconds", 1)
    assert ended.code == 2
    assert "give one of them" in ended.text


def test_a_trace_that_cannot_be_written_is_refused_before_anything_starts(folder, tmp_path):
    """The letter names the option, and nobody has waited for a run."""
    ended = share_dist("simulate", folder, *OPTIONS, "--trace", tmp_path / "absent" / "trace")
    assert ended.code == 2
    assert "choose another --trace" in ended.text

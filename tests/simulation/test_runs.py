"""What happens when in virtual time, before a link that merges nothing but numbers."""

import math
from dataclasses import replace

import pytest

from share_dist.errors import ConfigError
from share_dist.simulation.asynchronous import run_asynchronously
from share_dist.simulation.population import offered_per_second
from share_dist.simulation.report import compare, summarise
from share_dist.simulation.rounds import run_in_rounds
from share_dist.simulation.scenario import make_scenario
from share_dist.simulation.session import constant, replayed
from share_dist.simulation.trace import read_service_seconds, write_trace
from tests.simulation.support import NoCoordinator, session_of


def previous_end(pushes, push):
    """When a worker had learnt the task before this one, and asked for a version; None for its first."""
    before = [
        each.trained_at
        for each in pushes
        if each.worker_id == push.worker_id and each.trained_at < push.trained_at
    ]
    return max(before, default=None)


def test_every_worker_learns_every_task_once():
    """All of the work is merged, in versions from 1 on, and nobody is asked twice."""
    trace = run_asynchronously(session_of())
    assert trace.is_whole
    assert len({push.task_id for push in trace.pushes}) == len(trace.pushes) == 18
    assert [push.version for push in trace.pushes] == list(range(1, 19))
    assert [push.merged_at for push in trace.pushes] == sorted(push.merged_at for push in trace.pushes)  # fmt: skip


def test_equal_seeds_make_equal_runs():
    """With a constant service the seed decides order, lags, versions and times; another seed decides otherwise."""
    scenario = {"present_seconds": 300, "stragglers": 0.3}
    one, again, other = (
        run_asynchronously(session_of(seed=seed, **scenario)).pushes for seed in (5, 5, 6)
    )
    assert one == again
    assert [push.task_id for push in one] != [push.task_id for push in other]


def test_a_run_is_replayed_from_what_it_counted(tmp_path):
    """Written and read again, the counted seconds make the same run, whatever the machine takes now."""
    uneven = iter([0.1, 7.0, 300.0] * 6)
    session = session_of(clock=lambda _: next(uneven))
    first = run_asynchronously(session).pushes
    write_trace(tmp_path / "trace", session.scenario, first)
    seconds = read_service_seconds(tmp_path / "trace", session.scenario)
    assert run_asynchronously(session_of(clock=replayed(seconds))).pushes == first


def test_a_trace_of_another_scenario_is_not_replayed(tmp_path):
    """What differs is named with both values."""
    path = tmp_path / "trace"
    write_trace(path, make_scenario(seed=1), [])
    with pytest.raises(ConfigError, match="seed 1, now it is 2"):
        read_service_seconds(path, make_scenario(seed=2))


@pytest.mark.parametrize("push", ["", "[]", "{}", '{"service_seconds": NaN}', '{"service_seconds": -1}'])  # fmt: skip
def test_what_is_no_trace_is_not_replayed(tmp_path, push):
    """Damage is told before anything starts, times that cannot be included."""
    path = tmp_path / "trace"
    write_trace(path, make_scenario(), [])
    path.write_text(path.read_text() + push + "\n" if push else push)
    with pytest.raises(ConfigError, match="give a file that --trace wrote"):
        read_service_seconds(path, make_scenario())


def test_the_coordinator_serves_one_after_the_other():
    """While it is busy what arrives waits, in order of arrival, and nothing is merged early."""
    pushes = run_asynchronously(session_of(clock=constant(1000.0))).pushes
    assert [push.arrived_at for push in pushes] == sorted(push.arrived_at for push in pushes)
    free_at = 0.0
    for push in pushes:
        free_at = max(free_at, push.arrived_at) + 1000.0
        assert push.merged_at == pytest.approx(free_at)


def test_a_worker_gets_the_newest_version_that_was_done():
    """A version exists from its merge on: a slow coordinator makes for older bases and more lag."""
    pushes = run_asynchronously(session_of(clock=constant(500.0), latency_seconds=0.001)).pushes
    merged_at = {push.version: push.merged_at for push in pushes}
    asked_at = {push.task_id: previous_end(pushes, push) for push in pushes}
    for push in pushes:
        assert push.lag == push.version - 1 - push.base_version
        if asked_at[push.task_id] is not None:
            assert merged_at.get(push.base_version, 0.0) <= asked_at[push.task_id] + 0.01
            assert merged_at.get(push.base_version + 1, math.inf) >= asked_at[push.task_id]
    quick = run_asynchronously(session_of(clock=constant(0.0))).pushes
    assert sum(push.lag for push in quick) < sum(push.lag for push in pushes)


@pytest.mark.parametrize("run", [run_asynchronously, run_in_rounds])
def test_who_was_away_says_that_it_is_back(run):
    """A heartbeat comes before the push of who has been away, and only then."""
    stays, leaves = NoCoordinator(), NoCoordinator()
    run(session_of(link=stays))
    run(session_of(link=leaves, present_seconds=1000, absent_seconds=60))
    assert stays.heard == 0
    assert 0 < leaves.heard < 18


def test_a_run_that_is_stopped_keeps_what_was_measured():
    """Between two pushes it ends; what was merged by then is told, with the last version."""
    link = NoCoordinator()
    trace = run_asynchronously(session_of(link=link, should_stop=lambda: link.version >= 5))
    assert not trace.is_whole
    assert len(trace.pushes) == trace.samples[-1].num_updates == 5
    assert summarise(make_scenario(workers=6, tasks=3, seed=2), trace)["updates"]["merged"] == 5


def test_nothing_measured_is_told_as_nothing():
    """Stopped before the first push, a run has a report all the same."""
    scenario = make_scenario(workers=6, tasks=3)
    report = summarise(scenario, run_asynchronously(session_of(should_stop=lambda: True)))
    assert report["lag"] == {"samples": 0}
    assert report["updates_per_hour"] == report["energy"]["captured"] == 0.0


def test_pushes_end_a_run():
    """It ends after as many as were asked for, and is whole."""
    trace = run_asynchronously(session_of(pushes=7))
    assert (len(trace.pushes), trace.is_whole) == (7, True)


def test_a_round_waits_for_its_slowest():
    """Every task is one version, trained in the one before; nothing is merged before the last has arrived."""
    trace = run_in_rounds(session_of())
    assert trace.is_whole
    for number in range(3):
        members = trace.pushes[6 * number : 6 * number + 6]
        assert {push.version for push in members} == {number + 1}
        assert {push.base_version for push in members} == {number}
        assert {push.lag for push in members} == {0}
        (merged_at,) = {push.merged_at for push in members}
        assert merged_at >= max(push.arrived_at for push in members) + 1.0


def test_a_round_that_is_stopped_leaves_nothing_behind():
    """Only whole rounds count."""
    link = NoCoordinator()
    trace = run_in_rounds(session_of(link=link, should_stop=lambda: len(link.base_versions) > 8))
    assert len(trace.pushes) == 6
    assert not trace.is_whole


def test_both_kinds_of_runs_do_the_same_work():
    """Each task takes the same time and is the same update, whoever waits for whom."""
    one, other = run_asynchronously(session_of()), run_in_rounds(session_of())
    assert {(push.task_id, push.origin) for push in one.pushes} == {(push.task_id, push.origin) for push in other.pushes}  # fmt: skip
    assert one.seconds < other.seconds


def test_a_report_labels_what_is_synthetic():
    """Recorded and synthetic updates are counted apart, and each push says which it is."""
    session = session_of()
    trace = run_asynchronously(session)
    report = summarise(session.scenario, trace)
    assert report["updates"] == {"merged": 18, "asked": 18, "recorded": 5, "synthetic": 13}
    assert sum(push.origin.startswith("synthetic") for push in trace.pushes) == 13
    assert sum(site["pushed_bytes"] for site in report["sites"]) == 18 * 500
    assert sum(site["pulled_bytes"] for site in report["sites"]) == 18 * 1000
    assert report["coordinator"]["received_bytes_per_1000"] == 500_000


def test_what_was_recorded_comes_first():
    """Of many workers those who are ready first push the recorded updates, and every one of them is used."""
    pushes = run_asynchronously(session_of(workers=300, pushes=20)).pushes
    assert [push.is_synthetic for push in pushes] == [False] * 5 + [True] * 15


def test_utilisation_is_how_much_of_the_time_the_coordinator_is_busy():
    """It is one where the coordinator never rests, and falls with the service time."""
    reports = {}
    for seconds in (1.0, 5000.0):
        session = session_of(clock=constant(seconds))
        reports[seconds] = summarise(session.scenario, run_asynchronously(session))
    assert reports[5000.0]["utilisation"] == pytest.approx(1.0)
    assert reports[1.0]["utilisation"] < 0.05


def test_runs_are_compared_at_the_energy_that_both_reach():
    """The target is a share of the lower end; each counts from its first version that has it."""
    report = summarise(make_scenario(workers=6, tasks=3, seed=2), run_asynchronously(session_of()))

    def run(*curve):
        points = [{"seconds": s, "updates": 0, "captured": c} for s, c in curve]
        return report | {"energy": {"captured": points[-1]["captured"], "curve": points}}

    quick, slow = run((10, 0.3), (20, 0.61), (30, 0.9)), run((40, 0.2), (80, 0.8))
    found = compare(quick, slow)["until_captured"]
    assert [(each["asynchronous_seconds"], each["rounds_seconds"]) for each in found][:2] == [(20, 80), (20, 80)]  # fmt: skip
    assert found[0] == pytest.approx({"share": 0.5, "captured": 0.4, "asynchronous_seconds": 20, "rounds_seconds": 80, "ratio": 4.0})  # fmt: skip
    assert compare(quick, slow | {"is_whole": False}) is None


def test_the_load_that_is_offered_is_rate_times_service():
    """Twice the workers offer twice the load; absences and slowness take from it what they take from time."""

    def offered(**values):
        return offered_per_second(
            make_scenario(stragglers=0, train_spread=0, train_seconds=100, **values)
        )

    assert offered(workers=50) == pytest.approx(0.5)
    assert offered(workers=100) == pytest.approx(1.0)
    assert offered(workers=50, present_seconds=60, absent_seconds=60) == pytest.approx(0.25)
    session = session_of(clock=constant(2.0))
    report = summarise(session.scenario, run_asynchronously(session))
    assert report["offered_load"] == pytest.approx(2 * offered_per_second(session.scenario))


def test_members_do_what_they_would_do_among_all():
    """Before a coordinator of their own, workers have the same tasks, times and updates."""
    everybody = run_asynchronously(session_of()).pushes
    half = run_asynchronously(session_of(is_member=lambda worker: worker.index % 2 == 0))
    assert half.is_whole
    expected = {(push.task_id, push.origin) for push in everybody if int(push.worker_id[-6:]) % 2 == 0}  # fmt: skip
    assert {(push.task_id, push.origin) for push in half.pushes} == expected


def test_a_push_cannot_be_changed_afterwards():
    """What was written down stays."""
    push = run_asynchronously(session_of()).pushes[0]
    with pytest.raises(AttributeError):
        push.version = 3
    assert replace(push, version=3) != push

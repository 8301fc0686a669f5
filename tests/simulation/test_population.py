"""Who takes part, drawn from one seed."""

import math
import statistics

import pytest

from share_dist.errors import ConfigError
from share_dist.simulation.population import draw_lesson, draw_workers
from share_dist.simulation.scenario import make_scenario


def test_equal_seeds_draw_equal_workers():
    """The seed decides everything about everybody, and another seed decides otherwise."""
    one, again, other = (draw_workers(make_scenario(workers=20, seed=seed)) for seed in (3, 3, 4))
    assert one == again
    assert one != other


def test_more_workers_leave_the_others_as_they_were():
    """Who a worker is does not depend on how many there are."""
    few, many = (draw_workers(make_scenario(workers=count)) for count in (5, 50))
    assert many[:5] == few


def test_a_lesson_takes_as_long_whenever_it_is_asked_for():
    """The same work takes the same time in whatever order it is done."""
    scenario = make_scenario(workers=4, tasks=4, present_seconds=100, absent_seconds=50)
    asked = [(worker, number) for worker in draw_workers(scenario) for number in range(4)]
    lessons = {each: draw_lesson(scenario, *each) for each in asked}
    assert {each: draw_lesson(scenario, *each) for each in reversed(asked)} == lessons


def test_medians_are_what_was_asked_for():
    """Half of all tasks take longer than ``train_seconds``, and half of all sites are nearer than the median."""
    scenario = make_scenario(workers=2000, sites=400, stragglers=0, train_seconds=100, latency_seconds=0.2)  # fmt: skip
    workers = draw_workers(scenario)
    seconds = [draw_lesson(scenario, worker, 0).seconds for worker in workers]
    assert statistics.median(seconds) == pytest.approx(100, rel=0.1)
    spread = statistics.stdev(map(math.log, seconds))
    assert spread == pytest.approx(scenario.train_spread, rel=0.1)
    latencies = {worker.site.name: worker.site.latency_seconds for worker in workers}
    assert statistics.median(latencies.values()) == pytest.approx(0.2, rel=0.2)


def test_stragglers_are_as_many_and_as_slow_as_asked():
    """A straggler takes exactly ``straggler_factor`` times as long as it would otherwise."""
    slow, quick = (make_scenario(workers=400, stragglers=share, straggler_factor=7) for share in (0.25, 0))  # fmt: skip
    ratios = [
        draw_lesson(slow, a, 0).seconds / draw_lesson(quick, b, 0).seconds
        for a, b in zip(draw_workers(slow), draw_workers(quick), strict=True)
    ]
    assert {round(ratio, 9) for ratio in ratios} == {1.0, 7.0}
    assert sum(ratio > 2 for ratio in ratios) / 400 == pytest.approx(0.25, abs=0.07)


def test_an_absence_makes_a_task_longer_by_its_own_length():
    """Who goes away loses that time and nothing else; who never does loses nothing."""
    there = make_scenario(workers=300)
    away = make_scenario(workers=300, present_seconds=600, absent_seconds=200)
    lost, num_absences = 0.0, 0
    for worker in draw_workers(there):
        plain, longer = draw_lesson(there, worker, 0), draw_lesson(away, worker, 0)
        assert plain.num_absences == 0
        assert (longer.seconds == plain.seconds) == (longer.num_absences == 0)
        lost += longer.seconds - plain.seconds
        num_absences += longer.num_absences
    assert lost / num_absences == pytest.approx(200, rel=0.2)


def test_a_transfer_takes_latency_and_bandwidth():
    """A megabyte over 8 Mbit/s takes a second, and the latency."""
    scenario = make_scenario(sites=1, site_spread=0, latency_seconds=0.25, megabits_per_second=8)
    site = draw_workers(scenario)[0].site
    assert site.transfer_seconds(10**6) == pytest.approx(1.25)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"workers": 0}, "workers"),
        ({"train_seconds": 0}, "train_seconds"),
        ({"stragglers": 1.5}, "stragglers"),
        ({"workers": 10**5, "tasks": 11}, "tasks"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_scenario_that_cannot_be_is_refused_with_its_key(values, key):
    """What is out of its range is named before anything starts."""
    with pytest.raises(ConfigError, match=key.replace("tasks", "1,100,000 pushes")) as raised:
        make_scenario(**values)
    assert raised.value.key == key


def test_pushes_end_a_scenario_that_would_be_too_long():
    """Ten thousand workers need not all come to their end."""
    assert make_scenario(workers=10**5, tasks=11, pushes=7).num_pushes == 7

import pytest
import torch

from share_dist.core.routing import (
    Router,
    abstention_bounds,
    calibrated_temperature,
    calibration_error,
)
from share_dist.errors import ShapeMismatch


def router(**changes):
    fields = {
        "task_ids": ("left", "right"),
        "means": torch.tensor([[-3.0, 0.0], [3.0, 0.0]]),
        "whitening": torch.diag(torch.tensor([1.0, 0.5])),
        "center": torch.tensor([1.0, 0.0]),
        "temperature": 1.0,
        "farthest": 2.0,
        "least_sure": 0.0,
    }
    return Router(**{**fields, **changes})


def test_distances_are_mahalanobis():
    """Coordinates are centred and whitened, and a distance is Euclidean then."""
    found = router().distances(torch.tensor([[4.0, 4.0]]))
    assert found.tolist() == [[pytest.approx(40**0.5), pytest.approx(2.0)]]


def test_the_nearest_task_is_chosen_or_none():
    """At the bound a row is a task's still; beyond it nobody's."""
    rows = torch.tensor([[-2.0, 0.0], [4.0, 4.0], [4.0, 4.1], [1.0, 0.0]])
    assert router().choose(rows) == ["left", "right", None, None]


def test_a_row_between_tasks_is_nobodys():
    """As near to one task as to another it has no task, however near; at the bound it has."""
    between = torch.tensor([[1.0, 0.0], [1.1, 0.0], [3.0, 0.0]])
    far = router(farthest=9.0, least_sure=0.6)
    assert far.choose(between) == [None, "right", "right"]
    bound = float(far.probabilities(between)[1].max())
    assert router(farthest=9.0, least_sure=bound).choose(between[1:2]) == ["right"]


def test_bounds_keep_the_share_that_was_asked_for():
    """Of many rows that share is kept, and as many are too far as are too unsure."""
    generator = torch.Generator().manual_seed(3)
    nearest, sure = torch.rand(2, 1000, generator=generator)
    farthest, least_sure = abstention_bounds(nearest, sure, 0.95)
    is_far, is_unsure = nearest > farthest, sure < least_sure
    assert int(is_far.sum()) == int(is_unsure.sum()) > 20
    assert 950 <= int((~(is_far | is_unsure)).sum()) < 960


def test_bounds_of_equally_sure_rows_are_of_distance_alone():
    """With one task every choice is sure, and all that are left out are too far."""
    nearest = torch.arange(100.0)
    assert abstention_bounds(nearest, torch.ones(100), 0.95) == (94.0, 1.0)
    assert abstention_bounds(nearest[:1], torch.ones(1), 0.95) == (0.0, 1.0)


def test_probabilities_sum_to_one_and_soften_with_temperature():
    """A higher temperature is less sure, and never changes which task is likeliest."""
    rows = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    sure, unsure = (router(temperature=each).probabilities(rows) for each in (1.0, 16.0))
    assert torch.allclose(sure.sum(1), torch.ones(50))
    assert torch.equal(sure.argmax(1), unsure.argmax(1))
    assert (unsure.amax(1) <= sure.amax(1) + 1e-6).all()


def test_the_temperature_chosen_makes_probabilities_frequencies():
    """Distances that overstate by a factor of four in their squares are divided by four."""
    generator = torch.Generator().manual_seed(1)
    tasks = torch.randint(2, (4000,), generator=generator)
    rows = torch.randn(4000, 1, generator=generator) + torch.where(tasks == 1, 1.0, -1.0)[:, None]
    overstated = 2 * torch.cdist(rows, torch.tensor([[-1.0], [1.0]]))
    assert calibrated_temperature(overstated, tasks.tolist(), (1.0, 2.0, 4.0, 8.0, 16.0)) == 4.0


@pytest.mark.parametrize("rows", [torch.zeros(3, 3), torch.zeros(2, 1)])
def test_coordinates_of_another_version_are_refused(rows):
    """A row of another size is told with both."""
    with pytest.raises(ShapeMismatch, match="rows of 2 coordinates"):
        router().choose(rows)


def test_a_router_must_fit_together():
    """Means for another number of tasks are refused when it is made."""
    with pytest.raises(ShapeMismatch, match="router of 3 tasks"):
        router(task_ids=("left", "right", "middle"))


def test_a_calibrated_choice_has_no_calibration_error():
    """Confidences that are frequencies have next to none; those that overstate by 0.2 have 0.2."""
    generator = torch.Generator().manual_seed(2)
    truth = 0.5 + 0.3 * torch.rand(40_000, generator=generator)
    are_right = torch.rand(40_000, generator=generator) < truth
    assert calibration_error(truth, are_right) < 0.01
    assert calibration_error(truth + 0.2, are_right) == pytest.approx(0.2, abs=0.01)


def test_errors_of_different_confidences_do_not_make_up_for_each_other():
    """Too sure in one bin and too unsure in another are two errors; no rows have none."""
    confidences = torch.tensor([0.55, 0.55, 0.95, 0.95])
    are_right = torch.tensor([True, True, True, False])
    assert calibration_error(confidences, are_right) == pytest.approx(0.45)
    assert calibration_error(torch.zeros(0), torch.zeros(0, dtype=torch.bool)) == 0

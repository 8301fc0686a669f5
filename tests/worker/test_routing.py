import pytest
import torch

from share_dist.adapters import inject
from share_dist.errors import WorkerError
from tests.adapters.conftest import random_subspace
from tests.worker import toys
from worker.prepared import prepare
from worker.routing import coordinates_of, fit_router, shares_right
from worker.rows import draw_rows


@pytest.fixture
def prepared(make_stream, backbone):
    """Three tasks of different words."""
    stream = make_stream("mood", "food", "motion")
    return {
        task.id: prepare(task, draw_rows(toys.topic(task.id), 96, 48, seed=0), backbone, stream.training)
        for task in stream.tasks
    }  # fmt: skip


@pytest.fixture
def injected(backbone):
    with inject(backbone.model, random_subspace(backbone.shapes, num_factors=8)) as model:
        yield model


def test_coordinates_do_not_depend_on_the_batch(prepared, backbone, injected):
    """A row has the same alone and among longer ones: padding says nothing."""
    rows = prepared["mood"].fit.encoded[:20]
    together = coordinates_of(injected, backbone, rows)
    alone = torch.cat([coordinates_of(injected, backbone, [row]) for row in rows])
    assert together.shape == (20, 4 * 8)
    assert torch.allclose(together, alone, atol=1e-5)


def test_inputs_are_taken_for_their_own_task(prepared, backbone, injected):
    """Of test rows nearly all are routed to the task that they come from, by the subspace alone."""
    found = {
        part: {
            task_id: coordinates_of(injected, backbone, getattr(each, part).encoded)
            for task_id, each in prepared.items()
        }
        for part in ("fit", "validation", "test")
    }
    router = fit_router(found["fit"], found["validation"])
    assert router.temperature >= 1
    shares = shares_right(router, found["test"])
    assert min(shares.values()) > 0.7


def test_what_is_like_no_task_is_left_to_the_base(prepared, backbone, injected):
    """What lies far from every task's rows is nobody's, and so are most rows of a task that was not fitted; of a task's own held-out rows no more than one in twenty is."""
    own = ("mood", "food")
    fit = {each: coordinates_of(injected, backbone, prepared[each].fit.encoded) for each in own}
    held_out = {
        each: coordinates_of(
            injected, backbone, prepared[each].validation.encoded + prepared[each].test.encoded
        )
        for each in own
    }
    router = fit_router(fit, held_out)
    choices = [each for rows in held_out.values() for each in router.choose(rows)]
    assert choices.count(None) / len(choices) <= 0.05
    strange = router.choose(coordinates_of(injected, backbone, prepared["motion"].fit.encoded))
    assert strange.count(None) / len(strange) > 0.5
    noise = 3 * fit["mood"][torch.randperm(len(fit["mood"]))] + 1
    assert router.choose(noise).count(None) / len(noise) > 0.9


@pytest.mark.parametrize(
    ("fit", "held_out", "said"),
    [
        ({}, {}, "at least one task"),
        ({"mood": torch.ones(4, 2)}, {}, "mood has one kind alone"),
        ({"mood": torch.ones(4, 2)}, {"mood": torch.ones(0, 2)}, "none of mood are held out"),
        ({"mood": torch.ones(0, 2)}, {"mood": torch.ones(4, 2)}, "none of mood are to fit to"),
        ({"mood": torch.ones(4, 2)}, {"mood": torch.full((4, 2), torch.nan)}, "not all finite"),
    ],
)
def test_a_router_of_missing_rows_is_refused(fit, held_out, said):
    """No task, rows of one kind, none of a task and numbers that are none are told by the task's name."""
    with pytest.raises(WorkerError, match=said):
        fit_router(fit, held_out)


def test_one_task_can_be_told_from_what_is_far():
    """With a single task there is nothing to choose: what is near is its, and the rest is nobody's."""
    fit, held_out = torch.randn(2, 200, 3, generator=torch.Generator().manual_seed(4)).unbind()
    router = fit_router({"mood": fit}, {"mood": held_out})
    assert router.choose(held_out).count("mood") == 190
    assert router.choose(held_out + 20) == [None] * 200

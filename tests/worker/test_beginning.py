import contextlib
import dataclasses
import math

import pytest
import torch

from share_dist.adapters import inject
from share_dist.core.values import Subspace
from share_dist.errors import WorkerError
from tests.worker import toys
from tests.worker.fakes import FakeCoordinator
from worker.backbone import Backbone, load_backbone
from worker.beginning import FirstGradients, starting_gradients
from worker.evaluate import evaluate
from worker.loop import TaskLoop
from worker.prepared import frozen_baseline, prepare
from worker.rows import draw_rows
from worker.trainer import Lesson, train, trainee_of


@pytest.fixture
def begun(make_stream, backbone):
    """A lesson, its prepared task, and the frozen model's head."""
    stream = make_stream("mood")
    rows = draw_rows(toys.topic("mood"), 96, 48, seed=0)
    prepared = prepare(stream.tasks[0], rows, backbone, stream.training)
    settings = stream.training.model_copy(update={"start": "gradient", "epochs": 1})
    lesson = Lesson(
        "mood", backbone, prepared.objective, prepared.fit, prepared.validation, settings, seed=0
    )
    return lesson, prepared, frozen_baseline(prepared, backbone).start.head


def begin(injected, lesson, head):
    gradients = starting_gradients(injected, lesson, head)
    injected.add_task("mood", num_temporary=2, seed=lesson.seed, gradients=gradients)
    injected.activate("mood")


def test_a_start_by_gradients_scores_as_the_frozen_model(begun, backbone):
    """Where a task begins it computes what the frozen model computes, and it can be trained from there."""
    lesson, prepared, head = begun
    frozen = evaluate(backbone, lesson.objective, head, prepared.test)
    with inject(backbone.model, Subspace.empty(backbone.shapes)) as injected:
        begin(injected, lesson, head)
        assert evaluate(backbone, lesson.objective, head, prepared.test) == frozen
        state = train(lesson, trainee_of(injected, "mood", lesson.settings), head)
    assert state.best_epoch == 0


def test_equal_seeds_begin_equally(begun, backbone):
    """The seed alone decides the rows and the start, whatever torch's generator was."""
    lesson, _, head = begun
    starts = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with inject(backbone.model, Subspace.empty(backbone.shapes)) as injected:
            begin(injected, lesson, head)
            starts.append(injected.named_trainable_parameters("mood"))
    first, second = starts
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_first_gradient_leaves_head_and_model_alone(begun, backbone):
    """Neither head nor frozen weights have a gradient afterwards, and the head can still be trained."""
    lesson, _, head = begun
    with inject(backbone.model, Subspace.empty(backbone.shapes)) as injected:
        gradients = dict(FirstGradients(injected, lesson, head))
    assert gradients.keys() == backbone.shapes.keys()
    assert all(gradient.any() for gradient in gradients.values())
    assert all(each.grad is None for each in (*head.parameters(), *backbone.model.parameters()))
    assert all(each.requires_grad for each in head.parameters())


def test_gradients_are_found_for_few_layers_at_once_where_all_are_too_large(begun, backbone):
    """Layer by layer they are what they are together, and no more of them are held than fit."""
    lesson, _, head = begun
    with inject(backbone.model, Subspace.empty(backbone.shapes)) as injected:
        together = dict(FirstGradients(injected, lesson, head))
        one_by_one = FirstGradients(injected, lesson, head, most_bytes=1)
        calls, gather = [], injected.gather_gradients
        injected.gather_gradients = lambda names: calls.append(names) or gather(names)
        for name, gradient in one_by_one.items():
            assert torch.equal(gradient, together[name])
    assert calls == [(name,) for name in backbone.shapes]


@pytest.mark.parametrize("odd", [math.nan, math.inf, 1e30])
def test_a_gradient_that_overflowed_begins_as_none(begun, backbone, odd):
    """As a loss in half precision may: the task begins in random directions, and can be trained from there."""
    lesson, _, head = begun
    with inject(backbone.model, Subspace.empty(backbone.shapes)) as injected:
        gather = injected.gather_gradients

        @contextlib.contextmanager
        def overflowing(names):
            with gather(names) as gradients:
                yield gradients
            for gradient in gradients.values():
                gradient[0, 0] = odd

        injected.gather_gradients = overflowing
        assert not any(each.any() for each in FirstGradients(injected, lesson, head).values())
        begin(injected, lesson, head)
        state = train(lesson, trainee_of(injected, "mood", lesson.settings), head)
    assert state.best_epoch == 0


def test_who_stops_a_worker_need_not_wait_for_the_first_gradient(begun, backbone):
    """It is asked before every batch whether to go on; the head can be trained afterwards."""
    lesson, _, head = begun

    def stop():
        raise KeyboardInterrupt

    with (
        inject(backbone.model, Subspace.empty(backbone.shapes)) as injected,
        pytest.raises(KeyboardInterrupt),
    ):
        dict(starting_gradients(injected, lesson, head, stop))
    assert all(each.requires_grad for each in head.parameters())


@pytest.mark.parametrize("enough_rows", [4, 1])
def test_fewer_rows_go_through_the_model_where_memory_is_short(
    begun, backbone, monkeypatch, enough_rows
):
    """Half as many at once until they fit: the gradient is that of all rows, whatever the parts."""
    lesson, _, head = begun
    with inject(backbone.model, Subspace.empty(backbone.shapes)) as injected:
        expected = dict(FirstGradients(injected, lesson, head))
        _allow_rows(monkeypatch, enough_rows)
        found = dict(FirstGradients(injected, lesson, head))
    for name, gradient in expected.items():
        assert torch.allclose(
            found[name], gradient, rtol=0, atol=1e-5 * float(gradient.abs().max())
        )


def test_memory_for_not_even_one_row_is_said(begun, backbone, monkeypatch):
    """With what to do; and the head can be trained afterwards."""
    lesson, _, head = begun
    _allow_rows(monkeypatch, 0)
    with (
        inject(backbone.model, Subspace.empty(backbone.shapes)) as injected,
        pytest.raises(WorkerError, match=r"not even of a single row .*start = 'random'"),
    ):
        starting_gradients(injected, lesson, head)[next(iter(backbone.shapes))]
    assert all(each.requires_grad for each in head.parameters())


def _allow_rows(monkeypatch, num_rows):
    """Let no more rows go through the model at once."""
    pooled = Backbone.pooled

    def limited(self, encoded):
        features = pooled(self, encoded)
        if len(features) > num_rows:
            raise torch.OutOfMemoryError(f"{len(features)} rows")
        return features

    monkeypatch.setattr(Backbone, "pooled", limited)


def test_a_random_start_asks_for_no_gradient(begun, backbone):
    """Unless the stream says so nothing is run backward before training."""
    lesson, _, head = begun
    settings = lesson.settings.model_copy(update={"start": "random"})
    with inject(backbone.model, Subspace.empty(backbone.shapes)) as injected:
        plain = dataclasses.replace(lesson, settings=settings)
        assert starting_gradients(injected, plain, head) is None


def test_a_stream_that_starts_by_gradients_is_learnt(make_stream, tmp_path):
    """The whole loop learns by such a start, and its update is another than that of a random one."""
    found = []
    for number, start in enumerate(("random", "gradient")):
        stream = make_stream("mood", training=f'start = "{start}"')
        backbone = load_backbone(stream, torch.device("cpu"))
        loop = TaskLoop(stream, backbone, FakeCoordinator(), tmp_path / str(number))
        found.append(loop.run())
    scores = [each.task("mood").learnt for each in found]
    assert all(score is not None for score in scores)
    assert found[0].training["start"] != found[1].training["start"]

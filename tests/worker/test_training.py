"""How a task is trained: precision, parts of a batch, schedules, stopping early, memory that is short, numbers that are not finite."""

import dataclasses
import itertools

import pytest
import torch
from torch import nn

from share_dist.adapters import inject
from share_dist.core.values import Subspace
from share_dist.errors import StreamError, TrainingDiverged, WorkerError
from tests.worker import toys
from worker.backbone import load_backbone
from worker.checkpoint import lesson_digest
from worker.classification import Classification, class_weights
from worker.prepared import frozen_baseline, prepare
from worker.rows import draw_rows
from worker.trainer import Hooks, Lesson, train, trainee_of


@pytest.fixture
def make_lesson(make_stream):
    """A lesson of the toy model without dropout, so that equal gradients give equal runs."""

    def make(training="", *, dropout=False):
        stream = make_stream("mood", training=training)
        backbone = load_backbone(stream, torch.device("cpu"))
        for module in backbone.model.modules():
            if isinstance(module, nn.Dropout) and not dropout:
                module.p = 0.0
        rows = draw_rows(toys.topic("mood"), 96, 48, seed=0)
        prepared = prepare(stream.tasks[0], rows, backbone, stream.training)
        start = frozen_baseline(prepared, backbone).start.head
        lesson = Lesson(
            "mood",
            backbone,
            Classification(),
            prepared.fit,
            prepared.validation,
            stream.training,
            seed=0,
        )
        return lesson, start

    return make


def learn(lesson, start, resume=None, **hooks):
    """Train a task of its own; the state at the end."""
    injected = inject(lesson.backbone.model, Subspace.empty(lesson.backbone.shapes))
    with injected:
        injected.add_task("mood", num_temporary=2, seed=7)
        injected.activate("mood")
        head = nn.Linear(start.in_features, start.out_features)
        head.load_state_dict(start.state_dict())
        trainee = trainee_of(injected, "mood", lesson.settings)
        return train(lesson, trainee, head, resume=resume, hooks=Hooks(**hooks))


def distance(one, other):
    """Largest difference of any parameter, relative to the largest of its tensor."""
    return max(
        float((one.tensors[name] - other.tensors[name]).abs().max())
        / float(one.tensors[name].abs().max())
        for name in one.tensors
    )


def is_equal(one, other):
    """Whether two states are the same, bit for bit."""
    return all(
        torch.equal(tensor, getattr(other, group)[name])
        for group in ("tensors", "optimizer", "best_tensors")
        for name, tensor in getattr(one, group).items()
    )


@pytest.mark.parametrize("training", ["accumulate = 4", "accumulate = 5", "accumulate = 100"])
def test_parts_of_a_batch_have_the_gradient_of_the_whole(make_lesson, training):
    """Whatever the parts, training ends where it ends with whole batches, but for rounding."""
    whole = learn(*make_lesson())
    assert distance(whole, learn(*make_lesson(training))) < 1e-4
    assert distance(whole, learn(*make_lesson("learning_rate = 0.01"))) > 1e-2


def test_class_weights_hold_for_a_batch_in_parts(make_lesson):
    """With weighted classes the mean over the whole batch is minimised, not a mean of means."""
    lessons = [make_lesson(training) for training in ("", "accumulate = 4")]
    weighted = [
        (dataclasses.replace(lesson, objective=Classification(torch.tensor([0.1, 3.0]))), start)
        for lesson, start in lessons
    ]
    one, other = (learn(*each) for each in weighted)
    assert distance(one, other) < 1e-4
    assert distance(one, learn(*lessons[0])) > 1e-2


def test_gradient_checkpointing_changes_no_bit(make_lesson):
    """Activations that are computed anew are those that would have been kept, also with dropout."""
    kept = learn(*make_lesson(dropout=True))
    lesson, start = make_lesson("gradient_checkpointing = true", dropout=True)
    assert any(
        getattr(each, "gradient_checkpointing", False) for each in lesson.backbone.model.modules()
    )
    assert is_equal(kept, learn(lesson, start))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_nearly_the_same(make_lesson, precision):
    """Products in half precision end near fp32, with what is learnt kept in fp32."""
    exact = learn(*make_lesson())
    lesson, start = make_lesson(f'precision = "{precision}"')
    half = learn(lesson, start)
    assert {each.dtype for each in half.tensors.values()} == {torch.float32}
    assert 0 < distance(exact, half) < 0.5
    assert half.best_score > 0.7


def test_a_loss_of_fp16_is_scaled_and_an_overflow_left_out(make_lesson):
    """A gradient that overflows in fp16 costs its step and halves the scale; it is no divergence."""
    lesson, start = make_lesson('precision = "fp16"')

    class Overflows(Classification):
        steps = itertools.count()

        def loss(self, head, features, labels):
            loss = super().loss(head, features, labels)
            if next(self.steps) == 3:
                loss.register_hook(lambda gradient: gradient * float("inf"))
            return loss

    states = []
    state = learn(dataclasses.replace(lesson, objective=Overflows()), start, on_state=states.append)
    assert state.rollbacks == 0
    assert float(state.optimizer["scaler/scale"]) == 2.0**15
    assert float(state.optimizer["head.weight/step"]) == lesson.num_steps - 1


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("cosine", [0.5, 1, 1, 0.933, 0.75, 0.5, 0.25, 0.067]),
    ],
)
def test_learning_rates_follow_the_schedule(make_lesson, schedule, shares, monkeypatch):
    """Rates rise within the warm-up, the first step included, and then do as the schedule says."""
    lesson, start = make_lesson(f'schedule = "{schedule}"\nwarmup = 0.25')
    lesson = dataclasses.replace(lesson, fit=lesson.fit.take(range(64)))
    settings = lesson.settings.model_copy(update={"batch_size": 8, "epochs": 1})
    rates = []
    step = torch.optim.AdamW.step

    def spy(adamw, *args, **kwargs):
        rates.append(adamw.param_groups[-1]["lr"] / settings.head_learning_rate)
        return step(adamw, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    learn(dataclasses.replace(lesson, settings=settings), start)
    assert rates == pytest.approx(shares, abs=1e-3)


@pytest.mark.parametrize(
    ("scores", "num_epochs"),
    [
        ([0.5, 0.6, 0.5, 0.5, 0.9], 4),
        ([0.9, 0.9, 0.9, 0.9, 0.9], 3),
        ([0.1, 0.2, 0.3, 0.4, 0.5], 5),
    ],
)
def test_patience_ends_a_task_that_gets_no_better(make_lesson, scores, num_epochs):
    """With a patience of two, training ends after two epochs without a better score."""
    lesson, start = make_lesson("patience = 2")
    settings = lesson.settings.model_copy(update={"epochs": 5})
    script = iter(scores)

    class Scripted(Classification):
        def score(self, head, features, labels):
            return next(script)

    lesson = dataclasses.replace(lesson, objective=Scripted(), settings=settings)
    assert learn(lesson, start).epochs_done == num_epochs


def test_balanced_weights_are_inverse_to_shares():
    """Balanced classes weigh the same in all, and the weights of all rows sum to their number."""
    labels = torch.tensor([0] * 6 + [1] * 2)
    weights = class_weights("balanced", labels, 2)
    assert weights.tolist() == pytest.approx([8 / 12, 2.0])
    assert Classification(weights).mass(labels) == pytest.approx(8.0)
    with pytest.raises(StreamError, match="3 weights for 2 classes"):
        class_weights([1.0, 2.0, 3.0], labels, 2)


def test_class_weights_choose_the_epoch_too():
    """Balanced, the score to choose by is the mean recall, and its error that of as many equal rows as tell as much."""
    labels = torch.tensor([0] * 18 + [1] * 2)
    features = torch.zeros(20, 2)
    features[:, 0] = 1.0  # all are said to be of the first class
    head = nn.Identity()
    plain = Classification()
    balanced = Classification(class_weights("balanced", labels, 2))
    assert plain.score(head, features, labels) == pytest.approx(0.9)
    assert balanced.score(head, features, labels) == pytest.approx(0.5)
    assert balanced.scores(head, features, labels).values["accuracy"] == pytest.approx(0.9)
    assert plain.standard_error(0.5, labels) == pytest.approx((0.25 / 20) ** 0.5)
    # 18 of weight 10/18 and 2 of weight 5: 20^2 / (18 (10/18)^2 + 2 25) = 7.2 rows
    assert balanced.standard_error(0.5, labels) == pytest.approx((0.25 / 7.2) ** 0.5)


def test_class_weights_choose_the_first_head_too():
    """Where features tell nothing, the first head says the class that weighs most."""
    labels = torch.tensor([0] * 16 + [1] * 4)
    features = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) * 1e-3
    weights = torch.tensor([1.0, 9.0])
    biases = [
        Classification(each).fit_head(features, labels, 2, penalty=0.003).bias
        for each in (None, weights)
    ]
    assert [int(bias.argmax()) for bias in biases] == [0, 1]


def out_of_memory(at_most, monkeypatch, lesson):
    """Let the model run out of memory with more rows than that; the sizes of batches that passed."""
    passed = []
    pooled = type(lesson.backbone).pooled

    def limited(backbone, encoded):
        if len(encoded) > at_most:
            raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")
        passed.append(len(encoded))
        return pooled(backbone, encoded)

    monkeypatch.setattr(type(lesson.backbone), "pooled", limited)
    return passed


def test_short_memory_halves_the_rows_at_once_and_nothing_else(make_lesson, monkeypatch):
    """Where memory does not suffice, fewer rows go through at once, told once, with the same result."""
    lesson, start = make_lesson()
    expected = learn(lesson, start)
    passed, reports = out_of_memory(5, monkeypatch, lesson), []
    found = learn(lesson, start, on_memory=reports.append)
    assert [(each.step, each.rows_at_once) for each in reports] == [(0, 8), (0, 4)]
    assert max(passed) == 5 or max(passed) == 4
    assert distance(expected, found) < 1e-4
    assert (found.best_epoch, found.rows_at_once) == (expected.best_epoch, 4)


def test_memory_for_no_row_at_all_is_an_error_that_says_what_to_do(make_lesson, monkeypatch):
    """When not even one row fits, the error names task, step and the settings that save memory."""
    lesson, start = make_lesson()
    out_of_memory(0, monkeypatch, lesson)
    reports = []
    with pytest.raises(WorkerError, match=r"'mood'.*single row at step 0.*gradient_checkpointing"):
        learn(lesson, start, on_memory=reports.append)
    assert [each.rows_at_once for each in reports] == [8, 4, 2, 1]


class Poisoned(Classification):
    """Gives nan for rows whose features are nan, and whenever its script says so."""

    def __init__(self, times):
        super().__init__()
        self.bad_calls = set(times)
        self.calls = 0

    def loss(self, head, features, labels):
        self.calls += 1
        loss = super().loss(head, features, labels)
        return loss * float("nan") if self.calls in self.bad_calls else loss


def test_a_loss_that_is_not_finite_goes_back_to_the_last_good_state(make_lesson):
    """From the last state that was kept training goes on with a quarter of the rates, and says so."""
    lesson, start = make_lesson()
    steps, states, reports = [], [], []
    lesson = dataclasses.replace(lesson, objective=Poisoned([lesson.steps_per_epoch + 3]))
    state = learn(
        lesson,
        start,
        on_step=lambda each: steps.append(each.step),
        on_state=states.append,
        on_rollback=reports.append,
    )
    per_epoch = lesson.steps_per_epoch
    (report,) = reports
    assert (report.step, report.back_to_step) == (per_epoch + 2, per_epoch)
    assert (report.rate_share, report.rollbacks) == (0.25, 1)
    assert steps == [*range(1, per_epoch + 3), *range(per_epoch + 1, lesson.num_steps + 1)]
    assert (state.rate_share, state.rollbacks) == (0.25, 1)
    assert is_equal(states[0], dataclasses.replace(states[0]))
    again = learn(
        dataclasses.replace(lesson, objective=Classification()),
        start,
        resume=dataclasses.replace(states[0], rate_share=0.25, rollbacks=1),
    )
    assert is_equal(state, again)


def test_a_rate_that_is_too_high_is_lowered_until_it_learns(make_lesson):
    """Rates at which the numbers overflow are lowered by roll-backs, and the task is learnt."""
    lesson, start = make_lesson(
        "weight_decay = 0.0\nhead_learning_rate = 1e22\nwarmup = 0.0\nmax_gradient_norm = 1e30"
    )
    settings = lesson.settings.model_copy(update={"rollbacks": 20})
    reports = []
    state = learn(dataclasses.replace(lesson, settings=settings), start, on_rollback=reports.append)
    assert reports
    assert all(torch.isfinite(each).all() for each in state.tensors.values())


def test_rows_that_give_no_finite_loss_are_named(make_lesson):
    """After the last roll-back the error says how often it went back, and which rows are to blame."""
    lesson, start = make_lesson()
    features = lesson.backbone.features

    class Broken(Classification):
        def loss(self, head, features, labels):
            return super().loss(head, features, torch.where(labels > 1, 0, labels)) * torch.where(
                (labels > 1).any(), float("nan"), 1.0
            )

    labels = lesson.fit.labels.clone()
    labels[[5, 11]] = 2
    fit = dataclasses.replace(lesson.fit, labels=labels)
    reports = []
    lesson = dataclasses.replace(lesson, fit=fit, objective=Broken())
    with pytest.raises(
        TrainingDiverged, match=r"after 3 roll-backs.*these by themselves"
    ) as caught:
        learn(lesson, start, on_rollback=reports.append)
    assert len(reports) == 3
    named = caught.value.message.partition("finite loss: ")[2]
    assert set(named.partition(" (")[0].split(", ")) <= {"5", "11"}
    assert features(lesson.fit.encoded[:2]).isfinite().all()


def test_a_state_in_the_middle_of_an_epoch_goes_on_bit_for_bit(make_lesson):
    """From any state that was kept, within an epoch too, training ends in the very same bits."""
    lesson, start = make_lesson('accumulate = 2\nprecision = "fp16"', dropout=True)
    states = []
    undisturbed = learn(lesson, start)
    disturbed = learn(lesson, start, wants_state=lambda: True, on_state=states.append)
    assert is_equal(undisturbed, disturbed)
    within = [each for each in states if each.batches_done]
    assert [each.batches_done for each in within[:2]] == [1, 2]
    for state in (within[0], within[len(within) // 2], within[-1], states[-2]):
        torch.manual_seed(99)
        assert is_equal(undisturbed, learn(lesson, start, resume=state))


def test_quantised_weights_need_a_gpu(make_stream, monkeypatch):
    """Where there is no GPU, a stream that asks for fewer bits is refused before anything is loaded."""
    stream = make_stream("mood")
    model = stream.model.model_copy(update={"quantize": "4bit"})
    stream = dataclasses.replace(stream, model=model)
    with pytest.raises(StreamError, match=r"quantize = '4bit' needs an NVIDIA GPU, .* on cpu"):
        load_backbone(stream, torch.device("cpu"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(StreamError, match="pip install bitsandbytes"):
        load_backbone(stream, torch.device("cuda"))


def test_settings_that_came_later_do_not_rename_a_lesson(make_stream):
    """A lesson has the digest of the first release until one of the later settings is used."""
    digest = lesson_digest(stream := make_stream("mood"), stream.tasks[0])
    for training in ("checkpoint_minutes = 9.0", 'schedule = "linear"'):
        same = make_stream("mood", training=training)
        assert lesson_digest(same, same.tasks[0]) == digest
    for training in ('precision = "bf16"', "patience = 2", "accumulate = 2"):
        other = make_stream("mood", training=training)
        assert lesson_digest(other, other.tasks[0]) != digest

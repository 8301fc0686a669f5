import dataclasses

import pytest
import torch
from torch import nn

from share_dist.adapters import inject
from share_dist.core.values import Subspace
from share_dist.errors import StreamError, TrainingDiverged
from tests.worker import toys
from worker.backbone import grouped_batches, load_backbone
from worker.baselines import fit_probe
from worker.classification import Classification
from worker.evaluate import evaluate
from worker.objective import pack_head, unpack_head
from worker.prepared import frozen_baseline, prepare
from worker.rows import draw_rows
from worker.trainer import Hooks, Lesson, train, trainee_of


@pytest.fixture
def lesson(make_stream, backbone):
    stream = make_stream("mood")
    rows = draw_rows(toys.topic("mood"), 96, 48, seed=0)
    prepared = prepare(stream.tasks[0], rows, backbone, stream.training)
    return prepared, Lesson(
        "mood",
        backbone,
        Classification(),
        prepared.fit,
        prepared.validation,
        stream.training.model_copy(update={"epochs": 3}),
        seed=0,
    )


def injected_task(backbone, **kwargs):
    injected = inject(backbone.model, Subspace.empty(backbone.shapes), num_temporary=2)
    injected.add_task("mood", **kwargs)
    injected.activate("mood")
    return injected


def test_the_loss_falls_and_the_model_stays(lesson, backbone):
    """Training lowers the loss and changes no bit of the frozen weights."""
    _, task = lesson
    before = {name: each.clone() for name, each in backbone.model.named_parameters()}
    losses = []
    with injected_task(backbone) as injected:
        trainee = trainee_of(injected, "mood", task.settings)
        head = nn.Linear(32, 2)
        train(task, trainee, head, hooks=Hooks(on_step=lambda each: losses.append(each.loss)))
    assert len(losses) == task.num_steps
    assert sum(losses[-5:]) < sum(losses[:5])
    for name, parameter in backbone.model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_a_penalty_is_added_to_the_loss_of_every_step(lesson, backbone):
    """A strong pull to zero leaves less of the parameters, and is part of the loss that is told; None changes nothing."""
    _, task = lesson

    def learn(strength):
        losses = []
        with injected_task(backbone, seed=7) as injected:
            trainee = trainee_of(injected, "mood", task.settings)
            head = nn.Linear(32, 2)
            head.load_state_dict({"weight": torch.zeros(2, 32), "bias": torch.zeros(2)})

            def penalty():
                sizes = [each.square().sum() for each in trainee.parameters.values()]
                return None if strength is None else strength * torch.stack(sizes).sum()

            hooks = Hooks(penalty=penalty, on_step=lambda each: losses.append(each.loss))
            train(task, trainee, head, hooks=hooks)
            return losses, sum(
                float(each.detach().square().sum()) for each in trainee.parameters.values()
            )

    free, zero, strong = learn(None), learn(0.0), learn(10.0)
    assert free == zero
    assert strong[0][0] > free[0][0] + 1
    assert strong[1] < 0.9 * free[1]


def test_learning_starts_at_the_frozen_baseline(lesson, backbone):
    """A task that was just begun, with the probe's head, scores exactly as the frozen model."""
    prepared, _ = lesson
    start = frozen_baseline(prepared, backbone).start.head
    frozen = evaluate(backbone, prepared.objective, start, prepared.test)
    with injected_task(backbone):
        assert evaluate(backbone, prepared.objective, start, prepared.test) == frozen


def test_equal_seeds_train_equally(lesson, backbone):
    """Two trainings with one seed end in the same bits, whatever torch's generator was."""
    _, task = lesson
    ends = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        generator = torch.get_rng_state()
        with injected_task(backbone, seed=7) as injected:
            head = nn.Linear(32, 2)
            head.load_state_dict({"weight": torch.zeros(2, 32), "bias": torch.zeros(2)})
            ends.append(train(task, trainee_of(injected, "mood", task.settings), head).tensors)
        torch.manual_seed(seed)
        assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize(
    ("scores", "kept"),
    [([0.5, 0.6, 0.7], 2), ([0.7, 0.7, 0.69], 2), ([0.9, 0.3, 0.2], 0), ([0.3, 0.9, 0.2], 1)],
)
def test_a_later_epoch_is_kept_unless_clearly_worse(lesson, backbone, scores, kept):
    """Parameters end as after the last epoch that is within a standard error of the best."""
    _, task = lesson
    script = iter(scores)

    class Scripted(Classification):
        def score(self, head, features, labels):
            return next(script)

    task = dataclasses.replace(task, objective=Scripted())
    with injected_task(backbone) as injected:
        trainee = trainee_of(injected, "mood", task.settings)
        states = []
        end = train(task, trainee, nn.Linear(32, 2), hooks=Hooks(on_state=states.append))
        assert [each.epochs_done for each in states] == [1, 2, 3]
        assert (end.best_epoch, end.best_score) == (kept, max(scores))
        best = states[kept]
        assert all(
            torch.equal(parameter, best.tensors[f"adapter.{name}"])
            for name, parameter in trainee.parameters.items()
        )


def test_temporary_factors_learn_at_their_own_rate(lesson, backbone):
    """Temporary factors and their coefficients have the learning rates of the settings."""
    _, task = lesson
    with injected_task(backbone) as injected:
        rates = trainee_of(injected, "mood", task.settings).learning_rates
    by_field = {name.rpartition(".")[2]: rate for name, rate in rates.items()}
    assert by_field == {
        "temporary": task.settings.temporary_learning_rate,
        "temporary_coefficients": task.settings.learning_rate,
    }


def test_divergence_is_an_error_with_task_and_step(lesson, backbone):
    """A loss that is not finite stops training, and says where and what to do."""
    _, task = lesson

    class Explodes(Classification):
        def loss(self, head, features, labels):
            return super().loss(head, features, labels) * float("nan")

    task = dataclasses.replace(task, objective=Explodes())
    with injected_task(backbone) as injected:
        trainee = trainee_of(injected, "mood", task.settings)
        with pytest.raises(TrainingDiverged, match="lower learning_rate") as caught:
            train(task, trainee, nn.Linear(32, 2))
    assert (caught.value.task_id, caught.value.step) == ("mood", 0)
    assert not backbone.model.training


def test_batches_hold_every_row_once_and_like_lengths():
    """Grouped batches are a partition of the rows, with less padding than shuffled ones."""
    import random

    lengths = [random.Random(index).randint(1, 40) for index in range(203)]

    def padding(window):
        batches = list(grouped_batches(lengths, 8, random.Random(0), window))
        assert sorted(row for batch in batches for row in batch) == list(range(203))
        return sum(
            max(lengths[row] for row in batch) * len(batch) - sum(lengths[row] for row in batch)
            for batch in batches
        )

    assert padding(window=8) < padding(window=1) / 2


def test_features_are_in_the_order_given(lesson, backbone):
    """Rows are sorted by length on their way through the model, and come back as they were."""
    prepared, _ = lesson
    encoded = prepared.test.encoded
    features = backbone.features(encoded)
    one = backbone.features([encoded[5]])[0]
    assert torch.allclose(features[5], one, atol=1e-5)


def test_the_probe_undoes_its_scaling():
    """A head fitted to standardised features gives scikit-learn's own answers on raw ones."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    generator = torch.Generator().manual_seed(0)
    for num_labels in (2, 4):
        labels = torch.randint(num_labels, (200,), generator=generator)
        features = torch.randn(200, 6, generator=generator) * 5 + labels[:, None]
        head = Classification().fit_head(features, labels, num_labels, penalty=0.3)
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=500))
        expected = pipeline.fit(features.numpy(), labels.numpy()).predict(features.numpy())
        found = head(features).argmax(-1).numpy()
        assert (found == expected).mean() > 0.99


def test_the_probe_never_says_a_class_it_has_not_seen():
    """A class without training rows keeps its place in the head and is not predicted."""
    features = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    labels = (features[:, 0] > 0).long() * 2
    parts = (features[:40], labels[:40]), (features[40:], labels[40:])
    probe = fit_probe(Classification(), *parts, num_labels=3)
    assert probe.head.out_features == 3
    assert set(probe.head(features).argmax(-1).tolist()) == {0, 2}


def test_majority_counts_training_rows():
    """The majority class is that of the training rows, its accuracy that on the test rows."""
    scores = Classification().simplest(torch.tensor([1, 1, 0]), torch.tensor([0, 0, 0, 1]))
    assert (scores.metric, scores.main) == ("accuracy", 0.25)


def test_the_correlation_of_matthews_is_compared_where_it_is_asked_for():
    """It stands beside accuracy and F1, is that of the four counts of right and wrong, and chooses by it, with rows weighed by their classes."""
    labels = torch.tensor([1] * 7 + [0] * 3)
    said = torch.tensor([1] * 6 + [0] + [1] + [0] * 2)
    features, head = nn.functional.one_hot(said).float(), nn.Identity()
    objective = Classification(metric="matthews")
    scores = objective.scores(head, features, labels)
    # 6 and 2 are right, 1 and 1 wrong
    expected = (6 * 2 - 1 * 1) / (7 * 7 * 3 * 3) ** 0.5
    assert scores.metric == "matthews"
    assert scores.main == pytest.approx(expected)
    assert objective.score(head, features, labels) == pytest.approx(expected)
    assert scores.values.keys() == {"accuracy", "macro_f1", "matthews"}
    assert "matthews" not in Classification().scores(head, features, labels).values
    assert objective.standard_error(expected, labels) == pytest.approx((1 - expected**2) / 3)
    # every row of the second class counts three times: 18 and 2 are right, 3 and 1 wrong
    weighted = Classification(torch.tensor([1.0, 3.0]), "matthews")
    assert weighted.score(head, features, labels) == pytest.approx(
        (18 * 2 - 3 * 1) / (21 * 19 * 5 * 3) ** 0.5
    )
    assert weighted.scores(head, features, labels).main == pytest.approx(expected)


@pytest.mark.parametrize("labels", [[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
def test_one_class_for_every_row_correlates_with_nothing(labels):
    """Whoever says the same of every row has the correlation 0.0, without a warning, also where all rows are of that class."""
    features, objective = torch.tensor([[0.0, 1.0]] * 4), Classification(metric="matthews")
    labels = torch.tensor(labels)
    assert objective.scores(nn.Identity(), features, labels).values["matthews"] == 0.0
    assert objective.score(nn.Identity(), features, labels) == 0.0
    assert objective.simplest(torch.tensor([1, 1, 0]), labels).main == 0.0
    assert objective.standard_error(-0.2, labels) > 0


def test_a_task_is_learnt_by_the_metric_that_it_asks_for(make_stream, backbone):
    """What a stream file says of a task's metric is what its frozen model is scored by."""
    stream = make_stream("mood")
    task = stream.tasks[0].model_copy(update={"metric": "matthews"})
    prepared = prepare(
        task, draw_rows(toys.topic("mood"), 96, 48, seed=0), backbone, stream.training
    )
    scores = frozen_baseline(prepared, backbone).scores
    assert (scores.metric, prepared.simplest.main) == ("matthews", 0.0)
    assert scores.main == scores.values["matthews"] != scores.values["accuracy"]


def test_a_head_survives_its_journey(backbone):
    """A head that was packed and unpacked computes the same."""
    head = nn.Linear(4, 3)
    packed = pack_head(head, "text-classification", ("a", "b", "c"))
    features = torch.randn(5, 4)
    assert torch.equal(unpack_head(packed, backbone)(features), head(features))
    assert (packed.num_labels, packed.label_names) == (3, ("a", "b", "c"))


def test_a_missing_model_is_named(make_stream, tmp_path):
    """A stream whose model folder is not there is refused with the path."""
    stream = make_stream("mood")
    model = stream.model.model_copy(update={"path": "nowhere"})
    with pytest.raises(StreamError, match=r"no model folder .*nowhere"):
        load_backbone(dataclasses.replace(stream, model=model))
    (tmp_path / "empty").mkdir()
    model = stream.model.model_copy(update={"path": "empty"})
    with pytest.raises(StreamError, match="cannot be loaded"):
        load_backbone(dataclasses.replace(stream, model=model))

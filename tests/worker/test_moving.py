"""Training that goes on in another version: the same function, the same optimiser, the same curve."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from share_dist.adapters import find_targets, inject
from share_dist.core.values import Basis, LayerSubspace, Subspace
from worker.moving import moved
from worker.optimizer import Optimizer
from worker.stream import TrainingSettings
from worker.trainer import trainee_of
from worker.training_state import TrainingState

FEATURES, OUTPUTS, ROWS, STEPS = 24, 16, 64, 60
SETTINGS = TrainingSettings(learning_rate=0.03, temporary_learning_rate=0.003, schedule="constant")


class Problem:
    """A frozen linear map, and rows that follow another one, away from it by a matrix of low rank."""

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator)

        self.model = nn.Sequential(nn.Linear(FEATURES, OUTPUTS, bias=False))
        self.model[0].weight.data = draw(OUTPUTS, FEATURES) / FEATURES**0.5
        self.rows = draw(ROWS, FEATURES)
        away = draw(OUTPUTS, 4) @ draw(4, FEATURES) / FEATURES
        self.wanted = self.rows @ (self.model[0].weight.data + away).T
        self.sides = [torch.linalg.qr(draw(size, size)).Q for size in (FEATURES, OUTPUTS)]

    def subspace(self, columns, version=1, turn=None):
        """The first columns of the sides, turned among themselves."""
        shapes = find_targets(self.model, "all-linear")
        bases = []
        for side in self.sides:
            vectors = side[:, :columns] if turn is None else side[:, :columns] @ turn
            bases.append(Basis(vectors.contiguous(), torch.ones(columns), columns))
        return Subspace({name: LayerSubspace(*bases) for name in shapes}, version=version)

    def learn(self, versions):
        """
        Train for ``STEPS`` steps, in the first version, and from the given steps on in the others.

        Returns:
            The loss after each step.
        """
        losses, ((_, first), *later) = [], sorted(versions.items())
        head = nn.Linear(1, 1)
        with inject(self.model, first) as injected:
            injected.add_task("t", pseudo_rank=4, num_temporary=2, seed=3)
            injected.activate("t")
            optimizer = self._optimizer(injected, head)
            for step in range(STEPS):
                if later and later[0][0] == step:
                    optimizer = self._move(injected, head, optimizer, later.pop(0)[1])
                optimizer.zero_grad()
                loss = (injected(self.rows) - self.wanted).square().mean()
                optimizer.backward(loss)
                assert optimizer.step(step, loss)
                losses.append(float(loss.detach()))
        return losses

    def _optimizer(self, injected, head):
        trainee = trainee_of(injected, "t", SETTINGS)
        return Optimizer(trainee, head, SETTINGS, STEPS, torch.device("cpu"))

    def _move(self, injected, head, optimizer, new):
        state = TrainingState(0, optimizer.tensors(), optimizer.memory(), -1, 0.0, {})
        state = moved(state, injected.subspace, new)
        injected.use_subspace(new)
        optimizer = self._optimizer(injected, head)
        optimizer.restore(state.tensors, state.optimizer)
        return optimizer


def exchanged(count):
    """An orthogonal matrix that changes places and signs of columns."""
    turn = torch.eye(count)[torch.randperm(count, generator=torch.Generator().manual_seed(5))]
    return turn * torch.tensor([1.0, -1.0] * (count // 2))


def test_columns_that_change_places_change_nothing():
    """Where another version has the same columns in another order and with other signs, every loss is the same."""
    problem = Problem(0)
    stayed = problem.learn({0: problem.subspace(8)})
    went = problem.learn(
        {
            0: problem.subspace(8),
            20: problem.subspace(8, 2, exchanged(8)),
            40: problem.subspace(8, 3),
        }
    )
    assert went == pytest.approx(stayed, rel=1e-4)
    assert stayed[-1] < stayed[0] / 2


@pytest.mark.parametrize("seed", range(5))
def test_a_change_of_version_costs_nothing(seed):
    """Turned at random or grown by two columns in the middle, the loss in the end is at most a tenth above that without."""
    problem = Problem(seed)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(seed))).Q
    stayed = problem.learn({0: problem.subspace(8)})
    turned = problem.learn({0: problem.subspace(8), 30: problem.subspace(8, 2, turn)})
    grown = problem.learn({0: problem.subspace(8), 30: problem.subspace(10, 2)})
    assert turned[30] == pytest.approx(stayed[30], rel=1e-3)
    assert turned[-1] < 1.1 * stayed[-1]
    assert grown[-1] < 1.1 * stayed[-1]


def test_a_basis_that_was_empty_begins_at_zero():
    """From version 0, which says nothing: the function stays, and the coefficients are trained from there on."""
    problem = Problem(1)
    empty = Subspace.empty(find_targets(problem.model, "all-linear"))
    stayed = problem.learn({0: empty})
    went = problem.learn({0: empty, 30: problem.subspace(8, 1)})
    assert went[30] == pytest.approx(stayed[30], rel=1e-5)
    assert went[-1] < stayed[-1]


def test_the_epoch_to_keep_moves_as_well():
    """Its parameters are said in the new version, and all other facts stay."""
    problem = Problem(2)
    old, new = problem.subspace(8), problem.subspace(8, 2, exchanged(8))
    with inject(problem.model, old) as injected:
        injected.add_task("t", pseudo_rank=4, num_temporary=2, seed=3)
        tensors = {
            f"adapter.{name}": each.detach()
            for name, each in injected.named_trainable_parameters("t").items()
        }
    best = {name: each + 1 for name, each in tensors.items()}
    state = TrainingState(3, tensors, {}, 1, 0.75, best, rate_share=0.25, rollbacks=1)
    after = moved(state, old, new)
    name = next(each for each in best if each.endswith(".a.coefficients"))
    assert torch.allclose(after.best_tensors[name], exchanged(8).T @ best[name], atol=1e-5)
    assert after.best_tensors.keys() == best.keys()
    assert replace(after, tensors={}, best_tensors={}) == replace(
        state, tensors={}, best_tensors={}
    )

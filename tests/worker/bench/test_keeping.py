import pytest
import torch

from worker.bench.keeping import elastic_penalty, overlap, strongest


def drawn(*sizes, seed=0):
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_orthogonal_sides_have_no_overlap():
    """Rows of one half of the features do not meet rows of the other; one inner product of a half counts a quarter."""
    one, other = torch.eye(6)[:3], torch.eye(6)[3:]
    assert overlap(one, other) == 0
    assert overlap(one, other + 0.5 * torch.eye(6)[:1]) == pytest.approx(3 * 0.25)
    assert overlap(one, torch.zeros(0, 6)) == 0


def test_following_the_overlap_makes_sides_orthogonal():
    """Gradient steps on the overlap alone leave next to nothing of it."""
    earlier = torch.linalg.qr(drawn(12, 4)).Q.mT
    side = drawn(3, 12, seed=1).requires_grad_()
    before = overlap(side, earlier)
    optimizer = torch.optim.SGD([side], lr=0.2)
    for _ in range(50):
        optimizer.zero_grad()
        overlap(side, earlier).backward()
        optimizer.step()
    assert before > 1
    assert overlap(side, earlier) < 1e-9 * before
    assert side.square().sum() > 1


def test_the_elastic_penalty_has_the_gradient_of_its_differences():
    """Its gradient is what finite differences say, and is zero where nothing has changed."""
    change, fisher = drawn(3, 4).requires_grad_(), drawn(3, 4, seed=1).square()
    (gradient,) = torch.autograd.grad(elastic_penalty(change, fisher), change)
    step, at_rest = 1e-6, change.detach()
    for at in ((0, 0), (1, 3), (2, 2)):
        nudge = torch.zeros_like(fisher)
        nudge[at] = step
        up, down = (elastic_penalty(at_rest + sign * nudge, fisher) for sign in (1, -1))
        assert float(gradient[at]) == pytest.approx(float(up - down) / (2 * step), rel=1e-6)
    assert elastic_penalty(torch.zeros(3, 4), torch.ones(3, 4)) == 0


def test_the_strongest_directions_hold_the_share_and_are_the_fewest():
    """Of energies 8, 1, 1, 0 one holds 0.8, two hold more, and the empty one never counts."""
    turn = torch.linalg.qr(drawn(4, 4)).Q
    moments = turn @ torch.diag(torch.tensor([1.0, 8.0, 0.0, 1.0], dtype=torch.float64)) @ turn.mT
    found = {share: strongest(moments, share) for share in (0.7, 0.85, 1 - 1e-9)}
    assert [each.shape[1] for each in found.values()] == [1, 2, 3]
    for directions in found.values():
        assert torch.allclose(directions.mT @ directions, torch.eye(directions.shape[1]).double())
    assert (found[0.7].mT @ turn[:, 1]).abs() == pytest.approx(1)
    assert strongest(torch.zeros(4, 4), 0.9).shape == (4, 0)

import pytest
import torch

from share_dist.core.merge import merge
from share_dist.core.subspace import (
    augment,
    project,
    reconstruct,
    subspace_from_factors,
    update_from_factors,
)
from share_dist.core.values import Coefficients, LayerCoefficients, LayerFactors
from share_dist.errors import RankTooLarge

GENERATOR_SEED = 3


def adapter(seed, rank=2):
    generator = torch.Generator().manual_seed(seed)
    return {
        "q": LayerFactors(
            torch.randn(12, rank, generator=generator), torch.randn(10, rank, generator=generator)
        )
    }


def augmented(num_random, num_factors=3):
    subspace = subspace_from_factors([adapter(0), adapter(1)], num_factors)
    return subspace, augment(subspace, num_random, torch.Generator().manual_seed(GENERATOR_SEED))


def test_what_was_said_stays_as_it_was():
    """With zeros for the random directions a task's coefficients mean in the wider basis what they meant."""
    old, new = augmented(2)
    said = project(old, adapter(0))
    padded = Coefficients(
        {
            name: LayerCoefficients(*(torch.cat([each, torch.zeros(2, 2)]) for _, each in layer))
            for name, layer in said.layers.items()
        },
        version=said.version,
    )
    before, after = reconstruct(old, said)["q"], reconstruct(new, padded)["q"]
    assert torch.equal(before.delta_weight(), after.delta_weight())
    assert (old.num_factors, new.num_factors) == (3, 5)


def test_the_wider_basis_says_more_of_anything():
    """Of an adapter that was never seen, more lies in the wider basis, on either side."""
    old, new = augmented(4)
    for side in ("a", "b"):
        held = [project(each, adapter(7)).layers["q"][side].norm() for each in (old, new)]
        assert held[1] > held[0]


def test_energies_stay_sorted_and_whole():
    """Random directions have none, and what was kept beyond ``k`` counts as cut."""
    old, new = augmented(2, num_factors=2)
    for side in ("a", "b"):
        before, after = old.layers["q"][side], new.layers["q"][side]
        assert (after.energies.diff() <= 0).all()
        whole = float(before.energies.sum()) + before.cut_energy
        assert float(after.energies.sum()) + after.cut_energy == pytest.approx(whole)


def test_a_merge_goes_on_from_a_wider_basis():
    """A random direction that no task uses is cut by the next merge that needs its place."""
    _, new = augmented(2)
    update = update_from_factors(new, adapter(5), "later")
    merged = merge(new, {}, [update], num_factors=4).subspace
    assert merged.num_factors == 4
    random = new.layers["q"].a.leading[:, 3:]
    left = (merged.layers["q"].a.leading.mT @ random).norm() / random.norm()
    assert left < 0.95


def test_nothing_asked_for_changes_nothing_and_too_much_is_refused():
    """Zero directions leave the leading columns as they are; more than the features have is an error."""
    old, same = augmented(0)
    assert torch.equal(same.layers["q"].a.leading, old.layers["q"].a.leading)
    with pytest.raises(RankTooLarge):
        augmented(8)

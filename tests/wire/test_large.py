"""What only a large payload goes through."""

import pytest
import torch

from share_dist.core.values import Basis, LayerSubspace, Subspace
from share_dist.errors import NotFinite, NotOrthonormal
from share_dist.wire.payloads import subspace_from_bytes, subspace_to_bytes

FEATURES, FACTORS, LAYERS = 20_000, 16, 4


@pytest.fixture(scope="module")
def large():
    """A subspace of 10 MB, whose bases are checked several at once."""
    energies = torch.ones(FACTORS, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)

    def basis():
        drawn = torch.randn(FEATURES, FACTORS, generator=generator)
        return Basis(torch.linalg.qr(drawn)[0].contiguous(), energies, FACTORS)

    layers = {f"layer-{at}": LayerSubspace(basis(), basis()) for at in range(LAYERS)}
    return Subspace(layers, version=3)


def test_a_large_subspace_is_read_as_it_was_written(large):
    """Bit for bit, and found to be orthonormal."""
    back = subspace_from_bytes(subspace_to_bytes(large), version=3, metric="delta")
    for name, layer in large.layers.items():
        for side, basis in layer:
            assert torch.equal(back.layers[name][side].vectors, basis.vectors)


@pytest.mark.parametrize(
    ("bad", "error"), [(0.5, NotOrthonormal), (torch.nan, NotFinite), (torch.inf, NotFinite)]
)
def test_one_bad_entry_of_the_last_basis_is_found(large, bad, error):
    """The layer and side are named, whichever thread came upon it."""
    payload = bytearray(subspace_to_bytes(large))
    name = f"layer-{LAYERS - 1}"
    good = large.layers[name].b.vectors
    place = payload.index(good.numpy().tobytes())
    payload[place : place + 4] = torch.tensor([bad]).numpy().tobytes()
    with pytest.raises(error, match=f"{name}, side b"):
        subspace_from_bytes(payload, version=3, metric="delta")

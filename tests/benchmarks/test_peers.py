"""What the benchmarks of other programs rest on: equal bytes are equal, and a failure is told."""

import torch

from share_dist.adapters import load_lora
from share_dist.core.values import LayerShape
from tests.benchmarks.peer_time import attempt
from tests.benchmarks.peers.base import random_adapter, write_adapters
from tests.benchmarks.peers.ours import Ours
from tests.benchmarks.readme_tables import README, written

SHAPES = {"q": LayerShape(48, 40), "v": LayerShape(48, 32)}


def test_the_tables_are_those_of_the_results():
    """Every figure of the benchmarks' README comes from the committed files."""
    text = README.read_text()
    assert written(text) == text, "run `python -m tests.benchmarks.readme_tables` and commit"


def test_bytes_and_components_say_each_other(tmp_path):
    """So many components need so many bytes, and that many bytes hold so many components."""
    folders = write_adapters(tmp_path, SHAPES, 5, rank=4, decay=0.5)
    ours = Ours(at_once=2)
    for k in (3, 8):
        held = ours.held_bytes(ours.start(folders, k))
        assert ours.num_factors(held, SHAPES, 4, 5) == k
        assert ours.num_factors(held - 4, SHAPES, 4, 5) == k - 1


def test_one_more_is_there_and_all_of_it(tmp_path):
    """With room for all, the adapter that was added comes back, as those before it do."""
    *begun, new = write_adapters(tmp_path, SHAPES, 4, rank=4, decay=0.5)
    ours = Ours()
    state = ours.add(ours.start(begun, 32), new.name, ours.read(new))
    for folder in (*begun, new):
        for name, layer in load_lora(folder).factors.items():
            found = ours.factors(state, folder.name)[name].delta_weight()
            torch.testing.assert_close(found, layer.delta_weight(), rtol=0, atol=1e-5)


def test_drawn_adapters_have_the_spectrum_that_was_asked_for():
    """Many drawn adapters together have singular values that fall as stated."""
    columns = torch.cat([random_adapter(SHAPES, 8, 1.0, seed)["q"].a for seed in range(200)], dim=1)
    sigma = torch.linalg.svdvals(columns)
    torch.testing.assert_close(sigma[7] / sigma[0], torch.tensor(1 / 8), rtol=0.2, atol=0)


def test_what_a_program_cannot_do_is_told_by_its_name():
    """An exception becomes a result that names it; what works is given back."""
    found = {}
    assert attempt(lambda: 7, "able", found) == 7
    assert attempt(lambda: 1 / 0, "unable", found) is None
    assert found == {"unable": {"failed": "ZeroDivisionError: division by zero"}}

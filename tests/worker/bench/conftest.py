import pytest

from tests.worker import toys
from worker.bench.methods import METHODS
from worker.bench.suite import read_suite

TOPICS = ("mood", "food", "motion")

BENCH = """
[bench]
seeds = 2
methods = [{methods}]
num_factors = 4
oversample = 4

[bench.small]
tasks = ["mood", "food"]
max_train = 48
max_test = 24
methods = []
"""


@pytest.fixture
def make_suite(tmp_path, model_folder):
    """A suite of small tasks, by these methods; other lines are added to its [training]."""

    def make(*methods, training="pseudo_rank = 2"):
        path = tmp_path / "toys.toml"
        stream = toys.stream_text(model_folder, "toys", TOPICS, training)
        listed = ", ".join(f'"{each}"' for each in methods)
        path.write_text(stream + BENCH.format(methods=listed))
        return read_suite(str(path), list(METHODS))

    return make

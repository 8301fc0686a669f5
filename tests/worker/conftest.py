import pytest
import torch

from tests.worker import toys
from tests.worker.fakes import FakeCoordinator
from worker.backbone import load_backbone
from worker.stream import read_stream


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return toys.make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def make_stream(tmp_path, model_folder):
    def make(*topics, worker_id="north", training=""):
        path = tmp_path / f"{worker_id}.toml"
        path.write_text(toys.stream_text(model_folder, worker_id, topics, training))
        return read_stream(path)

    return make


@pytest.fixture
def backbone(make_stream):
    return load_backbone(make_stream("mood"), torch.device("cpu"))


@pytest.fixture
def coordinator():
    return FakeCoordinator()

import pytest
import torch

from tests.worker import toys
from worker.backbone import load_backbone
from worker.loop import TaskLoop
from worker.stream import read_stream


@pytest.fixture
def stream(tmp_path):
    path = tmp_path / "pictures.toml"
    path.write_text(toys.image_stream_text(toys.make_image_model(tmp_path / "model")))
    return read_stream(path)


def test_images_are_learnt_like_texts(stream, coordinator, tmp_path):
    """A stream of images goes the same way: every linear layer adapted, learnt, merged."""
    backbone = load_backbone(stream, torch.device("cpu"))
    # query, key, value, the attention's output and both dense layers, twice; not the
    # pooler, whose output nobody reads
    assert len(backbone.shapes) == 2 * 6
    assert backbone.model.pooler is not None
    result = TaskLoop(stream, backbone, coordinator, tmp_path / "work").run().task("colours")
    assert (result.num_labels, result.task_type) == (3, "image-classification")
    assert result.learnt > result.majority
    assert set(coordinator.merged) == {"colours"}


def test_label_names_travel_only_when_told(stream, coordinator, tmp_path):
    """With share_label_names the head carries the names of its classes."""
    backbone = load_backbone(stream, torch.device("cpu"))
    TaskLoop(stream, backbone, coordinator, tmp_path / "work").run()
    (update,) = coordinator.updates.values()
    assert update.head.label_names == ("red", "green", "blue")

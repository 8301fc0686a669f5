"""The parts of the real kit that the quickstart does without. The first test to need one fetches it, which takes the network once."""

import pytest
import torch
from PIL import Image

from share_dist.commands.kit import fetch_kit, kit_folder
from share_dist.errors import StreamError
from worker import kit_pictures, kit_tasks
from worker.backbone import load_backbone
from worker.rows import draw_rows
from worker.stream import read_stream

pytestmark = pytest.mark.kit

IMAGES = """
[model]
path = "kit:vit"
targets = '.*\\.(q_proj|v_proj|query|value)'
[[task]]
id = "digits"
type = "image-classification"
source = { entry_point = "worker.kit_pictures:handwritten_digits" }
"""


@pytest.fixture(scope="module")
def images():
    return fetch_kit(kit_folder(), parts=["images"])


@pytest.fixture(scope="module")
def texts():
    return fetch_kit(kit_folder())


@pytest.mark.parametrize(
    ("source", "arguments", "num_rows", "num_labels"),
    [
        (kit_pictures.handwritten_digits, {}, 1667, 10),
        (kit_pictures.turned_digits, {}, 1667, 4),
        (kit_pictures.digit_pairs, {}, 826, 2),
        (kit_pictures.scanned_digits, {}, 1797, 10),
        (kit_pictures.emoji, {"groups": "Animals & Nature, Food & Drink"}, 260, 12),
        (kit_pictures.emoji, {"groups": "Objects, Activities"}, 252, 11),
        (kit_pictures.emoji, {"groups": "Symbols, Travel & Places"}, 377, 15),
        (kit_pictures.emoji, {"groups": "Smileys & Emotion, People & Body"}, 177, 11),
    ],
)
def test_every_task_of_pictures_has_its_rows(images, source, arguments, num_rows, num_labels):
    """Each task has its known number of pictures and classes, no two alike, and every class among those to learn from."""
    raw = source(**arguments)
    assert len(raw.train) == num_rows
    drawn = draw_rows(raw, 800, 1000, seed=0, task_type="image-classification")
    assert drawn.num_duplicates <= num_rows // 50
    assert len(drawn.label_names) == num_labels
    assert set(drawn.train.labels) == set(range(num_labels))


def test_the_vision_transformer_of_the_kit_computes_what_its_package_does(images, tmp_path):
    """The converted model has 24 adapted layers, and the features that the package's own graph has for one picture."""
    path = tmp_path / "images.toml"
    path.write_text(IMAGES)
    backbone = load_backbone(read_stream(path))
    assert len(backbone.shapes) == 24
    assert set(map(tuple, backbone.shapes.values())) == {(384, 384)}
    steps = torch.arange(3 * 224 * 224, dtype=torch.float32).reshape(1, 3, 224, 224)
    with torch.no_grad():
        features = backbone.model(pixel_values=torch.sin(steps / 1000)).last_hidden_state[0]
    assert features.shape == (257, 384)
    assert features[0, :4].tolist() == pytest.approx(OF_THE_GRAPH, abs=1e-3)
    assert backbone.modality.encode([Image.new("L", (28, 28))])[0].shape == (3, 56, 56)


OF_THE_GRAPH = [1.0741512, -0.1628262, 1.4743373, -4.7031059]
"""As the package's ONNX graph has them, by ONNX Runtime 1.32."""


@pytest.mark.parametrize(
    ("source", "arguments", "num_rows"),
    [
        (kit_tasks.topics, {}, 5485),
        (kit_tasks.candidates, {}, 5722),
        (kit_tasks.restored, {"source": "nyt"}, 2588),
    ],
)
def test_texts_of_the_kit_are_asked_about(texts, source, arguments, num_rows):
    """Topics, authors and capitals have their known number of rows, each a prompt and an answer."""
    raw = source(**arguments)
    assert len(raw.train) == num_rows
    drawn = draw_rows(raw, 240, 200, seed=0, task_type="causal-lm")
    assert (len(drawn.train), len(drawn.test)) == (240, 200)
    assert all(answer.startswith(" ") for answer in drawn.test.labels)


def test_a_sentence_is_restored_as_it_was_written(texts):
    """The prompt has the sentence without capitals, the completion with them."""
    for prompt, answer in kit_tasks.restored("movies").train[:50]:
        asked, _, _ = prompt.partition("\n")
        assert asked == answer.strip().lower()
        assert asked != answer.strip()


def test_unknown_groups_of_emoji_are_named(images):
    """A group that is not there is answered with those that are."""
    with pytest.raises(StreamError, match=r"'Birds': choose of Activities, Animals & Nature"):
        kit_pictures.emoji("Objects, Birds")


def test_a_digit_is_in_one_picture_only(images):
    """No digit of a pair is in another pair, or among the digits of the other two tasks."""
    halves = [
        half.tobytes()
        for picture, _ in kit_pictures.digit_pairs().train
        for half in (picture.crop((0, 14, 28, 42)), picture.crop((28, 14, 56, 42)))
    ]
    others = [picture.tobytes() for picture, _ in kit_pictures.handwritten_digits().train]
    others += [
        picture.rotate(-90 * turns).tobytes()
        for picture, turns in kit_pictures.turned_digits().train
    ]
    assert len({*halves, *others}) == len(halves) + len(others)

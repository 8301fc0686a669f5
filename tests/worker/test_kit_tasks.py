"""The tasks of the real kit. The first test to need it fetches it, which takes the network once."""

import pytest

from share_dist.commands.kit import fetch_kit, kit_folder
from share_dist.errors import StreamError
from worker import kit_tasks
from worker.backbone import load_backbone
from worker.rows import draw_rows
from worker.stream import read_stream

pytestmark = pytest.mark.kit

STREAM = """
[model]
path = "kit:model"
targets = ["query", "value"]
[[task]]
id = "movies"
type = "text-classification"
source = { entry_point = "worker.kit_tasks:movies" }
"""


@pytest.fixture(scope="module")
def kit():
    return fetch_kit(kit_folder())


@pytest.mark.parametrize(
    ("source", "arguments", "num_rows", "num_labels"),
    [
        (kit_tasks.movies, {}, 10072, 2),
        (kit_tasks.tweets, {}, 3432, 2),
        (kit_tasks.amazon, {}, 2985, 2),
        (kit_tasks.nyt, {}, 2970, 2),
        (kit_tasks.author, {}, 5722, 2),
        (kit_tasks.newsgroups, {"group": "comp"}, 2917, 5),
        (kit_tasks.newsgroups, {"group": "rec"}, 2389, 4),
        (kit_tasks.newsgroups, {"group": "sci"}, 2373, 4),
        (kit_tasks.newsgroups, {"group": "talk"}, 1951, 4),
        (kit_tasks.reuters_r8, {}, 5485, 8),
    ],
)
def test_every_task_of_the_kit_has_its_rows(kit, source, arguments, num_rows, num_labels):
    """Each task has its known number of rows and classes, and gives 800 rows each way."""
    raw = source(**arguments)
    assert len(raw.train) == num_rows
    drawn = draw_rows(raw, 800, 800, seed=0)
    assert (len(drawn.train), len(drawn.test)) == (800, 800)
    assert len(drawn.label_names) == num_labels
    assert set(drawn.train.labels) == set(range(num_labels))


def test_ratings_say_what_they_mean(kit):
    """The class of a rated sentence is the sign of its rating, and weak ratings are left out."""
    rows = dict(kit_tasks.movies().train)
    assert rows["Effective but too tepid biopic"] == 0
    assert sum(rows.values()) / len(rows) == pytest.approx(0.5, abs=0.05)


def test_unknown_groups_are_named(kit):
    """A newsgroup that is not there is answered with those that are."""
    with pytest.raises(StreamError, match="comp, rec, sci, talk"):
        kit_tasks.newsgroups("knitting")


def test_the_model_of_the_kit_loads(kit, tmp_path):
    """The real model has 12 adapted layers of 384 by 384, and tells tasty from not."""
    path = tmp_path / "stream.toml"
    path.write_text(STREAM)
    backbone = load_backbone(read_stream(path))
    assert len(backbone.shapes) == 12
    assert set(map(tuple, backbone.shapes.values())) == {(384, 384)}
    texts = ["a delicious meal", "a tasty dinner", "stock markets fell"]
    meal, dinner, stocks = backbone.features(backbone.modality.encode(texts))
    assert meal @ dinner > meal @ stocks


@pytest.mark.parametrize(
    ("source", "task_type", "name", "num_rows"),
    [
        (kit_tasks.ratings, "text-regression", "movies", 10605),
        (kit_tasks.capitals, "token-classification", "nyt", 5150),
        (kit_tasks.continuations, "causal-lm", "amazon", 2990),
    ],
)
def test_sentences_of_the_kit_make_other_types_of_tasks(kit, source, task_type, name, num_rows):
    """Ratings, capitals and continuations have their known number of rows, of the kind that their type has."""
    raw = source(name)
    assert len(raw.train) == num_rows
    drawn = draw_rows(raw, 800, 800, seed=0, task_type=task_type)
    assert (len(drawn.train), len(drawn.test)) == (800, 800)
    with pytest.raises(StreamError, match="choose one of movies"):
        source("radio")

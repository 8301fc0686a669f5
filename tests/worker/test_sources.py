import datasets
import pytest

from share_dist.errors import StreamError
from tests.worker import toys
from worker.sources import load_rows
from worker.stream import Task


def task_of(**source):
    return Task.model_validate(
        {
            "id": "mood",
            "type": "text-classification",
            "source": source,
            "max_train": 40,
            "max_test": 20,
        }
    )


@pytest.fixture
def rows():
    return toys.sentences("mood", 100, seed=2)


def columns(rows, text="text"):
    return {text: [row[0] for row in rows], "label": [row[1] for row in rows]}


def test_an_entry_point_gives_rows(tmp_path):
    """A function named module:function is called with its arguments."""
    task = task_of(entry_point="tests.worker.toys:topic", arguments={"name": "food"})
    drawn = load_rows(task, tmp_path)
    assert (len(drawn.train), len(drawn.test)) == (40, 20)
    assert drawn.label_names == ("food-0", "food-1")


def test_a_data_set_on_disk(tmp_path, rows):
    """A saved data set with an official split keeps the split, and its class names."""
    names = datasets.ClassLabel(names=["mood-1", "mood-0"])
    features = datasets.Features({"review": datasets.Value("string"), "label": names})
    datasets.DatasetDict(
        {
            "train": datasets.Dataset.from_dict(columns(rows[:60], "review"), features),
            "test": datasets.Dataset.from_dict(columns(rows[60:], "review"), features),
        }
    ).save_to_disk(tmp_path / "moods")
    drawn = load_rows(task_of(dataset="moods", input_column="review"), tmp_path)
    assert drawn.label_names == ("mood-1", "mood-0")
    assert set(drawn.test.inputs) <= {text for text, _ in rows[60:]}


def test_two_texts_are_one_input(tmp_path, rows):
    """With a column for the second text, an input is the pair; both texts tell rows apart."""
    pairs = columns(rows) | {"other": [f"other {at}" for at in range(len(rows))]}
    pairs["text"] = ["the same"] * len(rows)
    datasets.Dataset.from_dict(pairs).save_to_disk(tmp_path / "pairs")
    drawn = load_rows(task_of(dataset="pairs", pair_column="other"), tmp_path)
    assert set(drawn.train.inputs) <= set(zip(pairs["text"], pairs["other"], strict=True))
    assert drawn.num_duplicates == 0


def test_a_file_through_a_builder(tmp_path, rows):
    """A CSV without a test split gives both, drawn from its rows."""
    lines = "".join(f"{text},{label}\n" for text, label in rows)
    (tmp_path / "moods.csv").write_text(f"text,label\n{lines}")
    task = task_of(dataset="csv", data_files={"train": "moods.csv"})
    drawn = load_rows(task, tmp_path)
    assert (len(drawn.train), len(drawn.test)) == (40, 20)


def test_data_in_a_package(tmp_path, rows, monkeypatch):
    """Data inside an installed package is found without importing the package."""
    package = tmp_path / "moodpkg"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    datasets.Dataset.from_dict(columns(rows)).save_to_disk(package / "data")
    monkeypatch.syspath_prepend(tmp_path)
    drawn = load_rows(task_of(dataset="data", package="moodpkg"), tmp_path)
    assert len(drawn.train) == 40


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"entry_point": "tests.worker.toys:broken"}, "OSError: the disk is gone"),
        ({"entry_point": "tests.worker.toys:not_a_task"}, "returned list"),
        ({"entry_point": "tests.worker.toys:refused"}, "run `share-dist kit fetch`"),
        ({"entry_point": "tests.worker.toys:nothing"}, "has no attribute 'nothing'"),
        ({"entry_point": "no.such:module"}, "No module named 'no'"),
        ({"dataset": "data", "package": "no_such_package"}, "is not installed here"),
        (
            {
                "entry_point": "tests.worker.toys:topic",
                "arguments": {"name": "mood", "count": 4},
            },
            "too few to learn from",
        ),
    ],
)
def test_says_which_task_cannot_be_loaded(source, message, tmp_path):
    """Whatever a source raises becomes an error that names the task."""
    with pytest.raises(StreamError, match=message) as caught:
        load_rows(task_of(**source), tmp_path)
    assert caught.value.task_id == "mood"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"input_column": "review"}, "no column 'review': the data set has text, label"),
        ({"pair_column": "review"}, "no column 'review': the data set has text, label"),
        ({"train_split": "training"}, "no split 'training'"),
    ],
)
def test_says_what_a_data_set_has(source, message, tmp_path, rows):
    """A wrong column or split is answered with those that are there."""
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns(rows))}).save_to_disk(
        tmp_path / "moods"
    )
    with pytest.raises(StreamError, match=message):
        load_rows(task_of(dataset="moods", **source), tmp_path)

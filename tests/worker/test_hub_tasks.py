import datasets
import pytest

from share_dist.errors import StreamError
from worker.hub_tasks import class_group


@pytest.fixture
def folder(tmp_path):
    names = datasets.ClassLabel(names=["ant", "bee", "cat", "dog", "eel"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    made = {
        split: datasets.Dataset.from_dict(
            {"text": [f"{split} {at}" for at in range(20)], "label": [at % 5 for at in range(20)]},
            features,
        )
        for split in ("train", "test")
    }
    datasets.DatasetDict(made).save_to_disk(tmp_path / "animals")
    return str(tmp_path / "animals")


def test_groups_share_out_all_classes(folder):
    """Each class is in one group, by its name, with all its rows of both splits."""
    tasks = [class_group(folder, group, 2, input_column="text") for group in range(2)]
    classes = [{label for _, label in task.train} for task in tasks]
    assert classes == [{"ant", "cat", "eel"}, {"bee", "dog"}]
    assert [len(task.train) for task in tasks] == [12, 8]
    assert {label for _, label in tasks[1].test} == classes[1]
    assert all(text.startswith("test") for text, _ in tasks[1].test)


def test_without_a_test_split_rows_are_drawn_later(folder):
    """A split of another name is none."""
    task = class_group(folder, 0, 5, input_column="text", test_split="held-out")
    assert task.test is None
    assert {label for _, label in task.train} == {"ant"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"group": 2}, "no group 2 of 2"),
        ({"train_split": "fit"}, "no split 'fit': it has train, test"),
        ({"input_column": "image"}, "no column 'image': it has text, label"),
    ],
)
def test_what_is_not_there_is_named(folder, changed, said):
    """With what there is."""
    asked = {"group": 0, "groups": 2, "input_column": "text"} | changed
    with pytest.raises(StreamError, match=said):
        class_group(folder, **asked)

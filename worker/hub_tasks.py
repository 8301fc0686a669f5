"""
Tasks out of data sets of the hub, as entry points for stream files.

What a :class:`worker.stream.DatasetSource` cannot say: ``class_group`` makes one task of some classes of a data set,
so that one data set gives a stream of tasks whose classes are new each time.
"""

from pathlib import Path
from typing import Any

from share_dist.errors import StreamError
from worker.rows import Labelled, RawTask


def class_group(
    dataset: str,
    group: int,
    groups: int,
    input_column: str = "image",
    label_column: str = "label",
    train_split: str = "train",
    test_split: str = "test",
) -> RawTask:
    """
    Rows of one group of a data set's classes.

    Args:
        dataset: On the hub, or a folder that `datasets` saved.
        group: Which, from 0.
        groups: How many there are; classes go round them in their order.
        input_column: Column of the inputs.
        label_column: Column of the labels: integers, or classes of `datasets`.
        train_split: Split to train on.
        test_split: Split to test on; where there is none, test rows are drawn from the other.

    Raises:
        StreamError: There is no such group, split or column.
    """
    splits = _load(dataset)
    if not 0 <= group < groups:
        raise StreamError(
            f"{dataset} has no group {group} of {groups}: give one from 0 to {groups - 1}"
        )
    if train_split not in splits:
        raise StreamError(f"{dataset} has no split {train_split!r}: it has {', '.join(splits)}")
    train = splits[train_split]
    for column in (input_column, label_column):
        if column not in train.column_names:
            raise StreamError(
                f"{dataset} has no column {column!r}: it has {', '.join(train.column_names)}"
            )
    names = getattr(train.features[label_column], "names", None)
    classes = sorted(set(train[label_column]))
    chosen = {number: str(names[number] if names else number) for number in classes[group::groups]}

    def rows(split: Any) -> list[Labelled]:
        labels = split[label_column]
        kept = split.select([at for at, label in enumerate(labels) if label in chosen])
        named = [chosen[label] for label in kept[label_column]]
        return list(zip(kept[input_column], named, strict=True))

    return RawTask(rows(train), rows(splits[test_split]) if test_split in splits else None)


def _load(dataset: str) -> Any:
    import datasets

    if (Path(dataset) / "dataset_dict.json").is_file():
        return datasets.load_from_disk(dataset)
    return datasets.load_dataset(dataset)

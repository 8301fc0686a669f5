"""Sources: where the rows of a task come from."""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from share_dist.errors import ShareError, StreamError
from worker.rows import Content, DrawnRows, Labelled, RawTask, draw_rows
from worker.stream import DatasetSource, EntryPointSource, Task

FEWEST_ROWS = 8
"""Fewer training rows than this are no task."""


def load_rows(task: Task, folder: Path) -> DrawnRows:
    """
    Bring a task's rows, deduplicated and drawn.

    Args:
        task: Which.
        folder: What relative paths are relative to.

    Raises:
        StreamError: The source cannot be read, or holds too little to learn from.
    """
    try:
        raw = _raw_task(task.source, folder)
        drawn = draw_rows(raw, task.max_train, task.max_test, task.seed, task.type)
    except ShareError as error:
        raise _about(task, str(error)) from error
    except Exception as error:  # foreign code: builders and entry points raise what they like
        raise _about(task, f"{type(error).__name__}: {error}") from error
    has_one_class = task.type.endswith("-classification") and len(drawn.label_names) < 2
    if len(drawn.train) < FEWEST_ROWS or not len(drawn.test) or has_one_class:
        classes = f" and {len(drawn.label_names)} classes" if has_one_class else ""
        raise _about(
            task,
            f"{len(drawn.train)} training rows, {len(drawn.test)} test rows{classes} "
            "are too few to learn from",
        )
    return drawn


def _about(task: Task, what: str) -> StreamError:
    return StreamError(f"task {task.id!r} cannot be loaded: {what}", task_id=task.id)


def _raw_task(source: DatasetSource | EntryPointSource, folder: Path) -> RawTask:
    if isinstance(source, EntryPointSource):
        return _from_entry_point(source)
    return _from_dataset(source, folder)


def _from_entry_point(source: EntryPointSource) -> RawTask:
    module, _, function = source.entry_point.partition(":")
    made = getattr(importlib.import_module(module), function)(**source.arguments)
    if not isinstance(made, RawTask):
        raise StreamError(
            f"{source.entry_point} returned {type(made).__name__}: return a worker.rows.RawTask"
        )
    return made


def _from_dataset(source: DatasetSource, folder: Path) -> RawTask:
    splits = _splits(source, folder)
    train = _split(splits, source.train_split)
    test = splits.get(source.test_split)
    for column in filter(None, (source.input_column, source.pair_column, source.label_column)):
        if column not in train.column_names:
            raise StreamError(
                f"no column {column!r}: the data set has {', '.join(train.column_names)}"
            )
    labels = train.features[source.label_column]
    # classes of words stand in a list
    label_names = getattr(getattr(labels, "feature", labels), "names", None) or ()
    return RawTask(
        _labelled(train, source),
        None if test is None else _labelled(test, source),
        tuple(label_names),
    )


def _splits(source: DatasetSource, folder: Path) -> Mapping[str, Any]:
    import datasets

    root = _package_folder(source.package) if source.package else folder
    path = root / source.dataset
    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        loaded = datasets.load_from_disk(path)
        return loaded if isinstance(loaded, dict) else {source.train_split: loaded}
    files = {name: str(root / file) for name, file in (source.data_files or {}).items()}
    splits: Mapping[str, Any] = datasets.load_dataset(
        str(path) if path.exists() else source.dataset, source.config, data_files=files or None
    )
    return splits


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise StreamError(f"package {package!r} is not installed here")
    return Path(spec.submodule_search_locations[0])


def _split(splits: Mapping[str, Any], name: str) -> Any:
    if name not in splits:
        raise StreamError(f"no split {name!r}: the data set has {', '.join(splits)}")
    return splits[name]


def _labelled(rows: Any, source: DatasetSource) -> list[Labelled]:
    inputs: Sequence[Content] = rows[source.input_column]
    if source.pair_column:
        inputs = list(zip(inputs, rows[source.pair_column], strict=True))
    return list(zip(inputs, rows[source.label_column], strict=True))

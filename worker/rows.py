"""
Rows of a task: what training may see and what evaluation may see are different types.

A function that trains takes :class:`TrainRows`, one that scores takes
:class:`TestRows`; the one way from one to the other does not exist. Before
rows are drawn, everything that is the same after normalisation is one row, and
what is in the test rows is taken out of the training rows.
"""

import hashlib
import math
import random
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from share_dist.errors import StreamError
from worker.stream import TaskType

Content: TypeAlias = Any
"""One input: a string, a pair of strings, a list of words, or an image that PIL can open."""

Label: TypeAlias = int | str | float | Sequence[int | str]
"""A class by number or name, a number, a completion, or a class for each word."""

Labelled: TypeAlias = tuple[Content, Label]


@dataclass(frozen=True)
class RawTask:
    """
    What a source gives: all that there is, not yet deduplicated or drawn.

    Args:
        train: Rows to train on.
        test: Rows of an official test split; None when there is none, then
            test rows are drawn from ``train``.
        label_names: Names of the classes in the order of integer labels;
            empty: the labels of the rows, sorted.
    """

    train: Sequence[Labelled]
    test: Sequence[Labelled] | None = None
    label_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Rows:
    inputs: tuple[Content, ...]
    labels: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class TrainRows(_Rows):
    """What training may see."""

    def split(self, fraction: float, seed: int) -> tuple["TrainRows", "TrainRows"]:
        """
        Set ``fraction`` of the rows aside for choosing between models.

        Each class gives its share, so that a small class is on both sides; rows
        without one class each are one.

        Returns:
            The rows to fit and the rows to choose by; together all rows, each once.
        """
        held_back: set[int] = set()
        order = random.Random(seed)  # noqa: S311  # a split, not a secret
        classes = [label if isinstance(label, int) else 0 for label in self.labels]
        for label in sorted(set(classes)):
            members = [index for index, found in enumerate(classes) if found == label]
            order.shuffle(members)
            held_back.update(members[: round(fraction * len(members))])
        fit = [index for index in range(len(self)) if index not in held_back]
        return self._take(fit), self._take(sorted(held_back))

    def draw(self, count: int, seed: int) -> "TrainRows":
        """So many of them at random, in their order; all where there are no more."""
        order = random.Random(seed)  # noqa: S311  # a choice of rows, not a secret
        return self._take(sorted(order.sample(range(len(self)), min(count, len(self)))))

    def _take(self, indices: Sequence[int]) -> "TrainRows":
        return TrainRows(
            tuple(self.inputs[index] for index in indices),
            tuple(self.labels[index] for index in indices),
        )


@dataclass(frozen=True)
class TestRows(_Rows):
    """What only evaluation may see."""

    __test__ = False


@dataclass(frozen=True)
class DrawnRows:
    """The rows of one task after deduplication and drawing."""

    train: TrainRows
    test: TestRows
    label_names: tuple[str, ...]
    num_duplicates: int


def content_key(content: Content) -> str:
    """
    What two inputs share when they are the same but for typography.

    Text, also in words: Unicode-normalised, lower case, words only. Anything else: the digest of its bytes.

    Examples:
        >>> content_key("Great  FILM!") == content_key("great film")
        True
    """
    if isinstance(content, (list, tuple)):
        content = " ".join(content)
    if isinstance(content, str):
        plain = unicodedata.normalize("NFKC", content).casefold()
        return " ".join(re.findall(r"\w+", plain))
    data = content.tobytes() if hasattr(content, "tobytes") else bytes(content)
    return hashlib.sha256(data).hexdigest()


def draw_rows(
    raw: RawTask,
    max_train: int,
    max_test: int,
    seed: int,
    task_type: TaskType = "text-classification",
) -> DrawnRows:
    """
    Deduplicate across train and test, then draw at most so many of each.

    Without an official test split, the test rows are drawn first, and are at
    most three tenths of what there is.

    Args:
        raw: Everything that the source has.
        max_train: Largest number of training rows.
        max_test: Largest number of test rows.
        seed: Decides which rows; equal seeds draw equal rows.
        task_type: What the labels are.

    Raises:
        StreamError: A label is not what such a task has.
    """
    reading = _READINGS[task_type](raw)
    order = random.Random(seed)  # noqa: S311  # a draw, not a secret
    seen: set[str] = set()
    if raw.test is None:
        rows = _shuffled(_first_of_each(raw.train, seen, reading.key), order)
        num_test = min(max_test, len(rows) * 3 // 10)
        test, train = rows[:num_test], rows[num_test:]
        num_given = len(raw.train)
    else:
        # Test rows first: a row that is in both stays where the official split tests it.
        test = _shuffled(_first_of_each(raw.test, seen, reading.key), order)[:max_test]
        train = _shuffled(_first_of_each(raw.train, seen, reading.key), order)
        num_given = len(raw.train) + len(raw.test)

    def columns(rows: Sequence[Labelled]) -> tuple[tuple[Content, ...], tuple[Label, ...]]:
        return tuple(row[0] for row in rows), tuple(reading.label(row[1]) for row in rows)

    return DrawnRows(
        train=TrainRows(*columns(train[:max_train])),
        test=TestRows(*columns(test)),
        label_names=reading.names,
        num_duplicates=num_given - len(seen),
    )


@dataclass(frozen=True)
class _Reading:
    """
    What labels of one type of task are.

    Args:
        names: Of classes, where there are any.
        label: Makes a label what :class:`DrawnRows` holds.
        key: What two rows share that are the same.
    """

    names: tuple[str, ...]
    label: Callable[[Any], Label]
    key: Callable[[Labelled], str] = lambda row: content_key(row[0])


def _classes(raw: RawTask) -> _Reading:
    names, number = _named({label for _, label in _all_rows(raw)}, raw.label_names)
    return _Reading(names, number)


def _classes_of_words(raw: RawTask) -> _Reading:
    for words, labels in _all_rows(raw):
        if isinstance(words, str) or not isinstance(labels, Sequence) or len(words) != len(labels):
            raise StreamError(
                "a row of token-classification is a list of words and a list with the class of "
                f"each, got {type(words).__name__} and {type(labels).__name__} of other lengths or kinds"
            )
    found = {label for _, labels in _all_rows(raw) for label in labels}
    names, number = _named(found, raw.label_names)
    return _Reading(names, lambda labels: tuple(map(number, labels)))


def _named(
    labels: set[Any], known: tuple[str, ...]
) -> tuple[tuple[str, ...], Callable[[int | str], int]]:
    """Names of classes, and what makes a label the number of its class."""
    names = known or _names_of_labels(labels)
    index_of = {name: index for index, name in enumerate(names)}
    return names, lambda label: label if isinstance(label, int) else index_of[label]


def _numbers(raw: RawTask) -> _Reading:
    for _, label in _all_rows(raw):
        if isinstance(label, str) or not math.isfinite(label):
            raise StreamError(f"a label of text-regression is a finite number, got {label!r}")
    return _Reading((), float)


def _completions(raw: RawTask) -> _Reading:
    for prompt, completion in _all_rows(raw):
        if not isinstance(prompt, str) or not isinstance(completion, str) or not completion:
            raise StreamError(
                "a row of causal-lm is a prompt, which may be empty, and its completion, which may "
                f"not: got {type(prompt).__name__} and {type(completion).__name__}"
            )
    return _Reading((), str, lambda row: content_key(f"{row[0]} {row[1]}"))


def _all_rows(raw: RawTask) -> list[Any]:
    return [*raw.train, *(raw.test or ())]


_READINGS: dict[TaskType, Callable[[RawTask], _Reading]] = {
    "text-classification": _classes,
    "image-classification": _classes,
    "token-classification": _classes_of_words,
    "text-regression": _numbers,
    "causal-lm": _completions,
}


def _names_of_labels(labels: set[Any]) -> tuple[str, ...]:
    if all(isinstance(label, int) for label in labels):
        return tuple(str(index) for index in range(max(labels, default=-1) + 1))
    return tuple(sorted(str(label) for label in labels))


def _first_of_each(
    rows: Sequence[Labelled], seen: set[str], key_of: Callable[[Labelled], str]
) -> list[Labelled]:
    first = []
    for row in rows:
        key = key_of(row)
        if key in seen:
            continue
        seen.add(key)
        first.append(row)
    return first


def _shuffled(rows: list[Labelled], order: random.Random) -> list[Labelled]:
    order.shuffle(rows)
    return rows

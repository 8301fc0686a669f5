"""
Rows of a task: what training may see and what evaluation may see are different types.

A function that trains takes :class:`TrainRows`, one that scores takes
:class:`TestRows`; the one way from one to the other does not exist. Before
rows are drawn, everything that is the same after normalisation is one row, and
what is in the test rows is taken out of the training rows.
"""

import hashlib
import random
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Content: TypeAlias = Any
"""One input: a string, or an image that PIL can open."""

Labelled: TypeAlias = tuple[Content, int | str]


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
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class TrainRows(_Rows):
    """What training may see."""

    def split(self, fraction: float, seed: int) -> tuple["TrainRows", "TrainRows"]:
        """
        Set ``fraction`` of the rows aside for choosing between models.

        Each class gives its share, so that a small class is on both sides.

        Returns:
            The rows to fit and the rows to choose by; together all rows, each once.
        """
        held_back: set[int] = set()
        order = random.Random(seed)  # noqa: S311  # a split, not a secret
        for label in sorted(set(self.labels)):
            members = [index for index, found in enumerate(self.labels) if found == label]
            order.shuffle(members)
            held_back.update(members[: round(fraction * len(members))])
        fit = [index for index in range(len(self)) if index not in held_back]
        return self._take(fit), self._take(sorted(held_back))

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

    Text: Unicode-normalised, lower case, words only. Anything else: the digest of its bytes.

    Examples:
        >>> content_key("Great  FILM!") == content_key("great film")
        True
    """
    if isinstance(content, str):
        plain = unicodedata.normalize("NFKC", content).casefold()
        return " ".join(re.findall(r"\w+", plain))
    data = content.tobytes() if hasattr(content, "tobytes") else bytes(content)
    return hashlib.sha256(data).hexdigest()


def draw_rows(raw: RawTask, max_train: int, max_test: int, seed: int) -> DrawnRows:
    """
    Deduplicate across train and test, then draw at most so many of each.

    Without an official test split, the test rows are drawn first, and are at
    most three tenths of what there is.

    Args:
        raw: Everything that the source has.
        max_train: Largest number of training rows.
        max_test: Largest number of test rows.
        seed: Decides which rows; equal seeds draw equal rows.
    """
    names = raw.label_names or _names_of_labels(raw)
    order = random.Random(seed)  # noqa: S311  # a draw, not a secret
    seen: set[str] = set()
    if raw.test is None:
        rows = _shuffled(_first_of_each(raw.train, seen), order)
        num_test = min(max_test, len(rows) * 3 // 10)
        test, train = rows[:num_test], rows[num_test:]
        num_given = len(raw.train)
    else:
        # Test rows first: a row that is in both stays where the official split tests it.
        test = _shuffled(_first_of_each(raw.test, seen), order)[:max_test]
        train = _shuffled(_first_of_each(raw.train, seen), order)
        num_given = len(raw.train) + len(raw.test)
    index_of = {name: index for index, name in enumerate(names)}

    def columns(rows: Sequence[Labelled]) -> tuple[tuple[Content, ...], tuple[int, ...]]:
        labels = (x if isinstance(x, int) else index_of[x] for _, x in rows)
        return tuple(content for content, _ in rows), tuple(labels)

    return DrawnRows(
        train=TrainRows(*columns(train[:max_train])),
        test=TestRows(*columns(test)),
        label_names=names,
        num_duplicates=num_given - len(seen),
    )


def _names_of_labels(raw: RawTask) -> tuple[str, ...]:
    labels = {label for _, label in [*raw.train, *(raw.test or ())]}
    if all(isinstance(label, int) for label in labels):
        return tuple(str(index) for index in range(max(labels, default=-1) + 1))  # type: ignore[operator]  # all are int
    return tuple(sorted(str(label) for label in labels))


def _first_of_each(rows: Sequence[Labelled], seen: set[str]) -> list[Labelled]:
    first = []
    for content, label in rows:
        key = content_key(content)
        if key in seen:
            continue
        seen.add(key)
        first.append((content, label))
    return first


def _shuffled(rows: list[Labelled], order: random.Random) -> list[Labelled]:
    order.shuffle(rows)
    return rows

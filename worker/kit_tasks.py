"""
Tasks from the data of ``share-dist kit fetch``, as entry points for stream files.

Sentiment (``movies``, ``tweets``, ``amazon``, ``nyt``): sentences rated by people
from -4 to 4; those with an absolute rating of at least 0.5 are kept, and the sign is
the class. ``author``: which candidate of 2016 wrote a tweet. Topics
(``newsgroups``, ``reuters_r8``): official splits. Of the same sentences other types of tasks
have their ``ratings``, the ``capitals`` of their words, their ``continuations``, and, as what a
language model is to say, their ``verdicts``, the ``topics`` of articles, the ``candidates`` who
wrote tweets and sentences with their capitals ``restored``.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from share_dist.commands.kit import require_source
from share_dist.errors import StreamError
from worker.rows import Labelled, RawTask

CLEAR_RATING = 0.5
"""Ratings nearer to zero than this say neither yes nor no."""

SHORTEST_CONTINUED = 8
"""Shorter sentences, in words, are not cut in two."""

LONGEST_RESTORED = 16
"""Longer sentences, in words, are not written anew."""

LEADING_WORDS = 32
"""Of an article as many words are shown, for its topic to be said."""

SENTENCES = ("movies", "tweets", "amazon", "nyt")
NEWSGROUPS = ("comp", "rec", "sci", "talk")


def movies() -> RawTask:
    """Sentences from film reviews: negative or positive."""
    return _rated("movies")


def tweets() -> RawTask:
    """Tweets: negative or positive."""
    return _rated("tweets")


def amazon() -> RawTask:
    """Sentences from product reviews: negative or positive."""
    return _rated("amazon")


def nyt() -> RawTask:
    """Sentences from newspaper editorials: negative or positive."""
    return _rated("nyt")


def author() -> RawTask:
    """Tweets of the 2016 election: Clinton's or Trump's. Tweets of others, passed on, are left out."""
    return RawTask(
        [
            (row["Content"], row["Author"])
            for row in _table("election-tweets-2016")
            if row["Is retweet"] == "False"
        ]
    )


def newsgroups(group: str) -> RawTask:
    """Posts to the newsgroups of one group (``comp``, ``rec``, ``sci``, ``talk``): which newsgroup."""
    if group not in NEWSGROUPS:
        raise StreamError(
            f"newsgroups has no group {group!r}: choose one of {', '.join(NEWSGROUPS)}"
        )

    def part(name: str) -> list[Labelled]:
        return [
            (row["Text"], row["Category"])
            for row in _table(f"20newsgroups-{name}")
            if row["Category"].startswith(f"{group}.")
        ]

    return RawTask(part("train"), part("test"))


def reuters_r8() -> RawTask:
    """Newswire articles: which of the eight most frequent topics."""

    def part(name: str) -> list[Labelled]:
        return [(row["Text"], row["Category"]) for row in _table(f"reuters-r8-{name}")]

    return RawTask(part("train"), part("test"))


def ratings(source: str) -> RawTask:
    """Rated sentences of one source (``movies``, ``tweets``, ``amazon``, ``nyt``), for ``text-regression``: their ratings."""
    return RawTask([(text, rating) for rating, text in _sentences(source)])


def capitals(source: str) -> RawTask:
    """
    Words of the same, in lower case, for ``token-classification``: how each was written.

    The classes are ``lower``, ``Capital`` and ``UPPER``; sentences of one class are left out.
    """
    rows: list[Labelled] = []
    for _, text in _sentences(source):
        words = re.findall(r"[A-Za-z]+(?:'[a-z]+)?", text)
        written = [_CASES[word.isupper() and len(word) > 1, word[0].isupper()] for word in words]
        if len(set(written)) > 1:
            rows.append(([word.lower() for word in words], written))
    return RawTask(rows, label_names=("lower", "Capital", "UPPER"))


def continuations(source: str) -> RawTask:
    """The first half of each sentence of the same, for ``causal-lm``: the second half."""
    rows: list[Labelled] = []
    for _, text in _sentences(source):
        words = text.split()
        if len(words) >= SHORTEST_CONTINUED:
            half = len(words) // 2
            rows.append((" ".join(words[:half]), " " + " ".join(words[half:])))
    return RawTask(rows)


def verdicts(source: str) -> RawTask:
    """Clear sentences of the same, as questions for ``causal-lm``: whether each is negative or positive."""
    return RawTask(
        [
            (f"{text.strip()}\nThis is", " positive." if rating > 0 else " negative.")
            for rating, text in _sentences(source)
            if abs(rating) >= CLEAR_RATING
        ]
    )


def topics() -> RawTask:
    """Beginnings of the articles of ``reuters_r8``, as questions for ``causal-lm``: their topic."""

    def asked(rows: Sequence[Labelled]) -> list[Labelled]:
        return [
            (f"{_leading(text)}\nThe topic is", f" {_TOPICS.get(str(topic), topic)}.")
            for text, topic in rows
        ]

    raw = reuters_r8()
    assert raw.test is not None, "the split is the official one"
    return RawTask(asked(raw.train), asked(raw.test))


def candidates() -> RawTask:
    """Tweets of ``author``, as questions for ``causal-lm``: who wrote each."""
    return RawTask(
        [
            (f"{text.strip()}\nThis was written by", f" {_NAMES[str(name)]}.")
            for text, name in author().train
        ]
    )


def restored(source: str) -> RawTask:
    """Short sentences of one source in lower case, for ``causal-lm``: the same as they were written."""
    rows: list[Labelled] = []
    for _, text in _sentences(source):
        words = text.split()
        written = " ".join(words)
        if len(words) <= LONGEST_RESTORED and written != written.lower():
            rows.append((f"{written.lower()}\nWith capitals:", f" {written}"))
    return RawTask(rows)


def _leading(text: str) -> str:
    return " ".join(text.split()[:LEADING_WORDS])


_TOPICS = {
    "earn": "earnings",
    "acq": "acquisitions",
    "money-fx": "currencies",
    "interest": "interest rates",
    "ship": "shipping",
    "crude": "oil",
}
"""Topics whose names are no words; the others say themselves."""

_NAMES = {"HillaryClinton": "Clinton", "realDonaldTrump": "Trump"}

_CASES = {
    (False, False): "lower",
    (False, True): "Capital",
    (True, True): "UPPER",
}


def _rated(name: str) -> RawTask:
    clear = [(text, rating) for rating, text in _sentences(name) if abs(rating) >= CLEAR_RATING]
    rows: list[Labelled] = [(text, int(rating > 0)) for text, rating in clear]
    return RawTask(rows, label_names=("negative", "positive"))


def _sentences(source: str) -> Iterator[tuple[float, str]]:
    """Ratings, and what was rated."""
    if source not in SENTENCES:
        raise StreamError(
            f"there are no sentences of {source!r}: choose one of {', '.join(SENTENCES)}"
        )
    path = require_source("sentiment") / f"{source}.txt"
    for line in path.read_text(encoding="latin-1").splitlines():
        _, rating, text = line.split("\t", 2)
        yield float(rating), text


def _table(name: str) -> Iterator[dict[str, str]]:
    """Rows of a table whose second and third lines describe its columns."""
    path: Path = require_source("topics") / f"{name}.tab"
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, delimiter="\t")
        names = next(reader)
        next(reader)
        next(reader)
        for cells in reader:
            if len(cells) == len(names):
                yield dict(zip(names, cells, strict=True))

import hypothesis
import hypothesis.strategies as st
import pytest

from worker.rows import RawTask, TestRows, TrainRows, content_key, draw_rows

texts = st.text(alphabet="ab .,!A", min_size=1, max_size=6)
labelled = st.lists(st.tuples(texts, st.sampled_from(["x", "y"])), max_size=40)


@hypothesis.given(labelled, st.none() | labelled, st.integers(0, 9))
@hypothesis.settings(deadline=None)
def test_no_test_row_is_in_training(train, test, seed):
    """Whatever the rows, no normalised text is both in training and in test, or twice in either."""
    drawn = draw_rows(RawTask(train, test, ("x", "y")), max_train=20, max_test=10, seed=seed)
    keys = [content_key(each) for each in (*drawn.train.inputs, *drawn.test.inputs)]
    assert len(keys) == len(set(keys))
    assert len(drawn.train) <= 20
    assert len(drawn.test) <= 10


@hypothesis.given(labelled, labelled, st.integers(0, 9))
@hypothesis.settings(deadline=None)
def test_every_row_keeps_its_place_and_label(train, test, seed):
    """Training rows come from the training split, test rows from the test split, labels unchanged."""
    drawn = draw_rows(RawTask(train, test, ("x", "y")), 20, 10, seed)
    names = drawn.label_names
    for rows, source in ((drawn.train, train), (drawn.test, test)):
        for content, label in zip(rows.inputs, rows.labels, strict=True):
            assert (content, names[label]) in source


def test_a_seed_names_a_draw():
    """Equal seeds draw equal rows, other seeds other rows."""
    raw = RawTask([(f"text {index}", index % 2) for index in range(100)])
    assert draw_rows(raw, 20, 10, seed=1) == draw_rows(raw, 20, 10, seed=1)
    assert draw_rows(raw, 20, 10, seed=1) != draw_rows(raw, 20, 10, seed=2)


def test_duplicates_are_counted():
    """Texts that differ in case and punctuation only are one row, and the others are counted."""
    raw = RawTask([("Good film!", 1), ("good FILM", 1), ("bad film", 0)], [("good film", 1)])
    drawn = draw_rows(raw, 10, 10, seed=0)
    assert (drawn.train.inputs, drawn.test.inputs) == (("bad film",), ("good film",))
    assert drawn.num_duplicates == 2


def test_integer_labels_are_named_by_number():
    """Labels that are integers stay what they are."""
    drawn = draw_rows(RawTask([("a", 2), ("b", 0), ("c", 2), ("d", 1)]), 10, 10, seed=0)
    assert drawn.label_names == ("0", "1", "2")


@hypothesis.given(
    st.lists(st.integers(0, 2), min_size=2, max_size=60),
    st.floats(0.05, 0.5),
    st.integers(0, 9),
)
@hypothesis.settings(deadline=None)
def test_a_split_holds_every_row_once(labels, fraction, seed):
    """The two parts of a split hold every row once, and each class gives its share."""
    rows = TrainRows(tuple(range(len(labels))), tuple(labels))
    fit, validation = rows.split(fraction, seed)
    assert sorted((*fit.inputs, *validation.inputs)) == list(range(len(labels)))
    for label in set(labels):
        expected = fraction * labels.count(label)
        assert validation.labels.count(label) == pytest.approx(expected, abs=0.51)


def test_the_two_kinds_of_rows_are_no_subtypes_of_each_other():
    """Neither kind of rows passes for the other."""
    assert not issubclass(TestRows, TrainRows)
    assert not issubclass(TrainRows, TestRows)

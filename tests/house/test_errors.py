"""The error tree: drawn as it is, every class with a status or a reason, every message shown by a test."""

import copy
import pickle
import re
from pathlib import Path

import pytest

from share_dist import errors

ROOT = Path(__file__).resolve().parents[2]


def tree(kind=errors.ShareError):
    return [kind, *(below for child in kind.__subclasses__() for below in tree(child))]


def is_raised(kind):
    return not kind.__subclasses__()


EVERY = tree()


def test_the_tree_is_drawn_as_it_is():
    """The picture at the top of errors.py has every class, below its parent, with its status."""
    drawn = re.findall(r"^([│ ├└─]*)([A-Z]\w+)(.*)$", errors.__doc__, flags=re.MULTILINE)
    path, found = [], {}
    for indent, name, rest in drawn:
        if name not in errors.__all__:
            continue
        depth = len(indent) // 3
        path = [*path[:depth], name]
        found[name] = (path[-2] if depth else None, rest)
    assert set(found) == {kind.__name__ for kind in EVERY}
    for kind in EVERY[1:]:
        parent, rest = found[kind.__name__]
        assert parent == kind.__base__.__name__ or parent in {
            base.__name__ for base in kind.__bases__
        }
        if kind.status:
            assert kind.status in rest


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_class_has_a_status_or_says_why_not(kind):
    """A class that is raised and has no gRPC status states its reason."""
    umbrella = errors.ShareError.no_status_reason
    if is_raised(kind) and kind.status is None:
        assert kind.no_status_reason != umbrella
    assert kind.__doc__
    assert kind.exit_code in {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_an_error_keeps_its_fields(kind):
    """Fields become attributes, survive copies and pickles, and unknown ones are refused."""
    values = {name: kind_of(7) for name, kind_of in kind.fields.items()}
    error = kind("what happened, what to do", **values)
    for twin in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is kind
        assert str(twin) == "what happened, what to do"
        assert {name: getattr(twin, name) for name in values} == values
    with pytest.raises(TypeError, match="no field"):
        kind("message", surprise=1)
    with pytest.raises(AttributeError):
        _ = error.surprise


@pytest.mark.parametrize(
    "kind", [kind for kind in EVERY if is_raised(kind)], ids=lambda k: k.__name__
)
def test_every_error_is_shown_by_a_test(kind):
    """Some test elsewhere provokes each class that is raised."""
    here = Path(__file__)
    text = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py") if path != here)
    assert re.search(
        rf"raises\(\s*(errors\.)?{kind.__name__}\b|\b{kind.__name__}: ", text
    ) or re.search(rf"\({kind.__name__}, ", text), f"no test shows the message of {kind.__name__}"

"""A task on disk: the same logits after, and nothing missing or unexpected passes."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from share_dist.adapters import inject, load_task, save_task
from share_dist.core.values import Head
from share_dist.errors import AdapterFormatError
from share_dist.files import write_file
from tests.adapters.conftest import logits, random_coefficients


@pytest.fixture
def task(bert_subspace):
    head = Head({"weight": torch.randn(3, 32), "bias": torch.randn(3)}, "text-classification", 3)
    return random_coefficients(bert_subspace), head


def test_loaded_tasks_compute_identical_logits(bert, bert_subspace, task, tmp_path):
    """P11: a task saved and loaded gives bit-identical logits, and its head comes back."""
    coefficients, head = task
    save_task(tmp_path / "movies.task", coefficients, head)
    loaded, loaded_head = load_task(tmp_path / "movies.task")
    with inject(bert, bert_subspace) as injected:
        injected.set_coefficients("saved", coefficients)
        injected.set_coefficients("loaded", loaded)
        injected.activate("saved")
        expected = logits(bert)
        injected.activate("loaded")
        assert torch.equal(logits(bert), expected)
    assert (loaded_head.task_type, loaded_head.num_labels) == ("text-classification", 3)
    assert torch.equal(loaded_head.tensors["weight"], head.tensors["weight"])
    assert loaded.version == coefficients.version


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors: tensors.pop("head/bias"), "missing keys are head/bias"),
        (
            lambda tensors: tensors.update(stray=torch.zeros(1)),
            "unexpected keys are stray",
        ),
    ],
)
def test_missing_and_unexpected_keys_raise(task, tmp_path, damage, message):
    """P11: a tensor too few or too many is an error that names it."""
    path = tmp_path / "movies.task"
    save_task(path, *task)
    tensors = load_file(path)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    damage(tensors)
    save_file(tensors, path, metadata)
    with pytest.raises(AdapterFormatError, match=message) as caught:
        load_task(path)
    assert caught.value.path == str(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "no task"),
        ({"share_dist": "[]"}, "no task"),
        ({"share_dist": json.dumps({"format": "share-dist task 2"})}, "newer release"),
        (
            {"share_dist": json.dumps({"format": "share-dist task 1", "version": 1})},
            "damaged description",
        ),
    ],
)
def test_foreign_and_newer_files_are_told_apart(tmp_path, metadata, message):
    """A safetensors file that is no task, or one of a later format, is refused as such."""
    save_file({"x": torch.zeros(1)}, tmp_path / "x", metadata)
    with pytest.raises(AdapterFormatError, match=message):
        load_task(tmp_path / "x")


def test_a_truncated_or_absent_file_is_refused(task, tmp_path):
    """A file cut short, or not there, is an error that says which."""
    path = tmp_path / "movies.task"
    save_task(path, *task)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(AdapterFormatError, match=r"movies\.task cannot be read"):
        load_task(path)
    with pytest.raises(AdapterFormatError, match=r"absent cannot be read"):
        load_task(tmp_path / "absent")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    """When writing fails the file that was there stays, and nothing else is left behind."""
    path = tmp_path / "movies.task"
    write_file(path, b"old")

    def fail(_descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["movies.task"]

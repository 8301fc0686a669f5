import json

import pytest
import torch

from share_dist.adapters.files import read_tensors, write_tensors
from share_dist.core.values import Head, LayerUpdate, SideUpdate, TaskUpdate
from share_dist.errors import StreamError
from worker.checkpoint import TaskCheckpoint
from worker.training_state import TrainingState

DIGEST = "d5" * 32


def update():
    side = SideUpdate(torch.ones(2, 3), torch.eye(4)[:, :1], torch.full((1, 3), 2.0))
    head = Head({"weight": torch.ones(2, 4), "bias": torch.zeros(2)}, "text-classification", 2)
    return TaskUpdate(
        "u1",
        "my/task",
        5,
        {"q": LayerUpdate(side, side)},
        head,
        scores={"accuracy": 0.5},
        base_digest=DIGEST,
    )


def state(epochs_done, best_epoch):
    tensors = {"adapter.q.a.temporary": torch.full((2,), float(epochs_done))}
    best = {"adapter.q.a.temporary": torch.full((2,), best_epoch + 1.0)}
    moments = {"adapter.q.a.temporary/step": torch.tensor(7.0)}
    return TrainingState(epochs_done, tensors, moments, best_epoch, 0.75, best)


@pytest.fixture
def checkpoint(tmp_path):
    return TaskCheckpoint(tmp_path, "my/task", "digest")


@pytest.mark.parametrize("best_epoch", [0, 1])
def test_an_epoch_comes_back(checkpoint, best_epoch):
    """State after an epoch is read as it was written, whichever epoch was best."""
    checkpoint.save_state(state(1, 0), 3, DIGEST)
    checkpoint.save_state(state(2, best_epoch), 3, DIGEST)
    saved = checkpoint.load_state()
    assert (saved.base_version, saved.base_digest) == (3, DIGEST)
    found, expected = saved.state, state(2, best_epoch)
    assert (found.epochs_done, found.best_epoch) == (2, best_epoch)
    for group in ("tensors", "optimizer", "best_tensors"):
        for name, tensor in getattr(expected, group).items():
            assert torch.equal(getattr(found, group)[name], tensor)


def test_an_update_comes_back_under_its_id(checkpoint):
    """A finished update is read with its id, base version and its digest, scores and head, and replaces the epochs."""
    checkpoint.save_state(state(1, 0), 5, DIGEST)
    checkpoint.save_update(update())
    found = checkpoint.load_update()
    assert (found.update_id, found.scores) == ("u1", {"accuracy": 0.5})
    assert (found.base_version, found.base_digest) == (5, DIGEST)
    assert torch.equal(found.layers["q"].a.temporary, update().layers["q"].a.temporary)
    assert torch.equal(found.head.tensors["weight"], torch.ones(2, 4))
    assert checkpoint.load_state() is None


def test_files_of_release_0_1_have_no_digest(checkpoint):
    """What was written without a digest of its base version is read, and has none."""
    checkpoint.save_state(state(1, 0), 5, DIGEST)
    tensors, metadata = read_tensors(checkpoint._epoch)
    write_tensors(checkpoint._epoch, tensors, {"epoch": without_digest(metadata["epoch"])})
    saved = checkpoint.load_state()
    assert (saved.base_version, saved.base_digest) == (5, "")
    checkpoint.save_update(update())
    checkpoint._update.write_text(without_digest(checkpoint._update.read_text()))
    found = checkpoint.load_update()
    assert (found.base_version, found.base_digest) == (5, "")


def without_digest(text: str) -> str:
    """A description as release 0.1 wrote it."""
    fields = json.loads(text)
    del fields["base_digest"]
    return json.dumps(fields)


def test_an_empty_folder_has_nothing(checkpoint):
    """Before anything was written there is no epoch, no update and no receipt."""
    assert checkpoint.load_state() is None
    assert checkpoint.load_update() is None
    assert checkpoint.pushed_update_id() is None


def test_a_payload_without_its_description_does_not_count(checkpoint):
    """Killed between the two files of an update, the worker finds its last epoch, not half an update."""
    checkpoint.save_state(state(1, 0), 5, DIGEST)
    checkpoint.save_update(update())
    checkpoint._update.unlink()
    assert checkpoint.load_update() is None


def test_a_write_that_fails_leaves_what_was_there(checkpoint, monkeypatch):
    """A disk that fills up in the middle of a write leaves the earlier file whole, and no litter."""
    checkpoint.save_state(state(1, 0), 5, DIGEST)

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save_state(state(2, 1), 5, DIGEST)
    monkeypatch.undo()
    assert checkpoint.load_state().state.epochs_done == 1
    assert len(list(checkpoint.folder.iterdir())) == 1


def test_a_damaged_update_is_noticed(checkpoint):
    """A payload that is not what was written is refused, with the folder to delete."""
    checkpoint.save_update(update())
    checkpoint._payload.write_bytes(checkpoint._payload.read_bytes() + b"x")
    with pytest.raises(StreamError, match=r"delete .*my%2Ftask"):
        checkpoint.load_update()


def test_another_lesson_is_noticed(checkpoint, tmp_path):
    """A folder that another stream file filled is refused in every kind of file."""
    other = TaskCheckpoint(tmp_path, "my/task", "another digest")
    checkpoint.save_update(update())
    checkpoint.save_state(state(1, 0), 5, DIGEST)
    checkpoint.save_pushed("u1")
    for read in (other.load_update, other.load_state, other.pushed_update_id):
        with pytest.raises(StreamError, match="as another stream file described it"):
            read()


def test_what_an_update_stands_for_comes_back(checkpoint):
    """Factors are read as they were written, and are missing where an earlier release wrote none."""
    assert checkpoint.load_factors() is None
    checkpoint.save_factors({"q/a": torch.ones(4, 3)})
    assert torch.equal(checkpoint.load_factors()["q/a"], torch.ones(4, 3))


def test_a_receipt_can_be_taken_back(checkpoint):
    """A push that the coordinator no longer knows has no receipt, and its update is there still."""
    checkpoint.save_update(update())
    checkpoint.save_pushed("u1")
    checkpoint.forget_pushed()
    assert checkpoint.pushed_update_id() is None
    assert checkpoint.has_update


def test_receipts_are_plain_json(checkpoint):
    """What an operator may want to read is JSON."""
    checkpoint.save_pushed("u1")
    assert json.loads(checkpoint._receipt.read_text())["update_id"] == "u1"

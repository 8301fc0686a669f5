"""`export`: one task as a PEFT LoRA directory that plain peft loads, whole or not at all."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file

from share_dist.client import ShareClient
from tests.commands.conftest import share_dist
from tests.coordinator.support import client_of, make_config, make_update, running


def logits(model, adapter):
    """What plain peft computes with an adapter, for a few token ids."""
    import peft
    import transformers

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = transformers.AutoModelForSequenceClassification.from_pretrained(model)
        loaded = peft.PeftModel.from_pretrained(base, str(adapter)).eval()
        tokens = torch.randint(0, 50, (4, 9), generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            return loaded(tokens).logits


def test_peft_computes_the_same_logits_after_import_and_export(workshop, stocked, tmp_path):
    """An adapter with its classifier goes through the coordinator and comes back the same."""
    out = tmp_path / "out"
    ended = share_dist(
        "export", "seq", "-o", out, "--prefix", "bert", "--base-model", workshop.model,
        "-c", stocked, "--json",
    )  # fmt: skip
    assert ended.json == {
        "path": str(out),
        "task": "seq",
        "version": 4,
        "num_layers": 4,
        "rank": 2,
        "head": ["classifier.bias", "classifier.weight"],
    }
    assert sorted(path.name for path in out.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]  # fmt: skip
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(workshop.model)
    expected = logits(workshop.model, workshop.adapter("seq"))
    assert torch.allclose(logits(workshop.model, out), expected, atol=1e-4)


@pytest.fixture(scope="module")
def with_heads(tmp_path_factory):
    """Address of a coordinator whose one task has a head of a worker's own: weight, no module."""
    store = tmp_path_factory.mktemp("heads") / "store"
    with running(make_config(store)) as coordinator:
        with client_of(coordinator.address) as client:
            client.register()
            client.push(make_update("cats"), wait="merged")
        yield coordinator.address


def test_a_workers_head_goes_into_a_file_of_its_own(with_heads, tmp_path):
    """A head that names no module of the model lies beside the adapter."""
    found = share_dist("export", "cats", "-o", tmp_path / "cats", "-c", with_heads, "--json").json
    assert found["head"] == "head.safetensors"
    with ShareClient(with_heads) as client:
        head = client.pull_task("cats").head
    assert torch.equal(load_file(tmp_path / "cats" / "head.safetensors")["weight"], head.tensors["weight"])  # fmt: skip
    config = json.loads((tmp_path / "cats" / "adapter_config.json").read_text())
    assert config["modules_to_save"] is None


def test_a_head_goes_where_it_is_told_to(with_heads, tmp_path):
    """--head-module puts the head into the adapter, as one of peft's modules to save."""
    ended = share_dist(
        "export", "cats", "-o", tmp_path / "cats", "--head-module", "score", "-c", with_heads
    )
    assert ended.text.endswith("head score.weight")
    tensors = load_file(tmp_path / "cats" / "adapter_model.safetensors")
    assert "base_model.model.score.weight" in tensors
    assert not (tmp_path / "cats" / "head.safetensors").exists()


@pytest.mark.parametrize(
    ("task", "message"),
    [("seq", "is classifier.bias, classifier.weight already"), ("cats", "was never pushed")],
)
def test_a_head_that_cannot_go_there_is_said(stocked, tmp_path, task, message):
    """--head-module is refused for a head that has its place, and where there is none."""
    ended = share_dist(
        "export", task, "-o", tmp_path / "x", "--head-module", "score", "-c", stocked
    )
    assert ended.code == 2
    assert message in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_task_names_the_nearest(stocked, tmp_path):
    """A misspelt task is met with what may be meant."""
    ended = share_dist("export", "dogz", "-o", tmp_path / "x", "-c", stocked)
    assert ended.code == 1
    assert "did you mean 'dogs'?" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_export_replaces_another_only_when_forced(with_heads, tmp_path):
    """What is there stays; --force replaces the export, its old head too, and nothing else."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("mine")
    assert share_dist("export", "cats", "-o", out, "-c", with_heads).code == 2
    assert [path.name for path in out.iterdir()] == ["README.md"]
    assert share_dist("export", "cats", "-o", out, "--force", "-c", with_heads).code == 0
    assert (out / "head.safetensors").exists()
    ended = share_dist("export", "cats", "-o", out, "--force", "--head-module", "score", "-c", with_heads)  # fmt: skip
    assert ended.code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    assert (out / "README.md").read_text() == "mine"


def test_a_write_that_fails_leaves_no_directory(with_heads, tmp_path, monkeypatch):
    """A disk that fills up in the middle is a letter, and no half adapter."""

    def fail(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    ended = share_dist("export", "cats", "-o", tmp_path / "out", "-c", with_heads)
    assert ended.code == 2
    assert "cannot be written (No space left on device)" in ended.stderr
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert share_dist("export", "cats", "-o", place, "-c", with_heads).code == 2

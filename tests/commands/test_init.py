"""`share-dist init`: LoRA directories become a subspace file and task files, with no coordinator."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from share_dist.adapters import load_lora, load_subspace, load_task
from share_dist.commands.init import MetricChoice
from share_dist.core.subspace import reconstruct
from share_dist.core.values import METRICS
from tests.commands.conftest import share_dist

NAMES = ("birds", "cats", "dogs")


@pytest.fixture
def folder(workshop, tmp_path):
    """A folder with three adapters of ranks 3, 4 and 2."""
    for name in NAMES:
        shutil.copytree(workshop.adapter(name), tmp_path / "adapters" / name)
    return tmp_path / "adapters"


def test_a_folder_of_adapters_becomes_a_subspace(folder, tmp_path):
    """With factors for all, every adapter comes back from its task file, whatever its rank."""
    ended = share_dist("init", folder, "-o", tmp_path / "out", "-k", 16, "--json")
    assert ended.code == 0, ended.text
    assert [task["task"] for task in ended.json["tasks"]] == list(NAMES)
    assert all(task["error"] < 1e-5 for task in ended.json["tasks"])
    subspace = load_subspace(tmp_path / "out/subspace.safetensors")
    for name in NAMES:
        coefficients, _ = load_task(tmp_path / f"out/tasks/{name}.safetensors")
        factors = reconstruct(subspace, coefficients)
        for layer, pair in load_lora(folder / name).factors.items():
            expected = pair.delta_weight()
            torch.testing.assert_close(factors[layer].delta_weight(), expected, rtol=0, atol=1e-4)


def test_what_is_cut_is_told(folder, tmp_path):
    """With too few factors the relative error of each dW is told, and is the one of the files."""
    found = share_dist("init", folder, "-o", tmp_path / "out", "-k", 4, "--json").json
    assert found["num_factors"] == 4
    subspace = load_subspace(tmp_path / "out/subspace.safetensors")
    for task in found["tasks"]:
        factors = reconstruct(
            subspace, load_task(tmp_path / f"out/tasks/{task['task']}.safetensors")[0]
        )
        pairs = load_lora(folder / task["task"]).factors.items()
        lost = sum(
            float((factors[layer].delta_weight() - pair.delta_weight()).square().sum())
            for layer, pair in pairs
        )
        whole = sum(float(pair.delta_weight().square().sum()) for _, pair in pairs)
        assert 0.1 < task["error"] == pytest.approx((lost / whole) ** 0.5, rel=1e-3)
    text = share_dist("init", folder, "-o", tmp_path / "again", "-k", 4).text
    worst = max(found["tasks"], key=lambda task: task["error"])
    assert f"worst ({worst['task']}) {worst['error']:.4g}" in text


def test_one_budget_is_spent_over_all_sides(folder, tmp_path):
    """The bases take no more than was allowed, and lose less than as many factors everywhere would."""
    plain = share_dist("init", folder, "-o", tmp_path / "plain", "-k", 3, "--json").json
    bases = load_subspace(tmp_path / "plain/subspace.safetensors").layers.values()
    allowed = sum(4 * basis.features * basis.num_factors for layer in bases for _, basis in layer)
    options = ("-k", 6, "--max-bytes", allowed, "--json")
    spent = share_dist("init", folder, "-o", tmp_path / "spent", *options)
    assert spent.code == 0, spent.text
    layers = load_subspace(tmp_path / "spent/subspace.safetensors").layers.values()
    factors = [basis.num_factors for layer in layers for _, basis in layer]
    assert len(set(factors)) > 1
    taken = sum(4 * basis.features * basis.num_factors for layer in layers for _, basis in layer)
    assert 0.9 * allowed < taken <= allowed
    mean, before = (sum(task["error"] for task in found["tasks"]) for found in (spent.json, plain))
    assert mean < before


def test_a_budget_that_holds_nothing_is_refused(folder, tmp_path):
    """With what it would take; nothing is left behind."""
    ended = share_dist("init", folder, "-o", tmp_path / "out", "--max-bytes", 100)
    assert ended.code == 2
    assert "max_bytes is 100, too little for the first factors of" in ended.text
    assert not (tmp_path / "out").exists()


def test_a_head_comes_along(workshop, tmp_path):
    """An adapter that was trained below a classifier brings it, and its layers are named as the others'."""
    ended = share_dist("init", workshop.adapter("cats"), workshop.adapter("seq"), "-o", tmp_path / "out", "-k", 16, "--json")  # fmt: skip
    assert ended.code == 0, ended.text
    _, head = load_task(tmp_path / "out/tasks/seq.safetensors")
    assert any(tensor.shape == (3, 32) for tensor in head.tensors.values())


def change_tensor(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: change(name, tensor) for name, tensor in tensors.items()}, path)


def set_config(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def spoil(_, tensor):
    return torch.full_like(tensor, torch.nan)


def silence(name, tensor):
    return torch.zeros_like(tensor) if "lora_B" in name else tensor


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (lambda folder: change_tensor(folder / "dogs", spoil), "NotFinite", "adapters/dogs: "),
        (lambda folder: change_tensor(folder / "dogs", silence), "UpdateRefused", "adapters/dogs: the adapter changes nothing in layer"),
        (lambda folder: set_config(folder / "dogs", base_model_name_or_path="elsewhere"), "ConfigError", "on 'elsewhere'"),
        (lambda folder: (folder / "dogs/adapter_model.safetensors").unlink(), "AdapterFormatError", "dogs"),
        (lambda folder: [shutil.rmtree(folder / name) for name in NAMES], "ConfigError", "holds no adapters"),
    ],
    ids=["nan", "zero", "mixed bases", "no tensors", "no adapters"],
)  # fmt: skip
def test_what_does_not_fit_is_named_and_nothing_is_left(folder, tmp_path, break_it, error, message):
    """One bad adapter ends it with its name in the letter; no file has been made."""
    break_it(folder)
    ended = share_dist("init", folder, "-o", tmp_path / "out", "--json")
    assert ended.code != 0
    assert ended.json["error"] == error
    assert message in ended.json["message"]
    assert [path.name for path in tmp_path.iterdir()] == ["adapters"]


def test_other_target_modules_are_named(workshop, tmp_path):
    """An adapter over other layers than the first is refused with its folder and the layer."""
    ended = share_dist("init", workshop.adapter("cats"), workshop.adapter("keys"), "-o", tmp_path / "out", "--json")  # fmt: skip
    assert ended.json["error"] == "ShapeMismatch"
    assert f"{workshop.adapter('keys')}: layer" in ended.json["message"]


def test_one_base_may_go_by_two_names(folder, tmp_path):
    """With --same-base, different names of the base model are no obstacle."""
    set_config(folder / "dogs", base_model_name_or_path="elsewhere")
    ended = share_dist("init", folder, "-o", tmp_path / "out", "--same-base", "--json")
    assert ended.code == 0, ended.text


def test_two_adapters_of_one_name_are_refused(workshop, folder, tmp_path):
    """Two folders that would become one task are named."""
    ended = share_dist("init", folder, workshop.adapter("cats"), "-o", tmp_path / "out", "--json")
    assert ended.json["error"] == "ConfigError"
    assert "both become the task 'cats'" in ended.json["message"]


def test_what_is_there_is_not_written_over(folder, tmp_path):
    """An output that is there is refused before anything is read, and stays as it is."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("mine")
    ended = share_dist("init", folder, "-o", tmp_path / "out", "--json")
    assert (ended.json["error"], ended.json["key"]) == ("ConfigError", "output")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_an_unknown_metric_is_refused(folder, tmp_path):
    """A metric that is none is named, with those that are."""
    ended = share_dist("init", folder, "-o", tmp_path / "out", "--metric", "cosine", "--json")
    assert ended.json["error"] == "ConfigError"
    assert all(name in ended.json["message"] for name in ("--metric", "cosine", *METRICS))


def test_every_metric_can_be_chosen():
    """The command knows the metrics that the library knows."""
    assert tuple(choice.value for choice in MetricChoice) == METRICS


def test_random_directions_are_added_for_learning_from_few(folder, tmp_path):
    """Every side has so many more, orthogonal to its basis; no task loses by it, and everybody gets the same."""
    plain = share_dist("init", folder, "-o", tmp_path / "plain", "-k", 4, "--json").json
    for name in ("one", "two"):
        ended = share_dist("init", folder, "-o", tmp_path / name, "-k", 4, "--augment", 3, "--json")
        assert ended.code == 0, ended.text
    assert ended.json["num_factors"] == 7
    errors = {task["task"]: task["error"] for task in plain["tasks"]}
    for task in ended.json["tasks"]:
        assert task["error"] <= errors[task["task"]] + 1e-5
    one, two = (load_subspace(tmp_path / name / "subspace.safetensors") for name in ("one", "two"))
    for name, layer in one.layers.items():
        for side, basis in layer:
            gram = basis.leading.mT @ basis.leading
            torch.testing.assert_close(gram, torch.eye(basis.num_factors), rtol=0, atol=1e-5)
            assert torch.equal(basis.leading, two.layers[name][side].leading)


def test_more_random_directions_than_there_are_features_are_refused(folder, tmp_path):
    """The error says how many there may be, and nothing is written."""
    ended = share_dist("init", folder, "-o", tmp_path / "out", "-k", 4, "--augment", 10**4)
    assert ended.code != 0
    assert "do not fit" in ended.text
    assert not (tmp_path / "out").exists()


def test_a_lora_starts_in_a_subspace(folder, tmp_path):
    """Its side A spans the leading principal factors, its side B is zero; too large a rank is refused with the largest."""
    share_dist("init", folder, "-o", tmp_path / "out", "-k", 4)
    file = tmp_path / "out/subspace.safetensors"
    ended = share_dist("lora-start", file, "-o", tmp_path / "lora", "-r", 3, "--json")
    assert ended.code == 0, ended.text
    subspace = load_subspace(file)
    for name, pair in load_lora(tmp_path / "lora").factors.items():
        leading = subspace.layers[name].a.leading[:, :3]
        torch.testing.assert_close(pair.a * 3**0.5, leading)
        assert not pair.b.any()
    refused = share_dist("lora-start", file, "-o", tmp_path / "again", "-r", 5)
    assert refused.code != 0
    assert "at most 4" in refused.text
    assert not (tmp_path / "again").exists()
    taken = share_dist("lora-start", file, "-o", tmp_path / "lora")
    assert taken.code != 0
    assert "is there already" in taken.text


def test_a_subspace_begins_without_adapters(workshop, tmp_path):
    """Of a model's weights: their largest singular vectors on both sides, in which a LoRA can start."""
    asked = ("--weights", workshop.model, "--target", "query", "--target", "value", "-k", 4)
    ended = share_dist("init", *asked, "-o", tmp_path / "out", "--json")
    assert ended.code == 0, ended.text
    assert (ended.json["tasks"], ended.json["num_layers"]) == ([], 4)
    model = transformers.AutoModel.from_pretrained(workshop.model)
    for name, layer in load_subspace(tmp_path / "out/subspace.safetensors").layers.items():
        weight = model.get_submodule(name).weight.detach()
        U, sigma, Vt = torch.linalg.svd(weight)
        for vectors, basis in ((Vt[:4].mT, layer.a), (U[:, :4], layer.b)):
            agreement = (vectors.mT @ basis.leading).abs()
            torch.testing.assert_close(agreement, torch.eye(4), rtol=0, atol=1e-3)
            torch.testing.assert_close(basis.energies.float(), sigma[:4].square())
    started = share_dist("lora-start", tmp_path / "out/subspace.safetensors", "-r", 2, "-o", tmp_path / "lora")  # fmt: skip
    assert started.code == 0, started.text
    assert "adapters 0" in share_dist("init", *asked, "-o", tmp_path / "text").text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "needs the layers: say --target"),
        (("--target", "nothing"), "nothing"),
        (("--target", "query", "-k", 100), "do not fit"),
        (("--target", "query", "--hold-out", 1), "hold-out says nothing"),
        (("--target", "query", "--collection", "text-to-image"), "collection says nothing"),
    ],
)
def test_a_start_without_adapters_that_cannot_be_says_why(workshop, tmp_path, arguments, message):
    """What is missing or has no meaning there is named; nothing is written."""
    ended = share_dist("init", "--weights", workshop.model, *arguments, "-o", tmp_path / "out", "--json")  # fmt: skip
    assert ended.code != 0
    assert message in ended.json["message"]
    assert not (tmp_path / "out").exists()


def test_layers_are_named_for_weights_only(folder, tmp_path):
    """Adapters say themselves which layers they have."""
    ended = share_dist("init", folder, "--target", "query", "-o", tmp_path / "out", "--json")
    assert ended.json["key"] == "target"

"""`push` and `import`: adapters that exist become tasks, or nothing happens at all."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from share_dist.adapters import load_lora, load_subspace, load_task
from share_dist.client import ShareClient
from share_dist.core.subspace import reconstruct
from tests.commands.conftest import end_of, share_dist, start_share_dist
from tests.coordinator.support import make_config, running
from tests.pki import Authority


def deltas(factors):
    return {name: layer.b @ layer.a.mT for name, layer in factors.items()}


def test_import_starts_a_subspace_from_adapters_of_mixed_ranks(workshop, tmp_path):
    """Three adapters of ranks 4, 2 and 3 become version 1, and each comes back as it was."""
    config = make_config(
        tmp_path / "store", num_factors=16, oversample=0, min_updates=3, max_wait_seconds=60
    )
    names = ("cats", "dogs", "birds")
    folders = [workshop.adapter(name) for name in names]
    with running(config) as coordinator:
        address = coordinator.address
        found = share_dist("import", *folders, "--model", workshop.model, "-c", address, "--json").json  # fmt: skip
        assert [(each["task"], each["state"], each["version"]) for each in found] == [
            (name, "merged", 1) for name in names
        ]
        for name, folder in zip(names, folders, strict=True):
            ended = share_dist("export", name, "-o", tmp_path / name, "-c", address)
            assert ended.code == 0, ended.text
            exported = deltas(load_lora(tmp_path / name).factors)
            for layer, expected in deltas(load_lora(folder).factors).items():
                assert float((exported[layer] - expected).norm() / expected.norm()) < 1e-5


def test_push_adds_one_task_and_tells_what_became_of_it(workshop, fresh):
    """One adapter, one receipt; the task has the folder's name, or the name it is given."""
    ended = share_dist(
        "push", workshop.adapter("dogs"), "--model", workshop.model, "-c", fresh, "--json"
    )
    assert ended.code == 0
    assert (ended.json["task"], ended.json["state"], ended.json["version"]) == ("dogs", "merged", 1)
    text = share_dist("push", workshop.adapter("birds"), "--task", "swans", "-c", fresh).text
    assert text.endswith("swans merged 2 0")
    found = share_dist("tasks", "-c", fresh, "--json").json
    assert [task["task_id"] for task in found] == ["dogs", "swans"]


def test_without_waiting_a_push_is_only_safe(workshop, tmp_path):
    """--no-wait returns once the update is on disk; waiting in vain says that it is safe there."""
    config = make_config(tmp_path / "store", min_updates=9, max_wait_seconds=3600)
    with running(config) as coordinator:
        address = coordinator.address
        adapter = workshop.adapter("dogs")
        ended = share_dist("push", adapter, "--model", workshop.model, "--no-wait", "-c", address, "--json")  # fmt: skip
        assert (ended.code, ended.json["state"]) == (0, "pending")
        ended = share_dist("push", adapter, "--timeout", 1, "-c", address)
        assert ended.code == 4
        assert (
            "task 'dogs' is safe with the coordinator, but was not merged within 1 s" in ended.text
        )
        with ShareClient(address) as client:
            assert client.status().num_pending == 2


def test_the_first_push_must_tell_the_model(workshop, fresh):
    """A coordinator that knows no base model needs --model, and stays unbound without it."""
    ended = share_dist("push", workshop.adapter("cats"), "-c", fresh)
    assert ended.code == 2
    assert "tell it with --model" in ended.stderr
    assert share_dist("status", "-c", fresh, "--json").json["fingerprint"] is None


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("adapters", "holds no model that transformers can load"),
        ("absent", "does not exist"),
    ],
)
def test_a_folder_without_a_model_is_refused(workshop, fresh, model, message):
    """What --model names must be a model; nothing reaches the coordinator otherwise."""
    ended = share_dist("push", workshop.adapter("cats"), "--model", workshop.root / model, "-c", fresh)  # fmt: skip
    assert ended.code == 2
    assert message in ended.text
    assert share_dist("status", "-c", fresh, "--json").json["workers"] == []


def test_another_model_of_the_same_shapes_is_refused(workshop, stocked):
    """The digest tells two models apart whose layers agree."""
    ended = share_dist("push", workshop.adapter("fish"), "--model", workshop.other, "-c", stocked)
    assert ended.code == 1
    assert ended.stderr.startswith("FingerprintMismatch: base_model differs")


def test_an_adapter_of_other_layers_is_refused_by_name(workshop, stocked):
    """The letter names the folder and the first layer that is too much."""
    ended = share_dist("push", workshop.adapter("keys"), "-c", stocked)
    assert ended.code == 1
    assert str(workshop.adapter("keys")) in ended.stderr
    assert "'encoder.layer.0.attention.self.key'" in ended.stderr


def test_an_import_is_all_or_nothing_at_the_door(workshop, fresh):
    """One folder that does not fit the others keeps all of them, and the binding, out."""
    folders = [workshop.adapter("cats"), workshop.adapter("keys")]
    ended = share_dist("import", *folders, "--model", workshop.model, "-c", fresh)
    assert ended.code == 1
    found = share_dist("status", "-c", fresh, "--json").json
    assert (found["fingerprint"], found["num_pending"], found["workers"]) == (None, 0, [])


def test_numbers_that_are_none_are_refused_by_folder(workshop, tmp_path):
    """Of many adapters the one is named that has them, before anyone is asked."""
    folder = tmp_path / "burnt"
    shutil.copytree(workshop.adapter("dogs"), folder)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, file)
    ended = share_dist("import", workshop.adapter("cats"), folder, "-c", "127.0.0.1:1")
    assert ended.code == 1
    assert f"NotFinite: {folder}: " in ended.stderr


def test_a_push_that_is_set_aside_is_no_success(workshop, tmp_path):
    """Parked or quarantined it is in no version, and a script must not take it for that."""
    budget = {"drift_budget": 1e-3, "max_subspace_bytes": 1}
    config = make_config(tmp_path / "store", num_factors=4, oversample=0, **budget)
    with running(config) as coordinator:
        address = ("-c", coordinator.address)
        first = share_dist("push", workshop.adapter("cats"), "--model", workshop.model, *address)
        ended = share_dist("push", workshop.adapter("birds"), *address, "--json")
    assert first.code == 0
    assert (ended.code, ended.json["state"]) == (1, "parked")


def test_two_people_push_without_a_word_about_workers(workshop, tmp_path):
    """Each has a worker of their own, named after who they are to the coordinator."""
    authority = Authority(tmp_path / "authority")
    keys = authority.server() | {"tls_client_ca": authority.certificate}
    with running(make_config(tmp_path / "store", num_factors=16, **keys)) as coordinator:
        for who, task in (("north", "cats"), ("south", "dogs")):
            shown = authority.client(who)
            flags = ("--ca", shown.ca, "--certificate", shown.certificate, "--key", shown.key)
            address = coordinator.address
            ended = share_dist("push", workshop.adapter(task), "--model", workshop.model, "-c", address, *flags)  # fmt: skip
            assert ended.code == 0, ended.stderr
        found = share_dist("tasks", "-c", address, *flags, "--json").json
    assert {task["task_id"]: task["worker_id"] for task in found} == {
        "cats": "cli-north",
        "dogs": "cli-south",
    }


def test_two_folders_of_one_name_are_refused(workshop, tmp_path):
    """They would be one task; the letter names both, and no coordinator is asked."""
    (tmp_path / "cats").symlink_to(workshop.adapter("cats"))
    twin = tmp_path / "twin" / "cats"
    twin.mkdir(parents=True)
    ended = share_dist("import", workshop.adapter("cats"), twin, "-c", "127.0.0.1:1")
    assert ended.code == 2
    assert str(twin) in ended.stderr
    assert "--task" in ended.stderr


def test_what_is_no_adapter_is_refused_before_anyone_is_asked(tmp_path):
    """An empty folder is a local matter: exit 1, although no coordinator runs."""
    ended = share_dist("push", tmp_path, "-c", "127.0.0.1:1")
    assert ended.code == 1
    assert ended.stderr.startswith("AdapterFormatError: ")


def test_layers_below_a_head_are_those_of_the_bare_model(workshop, fresh, tmp_path):
    """An adapter trained below a classifier becomes a task of the same subspace as bare ones."""
    for name in ("seq", "cats"):
        ended = share_dist("push", workshop.adapter(name), "--model", workshop.model, "-c", fresh)
        assert ended.code == 0, ended.text
    share_dist("pull", "-o", tmp_path / "subspace", "-c", fresh)
    share_dist("pull", "--task", "seq", "-o", tmp_path / "seq", "-c", fresh)
    coefficients, head = load_task(tmp_path / "seq")
    found = deltas(reconstruct(load_subspace(tmp_path / "subspace"), coefficients))
    for layer, expected in deltas(load_lora(workshop.adapter("seq")).factors).items():
        bare = found[layer.removeprefix("bert.")]
        assert float((bare - expected).norm() / expected.norm()) < 1e-5
    assert set(head.tensors) == {"classifier.weight", "classifier.bias"}


def test_a_real_process_pushes(workshop, stocked, fresh):
    """From a shell: the coordinator's own address in the environment, JSON on standard output only."""
    process = start_share_dist(
        "import", workshop.adapter("fish"), workshop.adapter("dogs"), "--model", workshop.model, "--json",
        SHARE_DIST_COORDINATOR=fresh,
    )  # fmt: skip
    ended = end_of(process)
    assert (ended.code, ended.stderr) == (0, "")
    assert [each["task"] for each in ended.json] == ["fish", "dogs"]

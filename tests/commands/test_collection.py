"""`share-dist init --collection`: adapters of a model hub become a subspace; the hub is one on loopback."""

import errno
import shutil

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from share_dist.adapters import load_subspace
from share_dist.commands.collection import InitOptions, collection_names, read_collection
from tests.commands.conftest import end_of, share_dist, start_share_dist
from tests.commands.hub import REVISION, TAG, serving

NAMES = ("lora-birds", "lora-cats", "lora-dogs", "lora-fish")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of nobody's models, with an empty cache before it."""
    folder = tmp_path / "hub"
    folder.mkdir()
    with serving(folder) as served:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, served.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", served.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield served


@pytest.fixture
def zoo(hub, workshop):
    """Four adapters of one author, and a model of another kind."""
    for name in NAMES:
        shutil.copytree(workshop.adapter(name.removeprefix("lora-")), hub.folder / "zoo" / name)
    (hub.folder / "zoo/whole-model").mkdir()
    (hub.folder / "zoo/whole-model/model.safetensors").write_bytes(b"much")
    (hub.folder / "zoo/lora-cats/README.md").write_text("about cats")
    return hub


@pytest.fixture
def write(tmp_path):
    def written(sources='[[hub]]\nauthor = "zoo"\nname = "lora-*"\n', init=""):
        path = tmp_path / "zoo.toml"
        path.write_text(f"{sources}\n[init]\n{init}")
        return path

    return written


def is_untouched(tmp_path):
    return not (tmp_path / "out").exists()


def test_adapters_of_a_hub_become_a_subspace(zoo, write, tmp_path):
    """In the order of their names, with nothing fetched but the files of adapters; their folders name the revision."""
    file = write(init="num_factors = 16")
    ended = share_dist("init", "--collection", file, "-o", tmp_path / "out", "--json")
    assert ended.code == 0, ended.text
    assert [task["task"] for task in ended.json["tasks"]] == list(NAMES)
    assert all(task["error"] < 1e-5 for task in ended.json["tasks"])
    assert all(task["path"].endswith(REVISION) for task in ended.json["tasks"])
    fetched = {path for path in zoo.asked if "/resolve/" in path}
    assert len(fetched) == 8
    assert not any("README" in path or "whole-model" in path for path in fetched)


def test_what_is_there_is_not_fetched_again(zoo, write, tmp_path):
    """A second subspace of the same adapters asks what is new, and fetches no file."""
    file = write()
    share_dist("init", "--collection", file, "-o", tmp_path / "one")
    del zoo.asked[:]
    ended = share_dist("init", "--collection", file, "-o", tmp_path / "two")
    assert ended.code == 0, ended.text
    assert zoo.asked
    assert not any("/resolve/" in path for path in zoo.asked)


def test_the_command_line_has_the_last_word(zoo, write, tmp_path):
    """What a collection says of options holds where the command line is silent, even where that says the default."""
    file = write(init='num_factors = 3\nmetric = "factors"')
    said = share_dist("init", "--collection", file, "-o", tmp_path / "said", "--json").json
    assert said["num_factors"] == 3
    assert load_subspace(tmp_path / "said/subspace.safetensors").metric == "factors"
    more = share_dist("init", "--collection", file, "-k", 32, "--metric", "delta", "-o", tmp_path / "more", "--json").json  # fmt: skip
    assert more["num_factors"] > 3
    assert load_subspace(tmp_path / "more/subspace.safetensors").metric == "delta"


def test_the_first_so_many_are_taken(zoo, write, tmp_path, workshop):
    """By the limit of a source, and of the whole; beside adapters that lie here."""
    file = write(sources='[[hub]]\nauthor = "zoo"\nname = "lora-*"\nlimit = 3\n')
    for limit, expected in (((), NAMES[:3]), (("--limit", 2), NAMES[:2])):
        out = tmp_path / f"out{len(expected)}"
        here = workshop.adapter("fish")
        ended = share_dist("init", here, "--collection", file, *limit, "-o", out, "--json")
        assert [task["task"] for task in ended.json["tasks"]] == ["fish", *expected]


def test_adapters_held_out_have_no_say(zoo, write, tmp_path):
    """The bases are those without them; they are said in these and in random directions, and told apart."""
    file = write(init="num_factors = 4\nhold_out = 1")
    with_one_out = share_dist("init", "--collection", file, "-o", tmp_path / "out", "--json").json
    share_dist("init", "--collection", file, "--limit", 3, "--hold-out", 0, "-o", tmp_path / "few")
    one, other = (load_subspace(tmp_path / name / "subspace.safetensors") for name in ("out", "few"))  # fmt: skip
    for name, layer in one.layers.items():
        for side, basis in layer:
            assert torch.equal(basis.leading, other.layers[name][side].leading)
    *merged, held_out = with_one_out["tasks"]
    assert [task["held_out"] for task in merged] == [False] * 3
    assert [task["random_error"] for task in merged] == [None] * 3
    assert (held_out["task"], held_out["held_out"]) == (NAMES[3], True)
    assert max(task["error"] for task in merged) < held_out["error"] < 1
    assert 0.5 < held_out["random_error"] < 1
    text = share_dist("init", "--collection", file, "-o", tmp_path / "text").text
    assert f"of 1 held out, mean {held_out['error']:.4g}" in text
    assert f"random directions {held_out['random_error']:.4g}" in text


def spoil(folder):
    """Set the sides B of an adapter to zero."""
    path = folder / "adapter_model.safetensors"
    tensors = {name: tensor * ("lora_A" in name) for name, tensor in load_file(path).items()}
    save_file(tensors, path)


def test_what_does_not_fit_is_left_out_where_that_is_wanted(zoo, write, workshop, tmp_path):
    """Another's layers, one that changes nothing, a folder without tensors and one that is private are named with why; the rest becomes a subspace."""
    shutil.copytree(workshop.adapter("keys"), zoo.folder / "zoo/lora-eels")
    shutil.copytree(workshop.adapter("cats"), zoo.folder / "zoo/lora-hens")
    spoil(zoo.folder / "zoo/lora-hens")
    (zoo.folder / "zoo/lora-gnus").mkdir()
    (zoo.folder / "zoo/lora-gnus/adapter_config.json").write_text("{}")
    refused = share_dist("init", "--collection", write(), "-o", tmp_path / "out", "--json")
    assert refused.json["error"] == "ShapeMismatch"
    assert "lora-eels" in refused.json["message"]
    assert is_untouched(tmp_path)
    shutil.copytree(workshop.adapter("cats"), zoo.folder / "zoo/lora-ibis")
    zoo.refuses.add("zoo/lora-ibis")
    file = write(init="skip_unfit = true\nhold_out = 1")
    ended = share_dist("init", "--collection", file, "-o", tmp_path / "out", "--json")
    assert ended.code == 0, ended.text
    told = [(task["task"], task["held_out"]) for task in ended.json["tasks"]]
    assert told == [(name, name == NAMES[-1]) for name in NAMES]
    left_out = {each["task"]: each["why"] for each in ended.json["left_out"]}
    assert left_out.keys() == {"lora-eels", "lora-gnus", "lora-hens", "lora-ibis"}


@pytest.mark.parametrize(
    ("sources", "init", "message"),
    [
        ("", "", "hub: Field required"),
        ('[[hub]]\nauthor = "zoo"\nnames = "lora-*"\n', "", "names: Extra inputs"),
        ('[[hub]]\nauthor = "zoo"\nlimit = 0\n', "", "limit: Input should be greater"),
        ('[[hub]]\nauthor = "zoo"\n', "hold_out = -1", "init.hold_out: Input should be"),
        ('[[hub]]\nauthor = "zoo"\n', "energy = 1.5", "init.energy: Input should be"),
        ('[[hub]]\nauthor = "zoo"\n', 'metric = "cosine"', "init.metric: Input should be 'delta' or 'factors'"),
        ("[[hub", "", "is no TOML"),
        ('[[hub]]\nauthor = "nobody"\n', "", "has no repository nobody/*"),
        ('[[hub]]\nauthor = "zoo"\nname = "lora-*"\n', "hold_out = 4", "leaves none of 4 adapters"),
        ('[[hub]]\nauthor = "zoo"\nname = "whole-*"\n', "", "adapter_config.json"),
    ],
)  # fmt: skip
def test_a_collection_that_cannot_be_used_says_why(zoo, write, tmp_path, sources, init, message):
    """What is wrong is named, and nothing is left behind."""
    ended = share_dist(
        "init", "--collection", write(sources, init), "-o", tmp_path / "out", "--json"
    )
    assert ended.code != 0
    assert message in ended.json["message"]
    assert is_untouched(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--collection", "zebras"), "give a file, or one of lots-of-loras, text-to-image"),
        (("--limit", 3), "--limit is of a --collection"),
        ((), "no adapters: give directories, or a --collection"),
    ],
)
def test_arguments_that_name_nothing_are_refused(tmp_path, arguments, message):
    """With what could be given instead."""
    ended = share_dist("init", *arguments, "-o", tmp_path / "out", "--json")
    assert (ended.code, ended.json["error"]) == (2, "ConfigError")
    assert message in ended.json["message"]


def test_an_odd_first_adapter_leaves_nobody_else(zoo, write, workshop, tmp_path):
    """Where most do not fit the first, it is the first that is wrong: nothing is made of it alone."""
    shutil.copytree(workshop.adapter("keys"), zoo.folder / "zoo/lora-ants")
    file = write(init="skip_unfit = true")
    ended = share_dist("init", "--collection", file, "-o", tmp_path / "out", "--json")
    assert (ended.code, ended.json["error"]) == (2, "ConfigError")
    assert "4 of 5 adapters were left out" in ended.json["message"]
    assert is_untouched(tmp_path)


def test_one_revision_of_each_may_be_named(zoo, write, tmp_path):
    """A branch, tag or commit; one that is not there is refused by its repository."""
    sources = '[[hub]]\nauthor = "zoo"\nname = "lora-*"\nrevision = "{}"\n'
    ended = share_dist("init", "--collection", write(sources.format(TAG)), "-o", tmp_path / "out")  # fmt: skip
    assert ended.code == 0, ended.text
    assert any(path.endswith(f"lora-cats/revision/{TAG}") for path in zoo.asked)
    ended = share_dist("init", "--collection", write(sources.format("v9")), "-o", tmp_path / "two")
    assert ended.code == 2
    assert "lora-birds" in ended.text


def test_a_full_disk_is_told_as_such(zoo, write, tmp_path, monkeypatch):
    """With the folder that has no room, not as a matter of the network."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.HfApi.snapshot_download", full)
    ended = share_dist("init", "--collection", write(), "-o", tmp_path / "out", "--json")
    assert f"{tmp_path / 'cache'} has no room" in ended.json["message"]


def test_a_name_that_is_taken_here_is_refused(zoo, workshop, write, tmp_path):
    """By a folder and a repository, before anything is fetched."""
    shutil.copytree(workshop.adapter("cats"), tmp_path / "lora-cats")
    ended = share_dist("init", tmp_path / "lora-cats", "--collection", write(), "-o", tmp_path / "out", "--json")  # fmt: skip
    assert "zoo/lora-cats would both become the task 'lora-cats'" in ended.json["message"]
    assert not any("/resolve/" in path for path in zoo.asked)


def test_two_adapters_of_one_name_are_refused(zoo, workshop, write, tmp_path):
    """Of two authors, before anything is fetched."""
    shutil.copytree(workshop.adapter("cats"), zoo.folder / "farm/lora-cats")
    both = "".join(f'[[hub]]\nauthor = "{author}"\nname = "lora-*"\n' for author in ("zoo", "farm"))
    ended = share_dist("init", "--collection", write(both), "-o", tmp_path / "out", "--json")
    assert "farm/lora-cats would both become the task 'lora-cats'" in ended.json["message"]
    assert not any("/resolve/" in path for path in zoo.asked)


def test_a_hub_that_refuses_is_named(zoo, write, tmp_path):
    """What is private is told with what to see to; what was fetched before stays for the next time."""
    zoo.refuses.add("zoo/lora-dogs")
    ended = share_dist("init", "--collection", write(), "-o", tmp_path / "out", "--json")
    assert (ended.code, ended.json["error"]) == (2, "ConfigError")
    assert f"{zoo.address} gives no adapters" in ended.json["message"]
    assert "$HF_TOKEN" in ended.json["message"]
    assert is_untouched(tmp_path)
    zoo.refuses.clear()
    del zoo.asked[:]
    assert share_dist("init", "--collection", write(), "-o", tmp_path / "out").code == 0
    assert not any("/resolve/" in path and "cats" in path for path in zoo.asked)


@pytest.mark.parametrize("why", ["offline", "nobody listens"])
def test_a_hub_that_is_not_reached_is_named(hub, write, tmp_path, monkeypatch, why):
    """A network that is not there ends it at once with one sentence."""
    if why == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    ended = share_dist("init", "--collection", write(), "-o", tmp_path / "out")
    assert ended.code == 2
    assert "gives no adapters" in ended.text
    assert "Traceback" not in ended.text
    assert is_untouched(tmp_path)


def standing_in(collection, workshop, hub):
    """Adapters of the names that a collection asks for, of any small model."""
    for source in read_collection(collection).hub:
        for number in range(8):
            folder = hub.folder / source.author / source.name.replace("*", f"{number}")
            if collection == "text-to-image":
                folder.mkdir(parents=True)
                generator = torch.Generator().manual_seed(number)
                sides = {"down": (64, 24), "up": (32, 64)}
                save_file(
                    {f"unet.mid_block.attn1.to_q.lora.{side}.weight": torch.randn(*size, generator=generator) for side, size in sides.items()},
                    folder / "pytorch_lora_weights.safetensors",
                )  # fmt: skip
            else:
                shutil.copytree(workshop.adapter("cats"), folder)


@pytest.mark.parametrize("collection", collection_names())
def test_collections_that_come_along_run(collection, workshop, hub, tmp_path):
    """As a process that knows its hub from the environment alone: all that they name is read, the last are held out."""
    standing_in(collection, workshop, hub)
    environment = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}  # fmt: skip
    ended = end_of(start_share_dist("init", "--collection", collection, "-o", tmp_path / "out", "--json", **environment))  # fmt: skip
    assert ended.code == 0, ended.text
    said = read_collection(collection).init
    assert [task["held_out"] for task in ended.json["tasks"]] == [False] * (8 - said.hold_out) + [True] * said.hold_out  # fmt: skip
    assert len(list((tmp_path / "out/tasks").iterdir())) == 8


def test_options_of_collections_are_those_of_the_command():
    """A collection can say whatever the command line can of making a subspace."""
    help_text = share_dist("init", "--help").text
    for name in InitOptions.model_fields:
        assert f"--{name.replace('_', '-')}" in help_text

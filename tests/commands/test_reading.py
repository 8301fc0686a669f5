"""Commands that read a coordinator or a file: status, tasks, pull, watch, inspect."""

import json
import signal
import socket

import pytest
import torch

from share_dist.adapters import load_lora, load_subspace, load_task
from share_dist.core.subspace import reconstruct
from tests.commands.conftest import end_of, share_dist, start_share_dist
from tests.coordinator.support import client_of, make_config, make_update, running, wait_until


def test_status_tells_version_model_and_workers(stocked):
    """For people and for scripts, status is what the coordinator says of itself."""
    found = share_dist("status", "-c", stocked, "--json").json
    assert (found["current_version"], found["num_tasks"]) == (4, 4)
    assert [worker["worker_id"] for worker in found["workers"]] == ["cli"]
    text = share_dist("status", "-c", stocked).text
    assert f"coordinator at {stocked}" in text
    assert "current version 4" in text
    assert found["fingerprint"]["base_model"][:12] in text


def test_an_empty_coordinator_says_so(fresh):
    """Nothing learnt yet is a sentence, not an empty table; for scripts an empty list."""
    assert share_dist("tasks", "-c", fresh).text.endswith("has no tasks yet")
    assert share_dist("tasks", "-c", fresh, "--json").json == []
    assert "current version 0" in share_dist("status", "-c", fresh).text


def test_tasks_lists_every_task(stocked):
    """Each task has a line with its version and lag."""
    found = share_dist("tasks", "-c", stocked, "--json").json
    assert [(task["task_id"], task["state"]) for task in found] == [
        (name, "merged") for name in ("birds", "cats", "dogs", "seq")
    ]
    ended = share_dist("tasks", "-c", stocked)
    for task in found:
        assert f"{task['task_id']} cli merged {task['merged_version']} {task['lag']}" in ended.text


def test_a_task_that_was_pushed_again_is_told_with_its_newer_update(tmp_path):
    """What is merged of it speaks for it; what waits stands beside it."""
    config = make_config(tmp_path / "store", min_updates=2, max_wait_seconds=600)
    with running(config) as coordinator, client_of(coordinator.address) as client:
        client.register()
        for name in ("cats", "dogs"):
            client.push(make_update(name))
        wait_until(lambda: client.status().current_version == 1)
        client.push(make_update("cats", "again", base=client.pull()))
        cats, dogs = share_dist("tasks", "-c", coordinator.address, "--json").json
        text = share_dist("tasks", "-c", coordinator.address).text
    assert (cats["update_id"], cats["state"]) == ("update-of-cats", "merged")
    assert cats["newer"] == {"update_id": "again", "state": "pending", "reason": ""}
    assert dogs["newer"] is None
    assert "cats w merged, newer pending" in text


def test_the_address_comes_from_the_environment_too(stocked, monkeypatch):
    """SHARE_DIST_COORDINATOR stands in for --coordinator."""
    monkeypatch.setenv("SHARE_DIST_COORDINATOR", stocked)
    assert share_dist("status", "--json").json["num_tasks"] == 4


@pytest.mark.parametrize("name", ["cats", "dogs", "birds"])
def test_pulled_files_give_an_imported_adapter_back(workshop, stocked, tmp_path, name):
    """Subspace file and task file together are the dW that was imported, whatever its rank."""
    assert share_dist("pull", "-o", tmp_path / "subspace", "-c", stocked).code == 0
    assert share_dist("pull", "--task", name, "-o", tmp_path / "task", "-c", stocked).code == 0
    coefficients, _ = load_task(tmp_path / "task")
    factors = reconstruct(load_subspace(tmp_path / "subspace"), coefficients)
    for layer, pair in load_lora(workshop.adapter(name)).factors.items():
        expected = pair.b @ pair.a.mT
        error = (factors[layer].b @ factors[layer].a.mT - expected).norm() / expected.norm()
        assert float(error) < 1e-5


def test_pull_says_what_it_wrote(stocked, tmp_path):
    """The facts of the file are told, and an older version is served when it is asked for."""
    path = tmp_path / "new" / "subspace"
    found = share_dist("pull", "--version", 2, "-o", path, "-c", stocked, "--json").json
    assert found == {
        "path": str(path),
        "file_bytes": path.stat().st_size,
        "version": 2,
        "num_factors": 6,
        "num_layers": 4,
    }
    assert "task 'seq' in version 4" in share_dist("pull", "--task", "seq", "-o", path, "-c", stocked).text  # fmt: skip
    assert load_task(path)[1].tensors["classifier.weight"].shape == (3, 32)


@pytest.mark.parametrize(
    ("arguments", "code", "error", "message"),
    [
        (("--version", "9"), 1, "VersionInFuture", "version 9 does not exist yet, the newest is 4"),
        (("--task", "catz"), 1, "UnknownTask", "did you mean 'cats'?"),
        (("--task", "cats", "--version", "2"), 2, "ConfigError", "drop --version"),
    ],
)
def test_what_cannot_be_pulled_leaves_no_file(stocked, tmp_path, arguments, code, error, message):
    """A pull that fails says why, and writes nothing."""
    path = tmp_path / "out"
    ended = share_dist("pull", *arguments, "-o", path, "-c", stocked)
    assert (ended.code, ended.stdout) == (code, "")
    assert ended.stderr.startswith(f"{error}: ")
    assert message in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_a_letter(stocked, tmp_path):
    """A file where a folder must be, or a folder where a file must be: exit 2, and the place named."""
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file" / "below", tmp_path):
        ended = share_dist("pull", "-o", place, "-c", stocked)
        assert ended.code == 2
        assert f"{place} cannot be written" in ended.stderr
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_nobody_at_the_address_is_said_soon(tmp_path):
    """Exit 4, with the address and how often it was tried."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        ended = share_dist("tasks", "-c", address, "--timeout", 1)
        assert ended.code == 4
        assert f"no coordinator answers at {address}" in ended.stderr
        ended = share_dist("tasks", "-c", address, "--timeout", 1, "--json")
    assert ended.json["error"] == "CoordinatorUnreachable"
    assert ended.json["address"] == address


def test_watch_prints_a_line_for_each_version(stocked):
    """From any version on, each version is one line; in JSON one value a line."""
    ended = share_dist("watch", "--after", 0, "--count", 3, "-c", stocked)
    lines = ended.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["version 1", "version 2", "version 3"]
    ended = share_dist("watch", "--after", 2, "--count", 2, "-c", stocked, "--json")
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [event["version"] for event in events] == [3, 4]
    assert events[0]["drift"].keys() <= {"cats", "dogs", "birds", "seq"}


def test_ctrl_c_ends_a_watch_quietly(stocked):
    """A real process that waits for a version ends with 130, its lines whole, without a traceback."""
    process = start_share_dist("watch", "--after", "3", "--json", SHARE_DIST_COORDINATOR=stocked)
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    ended = end_of(process)
    assert json.loads(first)["version"] == 4
    assert (ended.code, ended.stdout, ended.stderr) == (130, "", "")


def test_a_reader_that_leaves_is_no_error_of_ours(stocked):
    """`watch | head -1`: the pipe closes, nothing is printed about it."""
    process = start_share_dist("watch", "--after", "0", "--count", "4", SHARE_DIST_COORDINATOR=stocked)  # fmt: skip
    process.stdout.close()
    assert process.wait(timeout=120) == 1
    assert process.stderr.read() == ""
    process.stderr.close()


def test_inspect_tells_an_adapter(workshop):
    """Layers, ranks and the norm of each dW, without making any dW."""
    found = share_dist("inspect", workshop.adapter("cats"), "--json").json
    assert found["kind"] == "LoRA"
    factors = load_lora(workshop.adapter("cats")).factors
    assert [layer["layer"] for layer in found["layers"]] == list(factors)
    for layer in found["layers"]:
        assert layer["rank"] == 4
        a, b = factors[layer["layer"]].a, factors[layer["layer"]].b
        assert layer["delta_norm"] == pytest.approx(float(torch.linalg.norm(b @ a.mT)), rel=1e-5)
    assert "norm of dW" in share_dist("inspect", workshop.adapter("cats")).text


def test_inspect_tells_what_pull_wrote(stocked, tmp_path):
    """A subspace file and a task file are told apart and shown."""
    share_dist("pull", "-o", tmp_path / "subspace", "-c", stocked)
    share_dist("pull", "--task", "seq", "-o", tmp_path / "task", "-c", stocked)
    found = share_dist("inspect", tmp_path / "subspace", "--json").json
    assert (found["kind"], found["version"], found["metric"]) == ("subspace", 4, "delta")
    assert {line["side"] for line in found["layers"]} == {"A", "B"}
    assert {line["num_factors"] for line in found["layers"]} == {11}
    found = share_dist("inspect", tmp_path / "task", "--json").json
    assert (found["kind"], found["head_tensors"]) == ("task", ["classifier.bias", "classifier.weight"])  # fmt: skip
    assert {line["pseudo_rank"] for line in found["layers"]} == {2}
    assert "task, version 4, head tensors classifier.bias" in share_dist("inspect", tmp_path / "task").text  # fmt: skip


def test_inspect_refuses_what_is_neither(workshop, tmp_path):
    """A text file, a folder without an adapter and other tensors are named as such."""
    from safetensors.torch import save_file

    (tmp_path / "text").write_text("hello")
    (tmp_path / "folder").mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "tensors")
    for name, message in {
        "text": "cannot be read as safetensors",
        "folder": "is no config of a PEFT LoRA adapter",
        "tensors": "holds no subspace",
    }.items():
        ended = share_dist("inspect", tmp_path / name)
        assert ended.code == 1
        assert ended.stderr.startswith("AdapterFormatError: ")
        assert message in ended.stderr
    assert share_dist("inspect", tmp_path / "absent").code == 2

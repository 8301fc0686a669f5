"""A client in another language, made from ``protos/`` and its specification alone, is a worker like any other."""

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from coordinator.store.memory import MemoryCatalog
from share_dist.client import ShareClient
from share_dist.core.subspace import reconstruct
from share_dist.core.values import Fingerprint, LayerShape, Subspace
from tests.coordinator.support import make_config, make_update, running

SHAPES = {"encoder.query": LayerShape(384, 256), "encoder.value": LayerShape(384, 192)}
FINGERPRINT = Fingerprint("0" * 64, SHAPES)
FOLDER = Path(__file__).parent / "javascript"
SECONDS = 60


@pytest.fixture(scope="module")
def node():
    """The program that runs it; that it is missing is an error, unless somebody said that it may be."""
    if os.environ.get("SHARE_DIST_NO_NODE") == "1":
        pytest.skip("SHARE_DIST_NO_NODE=1: the JavaScript client is not tried")
    program = shutil.which("node")
    assert program, (
        "there is no node to run the JavaScript client with: install Node.js 20 or later, or set "
        "SHARE_DIST_NO_NODE=1 to go without this test"
    )
    assert (FOLDER / "node_modules").is_dir(), (
        f"{FOLDER} has no node_modules: run `make test`, which installs them, or `npm ci` in it"
    )
    return program


@pytest.fixture(scope="module")
def said(node, tmp_path_factory):
    """What the client printed, step by step; a Python worker has pushed the task "eels" before."""
    config = make_config(tmp_path_factory.mktemp("javascript") / "store")
    with running(config, catalog=MemoryCatalog()) as app:
        with ShareClient(app.address) as client:
            client.register("python", FINGERPRINT)
            client.push(make_update("eels", base=Subspace.empty(SHAPES)), wait="merged")
        command = [node, "main.mjs", app.address, "eels"]
        done = subprocess.run(
            command, cwd=FOLDER, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert done.returncode == 0, done.stderr
        with ShareClient(app.address) as client:
            task = client.pull_task("eels")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return lines, task


def only(said, step):
    return [line for line in said[0] if line["step"] == step]


def test_what_it_pushes_comes_back(said):
    """Both updates, against an empty version and against one with factors, come back as the dW that was sent."""
    cats, dogs = only(said, "came back")
    assert (cats["task"], dogs["task"]) == ("cats", "dogs")
    assert max(cats["difference"], dogs["difference"]) < 1e-4
    assert (cats["head_difference"], dogs["head_difference"]) == (0, 0)
    assert [line["state"] for line in only(said, "pushed")] == ["MERGED", "MERGED"]


def test_a_repeat_is_one_push(said):
    """The same id with the same content gets the receipt of the first, and makes no version."""
    assert [(line["state"], line["version"]) for line in only(said, "pushed again")] == [
        ("MERGED", 2),
        ("MERGED", 3),
    ]


def test_an_interrupted_push_goes_on(said):
    """Chunks that arrived before the cut are not sent again."""
    cats, _ = only(said, "pushed")
    assert 0 < cats["first_chunk"] < cats["num_chunks"]


def test_it_reads_what_another_pushed(said):
    """A task of the Python client is, to it, the same dW."""
    _, task = said
    (line,) = only(said, "another's task")
    factors = reconstruct(task.subspace, task.coefficients)
    for found, layer in zip(line["changes"], factors.values(), strict=True):
        expected = layer.delta_weight()
        entries = torch.frombuffer(bytearray(base64.b64decode(found)), dtype=torch.float32)
        torch.testing.assert_close(entries.reshape(expected.shape), expected, rtol=1e-4, atol=1e-4)


def test_it_follows_by_steps(said):
    """Two steps, fewer bytes than the bases, lead to the coordinator's own columns, past the chain and the probes."""
    (line,) = only(said, "followed")
    assert (line["steps_from"], line["version"]) == (1, 3)
    assert line["step_bytes"] < line["whole_bytes"]
    assert line["difference"] < 1e-5


def test_it_follows_the_versions(said):
    """Every version is told in order, the last with the digest that the pull said; what is held is not sent again."""
    (watched,) = only(said, "watched")
    assert [(version, tasks) for version, tasks, _ in watched["versions"]] == [
        (1, ["eels"]),
        (2, ["cats"]),
        (3, ["dogs"]),
    ]
    assert watched["versions"][-1][2] == watched["digest"] != ""
    assert only(said, "held") == [{"step": "held", "not_modified": True}]
    (tasks,) = only(said, "tasks")
    assert sorted(tasks["tasks"]) == [
        ["cats", "MERGED", 2],
        ["dogs", "MERGED", 3],
        ["eels", "MERGED", 1],
    ]


@pytest.mark.parametrize(
    ("step", "status", "name", "facts"),
    [
        ("unknown task", "NOT_FOUND", "UnknownTask", {"task_id": "dgos", "nearest": "dogs"}),
        ("lost lease", "FAILED_PRECONDITION", "LeaseExpired", {"lease_epoch": 99}),
        ("another's version", "OUT_OF_RANGE", "VersionInFuture", {"version": 4}),
        ("another model", "FAILED_PRECONDITION", "FingerprintMismatch", {"field": "base_model"}),
    ],
)
def test_it_understands_errors(said, step, status, name, facts):
    """Status, class, sentence and facts of an error arrive."""
    (line,) = only(said, step)
    assert (line["status"], line["name"]) == (status, name)
    assert facts.items() <= line["facts"].items()
    assert line["message"]

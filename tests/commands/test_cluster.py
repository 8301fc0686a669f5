"""`share-dist cluster init`: refused before anything is written, and secrets that stay secret."""

import platform
import stat
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from share_dist import certificates
from share_dist.errors import ExitCode
from share_dist.launching.plan import TARGETS
from tests.commands.conftest import share_dist

GIVEN = {
    "local": ("--head", "10.0.0.10", "--worker", "10.0.0.11", "--ssh-user", "ubuntu"),
    "aws": ("--region", "eu-west-1"),
    "gcp": ("--region", "europe-west1-b", "--project", "example"),
    "kuberay": (),
    "compose": (),
    "systemd": ("--head", "10.0.0.10"),
}


@pytest.fixture
def key(tmp_path):
    """Something that looks like a private key of ssh."""
    path = tmp_path / "id"
    path.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def init(tmp_path, key):
    """Writes a cluster into a folder, with what its target needs."""

    def write(target, *arguments):
        own = ("--ssh-key", key) if target == "local" else ()
        return share_dist("cluster", "init", "--target", target, "--output", tmp_path / "cluster", *GIVEN.get(target, ()), *own, *arguments)  # fmt: skip

    return write


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cluster"


@pytest.mark.parametrize("target", TARGETS)
def test_secrets_are_their_owners_alone(init, folder, target):
    """Keys and token are in files of mode 600, and nowhere else among what is written."""
    assert init(target).code == 0
    paths = [path for path in folder.rglob("*") if path.is_file()]
    secret = [path for path in paths if path.suffix == ".key" or path.name == "ray_token"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}
    contents = {path.read_bytes().strip() for path in secret}
    others = [path.read_bytes() for path in paths if path not in secret]
    assert not any(content in other for content in contents for other in others)


@pytest.mark.parametrize("target", ["local", "aws", "gcp", "kuberay"])
def test_the_token_is_carried_along(init, folder, target):
    """One token of 64 characters lies where the files of every machine are."""
    assert init(target).code == 0
    (token,) = folder.rglob("ray_token")
    assert len(token.read_text()) == 64


def test_versions_are_this_machines(init, folder):
    """Python with its patch level, Ray, torch and share-dist: in the YAML and in the environment."""
    init("local")
    known = yaml.safe_load((folder / "cluster.yaml").read_text())["metadata"]["share_dist"]
    assert (known["python"], known["ray"], known["release"]) == (
        platform.python_version(),
        version("ray"),
        version("share-dist"),
    )
    text = (folder / "nodes/env.sh").read_text()
    assert f'SHARE_DIST_PYTHON="{platform.python_version()}"' in text
    assert f"ray[default]=={version('ray')}" in text


def test_the_coordinators_certificate_is_for_its_host(init, folder):
    """Workers call it by the head's address; their own certificate lets them be workers and no more."""
    init("local")
    head = certificates.describe((folder / "head/coordinator.crt").read_bytes())
    assert set(head.hosts) == {"10.0.0.10", "127.0.0.1", "localhost"}
    nodes = certificates.describe((folder / "nodes/nodes.crt").read_bytes())
    assert nodes.identity == ("share-dist-nodes", "worker")
    assert not (folder / "nodes/coordinator.key").exists()


def test_what_is_there_is_replaced_by_force_alone(init, folder):
    """Without --force nothing changes; with it authority and token stay, and the rest is new."""
    init("local")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = init("local", "--port", "50777")
    assert again.code == 2
    assert "--force" in again.text
    assert {path: path.read_bytes() for path in before} == before
    assert init("local", "--port", "50777", "--force").code == 0
    kept = {path.name for path, content in before.items() if path.read_bytes() == content}
    assert {"ca.crt", "ca.key", "ray_token"} <= kept
    assert "cluster.yaml" not in kept
    assert "coordinator.key" not in kept


@pytest.mark.parametrize(
    ("target", "arguments", "word"),
    [
        ("mars", (), "--target"),
        ("local", ("--name", "North"), "--name"),
        ("local", ("--head", "user@host"), "--head"),
        ("local", ("--head", "10.0.0"), "--head"),
        ("local", ("--head", "10.0.0.300"), "--head"),
        ("local", ("--worker", "10.0.0.10"), "already the head"),
        ("local", ("--worker", "10.0.0.11"), "already a worker"),
        ("local", ("--worker", "a b"), "--worker"),
        ("local", ("--ssh-user", "a;b"), "--ssh-user"),
        ("local", ("--ssh-key", "/nowhere/id"), "--ssh-key"),
        ("local", ("--store", "/tmp/ray/store"), "Ray"),
        ("local", ("--store", "relative"), "--store"),
        ("local", ("--store", "/a/$(b)"), "--store"),
        ("local", ("--environment", "~/a/../b"), "--environment"),
        ("local", ("--package", "a b"), "--package"),
        ("local", ("--region", "eu-west-1"), "says nothing of local"),
        ("local", ("--num-workers", "3"), "says nothing of local"),
        ("gcp", ("--region", "europe-west1"), "zone"),
        ("systemd", ("--store", "/home/store"), "/var/lib"),
        ("kuberay", ("--image", "a b"), "--image"),
    ],
)
def test_what_cannot_be_meant_is_refused(init, folder, target, arguments, word):
    """With exit code 2, the flag that is to be changed, and no file written."""
    ended = init(target, *arguments)
    assert (ended.code, word in ended.text) == (2, True), ended.text
    assert not folder.exists()


@pytest.mark.parametrize(
    ("content", "mode", "word"),
    [
        ("ssh-ed25519 AAAA me", 0o600, "not its .pub"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\n", 0o644, "chmod 600"),
    ],
)
def test_a_key_that_ssh_would_not_use_is_refused(init, folder, key, content, mode, word):
    """A public key, or one that others can read: said here, not by a cluster that does not come up."""
    key.write_text(content)
    key.chmod(mode)
    ended = init("local")
    assert (ended.code, word in ended.text) == (2, True), ended.text
    assert not folder.exists()


def test_what_is_missing_is_named_where_nobody_can_be_asked(tmp_path, key):
    """Without a terminal a missing flag is an error that says the question."""
    arguments = ("cluster", "init", "--target", "local", "--ssh-key", str(key), "--output", str(tmp_path / "cluster"))  # fmt: skip
    ended = share_dist(*arguments, "--json")
    assert (ended.code, ended.json["key"]) == (2, "head")


def test_what_is_missing_is_asked_for_on_a_terminal(tmp_path, key, monkeypatch):
    """Head, workers, user and key, one question each; the answers are what the flags would be."""
    import typer

    answers = iter(("local", "10.0.0.10", "10.0.0.11 10.0.0.12", "ubuntu", str(key)))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr(typer, "prompt", lambda *_, **__: next(answers))
    assert share_dist("cluster", "init", "--output", tmp_path / "cluster").code == 0
    config = yaml.safe_load((tmp_path / "cluster/cluster.yaml").read_text())
    assert config["provider"]["worker_ips"] == ["10.0.0.11", "10.0.0.12"]


def test_json_names_every_file(init, folder):
    """All of them are there, relative to the folder that is named first."""
    told = init("compose", "--json").json
    assert told["folder"] == str(folder)
    assert sorted(told["files"]) == sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    )


def test_the_doctor_names_every_machine_that_cannot_be_asked(tmp_path, key):
    """One finding for each, with ssh's own words; what needs their answer is not checked, and nothing else is said."""
    hosts = ("--head", "head.invalid", "--worker", "one.invalid", "--ssh-user", "ubuntu")
    share_dist("cluster", "init", "--target", "local", *hosts, "--ssh-key", key, "--output", tmp_path / "cluster")  # fmt: skip
    ended = share_dist("doctor", "--cluster", tmp_path / "cluster/cluster.yaml", "--json")
    assert ended.code == ExitCode.FINDINGS
    told = [(check["number"], check["outcome"], check["subject"]) for check in ended.json]
    assert told == [
        (21, "finding", "head.invalid: login"),
        (21, "finding", "one.invalid: login"),
        (29, "not checked", "workers"),
        (1, "not checked", "coordinator"),
    ]
    assert "one.invalid" in ended.json[1]["said"]


def test_the_doctor_looks_from_where_the_cluster_was_planned(init, folder):
    """Without the files beside the YAML it says which one is missing, and where to look from."""
    init("local")
    (folder / "operator.key").unlink()
    ended = share_dist("doctor", "--cluster", folder / "cluster.yaml")
    assert (ended.code, "operator.key is not there" in ended.text) == (ExitCode.USAGE, True)

"""What the doctor makes of a cluster's machines: one thing wrong at a time, and its remedy."""

import dataclasses
import json
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import yaml

from share_dist.errors import ConfigError
from share_dist.launching import diagnosis
from share_dist.launching.diagnosis import Answer
from share_dist.launching.known import read_cluster
from share_dist.launching.nodes import script
from share_dist.launching.shell import Shell
from tests.deploy.examples import DEPLOY

CLUSTER = dataclasses.replace(read_cluster(DEPLOY / "local/cluster.yaml"), gpus=0)
WITH_GPUS = dataclasses.replace(CLUSTER, gpus=1)
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
DIGEST = "d" * 64

CARD = {"name": "H100", "driver": "570.1", "total": 80_000, "free": 79_000}


def found(**changes):
    """A machine on which all is as it was planned."""
    return {
        "time": 1000.0,
        "host_name": "gpu-1",
        "is_prepared": True,
        "python": "3.11.7",
        "versions": {"ray": "2.60.0", "torch": "2.13.0+cu128", "share-dist": "0.1.0"},
        "gpus": None,
        "token": {"digest": DIGEST, "mode": 0o600},
        "processes": ["gcs_server", "raylet"],
        "reached": {"10.0.0.10:6379": "", "10.0.0.10:50551": ""},
        "nodes": ["10.0.0.10", "10.0.0.11", "10.0.0.12"],
        "nodes_error": "",
        "told": {},
    } | changes


def answer(host="10.0.0.11", error="", **changes):
    here = None if error else found(**changes)
    return Answer(host, host == "10.0.0.10", 1000.0, 0.4, here, error)


def checks(one, cluster=CLUSTER):
    return {check.number: check for check in diagnosis.of_machine(cluster, one, DIGEST)}


def test_a_machine_as_planned_is_well():
    """All six checks find nothing to do."""
    seen = checks(answer())
    assert {number: check.outcome for number, check in seen.items()} == dict.fromkeys(range(21, 27), "well")  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "number", "said"),
    [
        ({"python": "3.11.8"}, 22, "Python is 3.11.8 and not 3.11.7"),
        ({"versions": {"ray": "2.60.1", "torch": "2.13.0", "share-dist": "0.1.0"}}, 22, "ray is 2.60.1"),
        ({"versions": {"ray": "2.60.0", "torch": None, "share-dist": "0.1.0"}}, 22, "torch is nothing"),
        ({"time": 1060.0}, 23, "60 s ahead of"),
        ({"time": 900.0}, 23, "100 s behind"),
        ({"reached": {"10.0.0.10:6379": "timed out"}}, 25, "10.0.0.10:6379 (timed out)"),
        ({"token": {"digest": "e" * 64, "mode": 0o600}}, 26, "another one"),
        ({"token": {"digest": DIGEST, "mode": 0o644}}, 26, "others can read it"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found_with_its_remedy(changes, number, said):
    """Under its own number, with what was seen, and something to do; nothing else is found."""
    seen = checks(answer(**changes))
    assert seen[number].outcome == "finding"
    assert said in seen[number].said
    assert seen[number].remedy
    assert [each.number for each in seen.values() if each.outcome == "finding"] == [number]


@pytest.mark.parametrize(
    ("cards", "torch", "outcome", "said"),
    [
        ([CARD], "2.13.0+cu128", "well", "79,000 of 80,000 MiB free"),
        (None, "2.13.0+cu128", "finding", "none is seen, and 1 were planned"),
        ([CARD | {"free": 9}], "2.13.0+cu128", "finding", "9 of 80,000 MiB free"),
        ([CARD], "2.13.0+cpu", "finding", "without CUDA"),
    ],
)
def test_accelerators_are_looked_at_where_they_were_planned(cards, torch, outcome, said):
    """Driver, memory that is free, and whether torch can use them."""
    versions = {"ray": "2.60.0", "torch": torch, "share-dist": "0.1.0"}
    check = checks(answer(gpus=cards, versions=versions), WITH_GPUS)[24]
    assert (check.outcome, said in check.said) == (outcome, True), check.said


def test_a_port_at_which_nothing_listens_yet_is_no_finding():
    """Before `ray up` nobody answers there, but the way is open: refused is not unreachable."""
    refused = dict.fromkeys(found()["reached"], "[Errno 111] Connection refused")
    assert checks(answer(reached=refused))[25].outcome == "not checked"


def test_what_the_way_took_is_not_skew():
    """A clock is told from a slow answer: half of the time between may lie on either side."""
    slow = dataclasses.replace(answer(time=1009.0), seconds=12.0)
    assert checks(slow)[23].outcome == "well"


def test_a_machine_before_the_first_start_is_not_blamed():
    """Versions and token are brought by `ray up`: until then they are not checked."""
    seen = checks(answer(is_prepared=False, token=None))
    assert {seen[22].outcome, seen[26].outcome} == {"not checked"}


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        ("ubuntu@10.0.0.11: Permission denied (publickey).", "authorized_keys"),
        ("ssh: connect to host 10.0.0.11 port 22: No route to host", "firewall"),
    ],
)
def test_a_machine_that_cannot_be_asked_is_one_finding(error, remedy):
    """With ssh's own words, the command to try by hand, and what most often helps."""
    (check,) = diagnosis.of_machine(CLUSTER, answer(error=error), DIGEST)
    assert (check.number, check.outcome) == (21, "finding")
    assert error in check.said
    assert remedy in check.remedy
    assert "ssh -i" in check.remedy


def nodes(worker, head=None):
    head = head or answer("10.0.0.10", nodes=["10.0.0.10", "10.0.0.12"])
    return list(diagnosis.of_nodes(CLUSTER, [head, worker, answer("10.0.0.12")], 30.0))


@pytest.mark.parametrize(
    ("worker", "why"),
    [
        (answer(error="timed out"), "cannot be logged in to (timed out)"),
        (answer(python="3.12.1"), "Python is 3.12.1 and not 3.11.7"),
        (answer(token=None), "no token yet"),
        (answer(token={"digest": "e", "mode": 0o600}), "another than the head's"),
        (answer(reached={"10.0.0.10:6379": "refused"}), "does not reach 10.0.0.10:6379 (refused)"),
        (answer(), "its head does not count it"),
        (answer(processes=[]), "Ray does not run there; the head's log last said of it: nothing"),
    ],
)
def test_a_worker_that_is_missing_has_a_reason(worker, why):
    """The first of what would keep it away is named, with how many are there and what to do."""
    (check,) = nodes(worker)
    assert (check.number, check.outcome, check.subject) == (29, "finding", "10.0.0.11: missing")
    assert "1 of 2 workers are there" in check.said
    assert why in check.said
    assert check.remedy


def test_what_the_heads_log_says_of_a_worker_is_told():
    """Where nothing else explains it, the autoscaler's last word does."""
    head = answer("10.0.0.10", nodes=["10.0.0.10"], told={"10.0.0.11": "10.0.0.11: setup failed"})
    found_ = nodes(answer(processes=[]), head)
    assert "10.0.0.11: setup failed" in found_[0].said


def test_all_workers_there_is_well():
    """One line, with both numbers."""
    (check,) = nodes(answer(), answer("10.0.0.10"))
    assert (check.outcome, check.said) == ("well", "2 of 2 workers are there")


def test_without_a_head_that_answers_workers_are_not_judged():
    """Not asked or not started: not checked. Started, and silent: a finding that says how to start it."""
    (check,) = nodes(answer(), answer("10.0.0.10", error="timed out"))
    assert check.outcome == "not checked"
    (check,) = nodes(answer(), answer("10.0.0.10", processes=[]))
    assert (check.outcome, "ray up" in check.said) == ("not checked", True)
    (check,) = nodes(answer(), answer("10.0.0.10", nodes=[], nodes_error="no answer"))
    assert (check.outcome, "ray up" in check.remedy) == ("finding", True)


def test_another_certificate_than_the_planned_one_is_found():
    """Somebody else answers, or an older one still: both digests are told."""
    check = diagnosis.of_certificate("a" * 64, "b" * 64, NOW + timedelta(days=99), NOW, "h:1")
    assert (check.outcome, "a" * 16 in check.said, "b" * 16 in check.said) == (
        "finding",
        True,
        True,
    )


@pytest.mark.parametrize(("days", "outcome"), [(99, "well"), (3, "finding")])
def test_a_certificate_that_ends_soon_is_found(days, outcome):
    """The planned one, with the days that it has left."""
    check = diagnosis.of_certificate("a", "a", NOW + timedelta(days=days), NOW, "h:1")
    assert (check.outcome, f"{days}.0 days" in check.said) == (outcome, True)


def test_the_probe_runs_anywhere(tmp_path):
    """Under a bare interpreter, without Ray's head: one line of JSON with all that is asked for."""
    (tmp_path / "ray_token").write_text("secret\n")
    (tmp_path / "ray_token").chmod(0o600)
    asked = {"environment": sys.prefix, "node": str(tmp_path), "peers": [["127.0.0.1", 9]], "watched": ["10.0.0.11"]}  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-I", "-", json.dumps(asked)],
        input=script("probe.py"),
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = ended.stdout.splitlines()
    told = json.loads(line.removeprefix("PROBE "))
    assert told.keys() == found().keys()
    assert "secret" not in line
    assert told["token"]["mode"] == 0o600
    assert told["reached"]["127.0.0.1:9"]


def test_ssh_that_gets_nowhere_says_why():
    """No port, no way: the error has ssh's own words and names the doctor."""
    with (
        pytest.raises(ConfigError, match=r"(?s)gives no way to its port 8265.*doctor"),
        Shell("nobody", Path("/nowhere")).port("256.0.0.1", 8265),
    ):
        pass


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.pop("metadata"),
        lambda config: config["metadata"]["share_dist"].pop("python"),
        lambda config: config["auth"].pop("ssh_user"),
        lambda config: config["metadata"]["share_dist"].update(gcs_port="none"),
    ],
)
def test_a_yaml_without_what_must_be_known_is_refused(tmp_path, change):
    """One that another program wrote, or from which something was taken: the error says to write it anew."""
    config = yaml.safe_load((DEPLOY / "local/cluster.yaml").read_text())
    change(config)
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match="cluster init"):
        read_cluster(path)

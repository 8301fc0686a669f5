"""
A real `ray up` on machines inside this one, with the files that `share-dist cluster init` wrote.

```
launcher   cluster init, ray up, worker submit, doctor --cluster, ray down
head       Ray's head, the coordinator with its store, no actor
worker     one actor each, which learns against the coordinator over TLS
```
"""

import json
import subprocess

import pytest

from share_dist.errors import ExitCode
from tests.system.cluster import (
    HEAD,
    LAUNCHER,
    NAME,
    ray_up,
    require_form,
    wait_until,
    write_stream,
)
from tests.worker import toys

NODES = f"~/.share-dist/{NAME}/nodes"


@pytest.mark.timeout(900)
def test_ray_up_and_down(tmp_path):
    """The head and the worker come up, the coordinator answers its operator alone, and `ray down` leaves no process."""
    with ray_up(tmp_path, 1, require_form()) as cluster:
        cluster.up()
        assert cluster.json(f"share-dist status {cluster.shown}")["current_version"] == 0
        refused = cluster.json(
            f"share-dist status -c {cluster.address} --ca {cluster.folder}/ca.crt"
        )
        assert refused["error"] == "NotAuthenticated"
        cluster.down()
        assert cluster.hosts.run(HEAD, "ls ~/share-dist-store").stdout.split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def streams(folder):
    """Two streams, and one that takes long."""
    model = toys.make_model(folder / "model")
    return {
        "north": write_stream(folder, model, "north", "mood"),
        "south": write_stream(folder, model, "south", "food"),
        "long": write_stream(folder, model, "long", "motion"),
    }


@pytest.fixture(scope="module")
def cluster(folder, streams):
    """A head and two workers, all three of them counted."""
    text = streams["long"].read_text()
    streams["long"].write_text(text.replace("epochs = 2", "epochs = 4000"))
    with ray_up(folder, 2, require_form()) as made:
        made.up()
        yield made


@pytest.fixture(scope="module")
def learnt(cluster, streams):
    """What came of both streams, which everything else comes after."""
    command = (
        f"share-dist worker submit {streams['north']} {streams['south']} --cluster {cluster.yaml}"
    )
    return cluster.launcher(f"{command} --json", check=False)


@pytest.mark.system
@pytest.mark.timeout(1200)
def test_submitted_streams_are_learnt_on_the_workers(cluster, learnt):
    """Both tasks are merged, each once; their checkpoints lie on the workers' machines and none on the head's."""
    assert learnt.returncode == 0, learnt.stdout + learnt.stderr
    events = [json.loads(line) for line in learnt.stdout.splitlines()]
    assert [each["event"] for each in events].count("update_pushed") == 2
    tasks = cluster.json(f"share-dist tasks {cluster.shown}")
    assert {each["task_id"]: each["state"] for each in tasks} == {
        "mood": "merged",
        "food": "merged",
    }
    where = {
        index: set(
            cluster.hosts.run(index, "ls ~/share-dist-work 2>/dev/null || true").stdout.split()
        )
        for index in (HEAD, *cluster.workers)
    }
    assert where[HEAD] == set()
    assert set.union(*where.values()) >= {"north", "south"}


@pytest.mark.system
@pytest.mark.timeout(600)
def test_the_token_is_asked_for_everywhere(cluster, learnt):
    """Without it neither the dashboard takes a job nor Ray's head a driver; every machine has it, its owner's alone."""
    environment = f". {NODES}/env.sh; unset RAY_AUTH_TOKEN_PATH; export RAY_AUTH_MODE=disabled"
    ask = "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8265); c.request('GET', '/api/jobs/'); print(c.getresponse().status)"
    told = cluster.hosts.run(HEAD, f'{environment}; python -c "{ask}"').stdout.strip()
    assert told in {"401", "403"}
    driver = (
        f"import ray; ray.init(address='{cluster.hosts.addresses[HEAD]}:6379', log_to_driver=False)"
    )
    ended = cluster.hosts.run(HEAD, f'{environment}; timeout 60 python -c "{driver}"', check=False)
    assert ended.returncode != 0
    modes = {
        cluster.hosts.run(index, f"stat -c %a {NODES}/ray_token {NODES}/nodes.key").stdout
        for index in (HEAD, *cluster.workers)
    }
    assert modes == {"600\n600\n"}


@pytest.mark.system
@pytest.mark.timeout(600)
def test_what_is_the_heads_stays_there(cluster, learnt):
    """No worker keeps the coordinator's key, and the authority's leaves the launcher for nobody."""
    for index in cluster.workers:
        assert cluster.hosts.run(index, f"ls ~/.share-dist/{NAME}").stdout.split() == ["nodes"]
    for index in (HEAD, *cluster.workers):
        assert not cluster.hosts.run(index, "find ~/.share-dist -name ca.key").stdout


@pytest.mark.system
@pytest.mark.timeout(900)
def test_ctrl_c_stops_the_job_and_keeps_its_work(cluster, learnt, streams):
    """The launching command ends with 130, the actor with it, and what it had done is on its machine."""
    command = f"exec share-dist worker submit {streams['long']} --cluster {cluster.yaml} --json"
    process = subprocess.Popen(
        cluster.hosts.command(LAUNCHER, command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if '"task_progressed"' in line:
            break
    pid = cluster.launcher("pgrep -f '[w]orker submit'").stdout.split()[0]
    cluster.launcher(f"kill -INT {pid}")
    said = process.communicate(timeout=180)[0]
    assert process.returncode == ExitCode.INTERRUPTED, said
    wait_until(lambda: not any("RayActor" in line for lines in cluster.left().values() for line in lines), "the actor's end", cluster.left)  # fmt: skip
    kept = [
        cluster.hosts.run(
            index, "ls ~/share-dist-work/long/tasks/motion 2>/dev/null || true"
        ).stdout
        for index in cluster.workers
    ]
    assert "".join(kept)


@pytest.mark.system
@pytest.mark.timeout(600)
def test_the_doctor_is_content(cluster, learnt):
    """Every machine is asked, nothing is found, and both workers are there."""
    checks = cluster.json(f"share-dist doctor --cluster {cluster.yaml} --wait 60")
    found = [check for check in checks if check["outcome"] == "finding"]
    assert not found
    by_number = {number: [c for c in checks if c["number"] == number] for number in range(21, 30)}
    assert [len(by_number[number]) for number in range(21, 27)] == [3] * 6
    assert by_number[29][0]["said"] == "2 of 2 workers are there"


@pytest.mark.system
@pytest.mark.timeout(900)
def test_a_machine_that_is_cut_off_is_missed_and_comes_back(cluster, learnt):
    """The doctor names it with the reason; once it is reached again it is started again by itself."""
    if cluster.hosts.form != "namespaces":
        pytest.skip("NOT RUN: machines on loopback have no cable to pull")
    lost = cluster.workers[-1]
    address = cluster.hosts.addresses[lost]
    cluster.hosts.cut(lost)
    try:
        wait_until(lambda: address not in cluster.alive(), f"the end of {address}", cluster.alive)
        checks = cluster.json(f"share-dist doctor --cluster {cluster.yaml}")
    finally:
        cluster.hosts.heal(lost)
    found = {check["subject"]: check for check in checks if check["outcome"] == "finding"}
    assert "cannot be logged in to" in found[f"{address}: missing"]["said"]
    assert "1 of 2 workers are there" in found[f"{address}: missing"]["said"]
    wait_until(lambda: address in cluster.alive(), f"{address} again", cluster.alive)


@pytest.mark.system
@pytest.mark.timeout(900)
def test_down_leaves_nothing_and_up_goes_on(cluster, learnt):
    """After `ray down` no process of it runs anywhere; the store that was left is taken up by the next `ray up`."""
    before = cluster.json(f"share-dist status {cluster.shown}")["current_version"]
    assert before >= 2
    cluster.down()
    cluster.up()
    assert cluster.json(f"share-dist status {cluster.shown}")["current_version"] == before
    cluster.down()

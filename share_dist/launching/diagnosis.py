"""What the doctor makes of what a cluster's machines answer: pure, time is an argument."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from share_dist.commands.diagnosis import (
    LEAST_DAYS_LEFT,
    MOST_SKEW_SECONDS,
    Check,
    finding,
    not_checked,
    well,
)
from share_dist.launching.known import KnownCluster

LOGIN, VERSIONS, CLOCK, GPUS, PORTS, TOKEN, CERTIFICATE, FINGERPRINT, NODES = range(21, 30)
"""Numbers of the checks, which follow those of a coordinator and its store."""

LEAST_FREE_SHARE = 0.9
"""An accelerator that has less of its memory left is used by somebody already."""

_OWNER_ONLY = 0o077


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What one machine answered.

    Args:
        host: Which.
        is_head: Whether it is the head.
        asked_at: This machine's time in the middle between question and answer, in seconds.
        seconds: Between question and answer.
        found: What it says of itself; None where it could not be asked.
        error: Why it could not.
    """

    host: str
    is_head: bool
    asked_at: float
    seconds: float
    found: Mapping[str, Any] | None
    error: str = ""


def of_machine(cluster: KnownCluster, answer: Answer, token_digest: str) -> Iterator[Check]:
    """Look at one machine: checks 21 to 26."""
    found, host = answer.found, answer.host
    if found is None:
        yield finding(
            LOGIN, f"{host}: login", f"{cluster.ssh_user}@{host} cannot be asked: {answer.error}", _remedy(cluster, answer)
        )  # fmt: skip
        return
    yield well(LOGIN, f"{host}: login", f"{found['host_name']} answered in {answer.seconds:.1f} s")
    yield _versions(cluster, host, found)
    yield _clock(host, answer, found)
    yield _gpus(cluster, answer, found)
    yield _ports(host, found)
    yield _token(host, found, token_digest)


def of_certificate(
    shown: str, expected: str, ends_at: datetime, now: datetime, address: str
) -> Check:
    """
    Look whether the coordinator that answers is the one that was planned: check 27.

    Args:
        shown: SHA-256 of the certificate that it shows.
        expected: SHA-256 of the one in the cluster's folder.
        ends_at: Until when that one holds.
        now: The time.
        address: Where it was asked.
    """
    subject = "coordinator's certificate"
    if shown != expected:
        return finding(
            CERTIFICATE,
            subject,
            f"what answers at {address} shows {shown[:16]}, and {expected[:16]} was made for it",
            "run `ray up` again after `share-dist cluster init --force`: it carries the new one there; if "
            "you did not, find out who answers",
        )
    days = (ends_at - now) / timedelta(days=1)
    said = f"SHA-256 {shown[:16]}, holds for {days:.1f} days"
    if days >= LEAST_DAYS_LEFT:
        return well(CERTIFICATE, subject, said)
    return finding(
        CERTIFICATE,
        subject,
        said,
        "write the files anew with `share-dist cluster init --force`, and run `ray up` again",
    )


def of_fingerprint(digest: str) -> Check:
    """Tell to which frozen model and layers the store is bound: check 28."""
    if not digest:
        return well(FINGERPRINT, "fingerprint", "none yet: the first worker's model decides")
    return well(FINGERPRINT, "fingerprint", f"bound to {digest[:16]}")


def of_nodes(
    cluster: KnownCluster, answers: Sequence[Answer], waited_seconds: float
) -> Iterator[Check]:
    """
    Look which workers Ray's head counts, and why each other one is missing: check 29.

    Args:
        cluster: Which.
        answers: Of every machine.
        waited_seconds: How long they were waited for.
    """
    head = next((each for each in answers if each.is_head), None)
    workers = [each for each in answers if not each.is_head]
    if head is None or head.found is None:
        yield not_checked(NODES, "workers", "the head cannot be asked")
        return
    if not is_started(head):
        yield not_checked(
            NODES, "workers", f"Ray does not run on the head yet: `ray up -y --no-config-cache {cluster.path}`"
        )  # fmt: skip
        return
    if head.found["nodes_error"]:
        yield finding(
            NODES,
            "workers",
            f"Ray's head tells of no machine: {head.found['nodes_error']}",
            f"start it with `ray up -y --no-config-cache {cluster.path}`",
        )
        return
    there = set(head.found["nodes"])
    missing = [each for each in workers if each.host not in there]
    wanted = max(cluster.num_workers, len(workers))
    said = f"{wanted - max(len(missing), wanted - len(workers))} of {wanted} workers are there"
    if len(workers) < wanted:
        yield finding(
            NODES, "workers", f"{said}, after {waited_seconds:.0f} s", "look at the cloud's quota, and at `ray monitor`"
        )  # fmt: skip
    elif not missing:
        yield well(NODES, "workers", said)
    for each in missing:
        why, remedy = reason_missing(cluster, each, head)
        yield finding(
            NODES,
            f"{each.host}: missing",
            f"{said}; this one is not, after {waited_seconds:.0f} s: {why}",
            remedy,
        )


def is_started(head: Answer) -> bool:
    """Tell whether Ray's head runs where it was planned."""
    return head.found is not None and "gcs_server" in head.found["processes"]


def reason_missing(cluster: KnownCluster, worker: Answer, head: Answer) -> tuple[str, str]:
    """Return why a worker is not there, and what to do: the first of what would keep it away."""
    up = f"ray up -y --no-config-cache {cluster.path}"
    if worker.found is None:
        return f"it cannot be logged in to ({worker.error})", _remedy(cluster, worker)
    wrong = _wrong_versions(cluster, worker.found)
    if wrong:
        return "; ".join(wrong), f"`{up}` prepares it"
    if worker.found["token"] is None:
        return "it has no token yet", f"wait for the head to log in to it, or run `{up}` again"
    if worker.found["token"] != (head.found or {}).get("token"):
        return "its token is another than the head's", f"run `{up}` again"
    closed = {name: why for name, why in worker.found["reached"].items() if why}
    if closed:
        name, why = next(iter(closed.items()))
        return f"it does not reach {name} ({why})", "let the machines reach each other's ports"
    told = (head.found or {}).get("told", {}).get(worker.host, "")
    if "raylet" in worker.found["processes"]:
        return "Ray runs there, and its head does not count it (yet)", (
            "wait: a machine that was cut off ends its old Ray and is started anew within a minute"
        )
    remedy = (
        f"run `{up}` again: Ray tries a machine on which it could not start no more; monitor.out among "
        "the logs on the head says what went wrong"
    )
    return f"Ray does not run there; the head's log last said of it: {told or 'nothing'}", remedy


def _remedy(cluster: KnownCluster, answer: Answer) -> str:
    key = f"-i {cluster.ssh_key} " if cluster.ssh_key else ""
    by_hand = f"ssh {key}{cluster.ssh_user}@{answer.host}"
    if "Permission denied" in answer.error:
        return f"put the key's public half into ~/.ssh/authorized_keys there; try `{by_hand}`"
    return f"check that it runs, its address, and a firewall's port 22; try `{by_hand}`"


def _wrong_versions(cluster: KnownCluster, found: Mapping[str, Any]) -> list[str]:
    pins = cluster.pins
    has = {name: (version or "nothing") for name, version in found["versions"].items()}
    has["torch"] = has["torch"].partition("+")[0]
    wanted = {"ray": pins.ray, "torch": pins.torch, "share-dist": pins.release}
    said = [
        f"{name} is {has[name]} and not {wanted[name]}"
        for name in wanted
        if has[name] != wanted[name]
    ]
    if found["python"] != pins.python:
        said.insert(0, f"Python is {found['python']} and not {pins.python}")
    return said


def _versions(cluster: KnownCluster, host: str, found: Mapping[str, Any]) -> Check:
    subject = f"{host}: versions"
    if not found["is_prepared"]:
        return not_checked(
            VERSIONS, subject, "its environment is not there yet: `ray up` makes it, or --environment names it"
        )  # fmt: skip
    wrong = _wrong_versions(cluster, found)
    if wrong:
        return finding(
            VERSIONS,
            subject,
            "; ".join(wrong),
            "`ray up` brings a machine to what was planned; or plan anew where these are installed",
        )
    torch = found["versions"]["torch"]
    return well(
        VERSIONS, subject, f"Python {found['python']}, ray {cluster.pins.ray}, torch {torch}"
    )


def _clock(host: str, answer: Answer, found: Mapping[str, Any]) -> Check:
    # what the question's way took cannot be told from skew
    skew = float(found["time"]) - answer.asked_at
    certain = max(abs(skew) - answer.seconds / 2, 0.0)
    if certain <= MOST_SKEW_SECONDS:
        return well(CLOCK, f"{host}: clock", f"{skew:+.1f} s, known to {answer.seconds / 2:.1f} s")
    return finding(
        CLOCK,
        f"{host}: clock",
        f"it is {abs(skew):,.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's",
        "let the machines take their time from NTP: certificates and leases hold by the clock",
    )


def _gpus(cluster: KnownCluster, answer: Answer, found: Mapping[str, Any]) -> Check:
    subject, cards = f"{answer.host}: accelerators", found["gpus"]
    if answer.is_head and cluster.num_workers:
        return not_checked(GPUS, subject, "the head trains nothing")
    if cards is None or not cards:
        if not cluster.gpus:
            return well(GPUS, subject, "none, and none was planned")
        return finding(
            GPUS,
            subject,
            f"none is seen, and {cluster.gpus} were planned",
            "install the NVIDIA driver, and try `nvidia-smi` there",
        )
    said = "; ".join(
        f"{card['name']}, driver {card['driver']}, {card['free']:,} of {card['total']:,} MiB free"
        for card in cards
    )
    if len(cards) < cluster.gpus:
        return finding(
            GPUS, subject, f"{len(cards)} are seen, and {cluster.gpus} were planned: {said}",
            "look at `nvidia-smi` there, or plan the cluster anew with what is there",
        )  # fmt: skip
    if (found["versions"]["torch"] or "").endswith("+cpu"):
        return finding(
            GPUS, subject, f"torch is a build without CUDA: {said}",
            "install a build of torch with CUDA, of the same version",
        )  # fmt: skip
    if any(card["free"] < LEAST_FREE_SHARE * card["total"] for card in cards):
        return finding(
            GPUS, subject, said,
            "somebody has memory of it: our own actors, while they train; else end what `nvidia-smi` lists",
        )  # fmt: skip
    return well(GPUS, subject, said)


def _ports(host: str, found: Mapping[str, Any]) -> Check:
    closed = {name: why for name, why in found["reached"].items() if why}
    if not closed:
        return well(PORTS, f"{host}: ports", f"reaches {', '.join(found['reached'])}")
    if all("refused" in why for why in closed.values()):
        # the way is open, and nothing stands at its end
        return not_checked(PORTS, f"{host}: ports", f"nothing listens at {', '.join(closed)} yet")
    said = "; ".join(f"{name} ({why})" for name, why in closed.items())
    return finding(
        PORTS,
        f"{host}: ports",
        f"does not reach {said}",
        "start the head if it does not run, or let the machines reach these ports",
    )


def _token(host: str, found: Mapping[str, Any], expected: str) -> Check:
    subject, token = f"{host}: Ray's token", found["token"]
    if token is None:
        return not_checked(TOKEN, subject, "it is not there yet: `ray up` carries it along")
    if token["digest"] != expected:
        return finding(
            TOKEN, subject, "it is another one than in the cluster's folder",
            "run `ray up` again, which carries it along and starts Ray anew with it",
        )  # fmt: skip
    if token["mode"] & _OWNER_ONLY:
        return finding(
            TOKEN, subject, f"others can read it (mode {token['mode']:o}), and run what they like with it",
            "make a new one and `chmod 600` it, then run `ray up` again",
        )  # fmt: skip
    return well(TOKEN, subject, "the cluster's own, and its owner's alone")

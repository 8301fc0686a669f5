"""The secrets of a cluster: an authority, its certificates, Ray's token."""

import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from share_dist.identity import Identity
from share_dist.launching.nodes import HEAD, NODES, TOKEN
from share_dist.launching.plan import RAY_UP, Plan

AUTHORITY_DAYS: Final = 3650
DAYS: Final = 365

PUBLIC_ENDS: Final = (".crt",)
"""What a file that anybody may read ends with, among those made here."""

KEPT: Final = ("ca.crt", "ca.key", TOKEN, f"{NODES}/{TOKEN}")
"""What stays when a cluster is written anew: who trusts the authority goes on to do so."""


def make_secrets(plan: Plan, there: Mapping[str, bytes], now: datetime) -> dict[str, bytes]:
    """
    Make the certificates and the token of a cluster.

    The authority signs the coordinator's certificate, for the host that workers call; that
    of all nodes, with the role of a worker; and an operator's.

    Args:
        plan: Of the cluster.
        there: What is kept of an earlier writing, by path.
        now: From when certificates hold.

    Returns:
        The content of each file, by its path below the cluster's folder.
    """
    from share_dist import certificates

    authority = (
        certificates.Issued(there["ca.crt"], there["ca.key"])
        if {"ca.crt", "ca.key"} <= there.keys()
        else certificates.make_authority(plan.name, timedelta(days=AUTHORITY_DAYS), now)
    )
    valid = timedelta(days=DAYS)
    hosts = list(dict.fromkeys((plan.head, "localhost", "127.0.0.1")))
    coordinator = certificates.make_server(hosts, authority, valid, now)
    nodes = certificates.make_client(
        Identity(f"{plan.name}-nodes", "worker"), authority, valid, now
    )
    operator = certificates.make_client(Identity("operator", "admin"), authority, valid, now)
    head, below = (f"{HEAD}/", f"{NODES}/") if plan.target in RAY_UP else ("", "")
    token = f"{below}{TOKEN}"
    made = {
        "ca.crt": authority.certificate,
        "ca.key": authority.key,
        "operator.crt": operator.certificate,
        "operator.key": operator.key,
        f"{head}ca.crt": authority.certificate,
        f"{head}coordinator.crt": coordinator.certificate,
        f"{head}coordinator.key": coordinator.key,
        f"{below}ca.crt": authority.certificate,
        f"{below}nodes.crt": nodes.certificate,
        f"{below}nodes.key": nodes.key,
    }
    if plan.target in (*RAY_UP, "kuberay"):
        made[token] = there.get(token) or secrets.token_hex(32).encode()
    return made

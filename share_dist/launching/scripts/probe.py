"""
Asked on one machine of a cluster, over ssh: what is here? Answers with one line of JSON.

It runs under whatever Python 3 the machine has, and needs nothing but that. The one argument
is JSON: ``environment`` and ``node`` (folders), ``peers`` (hosts and ports to reach), and on
the head ``watched`` (hosts that its log is searched for).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import subprocess
import sys
import time
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import Any

CONNECT_SECONDS = 3.0
QUERY = "name,driver_version,memory.total,memory.free"
LOGS = Path("/tmp/ray/session_latest/logs")  # noqa: S108 - Ray's own folder
DASHBOARD = "http://127.0.0.1:8265/api/v0/nodes"


def main() -> None:
    """Answer the question that is the one argument."""
    asked = json.loads(sys.argv[1])
    token = Path(asked["node"]).expanduser() / "ray_token"
    environment = Path(asked["environment"]).expanduser()
    found = {
        "time": time.time(),
        "host_name": platform.node(),
        "is_prepared": Path(sys.prefix).resolve() == environment.resolve(),
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in ("ray", "torch", "share-dist")},
        "gpus": gpus(),
        "token": describe(token),
        "processes": sorted({"raylet", "gcs_server"} & own_processes()),
        "reached": {f"{host}:{port}": reach(host, port) for host, port in asked["peers"]},
    }
    if "watched" in asked:
        found["nodes"], found["nodes_error"] = nodes(token)
        found["told"] = {host: last_told(host) for host in asked["watched"]}
    sys.stdout.write(f"PROBE {json.dumps(found)}\n")


def version_of(package: str) -> str | None:
    """Return the version of a package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def gpus() -> list[dict[str, Any]] | None:
    """Return each accelerator's name, driver and memory in MiB; None where there is no driver."""
    try:
        listed = subprocess.run(  # noqa: S603 - one command, nothing in it from outside
            ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    rows = [[cell.strip() for cell in line.split(",")] for line in listed.splitlines() if line]
    return [
        {"name": row[0], "driver": row[1], "total": int(row[2]), "free": int(row[3])}
        for row in rows
    ]


def describe(token: Path) -> dict[str, Any] | None:
    """Return what names the token without telling it, and who may read it; None without one."""
    try:
        content, mode = token.read_bytes().strip(), token.stat().st_mode
    except OSError:
        return None
    return {"digest": hashlib.sha256(content).hexdigest(), "mode": mode & 0o777}


def own_processes() -> set[str]:
    """Return the names of this user's processes."""
    return set(filter(None, map(_own_name, Path("/proc").glob("[0-9]*"))))


def _own_name(process: Path) -> str:
    try:
        return process.joinpath("comm").read_text().strip() * (process.stat().st_uid == os.getuid())
    except OSError:
        return ""


def reach(host: str, port: int) -> str:
    """Return nothing where a connection comes to be, and else why not."""
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError as error:
        return str(error)
    return ""


def nodes(token: Path) -> tuple[list[str], str]:
    """Return the addresses of the machines that Ray's head counts, or why it says none."""
    try:
        headers = {"Authorization": f"Bearer {token.read_text().strip()}"}
        request = urllib.request.Request(DASHBOARD, headers=headers)
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 - its own loopback
            listed = json.load(answer)["data"]["result"]["result"]
    except (OSError, ValueError, KeyError) as error:
        return [], f"{type(error).__name__}: {error}"
    return sorted({each["node_ip"] for each in listed if each["state"] == "ALIVE"}), ""


def last_told(host: str) -> str:
    """Return the last line of the autoscaler's log that names a machine."""
    last = ""
    for path in sorted(LOGS.glob("monitor*")):
        with path.open(errors="replace") as file:
            last = next((line for line in reversed(file.readlines()) if host in line), last)
    return last.strip()[-300:]


if __name__ == "__main__":
    main()

"""Memory: the largest that a process had of it since it was last asked to forget."""

import resource
from pathlib import Path

_STATUS = Path("/proc/self/status")
_FORGET = Path("/proc/self/clear_refs")


def forget_peak() -> None:
    """Begin anew: `peak_mib` tells the largest from here on, where the system can (Linux)."""
    try:
        _FORGET.write_text("5")
    except OSError:  # another system, or one that does not let processes do so
        return


def peak_mib() -> int:
    """The largest resident memory of this process, in MiB, with what it holds from before."""
    try:
        lines = _STATUS.read_text().splitlines()
        return next(int(each.split()[1]) for each in lines if each.startswith("VmHWM")) // 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

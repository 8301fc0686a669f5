"""
What a coordinator of release 0.1 passes over because it does not know it, seen by what it answers.

Without this, a worker of one named subspace would learn in another, and a pull would bring
less than what it waited for.
"""

from share_dist.errors import UnknownSubspace, VersionInFuture
from share_dist.wire.records import DEFAULT_SUBSPACE


def require_named(subspace: str, store_id: str, *, address: str) -> None:
    """
    Raise unless a coordinator knows one subspace from another.

    Args:
        subspace: Which one was asked for.
        store_id: As it was answered; a coordinator that has one subspace only has none.
        address: Who answered.

    Raises:
        UnknownSubspace: It has one subspace only, and another was asked for.
    """
    if subspace != DEFAULT_SUBSPACE and not store_id:
        raise UnknownSubspace(
            f"{address} is a coordinator of an older release, which has one subspace without a name, and "
            f"{subspace!r} was asked for: update the coordinator, or leave the name out",
            subspace=subspace,
            nearest=DEFAULT_SUBSPACE,
        )


def require_min_version(version: int, min_version: int, *, address: str) -> None:
    """
    Raise when a version came that is older than the one that was waited for.

    Raises:
        VersionInFuture: It did not wait.
    """
    if version < min_version:
        raise VersionInFuture(
            f"version {min_version} was waited for, and {address}, a coordinator of an older release, sent "
            f"{version} at once: watch until version {min_version} is told, then pull",
            version=min_version,
            current_version=version,
        )

"""A coordinator as a worker sees it that is far behind: nothing newer than an old version."""

from typing import Any, cast

from share_dist.client import ShareClient
from share_dist.core.values import Subspace
from worker.ports import Coordinator


def late(client: ShareClient, newest_known: int) -> Coordinator:
    """
    Hide what is newer than a version from a worker; what it pushes goes to the coordinator as ever.

    Args:
        client: Through which it asks.
        newest_known: The version that it takes for the newest.
    """
    return cast("Coordinator", _Late(client, newest_known))


class _Late:
    def __init__(self, client: ShareClient, newest_known: int) -> None:
        self.__dict__.update(_client=client, _newest_known=newest_known)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._client, name, value)

    def pull(self, version: int | None = None, held_version: int | None = None) -> Subspace | None:
        version = self._newest_known if version is None else version
        subspace: Subspace | None = self._client.pull(version, held_version)
        return subspace

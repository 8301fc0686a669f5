"""Who calls, and what they may do: a pure table of roles."""

from dataclasses import dataclass
from typing import Literal

from share_dist.wire.records import Role


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls, and how that is known."""

    name: str
    how: Literal["local", "token", "certificate"] = "local"


class Access:
    """Lets everybody in who reaches this machine's loopback."""

    def identify(self, context: object) -> Principal:
        """Say who makes a call."""
        return Principal("local")

    def identify_token(self, token: str, peer: str) -> Principal:
        """
        Say who presents a token, or none, to the operator's page.

        Args:
            token: As it stands behind ``Bearer``; empty for none.
            peer: Where the request comes from.

        Raises:
            NotAuthenticated: A token is needed, and this one does not count.
        """
        return Principal("local")

    def role(self, principal: Principal, subspace: str) -> Role | None:
        """Say what a principal may do in a subspace."""
        return "admin"

    def require(self, principal: Principal, subspace: str, needed: Role) -> None:
        """Raise unless a principal has a role in a subspace."""

    def owner(self, principal: Principal, worker_id: str) -> str:
        """Say in whose name a worker pushes."""
        return worker_id if principal.how == "local" else principal.name

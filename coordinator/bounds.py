"""How much may be set aside: updates that wait for a person are bounded, in number and in bytes."""

from coordinator.config import SubspaceConfig
from coordinator.store.base import SET_ASIDE, Store, UpdateSizes
from share_dist.errors import TooManySetAside


def require_room_aside(store: Store, owner: str, update_bytes: int, config: SubspaceConfig) -> None:
    """
    Raise where one more update could not be set aside.

    Pushes that come at once may each find the same room, so a bound can be passed by as many.

    Args:
        store: What is set aside already.
        owner: Whose update it would be.
        update_bytes: Of its payload.
        config: The bounds.

    Raises:
        TooManySetAside: A bound of all, or of this owner, is reached.
    """
    for whose, of_whom, suffix in (("", "", ""), (owner, f" of {owner!r}", "_per_owner")):
        found = store.sizes_of(SET_ASIDE, whose)
        wanted = UpdateSizes(found.num_updates + 1, found.update_bytes + update_bytes)
        for name, number in zip(("updates", "bytes"), wanted, strict=True):
            key = f"max_set_aside_{name}{suffix}"
            limit = int(getattr(config, key))
            if number > limit:
                raise TooManySetAside(
                    f"{found.num_updates} updates{of_whom} with {found.update_bytes} bytes are "
                    f"quarantined or parked in subspace {store.name!r}, and with one more {key} = "
                    f"{limit} would be passed: an administrator has to look at them with "
                    "`share-dist updates list --state quarantined --state parked`, and replay or "
                    "drop them, or raise the bound",
                    key=key,
                    limit=limit,
                    found=number,
                )


def may_be_set_aside_later(config: SubspaceConfig) -> bool:
    """Whether the writer may set aside what was let in."""
    return config.max_influence is not None or config.drift_budget is not None

"""The blocking client of a coordinator."""

from share_dist.client.admin import AdminClient
from share_dist.client.client import ShareClient, new_update_id
from share_dist.client.credentials import Credentials
from share_dist.client.mirror import Advance, Mirror
from share_dist.client.retry import RetryPolicy
from share_dist.client.watch import Watch

__all__ = [
    "AdminClient",
    "Advance",
    "Credentials",
    "Mirror",
    "RetryPolicy",
    "ShareClient",
    "Watch",
    "new_update_id",
]

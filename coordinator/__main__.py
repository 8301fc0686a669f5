"""``python -m coordinator``: the coordinator's commands without the rest of ``share-dist``."""

import sys

from coordinator.cli import app
from share_dist.errors import ShareError

if __name__ == "__main__":
    try:
        app()
    except ShareError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(error.exit_code)

"""The tables of the worker's README: `python -m tests.worker.readme_tables` writes them."""

from pathlib import Path

import worker
from tests.coordinator.readme_tables import catalogue, families
from tests.house.readme_tables import with_tables
from worker.metrics import ActorMetrics
from worker.progress import WorkerEvent

README = Path(worker.__file__).with_name("README.md")

TABLES = {
    "events": lambda: catalogue(WorkerEvent),
    "metrics": lambda: families(ActorMetrics("north").registry),
}


def written(text: str) -> str:
    """A README's text with every table made anew."""
    return with_tables(text, TABLES)


if __name__ == "__main__":
    README.write_text(written(README.read_text()))

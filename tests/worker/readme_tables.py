"""The tables of the worker's README: `python -m tests.worker.readme_tables` writes them."""

from pathlib import Path

import worker
from tests.coordinator.readme_tables import catalogue, families
from tests.house.readme_tables import block
from worker.metrics import ActorMetrics
from worker.progress import WorkerEvent

README = Path(worker.__file__).with_name("README.md")

TABLES = {
    "events": lambda: catalogue(WorkerEvent),
    "metrics": lambda: families(ActorMetrics("north").registry),
}


def written(text: str) -> str:
    """A README's text with every table made anew."""
    for name, make in TABLES.items():
        marked = f"<!-- {name} -->\n{make()}\n<!-- end of {name} -->"
        text, count = block(name).subn(lambda _, marked=marked: marked, text)
        assert count == 1, f"the README has {count} tables named {name!r}"
    return text


if __name__ == "__main__":
    README.write_text(written(README.read_text()))

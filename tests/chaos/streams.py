"""What the actors learn: real sentences of the kit, a few of each kind to a task, so that a stream lasts as long as it shall."""

from pathlib import Path

SOURCES = ("movies", "tweets", "author", "amazon", "nyt")
WORKERS = ("north", "south", "east", "west")


def write_streams(folder: Path, num_tasks: int, seed: int) -> list[Path]:
    """
    Write a stream of so many tasks for each of the workers.

    Args:
        folder: Where; it is made.
        num_tasks: In each stream. Every task has rows of its own.
        seed: Of training; rows are the same for every one.
    """
    folder.mkdir(parents=True)
    return [_write(folder / f"{name}.toml", name, num_tasks, seed) for name in WORKERS]


def task_ids(num_tasks: int) -> list[str]:
    """All tasks of all streams."""
    return sorted(f"{name}-{index}" for name in WORKERS for index in range(num_tasks))


def _write(path: Path, worker_id: str, num_tasks: int, seed: int) -> Path:
    offset = WORKERS.index(worker_id)
    tasks = "".join(
        f"""
[[task]]
id = "{worker_id}-{index}"
type = "text-classification"
source = {{ entry_point = "worker.kit_tasks:{SOURCES[(index + offset) % len(SOURCES)]}" }}
max_train = 400
max_test = 200
seed = {1000 * offset + index}
"""
        for index in range(num_tasks)
    )
    path.write_text(
        f"""worker_id = "{worker_id}"
[model]
path = "kit:model"
targets = ["query", "value"]
[training]
epochs = 3
batch_size = 16
max_tokens = 32
checkpoint_minutes = 0.1
seed = {seed}
{tasks}"""
    )
    return path

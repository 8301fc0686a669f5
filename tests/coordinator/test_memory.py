"""What a coordinator holds: as much after many pushes as after few, as long as they are of the same tasks."""

import gc
from collections import Counter

import torch

from tests.coordinator.support import (
    client_of,
    lineage_of,
    make_config,
    make_update,
    running,
    wait_until,
)

TASKS = ("cats", "dogs", "birds")
NUM_FACTORS = 6
WARM_UP_ROUNDS = 6
"""More than there are versions at hand, and enough to fill all factors."""


def _push_all(client, number):
    """Push every task anew, trained on the newest version."""
    base = client.pull()
    for task_id in TASKS:
        update = make_update(task_id, f"{task_id}-{number}", base=base, lease_epoch=0)
        client.push(update, wait="merged")


def _held(app):
    """Count the project's own objects by type, tensors with the bytes in them, and payloads at hand."""
    gc.collect()
    objects, tensor_bytes = Counter(), 0
    for each in gc.get_objects():
        kind = type(each)
        if kind is torch.Tensor:
            objects["Tensor"] += 1
            tensor_bytes += each.nbytes
        elif str(kind.__module__).startswith(("coordinator.", "share_dist.")):
            objects[f"{kind.__module__}.{kind.__qualname__}"] += 1
    return objects, tensor_bytes, lineage_of(app).versions.num_bytes


def test_pushing_the_same_tasks_again_leaves_nothing_behind(tmp_path):
    """After ten more rounds of pushes, merges and pulls as many objects and bytes are held as before."""
    config = make_config(tmp_path, max_wait_seconds=0)
    with running(config) as app, client_of(app.address) as client:
        client.register()
        for number in range(WARM_UP_ROUNDS):
            _push_all(client, number)
        before = _held(app)
        assert before[0]["Tensor"]
        assert before[2]
        for number in range(WARM_UP_ROUNDS, WARM_UP_ROUNDS + 10):
            _push_all(client, number)
        # the last call's own objects may live a moment longer
        wait_until(lambda: _held(app) == before, 20)
        assert len(lineage_of(app).writer.snapshot.tasks) == len(TASKS)

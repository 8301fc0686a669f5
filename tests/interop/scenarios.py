"""
What the client of each release asks of a coordinator, always the same, and what it makes of the answers.

A scenario uses the public client only. Its results are JSON: records as dicts, tensors as digests,
errors as their class and facts. They name nothing that the clock decides.
"""

import dataclasses
import enum
import hashlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from typing import Any, final

import torch
from torch import Tensor

from share_dist.client import ShareClient
from share_dist.core.values import (
    Fingerprint,
    Head,
    LayerShape,
    LayerUpdate,
    SideUpdate,
    TaskUpdate,
)
from share_dist.errors import ShareError

SHAPES = {"encoder.query": LayerShape(12, 10), "encoder.value": LayerShape(12, 8)}
FINGERPRINT = Fingerprint("5a" * 32, SHAPES)
CONFIG = {"num_factors": 6, "oversample": 2}
"""So small that merges turn the factors, move tasks and cut energy away."""
LABELS = ("négatif", "positif")


def numbers(seed: int, *shape: int) -> Tensor:
    """Numbers between -0.5 and 0.5 that every machine makes alike."""
    count = torch.Size(shape).numel()
    mixed = (torch.arange(1, count + 1, dtype=torch.int64) + 1000 * seed) ** 2 * 7919 % 1009
    return (mixed.to(torch.float32) / 1009 - 0.5).reshape(shape)


def update_of(task_id: str, seed: int, num_factors: int = 0, **fields: Any) -> TaskUpdate:
    """Make an update with ``k`` rows of coefficients, two temporary factors and pseudo-rank 2."""
    base_version = fields.pop("base_version", 0)

    def side(features: int, number: int) -> SideUpdate:
        return SideUpdate(
            numbers(number, num_factors, 2), numbers(number + 1, features, 2), numbers(number + 2, 2, 2)
        )  # fmt: skip

    layers = {
        name: LayerUpdate(
            side(shape.in_features, seed + 10 * i), side(shape.out_features, seed + 10 * i + 5)
        )
        for i, (name, shape) in enumerate(SHAPES.items())
    }
    head = Head({"weight": numbers(seed + 90, 2, 4)}, "text-classification", 2, LABELS)
    known = {"head": head, "num_samples": 640, "scores": {"accuracy": 0.75}, "layers": layers}
    return TaskUpdate(f"update-of-{task_id}", task_id, base_version, **{**known, **fields})


@final
class Notes:
    """What came of each step, by its name, as JSON can hold it."""

    def __init__(self) -> None:
        self.results: dict[str, Any] = {}

    def __call__(self, step: str, ask: Callable[[], Any]) -> Any:
        """Do a step and note its result, or the error that it raised."""
        assert step not in self.results, step
        try:
            result = ask()
        except ShareError as error:
            self.results[step] = {"error": type(error).__name__, **error.details}
            return None
        self.results[step] = to_json(result)
        return result


def to_json(value: Any) -> Any:
    """Say a result as JSON; a tensor by its type, its shape and the digest of its bytes."""
    if isinstance(value, Tensor):
        data = (
            value.detach().contiguous().view(torch.uint8).numpy().tobytes()
            if value.numel()
            else b""
        )
        return f"{value.dtype} {list(value.shape)} {hashlib.sha256(data).hexdigest()}"
    if dataclasses.is_dataclass(value):
        return {
            field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(name): to_json(each) for name, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return to_json(value._asdict())
    if isinstance(value, list | tuple):
        return [to_json(each) for each in value]
    if isinstance(value, enum.Enum):
        return value.value
    return value.isoformat() if isinstance(value, datetime) else value


def talk_0_1(address: str) -> dict[str, Any]:
    """Say everything that a client of release 0.1 can say."""
    note = Notes()
    with ExitStack() as clients:

        def client(worker_id: str, fingerprint: Fingerprint | None = FINGERPRINT) -> ShareClient:
            options = {"worker_id": worker_id, "fingerprint": fingerprint, "timeout_seconds": 20.0}
            return clients.enter_context(ShareClient(address, **options))

        north, south, reader = client("north"), client("south"), client("reader", None)
        _begin(note, north, south, reader)
        _learn(note, north, south, reader)
        _be_refused(note, client, south, reader)
    return note.results


def _begin(note: Notes, north: ShareClient, south: ShareClient, reader: ShareClient) -> None:
    note("status of an empty coordinator", reader.status)
    note("register without a model", reader.register)
    note("register", north.register)
    note("heartbeat", north.heartbeat)
    note("register another", south.register)
    note("pull an empty version", north.pull)
    note("no tasks", reader.tasks)


def _learn(note: Notes, north: ShareClient, south: ShareClient, reader: ShareClient) -> None:
    cats = update_of("cats", 1)
    note("push until durable", lambda: north.push(cats))
    note("push again until merged", lambda: north.push(cats, wait="merged"))
    note("push again", lambda: north.push(cats))
    note("pull", reader.pull)
    note("pull what is held", lambda: reader.pull(held_version=1))
    note("pull an old version", lambda: reader.pull(0))
    large = Head({"weight": torch.zeros(2, 2**17 + 1)}, "image-classification", 2)
    dogs = update_of("dogs", 2, num_factors=2, base_version=1, weight=2.0, head=large)
    note("push on a version", lambda: south.push(dogs, wait="merged"))
    late = update_of("eels", 3, head=Head({}), scores={}, num_samples=0)
    note("push late", lambda: north.push(late, wait="merged"))
    again = replace(update_of("cats", 4, num_factors=6, base_version=3), update_id="cats-again")
    note("push a task again", lambda: north.push(again, wait="merged"))
    fourth = update_of("finches", 5, num_factors=4, base_version=2)
    note("push what does not fit into the factors", lambda: south.push(fourth, wait="merged"))
    fifth = update_of("gnats", 6, num_factors=6, base_version=4)
    note("push on turned factors", lambda: south.push(fifth, wait="merged"))
    note("pull the newest", lambda: reader.pull(held_version=3))
    for task_id in ("cats", "dogs", "eels", "finches", "gnats"):
        note(f"pull task {task_id}", lambda task_id=task_id: reader.pull_task(task_id))
    note("tasks", reader.tasks)
    with reader.watch(after_version=0) as watch:
        note("watch from the beginning", lambda: [next(watch) for _ in range(6)])
    note("status", reader.status)


def _be_refused(
    note: Notes, client: Callable[..., ShareClient], south: ShareClient, reader: ShareClient
) -> None:
    ants = update_of("ants", 7)
    note("push on a version to come", lambda: south.push(replace(ants, base_version=99)))
    note("push other content", lambda: south.push(replace(ants, update_id="update-of-dogs")))
    zeros = {name: _scaled(layer, 0.0) for name, layer in ants.layers.items()}
    note("push nothing", lambda: south.push(replace(ants, layers=zeros)))
    hot = {name: _scaled(layer, float("nan")) for name, layer in ants.layers.items()}
    note("push no numbers", lambda: south.push(replace(ants, layers=hot)))
    note("push on wrong coefficients", lambda: south.push(replace(ants, base_version=1)))
    other = replace(FINGERPRINT, base_model="b5" * 32)
    note("register another model", client("east", other).register)
    note("push without a lease", lambda: client("west").push(ants))
    twin = client("south")
    note("take a lease over", twin.register)
    note("heartbeat of a lost lease", south.heartbeat)
    note("push of a lost lease", lambda: south.push(ants))
    note("pull a version to come", lambda: reader.pull(99))
    note("pull an unknown task", lambda: reader.pull_task("cast"))
    with reader.watch(after_version=99) as watch:
        note("watch from a version to come", lambda: next(watch))


def _scaled(layer: LayerUpdate, factor: float) -> LayerUpdate:
    a, b = (
        SideUpdate(side.coefficients, side.temporary, factor * side.temporary_coefficients)
        for _, side in layer
    )
    return LayerUpdate(a, b)


SCENARIOS: dict[str, Callable[[str], dict[str, Any]]] = {"0.1": talk_0_1}

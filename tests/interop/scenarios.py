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

import grpc
import torch
from torch import Tensor

from share_dist.client import Mirror, ShareClient
from share_dist.client.admin import AdminClient
from share_dist.core.values import (
    Fingerprint,
    Head,
    LayerShape,
    LayerUpdate,
    SideUpdate,
    TaskUpdate,
)
from share_dist.errors import ShareError
from share_dist.pb import coordinator_pb2 as pb
from share_dist.pb.coordinator_pb2_grpc import CoordinatorStub
from share_dist.wire.codec import upload_progress_from_pb
from share_dist.wire.records import TokenRequest, UpdateState

SHAPES = {"encoder.query": LayerShape(12, 10), "encoder.value": LayerShape(12, 8)}
FINGERPRINT = Fingerprint("5a" * 32, SHAPES)
LARGER = {"encoder.query": LayerShape(96, 64), "encoder.value": LayerShape(96, 48)}
"""So large that a step is smaller than the bases."""
CONFIG = {"num_factors": 6, "oversample": 2, "quarantine_norm": 50.0, "anchor_every": 100}
"""So small that merges turn the factors, move tasks and cut energy away; few updates are above such a norm."""
LABELS = ("négatif", "positif")


def numbers(seed: int, *shape: int) -> Tensor:
    """Numbers between -0.5 and 0.5 that every machine makes alike."""
    count = torch.Size(shape).numel()
    mixed = (torch.arange(1, count + 1, dtype=torch.int64) + 1000 * seed) ** 2 * 7919 % 1009
    return (mixed.to(torch.float32) / 1009 - 0.5).reshape(shape)


def update_of(task_id: str, seed: int, num_factors: int = 0, **fields: Any) -> TaskUpdate:
    """Make an update with ``k`` rows of coefficients, two temporary factors and pseudo-rank 2."""
    base_version = fields.pop("base_version", 0)
    shapes = fields.pop("shapes", SHAPES)

    def side(features: int, number: int) -> SideUpdate:
        return SideUpdate(
            numbers(number, num_factors, 2), numbers(number + 1, features, 2), numbers(number + 2, 2, 2)
        )  # fmt: skip

    layers = {
        name: LayerUpdate(
            side(shape.in_features, seed + 10 * i), side(shape.out_features, seed + 10 * i + 5)
        )
        for i, (name, shape) in enumerate(shapes.items())
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
    if isinstance(value, bytes):
        return value.hex()
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


def talk_0_2(address: str) -> dict[str, Any]:
    """Say everything that a client of release 0.2 can say, also as an operator."""
    note = Notes()
    note.results |= talk_0_1(address)
    with ExitStack() as clients:
        options: dict[str, Any] = {"timeout_seconds": 20.0, "worker_id": "north"}
        north = clients.enter_context(ShareClient(address, fingerprint=FINGERPRINT, **options))
        vision = clients.enter_context(
            ShareClient(
                address,
                fingerprint=replace(FINGERPRINT, layers=LARGER),
                subspace="vision",
                **options,
            )
        )
        admin = clients.enter_context(AdminClient(address, timeout_seconds=20.0))
        _name_a_subspace(note, vision)
        _hold(note, north, vision)
        _ask_for_an_upload(note, address)
        _operate(note, north, admin)
        _be_refused_in_the_end(note, north, admin)
    return note.results


def _name_a_subspace(note: Notes, vision: ShareClient) -> None:
    note("pull of an unknown subspace", vision.pull)
    note("register in a named subspace", vision.register)
    other = replace(FINGERPRINT, layers=SHAPES)
    note("register other layers in it", lambda: vision.register(fingerprint=other))
    note("register in it again", lambda: vision.register(fingerprint=replace(other, layers=LARGER)))
    for number, task_id in enumerate(("cats", "dogs", "eels")):
        update = update_of(task_id, number, shapes=LARGER)
        note(f"push {task_id} in it", lambda update=update: vision.push(update, wait="merged"))
    note("status of it", vision.status)


def _hold(note: Notes, north: ShareClient, vision: ShareClient) -> None:
    newest = note("pull at least", lambda: vision.pull(min_version=3))
    held = {"held_version": newest.version, "held_digest": newest.digest}
    note("pull what is held with its digest", lambda: vision.pull(**held))
    wrong = {"held_version": newest.version, "held_digest": "0" * 64}
    note("pull what is held from another store", lambda: vision.pull(**wrong))
    ants = update_of("ants", 7, shapes=LARGER, base_version=3, base_digest="0" * 64)
    note("push on a version of another store", lambda: vision.push(ants))
    with vision.watch(after_version=1, after_digest="0" * 64) as watch:
        note("watch from another store", lambda: next(watch))
    for precision in ("bfloat16", "int8"):
        note(f"pull in {precision}", lambda precision=precision: vision.pull(precision=precision))
        note(
            f"pull a task in {precision}",
            lambda precision=precision: vision.pull_task("cats", precision=precision),
        )
    mirror = Mirror(vision)
    note("mirror", mirror.advance)
    fourth = update_of("finches", 8, shapes=LARGER)
    note("push after the mirror", lambda: vision.push(fourth, wait="merged"))
    note("mirror again", mirror.advance)
    note("mirror what is held", mirror.advance)


def _ask_for_an_upload(note: Notes, address: str) -> None:
    """Ask as a client does whose push broke off; how much has come is a matter of luck, so none has."""
    with grpc.insecure_channel(address) as channel:
        stub = CoordinatorStub(channel)
        request = pb.GetUploadRequest(update_id="update-of-nobody", sha256=bytes(32))
        note(
            "ask for an upload",
            lambda: upload_progress_from_pb(stub.GetUpload(request, timeout=20)),
        )


def _operate(note: Notes, north: ShareClient, admin: AdminClient) -> None:
    north.register()
    for task_id, seed in (("hares", 9), ("ibises", 10)):
        update = update_of(task_id, seed)
        loud = {name: _scaled(layer, 60.0) for name, layer in update.layers.items()}
        update = replace(update, layers=loud)
        note(f"push {task_id}, too loud", lambda update=update: north.push(update))
    states = (UpdateState.QUARANTINED,)
    note("list what was set aside", lambda: admin.updates(states))
    note("list two updates", lambda: admin.updates(limit=2))
    note("inspect an update", lambda: admin.inspect_update("update-of-hares"))
    note("replay an update", lambda: admin.replay_update("update-of-hares", "it is right"))
    note("wait for it", lambda: north.pull(min_version=7) is not None)
    note("drop an update", lambda: admin.drop_update("update-of-ibises", "it is not"))
    note("subspaces", admin.subspaces)
    note("versions", lambda: admin.versions(after_version=1, limit=3))
    note("difference", lambda: admin.diff(2, 6))
    note("history of a task", lambda: admin.task_history("dogs"))
    note("roll back", lambda: admin.rollback(6, "the loud one was wrong"))
    note("remove a task", lambda: admin.remove_task("gnats", "asked for", worker_id="south"))
    note("watch all kinds of versions", lambda: _events(north, 6, 3))
    note("what would be compacted", lambda: admin.compact(2, dry_run=True))
    note("compact", lambda: admin.compact(2))
    token = note(
        "make a token",
        lambda: admin.create_token(TokenRequest("north", "worker", ("default",), 3600))[0],
    )
    note("revoke a token", lambda: admin.revoke_token(token.token_id))
    note("tokens", admin.tokens)
    note("audit log", lambda: admin.audit(limit=5))
    note("end of the audit log", lambda: admin.newest_audit(5))
    note("what was refused", lambda: admin.updates([UpdateState.REFUSED]))
    note("status in the end", north.status)


def _be_refused_in_the_end(note: Notes, north: ShareClient, admin: AdminClient) -> None:
    note("inspect an unknown update", lambda: admin.inspect_update("update-of-nobody"))
    note("replay what was dropped", lambda: admin.replay_update("update-of-ibises"))
    note("roll back to a version to come", lambda: admin.rollback(99))
    note("compare with a compacted version", lambda: admin.diff(1, 2))
    note("pull a compacted version", lambda: north.pull(1))
    note("push on a compacted version", lambda: north.push(update_of("ants", 7, 2, base_version=1)))
    note("watch from a compacted version", lambda: _events(north, 1, 1))
    note("remove an unknown task", lambda: admin.remove_task("nothing"))
    note("remove another's task", lambda: admin.remove_task("dogs", worker_id="north"))
    note("revoke an unknown token", lambda: admin.revoke_token("nothing"))


def _events(client: ShareClient, after_version: int, count: int) -> list[Any]:
    with client.watch(after_version=after_version) as watch:
        return [next(watch) for _ in range(count)]


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


SCENARIOS: dict[str, Callable[[str], dict[str, Any]]] = {"0.1": talk_0_1, "0.2": talk_0_2}

"""Whether two answers mean the same to the client that asked: all but what the moment or the machine decides."""

import hashlib
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import safetensors.torch
import torch
from google.protobuf.message import Message

OF_THE_MOMENT = frozenset(
    {"merged_at", "pushed_at", "started_at", "last_heartbeat_at", "newest_version_at", "created_at"}
    | {"expires_at", "revoked_at", "at", "merge_duration", "release", "num_watchers", "bytes_in_flight"}
)  # fmt: skip
"""Times, and what else is never the same twice."""

OF_THE_RELEASE = frozenset(
    {"lease_duration", "subspace_bytes", "rotation_bytes", "stored_bytes", "freed_bytes"}
    | {"message", "reason", "lowest_energy_kept", "mean_energy_kept", "entries"}
)
"""
What a newer release may do differently: a default, sizes, sentences for people, two figures for
people, which were shares of one merge's energy and are shares of all that was ever merged, and
which lines it writes into its audit log.
"""

MADE_BY_THE_COORDINATOR = frozenset(
    {"store_id", "digest", "parent_digest", "chain", "prefix_sha256", "token_id", "secret"}
)
"""Names that a coordinator makes up; a client only says them again."""

_TOLERANCE = 1e-4
_DIGEST = re.compile("[0-9a-f]{64}")


@final
class Names:
    """Which name of today's coordinator stands for which of the recorded one."""

    def __init__(self) -> None:
        self._live: dict[str | bytes, str | bytes] = {}

    def learn(self, recorded: str | bytes, live: str | bytes) -> bool:
        """Take a pair; False when the recorded name already stands for something else."""
        return self._live.setdefault(recorded, live) == live

    def agree(self, recorded: Any, live: Any) -> bool:
        """Tell whether two values are the same, or one name for the same; digests are such names."""
        if recorded == live or self._live.get(recorded) == live:
            return True
        are_digests = all(isinstance(x, str) and _DIGEST.fullmatch(x) for x in (recorded, live))
        return are_digests and self.learn(recorded, live)

    def translate(self, data: bytes, message: Message) -> bytes:
        """Say a recorded request in today's names; it stays as it was where it has none of them."""
        return message.SerializeToString() if self._replace(message) else data

    def _replace(self, message: Message) -> bool:
        changed = False
        for field, value in message.ListFields():
            if field.is_repeated:
                continue
            if field.message_type is not None:
                changed |= self._replace(value)
            elif isinstance(value, str | bytes) and self._live.get(value, value) != value:
                setattr(message, field.name, self._live[value])
                changed = True
        return changed


def answers_differ(
    recorded: Sequence[Message], live: Sequence[Message], names: Names
) -> Iterator[str]:
    """Name each difference between two lists of responses: headers, messages, and tensors joined from chunks."""
    if recorded and "chunk" in recorded[0].DESCRIPTOR.fields_by_name:
        yield from _differ(_part(recorded[:1]), _part(live[:1]), names, "header")
        yield from _tensors_differ(_tensors(recorded), _tensors(live))
        return
    if len(recorded) != len(live):
        yield f"{len(recorded)} messages were recorded, {len(live)} came"
    for index, pair in enumerate(zip(recorded, live, strict=False)):
        yield from _differ(*pair, names, str(index))


def errors_differ(recorded: Any, live: Any, names: Names) -> Iterator[str]:
    """Name each difference between two error details; newer ones may have more facts."""
    if recorded.name != live.name:
        yield f"error {recorded.name} became {live.name}"
    for name, value in recorded.fields.items():
        yield from _differ(value, live.fields[name], names, f"error.{name}")


def _part(messages: Sequence[Any]) -> Any:
    return messages[0].header if messages else None


def _tensors(messages: Sequence[Any]) -> dict[str, torch.Tensor]:
    """All tensors of a payload; those of steps under the number of their step."""
    if len(messages) < 2:
        return {}
    payload, running = b"".join(message.chunk.data for message in messages[1:]), hashlib.sha256()
    for index, message in enumerate(messages[1:]):
        running.update(message.chunk.data)
        said = getattr(message.chunk, "prefix_sha256", b"")
        assert (message.chunk.index, said or running.digest()) == (index, running.digest())
    rotated = getattr(messages[0].header, "rotated_from_version", 0)
    parts = _steps(payload) if rotated else {"": payload}
    return {
        f"{part}{name}": tensor
        for part, data in parts.items()
        for name, tensor in safetensors.torch.load(data).items()
    }


def _steps(payload: bytes) -> dict[str, bytes]:
    count = int.from_bytes(payload[:8], "little")
    lengths = [int.from_bytes(payload[8 * i : 8 * i + 8], "little") for i in range(1, count + 1)]
    ends = list(itertools.accumulate(lengths, initial=8 * (count + 1)))
    return {f"{i}.": payload[a:b] for i, (a, b) in enumerate(itertools.pairwise(ends), 1)}


def _tensors_differ(
    recorded: Mapping[str, torch.Tensor], live: Mapping[str, torch.Tensor]
) -> Iterator[str]:
    if recorded.keys() != live.keys():
        yield f"tensors {sorted(recorded.keys() ^ live.keys())} are only on one side"
    for name in recorded.keys() & live.keys():
        ours, theirs = recorded[name], live[name]
        if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
            yield f"{name}: {ours.dtype} {tuple(ours.shape)} became {theirs.dtype} {tuple(theirs.shape)}"
        elif not torch.allclose(ours.double(), theirs.double(), _TOLERANCE, _tolerance(ours)):
            yield f"{name}: entries differ by {(ours.double() - theirs.double()).abs().max():.2g}"


def _tolerance(tensor: torch.Tensor) -> float:
    """What rounding may do: where entries are written coarsely, one unit of the last place."""
    coarse = {torch.int8: 1.0, torch.bfloat16: 2**-8}
    return coarse.get(tensor.dtype, _TOLERANCE)


def _differ(recorded: Any, live: Any, names: Names, where: str) -> Iterator[str]:
    if recorded is None or live is None:
        if recorded is not live:
            yield f"{where}: only one side has it"
        return
    for field in recorded.DESCRIPTOR.fields:
        if not _is_compared(field):
            continue
        ours, theirs = getattr(recorded, field.name), getattr(live, field.name)
        place = f"{where}.{field.name}"
        if field.name in MADE_BY_THE_COORDINATOR:
            if bool(ours) != bool(theirs) or not names.learn(ours, theirs):
                yield f"{place}: {ours!r} became {theirs!r}"
        elif field.has_presence and recorded.HasField(field.name) != live.HasField(field.name):
            yield f"{place}: only one side has it"
        else:
            yield from _values_differ(ours, theirs, names, place)


def _is_compared(field: Any) -> bool:
    if field.containing_type.name == "PayloadHeader":
        return bool(field.name == "wire_version")
    return field.name not in OF_THE_MOMENT | OF_THE_RELEASE


def _values_differ(ours: Any, theirs: Any, names: Names, where: str) -> Iterator[str]:
    if isinstance(ours, Message):
        yield from _differ(ours, theirs, names, where)
    elif isinstance(ours, float):
        if not math.isclose(ours, theirs, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
            yield f"{where}: {ours} became {theirs}"
    elif isinstance(ours, bool | int | str | bytes):
        if not names.agree(ours, theirs):
            yield f"{where}: {ours!r} became {theirs!r}"
    else:
        yield from _all_differ(_by_key(ours), _by_key(theirs), names, where)


def _all_differ(
    ours: Mapping[Any, Any], theirs: Mapping[Any, Any], names: Names, where: str
) -> Iterator[str]:
    lone = {key for key in ours.keys() ^ theirs.keys() if not _is_nothing({**ours, **theirs}[key])}
    if lone:
        yield f"{where}: {sorted(lone)} are only on one side"
    for key in sorted(ours.keys() & theirs.keys()):
        yield from _values_differ(ours[key], theirs[key], names, f"{where}[{key}]")


def _is_nothing(value: Any) -> bool:
    """Whether to say it or not is a matter of rounding."""
    return isinstance(value, float) and abs(value) < _TOLERANCE


def _by_key(values: Any) -> Mapping[Any, Any]:
    return dict(values) if isinstance(values, Mapping) else dict(enumerate(values))

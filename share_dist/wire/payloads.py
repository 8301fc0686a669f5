"""Values with tensors to payload bytes and back: one ``to``/``from`` pair per value."""

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from share_dist.core.table import SideBlock, TaskGroup, TaskTable
from share_dist.core.values import (
    SIDES,
    Basis,
    Coefficients,
    Head,
    LayerCoefficients,
    LayerSubspace,
    LayerUpdate,
    MergedLayer,
    MergedTask,
    Metric,
    Pair,
    Side,
    SideUpdate,
    Subspace,
    TaskUpdate,
    check_finite,
    check_orthonormal,
)
from share_dist.errors import MalformedMessage, ShapeMismatch
from share_dist.wire.names import Parts, name_head, name_parts, parts_by_layer, take_head
from share_dist.wire.tensors import (
    Buffer,
    note_of,
    tensors_from_bytes,
    tensors_to_bytes,
    tensors_to_parts,
)

MAX_STORED_TENSORS = 2**22
MAX_STORED_HEADER_BYTES = 100_000_000
"""Limits of what a coordinator reads from its own disk; the second is safetensors' own."""

_LARGE_BYTES = 8 * 2**20
"""A subspace from this size on is worth threads."""


def subspace_to_bytes(subspace: Subspace) -> bytes:
    """
    Write all bases: ``vectors`` ``(d, k)``, ``energies`` ``(m,)`` and, where there is any,
    ``tail`` ``(d, m - k)`` and ``cut_energy`` ``(1,)``.

    Send ``subspace.without_tail()``: the tail and the account of what was cut are for the
    coordinator's disk, and for who asks for them.
    """
    return tensors_to_bytes(subspace_tensors(subspace))


def subspace_tensors(subspace: Subspace) -> dict[str, Tensor]:
    """Name the tensors of all bases, as a payload has them."""
    return name_parts(
        (name, Pair(_basis_parts(layer.a), _basis_parts(layer.b)))
        for name, layer in subspace.layers.items()
    )


def subspace_from_bytes(
    data: Buffer, *, version: int, metric: Metric, check: bool = True
) -> Subspace:
    """
    Read all bases.

    Args:
        data: What ``subspace_to_bytes`` wrote.
        version: The version that these bases are.
        metric: The metric that they were merged under.
        check: Measure that columns are orthonormal; leave it out only for bytes
            whose digest this process has just compared with its own record.

    Raises:
        WireError: The bytes are no subspace.
        ShapeMismatch: Vectors, energies and tail do not fit together.
        NotOrthonormal: The columns of a basis are not orthonormal.
        NotFinite: An entry is no number.
    """
    subspace = subspace_from_tensors(tensors_from_bytes(data), version=version, metric=metric)
    if check:
        _check_orthonormal(subspace, memoryview(data).nbytes)
    return subspace


def _check_orthonormal(subspace: Subspace, num_bytes: int) -> None:
    """Check the bases of a large subspace on all processors that torch leaves."""
    if num_bytes < _LARGE_BYTES:
        check_orthonormal(subspace)
        return
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // torch.get_num_threads())) as threads:
        check_orthonormal(subspace, map_bases=threads.map)


def subspace_from_tensors(
    tensors: Mapping[str, Tensor], *, version: int, metric: Metric
) -> Subspace:
    """
    Put bases together from their named tensors; that columns are orthonormal is not measured.

    Raises:
        WireError: The tensors are no subspace.
        ShapeMismatch: Vectors, energies and tail do not fit together.
        NotFinite: An energy is no number.
    """
    parts = parts_by_layer(tensors, ("vectors", "energies"), ("tail", "cut_energy"))
    return Subspace(
        {
            name: LayerSubspace(_basis(name, "a", pair.a), _basis(name, "b", pair.b))
            for name, pair in parts.items()
        },
        version=version,
        metric=metric,
    )


def update_to_bytes(update: TaskUpdate) -> bytes:
    """Write the tensors of an update: coefficients, temporary factors, their coefficients, head."""
    return tensors_to_bytes(_update_tensors(update))


def update_to_parts(update: TaskUpdate) -> list[Buffer]:
    """Write what ``update_to_bytes`` does in pieces, those of tensors not copied: for who sends them at once."""
    return tensors_to_parts(_update_tensors(update))


def _update_tensors(update: TaskUpdate) -> dict[str, Tensor]:
    parts = (
        (name, Pair(_update_parts(layer.a), _update_parts(layer.b)))
        for name, layer in update.layers.items()
    )
    return name_parts(parts) | name_head(update.head.tensors)


def update_tensors_from_bytes(data: Buffer) -> tuple[dict[str, LayerUpdate], dict[str, Tensor]]:
    """
    Read the tensors of an update: its layers, and its head's tensors.

    Raises:
        WireError: The bytes are no update.
        ShapeMismatch: The matrices of a layer do not fit together.
    """
    head, rest = take_head(tensors_from_bytes(data))
    parts = parts_by_layer(rest, ("coefficients", "temporary", "temporary_coefficients"))
    layers = {
        name: LayerUpdate(SideUpdate(**pair.a), SideUpdate(**pair.b))
        for name, pair in parts.items()
    }
    for name, layer in layers.items():
        _require_equal_pseudo_rank(name, layer.a.coefficients, layer.b.coefficients)
    return layers, head


def update_metadata(update: TaskUpdate) -> dict[str, Any]:
    """Say all of an update but its tensors as JSON can hold it: for the store."""
    return {
        "update_id": update.update_id,
        "task_id": update.task_id,
        "base_version": update.base_version,
        "weight": update.weight,
        "num_samples": update.num_samples,
        "scores": dict(update.scores),
        "lease_epoch": update.lease_epoch,
        "head": {
            "task_type": update.head.task_type,
            "num_labels": update.head.num_labels,
            "label_names": list(update.head.label_names),
        },
    }


def update_to_record(update: TaskUpdate) -> tuple[dict[str, Any], bytes]:
    """Part an update into metadata that JSON can hold, and its payload."""
    return update_metadata(update), update_to_bytes(update)


def update_from_record(metadata: Mapping[str, Any], payload: Buffer) -> TaskUpdate:
    """
    Put an update together again: the way back of ``update_to_record``.

    Raises:
        MalformedMessage: The metadata lacks a field or has one too many.
    """
    layers, tensors = update_tensors_from_bytes(payload)
    try:
        fields = dict(metadata)
        info = dict(fields.pop("head"))
        head = Head(tensors, **{**info, "label_names": tuple(info["label_names"])})
        return TaskUpdate(layers=layers, head=head, **fields)
    except (KeyError, TypeError) as exc:
        raise MalformedMessage(
            f"the record of an update does not have the fields it needs: {exc!r}", field="metadata"
        ) from exc


def task_to_bytes(coefficients: Coefficients, head: Head) -> bytes:
    """Write what a task keeps: its coefficients and the tensors of its head."""
    return tensors_to_bytes(task_tensors(coefficients, head))


def task_tensors(coefficients: Coefficients, head: Head) -> dict[str, Tensor]:
    """Name the tensors that a task keeps, as a payload has them."""
    parts = (
        (name, Pair({"coefficients": layer.a}, {"coefficients": layer.b}))
        for name, layer in coefficients.layers.items()
    )
    return name_parts(parts) | name_head(head.tensors)


def task_from_bytes(data: Buffer, *, version: int, head_info: Head) -> tuple[Coefficients, Head]:
    """
    Read what a task keeps.

    Args:
        data: What ``task_to_bytes`` wrote.
        version: The version whose bases the coefficients belong to.
        head_info: The head without its tensors, as it came beside the payload.

    Raises:
        WireError: The bytes are no task.
        ShapeMismatch: The coefficients of a layer do not fit together.
        NotFinite: An entry is no number.
    """
    return task_from_tensors(tensors_from_bytes(data), version=version, head_info=head_info)


def task_from_tensors(
    tensors: Mapping[str, Tensor], *, version: int, head_info: Head
) -> tuple[Coefficients, Head]:
    """
    Put together what a task keeps from its named tensors.

    Raises:
        WireError: The tensors are no task.
        ShapeMismatch: The coefficients of a layer do not fit together.
        NotFinite: An entry is no number.
    """
    head, rest = take_head(tensors)
    layers = {
        name: _layer_coefficients(name, pair)
        for name, pair in parts_by_layer(rest, ("coefficients",)).items()
    }
    return Coefficients(layers, version=version), Head(
        head, head_info.task_type, head_info.num_labels, head_info.label_names
    )


def merged_tasks_to_bytes(tasks: Mapping[str, MergedTask]) -> bytes:
    """
    Write what the merges so far remember of every task: for the store, never sent.

    Tasks with equal shapes in a layer are one group, as a file with a tensor for each task
    has more header than content. Group ``g`` has, per side, ``{g}.{side}.coefficients``
    ``(t, m, p)``, ``grams`` ``(t, p, p)``, ``weights`` ``(t,)`` and, where anything was cut,
    ``cuts`` ``(t, 2)``: of the task itself, and of all tasks meanwhile; the note beside the tensors is JSON, ``{"tasks": [task id], "groups": [[layer, [index of a task]]]}``.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, task in enumerate(tasks.values()):
        for name, layer in task.layers.items():
            key = (name, *(coefficients.shape for _, coefficients in layer.coefficients))
            groups.setdefault(key, []).append(index)
    members = [(str(name), indices) for (name, *_), indices in groups.items()]
    every_task = list(tasks.values())
    parts = (
        (str(group), _group_parts([every_task[index].layers[name] for index in indices]))
        for group, (name, indices) in enumerate(members)
    )
    note = json.dumps({"tasks": list(tasks), "groups": members}, separators=(",", ":"))
    return tensors_to_bytes(name_parts(parts), note)


def merged_tasks_from_bytes(data: bytes, *, version: int) -> TaskTable:
    """
    Read what the merges up to ``version`` remember of every task: held once, as the next merge needs it.

    Raises:
        WireError: The bytes are no merged tasks.
        ShapeMismatch: The matrices of a layer do not fit together.
        NotFinite: An entry is no number.
    """
    task_ids, groups = _members(note_of(data, max_header_bytes=MAX_STORED_HEADER_BYTES))
    tensors = tensors_from_bytes(
        data,
        max_tensors=MAX_STORED_TENSORS,
        max_header_bytes=MAX_STORED_HEADER_BYTES,
        may_have_note=True,
    )
    stacks = parts_by_layer(tensors, ("coefficients", "grams", "weights"), ("cuts",))
    if stacks.keys() != {str(group) for group in range(len(groups))}:
        raise MalformedMessage(
            f"{len(groups)} groups of tasks were announced, tensors are there for {len(stacks)}",
            field="groups",
        )
    blocks = [
        _blocks(name, stacks[str(group)], len(indices))
        for group, (name, indices) in enumerate(groups)
    ]
    return TaskTable(version, _task_groups(task_ids, groups, blocks))


def _basis_parts(basis: Basis) -> Parts:
    parts = {"vectors": basis.leading, "energies": basis.energies}
    if basis.num_columns > basis.num_factors:
        parts["tail"] = basis.vectors[:, basis.num_factors :]
    if basis.cut_energy:
        parts["cut_energy"] = torch.tensor([basis.cut_energy], dtype=torch.float64)
    return parts


def _basis(layer: str, side: str, parts: Parts) -> Basis:
    vectors, energies, tail = parts["vectors"], parts["energies"], parts.get("tail")
    matrices = [vectors] if tail is None else [vectors, tail]
    if any(matrix.ndim != 2 or len(matrix) != len(vectors) for matrix in matrices):
        raise ShapeMismatch(
            f"{layer}, side {side}: vectors and tail of shapes "
            f"{', '.join(str(tuple(matrix.shape)) for matrix in matrices)} need to be matrices "
            "of equal height",
            layer=layer,
            side=side,
        )
    require_energies(layer, side, "energies", energies)
    columns = vectors if tail is None else torch.cat([vectors, tail], dim=1)
    return Basis(columns, energies, vectors.shape[1], cut_energy_of(layer, side, parts))


def cut_energy_of(layer: str, side: str, parts: Parts) -> float:
    """
    Read the cut energy of one side of one layer; 0 where it was left out.

    Raises:
        ShapeMismatch: It is not one number.
        MalformedMessage: It is negative, or not F64.
        NotFinite: It is no number.
    """
    cut = parts.get("cut_energy")
    if cut is None:
        return 0.0
    require_energies(layer, side, "cut_energy", cut)
    if cut.shape != (1,):
        raise ShapeMismatch(
            f"{layer}, side {side}: cut_energy {tuple(cut.shape)} needs to be (1,)",
            layer=layer,
            side=side,
        )
    return float(cut)


def require_energies(layer: str, side: str, kind: str, energies: Tensor) -> None:
    """
    Raise unless these can be energies.

    Raises:
        MalformedMessage: They are negative, or not F64.
        NotFinite: They are no numbers.
    """
    if energies.dtype != torch.float64 or bool((energies < 0).any()):
        raise MalformedMessage(
            f"{layer}, side {side}: {kind} need to be F64 and not negative",
            field=f"{layer}.{side}.{kind}",
        )
    check_finite(energies, layer, "a" if side == "a" else "b")


def _update_parts(update: SideUpdate) -> Parts:
    return {
        "coefficients": update.coefficients,
        "temporary": update.temporary,
        "temporary_coefficients": update.temporary_coefficients,
    }


def _layer_coefficients(layer: str, pair: Pair[Parts]) -> LayerCoefficients:
    a, b = pair.a["coefficients"], pair.b["coefficients"]
    for side, tensor in Pair(a, b):
        if tensor.ndim != 2:
            raise ShapeMismatch(
                f"{layer}, side {side}: coefficients {tuple(tensor.shape)} need to be (k, p)",
                layer=layer,
                side=side,
            )
    _require_equal_pseudo_rank(layer, a, b)
    return LayerCoefficients(a, b)


def _require_equal_pseudo_rank(layer: str, a: Tensor, b: Tensor) -> None:
    if a.shape[1] != b.shape[1]:
        raise ShapeMismatch(
            f"{layer}: coefficients {tuple(a.shape)} of side a and {tuple(b.shape)} of side b "
            "need the same number of columns",
            layer=layer,
            side="b",
        )


def _members(note: str) -> tuple[list[str], list[tuple[str, list[int]]]]:
    """Task ids, and of every group its layer and the indices of its tasks."""
    try:
        members = json.loads(note)
        task_ids = [str(task_id) for task_id in members["tasks"]]
        groups = [
            (str(name), [range(len(task_ids))[i] for i in at]) for name, at in members["groups"]
        ]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as exc:
        raise MalformedMessage(
            f"the note does not say which tasks the tensors belong to: {exc!r}", field="note"
        ) from exc
    if len(set(task_ids)) < len(task_ids):
        raise MalformedMessage(
            f"the note names {len(task_ids)} tasks, of which {len(set(task_ids))} are different",
            field="note",
        )
    return task_ids, groups


def _group_parts(layers: Sequence[MergedLayer]) -> Pair[Parts]:
    return Pair(*(_stack(layers, side) for side in SIDES))


def _stack(layers: Sequence[MergedLayer], side: Side) -> Parts:
    parts = {
        "coefficients": torch.stack([layer.coefficients[side] for layer in layers]),
        "grams": torch.stack([layer.grams[side] for layer in layers]),
        "weights": torch.tensor([layer.weights[side] for layer in layers], dtype=torch.float64),
    }
    cuts = [(layer.cut_energy[side], layer.cut_meanwhile[side]) for layer in layers]
    if any(max(cut) > 0 for cut in cuts):
        parts["cuts"] = torch.tensor(cuts, dtype=torch.float64)
    return parts


def _blocks(layer: str, stacks: Pair[Parts], num_tasks: int) -> Pair[SideBlock]:
    p = stacks.a["coefficients"].shape[-1] if stacks.a["coefficients"].ndim else 0
    for side, parts in stacks:
        kinds = ("coefficients", "grams", "weights", *(["cuts"] if "cuts" in parts else []))
        found = [tuple(parts[kind].shape) for kind in kinds]
        needed = [(num_tasks, *found[0][1:2], p), (num_tasks, p, p), (num_tasks,), (num_tasks, 2)]
        if found != needed[: len(found)]:
            raise ShapeMismatch(
                f"{layer}, side {side}: coefficients, grams and weights of {num_tasks} tasks have "
                f"the shapes {found}: need (t, m, p), (t, p, p) and (t,) with one p, and (t, 2) for cuts",
                layer=layer,
                side=side,
            )
        for tensor in parts.values():
            check_finite(tensor, layer, side)
    return Pair(*(_block(parts) for _, parts in stacks))


def _block(parts: Parts) -> SideBlock:
    weights = parts["weights"]
    cuts = parts.get("cuts", weights.new_zeros(len(weights), 2))
    return SideBlock.of(parts["coefficients"].mT, parts["grams"], weights, *cuts.unbind(1))


def _task_groups(
    task_ids: Sequence[str],
    groups: Sequence[tuple[str, list[int]]],
    blocks: Sequence[Pair[SideBlock]],
) -> list[TaskGroup]:
    """Gather the tasks that lie in the same groups of the file."""
    where: list[dict[str, tuple[int, int]]] = [{} for _ in task_ids]
    for group, (name, indices) in enumerate(groups):
        for place, index in enumerate(indices):
            where[index][name] = group, place
    alike: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for index, layers in enumerate(where):
        alike.setdefault(tuple((name, group) for name, (group, _) in layers.items()), []).append(
            index
        )
    return [
        TaskGroup(
            tuple(task_ids[index] for index in members),
            {
                name: _picked(blocks[group], [where[index][name][1] for index in members])
                for name, group in kind
            },
        )
        for kind, members in alike.items()
    ]


def _picked(blocks: Pair[SideBlock], places: Sequence[int]) -> Pair[SideBlock]:
    """Take some tasks of a group of the file; nothing is copied where they are all of it, in order."""
    if len(places) == len(blocks.a.weights) and list(places) == list(range(len(places))):
        return blocks
    return Pair(blocks.a.picked(places), blocks.b.picked(places))

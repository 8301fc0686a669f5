"""A merge up to where columns are chosen: the large products are done, and may be cut in several ways."""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from share_dist.core.drift import Drift, SideTurn, measure_drift
from share_dist.core.linalg import largest_angle
from share_dist.core.newcomers import Newcomer, base_of, check_distinct, newcomers_of
from share_dist.core.outcome import LayerRotation, MergeOutcome, MergeReport
from share_dist.core.sides import MergedSide, SideSpectrum, side_spectra
from share_dist.core.table import SideBlock, TaskGroup, TaskTable
from share_dist.core.truncation import Truncation
from share_dist.core.values import (
    LayerSubspace,
    MergedTask,
    Pair,
    Side,
    Subspace,
    TaskUpdate,
    check_finite,
)


@dataclass(frozen=True)
class PreparedMerge:
    """
    A merge or a removal before anything is cut.

    Args:
        subspace: The current version.
        tasks: Every task that is merged in it.
        leaving: Those of them that do not stay.
        updates: What is merged, sorted by ``update_id``.
        bases: Update -> the version that it was trained on.
        newcomers: Update -> its layers as weighted columns.
        sides: Layer name -> both sides after the small SVD.
        removed_task_ids: Tasks taken out for good, sorted.
    """

    subspace: Subspace
    tasks: TaskTable
    leaving: frozenset[str]
    updates: Sequence[TaskUpdate]
    bases: Mapping[str, Subspace]
    newcomers: Mapping[str, Mapping[str, Newcomer]]
    sides: Mapping[str, Pair[SideSpectrum]]
    removed_task_ids: tuple[str, ...] = ()

    def cut(self, truncation: Truncation) -> MergeOutcome:
        """
        Keep as many columns as a truncation says: the next version.

        Raises:
            ConfigError: Its ``max_bytes`` do not hold a factor of every side.
        """
        importance = {} if truncation.max_bytes is None else self._importance
        chosen = truncation.choose_all(self.sides, importance)
        merged = {
            name: Pair(*(side.cut(*chosen[name][which], shrinks=truncation.shrink) for which, side in layer))
            for name, layer in self.sides.items()
        }  # fmt: skip
        new = replace(
            self.subspace,
            version=self.subspace.version + 1,
            layers={
                name: LayerSubspace(both.a.basis, both.b.basis) for name, both in merged.items()
            },
        )
        turns = {
            name: Pair(*(self._turn(name, which, side) for which, side in both))
            for name, both in merged.items()
        }
        came, truncated = self._newcomers_said(new.version, merged)
        carries = {name: Pair(both.a.carry, both.b.carry) for name, both in turns.items()}
        tasks = self.tasks.after(new.version, self.leaving, carries, came)
        drift = Drift(partial(measure_drift, self.tasks, self.leaving, turns))
        rotation = {
            name: LayerRotation(both.a.rotation, both.b.rotation) for name, both in merged.items()
        }
        report = self._report(merged, drift, truncated)
        return MergeOutcome(new, tasks, rotation, report)

    @cached_property
    def _importance(self) -> dict[str, float]:
        """
        Layer name -> its share in a task's squared size, the mean by weight over the tasks of the next version.

        A merge weighs every layer of a task alike; by this its energy counts as much as the layer's
        ``dW`` does in the task's, or ``||A|| ||B||`` under the metric ``"factors"``.
        """
        claims = self.tasks.claims(self.leaving)
        for update in self.updates:
            squares = {
                name: update.weight / layer.weights.a
                for name, layer in self.newcomers[update.update_id].items()
            }
            whole = math.fsum(squares.values())
            for name, square in squares.items():
                claims[name] = claims.get(name, 0.0) + update.weight * square / whole
        total = math.fsum(claims.values())
        return {name: claims[name] / total if total else 0.0 for name in self.sides}

    def _turn(self, name: str, side: Side, merged: MergedSide) -> SideTurn:
        """Say how the tasks of one side of one layer get to the next version."""
        before, k = self.sides[name][side], merged.basis.num_factors
        return SideTurn(
            matrix=merged.rotation.matrix[: before.old.num_columns],
            unsaid=before.matrix[: before.old.num_factors, k:],
            num_factors=k,
            cut_moment=merged.cut_moment,
            residue=before.taken_out.residue,
        )

    def _newcomers_said(
        self, version: int, merged: Mapping[str, Pair[MergedSide]]
    ) -> tuple[TaskTable, dict[str, float]]:
        """Say the newcomers in the new columns, and measure what of its ``dW`` each one loses, as served."""
        turns = {
            name: Pair(*(self._newcomers_turn(name, which, side) for which, side in both))
            for name, both in merged.items()
        }
        carries = {name: Pair(both.a.carry, both.b.carry) for name, both in turns.items()}
        trained = TaskTable(version, self._newcomers_groups())
        came = trained.after(version, (), carries, TaskTable(version))
        for group in came.groups:
            for name, both in group.layers.items():
                for which, block in both:
                    check_finite(block.rows, name, which)
        lost = measure_drift(trained, (), turns)
        return came, {
            update.update_id: lost[update.task_id] / self._newcomers_norm(update)
            for update in self.updates
        }

    def _newcomers_turn(self, name: str, side: Side, merged: MergedSide) -> SideTurn:
        """Say how a newcomer gets from the columns ``[V Q]`` to the next version's."""
        U, k = self.sides[name][side].matrix, merged.basis.num_factors
        return SideTurn(merged.rotation.matrix, U[:, k:], k, merged.cut_moment, residue=0.0)

    def _newcomers_norm(self, update: TaskUpdate) -> float:
        layers = self.newcomers[update.update_id].values()
        return math.hypot(*(layer.norm for layer in layers))

    def _newcomers_groups(self) -> list[TaskGroup]:
        """Gather the newcomers, in the columns ``[V Q]``, as groups of tasks."""
        blocks: dict[str, dict[str, list[SideBlock]]] = defaultdict(lambda: defaultdict(list))
        for name, both in self.sides.items():
            layers = [self.newcomers[update.update_id][name] for update in self.updates]
            ranks = [layer.factors.a.shape[1] for layer in layers]
            for which, side in both:
                parts = torch.split(side.said, ranks, dim=1)
                for update, layer, said in zip(self.updates, layers, parts, strict=True):
                    blocks[update.task_id][name].append(_block(update, layer, which, said))
        return [
            TaskGroup((task_id,), {name: Pair(*both) for name, both in layers.items()})
            for task_id, layers in blocks.items()
        ]

    def _report(
        self,
        merged: Mapping[str, Pair[MergedSide]],
        drift: Mapping[str, float],
        truncated: Mapping[str, float],
    ) -> MergeReport:
        current = self.subspace
        return MergeReport(
            version=current.version + 1,
            update_ids=tuple(update.update_id for update in self.updates),
            task_ids=tuple(update.task_id for update in self.updates),
            layers={name: Pair(both.a.report, both.b.report) for name, both in merged.items()},
            drift=drift,
            lag={each.update_id: current.version - each.base_version for each in self.updates},
            base_angle={
                each.update_id: angle_between(self.bases[each.update_id], current)
                for each in self.updates
            },
            truncation=truncated,
            removed_task_ids=self.removed_task_ids,
        )


def _block(update: TaskUpdate, layer: Newcomer, side: Side, said: Tensor) -> SideBlock:
    """Make one side of one layer of a newcomer a block of one task; its energy is its weight."""
    grams = layer.grams[side].unsqueeze(0)
    weights, admitted, cut = grams.new_tensor([[layer.weights[side]], [update.weight], [0.0]])
    return SideBlock(said.mT.unsqueeze(0), grams, weights, admitted, cut)


def prepare_merge(
    subspace: Subspace,
    tasks: Mapping[str, MergedTask],
    updates: Sequence[TaskUpdate],
    *,
    bases: Mapping[int, Subspace] | None = None,
    removed: Collection[str] = (),
    gives_credit: bool = False,
) -> PreparedMerge:
    """
    Do everything of a merge that does not depend on how many columns are kept.

    Args:
        subspace: The current version, with its oversampled tail.
        tasks: Every task that is merged in it.
        updates: At most one per task.
        bases: Version -> subspace, for updates that were trained on an older version.
        removed: Tasks of ``tasks`` to take out.
        gives_credit: As ``merge`` says it.

    Raises:
        ShapeMismatch: An update does not fit the subspace, or names a task twice.
        BaseVersionTooOld: An update's base version is not in ``bases``.
        VersionInFuture: An update's base version does not exist yet.
        UpdateRefused: An update changes nothing in some layer.
    """
    # sorted by update_id: a merge must not depend on the order of arrival
    updates = sorted(updates, key=lambda update: update.update_id)
    check_distinct(updates)
    bases_used = {update.update_id: base_of(subspace, update, bases or {}) for update in updates}
    newcomers = {
        update.update_id: newcomers_of(subspace, bases_used[update.update_id], update)
        for update in updates
    }
    table = TaskTable.of(tasks, subspace.version)
    named = {*(update.task_id for update in updates), *removed}
    leaving = table.picked(named)
    return PreparedMerge(
        subspace=subspace,
        tasks=table,
        leaving=frozenset(leaving),
        updates=updates,
        bases=bases_used,
        newcomers=newcomers,
        sides=side_spectra(subspace, newcomers, list(leaving.values()), gives_credit=gives_credit),
        removed_task_ids=tuple(sorted(removed)),
    )


def angle_between(base: Subspace, current: Subspace) -> float:
    """Find the largest principal angle between two versions, over layers and sides, radians."""
    if base.version == current.version:
        return 0.0
    return max(
        (
            largest_angle(base.layers[name][side].leading, basis.leading)
            for name, layer in current.layers.items()
            for side, basis in layer
        ),
        default=0.0,
    )

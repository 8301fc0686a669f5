"""
The tasks of a version as a table, and as the mapping from a task's name to the task that everyone reads.

The coefficients of all tasks of one layer side are one matrix, a task's columns as its rows, so
that a merge says all of them in its new columns with one product. It need not even do that:
a merge only *owes* the table its turn, the small ``T`` with ``E <- T.T E``, and the newcomers that are
said in the columns it made::

    table    = start, then turn 1 and newcomers 1, ..., then turn n and newcomers n

so that it costs the same among ten tasks and among a hundred thousand. Whoever reads first pays: one sweep from the
last turn to the first makes the product of the turns that each task still owes, one
product with it brings each task up to date, and the table is kept in that form.
"""

import functools
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from share_dist.core.account import kept_energy
from share_dist.core.values import (
    SIDES,
    LayerCoefficients,
    MergedLayer,
    MergedTask,
    Pair,
    Side,
)

_MOST_OWED = 256
"""Turns that are owed before a merge pays for all: else who reads a single task would pay ever more."""

_MANY = 1024
"""Tasks from which on a group is not written anew only because fewer have come than it holds."""


@dataclass(frozen=True)
class SideBlock:
    """
    Tasks of equal pseudo-rank on one side of one layer, one after another.

    Args:
        rows: ``(t, p, m)``; each task's ``E.T``.
        grams: ``(t, p, p)`` float64; each task's ``N``.
        weights: ``(t,)`` float64; each task's ``w``.
        admitted: ``(t,)`` float64; each task's energy when it was merged, before anything was cut.
        cut_meanwhile: ``(t,)`` float64; as in ``MergedLayer``.
    """

    rows: Tensor
    grams: Tensor
    weights: Tensor
    admitted: Tensor
    cut_meanwhile: Tensor

    @staticmethod
    def of(
        rows: Float[Tensor, "t p m"],
        grams: Float[Tensor, "t p p"],
        weights: Float[Tensor, " t"],
        cut_energy: Float[Tensor, " t"],
        cut_meanwhile: Float[Tensor, " t"],
    ) -> "SideBlock":
        """Make a block of tasks whose cut energy is known."""
        admitted = weights * kept_energy(rows.mT, grams) + cut_energy
        block = SideBlock(rows, grams, weights, admitted, cut_meanwhile)
        # to the bit as it was told: the difference of two sums is not
        vars(block)["cut_energy"] = cut_energy
        return block

    @functools.cached_property
    def cut_energy(self) -> Float[Tensor, " t"]:
        """What truncation cut of each task: what it came with less what is kept; 0 where nothing was cut of anyone."""
        kept = self.weights * kept_energy(self.rows.mT, self.grams)
        lost = (self.admitted - kept).clamp_min(0.0)
        return torch.where(self.cut_meanwhile > 0, lost, 0.0)

    @functools.cached_property
    def numbers(self) -> list[tuple[float, float, float]]:
        """Of each task its weight, its cut energy and what was cut meanwhile."""
        columns = (self.weights, self.cut_energy, self.cut_meanwhile)
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def picked(self, indices: Sequence[int]) -> "SideBlock":
        """Take some tasks out of it."""
        which = torch.tensor(indices, dtype=torch.long, device=self.rows.device)
        block = SideBlock(*(tensor.index_select(0, which) for tensor in self._tensors))
        if "cut_energy" in vars(self):
            vars(block)["cut_energy"] = self.cut_energy.index_select(0, which)
        return block

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return self.rows, self.grams, self.weights, self.admitted, self.cut_meanwhile


@dataclass(frozen=True)
class TaskGroup:
    """
    Tasks that can be computed with as one batch in every layer.

    Args:
        task_ids: Their names; the order of the rows.
        layers: Layer name -> their block on both sides.
    """

    task_ids: tuple[str, ...]
    layers: Mapping[str, Pair[SideBlock]]

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """Task -> its place."""
        return {task_id: place for place, task_id in enumerate(self.task_ids)}

    @functools.cached_property
    def claims(self) -> dict[str, float]:
        """Layer name -> its share in each task's squared size, times the task's weight; the sum over tasks."""
        squares = torch.stack([both.a.admitted / both.a.weights for both in self.layers.values()])
        admitted = torch.stack([both.a.admitted for both in self.layers.values()])
        summed = (admitted * squares / squares.sum(dim=0)).sum(dim=1)
        return dict(zip(self.layers, summed.tolist(), strict=True))

    @property
    def kind(self) -> tuple[tuple[str, int], ...]:
        """What tasks must have in common to be one group: layers, and the pseudo-rank in each."""
        return tuple((name, both.a.rows.shape[1]) for name, both in self.layers.items())

    def without(self, gone: Collection[str]) -> "TaskGroup":
        """Leave some tasks out."""
        if not any(task_id in self.index for task_id in gone):
            return self
        return self.picked([each for each in self.task_ids if each not in gone])

    def picked(self, task_ids: Sequence[str]) -> "TaskGroup":
        """Take some tasks out of it."""
        places = [self.index[task_id] for task_id in task_ids]
        return TaskGroup(
            tuple(task_ids),
            {
                name: Pair(both.a.picked(places), both.b.picked(places))
                for name, both in self.layers.items()
            },
        )

    def task(self, task_id: str, version: int) -> MergedTask:
        """Read one task."""
        at = self.index[task_id]
        layers = {}
        for name, (a, b) in ((name, (both.a, both.b)) for name, both in self.layers.items()):
            weights, cuts, meanwhile = zip(a.numbers[at], b.numbers[at], strict=True)
            layers[name] = MergedLayer(
                LayerCoefficients(a.rows[at].mT, b.rows[at].mT),
                Pair(a.grams[at], b.grams[at]),
                Pair(*weights),
                Pair(*cuts),
                Pair(*meanwhile),
            )
        return MergedTask(task_id, version, layers)


@dataclass(frozen=True, slots=True)
class Carry:
    """
    How tasks get from one version's columns to a later one's, on one side of one layer.

    Args:
        matrix: ``T``, ``(m, m_new)`` float64; ``E <- T.T E``.
        cut_moment: What the versions between add to ``cut_meanwhile`` of each.
    """

    matrix: Tensor
    cut_moment: float

    def then(self, later: "Carry") -> "Carry":
        """Go on to a still later version."""
        return Carry(self.matrix @ later.matrix, self.cut_moment + later.cut_moment)


Carries = Mapping[str, Pair[Carry]]
"""Layer name -> how both sides are carried."""


@dataclass(frozen=True, slots=True)
class _Step:
    """What one merge owes the table: who left, how the others are carried, who came."""

    leaving: frozenset[str]
    carries: Carries
    came: tuple[TaskGroup, ...]

    @property
    def num_came(self) -> int:
        return sum(len(group.task_ids) for group in self.came)


class TaskTable(Mapping[str, MergedTask]):
    """
    All tasks of a version: a mapping from names, in order, to tasks.

    Args:
        version: Whose columns the tasks are said in.
        groups: The tasks, said in the columns of the version that the steps begin with.
        steps: What the merges since then owe them.
    """

    def __init__(
        self, version: int, groups: Sequence[TaskGroup] = (), steps: Sequence[_Step] = ()
    ) -> None:
        self.version = version
        # one attribute: who reads in another thread sees both of before or both of after
        self._held = tuple(groups), tuple(steps)

    @staticmethod
    def of(tasks: Mapping[str, MergedTask], version: int) -> "TaskTable":
        """Make a table of tasks that are said in the columns of one version."""
        if isinstance(tasks, TaskTable):
            return tasks
        return TaskTable(version, [_group_of(members) for members in _alike(tasks.values())])

    def after(
        self, version: int, leaving: Collection[str], carries: Carries, came: "TaskTable"
    ) -> "TaskTable":
        """
        Go on to the next version, without touching a task but once in many versions.

        Args:
            version: The next one.
            leaving: Tasks of this table that are not in it.
            carries: How those that stay get there.
            came: Tasks that are new in it, said in its columns.
        """
        if len(self._held[1]) >= _MOST_OWED:
            _ = self.groups  # brings it up to date
        groups, steps = self._held
        left = frozenset(task_id for task_id in leaving if task_id in self)
        step = _Step(left, carries, came.groups)
        return TaskTable(version, groups, (*steps, step))

    def claims(self, leaving: Collection[str]) -> dict[str, float]:
        """
        Sum up ``TaskGroup.claims`` of the tasks that stay; no task is brought up to date for it.

        Args:
            leaving: Tasks that do not count.
        """
        groups, steps = self._held
        found: dict[str, float] = defaultdict(float)
        gone = set(leaving)
        for came, step in zip((groups, *(step.came for step in steps))[::-1], (*reversed(steps), None), strict=True):  # fmt: skip
            for group in came:
                for name, claim in group.claims.items():
                    found[name] += claim
                if left := [task_id for task_id in gone if task_id in group.index]:
                    for name, claim in group.picked(left).claims.items():
                        found[name] -= claim
            gone |= step.leaving if step else set()
        return {name: max(0.0, claim) for name, claim in found.items()}

    def picked(self, task_ids: Collection[str]) -> "TaskTable":
        """Read only some of the tasks; the others go on owing what they owe."""
        groups, steps = self._held
        start = _among(groups, task_ids)
        fewer = [_Step(each.leaving, each.carries, _among(each.came, task_ids)) for each in steps]
        if not start and not any(step.came for step in fewer):
            return TaskTable(self.version)
        return TaskTable(self.version, start, fewer)

    @property
    def groups(self) -> tuple[TaskGroup, ...]:
        """The tasks said in the columns of this version; brings them up to date first."""
        groups, steps = self._held
        if steps:
            self._held = groups, steps = _settled(groups, steps), ()
        return groups

    def __getitem__(self, task_id: str) -> MergedTask:
        for group in self.groups:
            if task_id in group.index:
                return group.task(task_id, self.version)
        raise KeyError(task_id)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        groups, steps = self._held
        start = sum(len(group.task_ids) for group in groups)
        return start + sum(step.num_came - len(step.leaving) for step in steps)

    def __contains__(self, task_id: object) -> bool:
        groups, steps = self._held
        for step in reversed(steps):
            if any(task_id in group.index for group in step.came):
                return True
            if task_id in step.leaving:
                return False
        return any(task_id in group.index for group in groups)

    @functools.cached_property
    def _names(self) -> list[str]:
        return sorted(task_id for group in self.groups for task_id in group.task_ids)


def _among(groups: Sequence[TaskGroup], task_ids: Collection[str]) -> tuple[TaskGroup, ...]:
    """Keep some tasks, and the groups that hold any of them."""
    found = ((group, [each for each in task_ids if each in group.index]) for group in groups)
    return tuple(group.picked(members) for group, members in found if members)


def _alike(tasks: Collection[MergedTask]) -> list[list[MergedTask]]:
    kinds: dict[object, list[MergedTask]] = defaultdict(list)
    for task in tasks:
        kinds[
            tuple((name, layer.coefficients.pseudo_rank) for name, layer in task.layers.items())
        ].append(task)
    return list(kinds.values())


def _group_of(tasks: Sequence[MergedTask]) -> TaskGroup:
    return TaskGroup(
        tuple(task.task_id for task in tasks),
        {
            name: Pair(*(_block_of([task.layers[name] for task in tasks], side) for side in SIDES))
            for name in tasks[0].layers
        },
    )


def _block_of(layers: Sequence[MergedLayer], side: Side) -> SideBlock:
    rows = torch.stack([layer.coefficients[side].mT for layer in layers])
    grams = torch.stack([layer.grams[side] for layer in layers])
    weights, cut_energy, cut_meanwhile = grams.new_tensor(
        [
            (layer.weights[side], layer.cut_energy[side], layer.cut_meanwhile[side])
            for layer in layers
        ]
    ).unbind(1)
    return SideBlock.of(rows, grams, weights, cut_energy, cut_meanwhile)


def _settled(groups: Sequence[TaskGroup], steps: Sequence[_Step]) -> tuple[TaskGroup, ...]:
    """Bring every task up to date: the sweep from the last turn to the first."""
    owing: dict[object, list[tuple[TaskGroup, Carries | None]]] = defaultdict(list)
    gone: set[str] = set()
    carries: Carries | None = None
    for came, step in zip(
        (groups, *(step.came for step in steps))[::-1], (*reversed(steps), None), strict=True
    ):
        for group in (each.without(gone) for each in reversed(came)):
            if group.task_ids:
                owing[group.kind].append((group, carries))
        if step is not None:
            gone |= step.leaving
            carries = _through(step.carries, carries)
    return tuple(_united(part) for cohorts in owing.values() for part in _parted(cohorts[::-1]))


def _parted(
    cohorts: Sequence[tuple[TaskGroup, Carries | None]],
) -> list[list[tuple[TaskGroup, Carries | None]]]:
    """
    Part cohorts, the oldest first, into those that become one group each.

    Many tasks stay a group of their own until as many have come since: what does not
    turn, their accounts, is then copied a few times in all, not at every reading.
    """
    parts: list[list[tuple[TaskGroup, Carries | None]]] = []
    since = 0
    for group, carries in reversed(cohorts):
        num_tasks = len(group.task_ids)
        if not parts or num_tasks > max(since, _MANY - 1):
            parts.append([])
            since = 0
        parts[-1].append((group, carries))
        since += num_tasks
    return [part[::-1] for part in reversed(parts)]


def _through(first: Carries, later: Carries | None) -> Carries:
    if later is None:
        return first
    return {
        name: Pair(both.a.then(later[name].a), both.b.then(later[name].b))
        for name, both in first.items()
    }


def _united(cohorts: Sequence[tuple[TaskGroup, Carries | None]]) -> TaskGroup:
    """Make one group, up to date, of groups of one kind that owe different turns; the oldest first."""
    layers = {}
    for name in cohorts[0][0].layers:
        layers[name] = Pair(*(
            _block_united([
                (group.layers[name][side], carries[name][side] if carries else None)
                for group, carries in cohorts
            ])
            for side in SIDES
        ))  # fmt: skip
    return TaskGroup(tuple(each for group, _ in cohorts for each in group.task_ids), layers)


def _block_united(cohorts: Sequence[tuple[SideBlock, Carry | None]]) -> SideBlock:
    blocks = [block for block, _ in cohorts]
    meanwhile = [
        block.cut_meanwhile + carry.cut_moment if carry else block.cut_meanwhile
        for block, carry in cohorts
    ]
    return SideBlock(
        _carried([(block.rows, carry.matrix if carry else None) for block, carry in cohorts]),
        _end_to_end([block.grams for block in blocks]),
        _end_to_end([block.weights for block in blocks]),
        _end_to_end([block.admitted for block in blocks]),
        _end_to_end(meanwhile),
    )


def _end_to_end(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _carried(cohorts: Sequence[tuple[Tensor, Tensor | None]]) -> Float[Tensor, "t p m"]:
    """Carry the rows of each cohort, all into one tensor; cohorts of equal shape as one batch."""
    last_rows, last_matrix = cohorts[-1]
    columns = (last_rows if last_matrix is None else last_matrix).shape[-1]
    total = sum(rows.shape[0] for rows, _ in cohorts)
    united = last_rows.new_empty(total, last_rows.shape[1], columns)
    alike: dict[object, list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
    for (rows, matrix), out in zip(
        cohorts, torch.split(united, [rows.shape[0] for rows, _ in cohorts]), strict=True
    ):
        if matrix is None:
            out.copy_(rows)
        else:
            alike[rows.shape].append((rows, matrix.to(rows.dtype), out))
    for members in alike.values():
        if len(members) == 1:
            ((rows, matrix, out),) = members
            torch.mm(rows.flatten(0, 1), matrix, out=out.view(-1, columns))
        else:
            done = torch.stack([rows.flatten(0, 1) for rows, *_ in members]) @ torch.stack(
                [matrix for _, matrix, _ in members]
            )
            for (*_, out), said in zip(members, done, strict=True):
                out.view(-1, columns).copy_(said)
    return united

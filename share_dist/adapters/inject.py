"""Injection: a subspace inside a model, and the tasks that are said in it."""

import difflib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, final

import torch
from torch import Tensor, nn

from share_dist.adapters.config import AdapterConfig
from share_dist.adapters.layer import AdaptedLayer
from share_dist.adapters.starts import carry_over, cold_start, gradient_start, warm_start
from share_dist.adapters.targets import find_targets
from share_dist.adapters.terms import CoordinatesTerm, MixedTerm, ProbeTerm, TaskTerm, Term
from share_dist.core.temporary import fold
from share_dist.core.values import (
    Basis,
    Coefficients,
    LayerCoefficients,
    LayerShape,
    LayerUpdate,
    Pair,
    SideUpdate,
    Subspace,
)
from share_dist.errors import ConfigError, ShapeMismatch, UnknownTask

_FIELDS = ("coefficients", "temporary", "temporary_coefficients")


def inject(
    model: nn.Module,
    subspace: Subspace,
    targets: str | Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    *,
    pseudo_rank: int = 8,
    num_temporary: int = 4,
) -> "InjectedModel":
    """
    Put a subspace into a model. Until a task is activated the model computes what it did.

    Args:
        model: Any torch module; its weights are frozen until ``eject`` and never
            written to. Move it to its device first: bases follow each layer's
            weight once.
        subspace: The shared bases, such as ``Subspace.empty(find_targets(model, ...))``.
        targets: Adapt only these of the subspace's layers, as in
            ``AdapterConfig``; None for all of them.
        layers: Likewise, by index.
        pseudo_rank: ``p`` of tasks that do not say otherwise.
        num_temporary: ``f`` of tasks that do not say otherwise.

    Raises:
        ConfigError: A target matches nothing, is not in the subspace, or the
            model is injected already.
        ShapeMismatch: A layer has other features in the subspace than in the model.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 3))
        >>> subspace = Subspace.empty(find_targets(model, "all-linear"))
        >>> with inject(model, subspace, num_temporary=2) as injected:
        ...     injected.add_task("movies", seed=1)
        ...     injected.activate("movies")
        ...     sum(parameter.numel() for parameter in injected.trainable_parameters("movies"))
        46
    """
    names = list(subspace.layers) if targets is None else targets
    config = AdapterConfig(names, layers, pseudo_rank, num_temporary)
    shapes = find_targets(model, config.targets, config.layers)
    _require_same(shapes, subspace.shapes)
    return InjectedModel(model, _only(subspace, shapes), config)


@final
class InjectedModel:
    """
    A frozen model, one basis per layer side, and any number of tasks that refer to them.

    A task is added, activated, trained through ``model``, and read back:

    ```
    injected = inject(model, subspace)            model computes the base
    injected.add_task("movies", seed=1)           ... still the base
    injected.activate("movies")                   ... the base: a cold start is exact
    optimizer = AdamW(injected.trainable_parameters("movies"))
    ... train ...                                 ... the task
    injected.layer_updates("movies")              what a TaskUpdate carries
    injected.use_subspace(next_version)           ... the task, in the next version
    injected.activate(None)                       ... the base
    injected.eject()                              the model as it was, bit for bit
    ```

    Made by ``inject``. As a context manager it ejects itself at the end.
    """

    def __init__(self, model: nn.Module, subspace: Subspace, config: AdapterConfig) -> None:
        self.model = model
        self.config = config
        self._subspace = subspace
        self._tasks: dict[str, dict[str, LayerUpdate]] = {}
        self._active: str | None = None
        self._active_rows: tuple[str | None, ...] | None = None
        self._merged: str | None = None
        self._is_ejected = False
        self._layers = {
            name: AdaptedLayer(name, model.get_submodule(name), layer)
            for name, layer in subspace.layers.items()
        }
        # attached once all are made: a refused injection leaves no hook behind
        for adapted in self._layers.values():
            adapted.attach()
        self._was_trainable = [(weight, weight.requires_grad) for weight in model.parameters()]
        model.requires_grad_(requires_grad=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model with the task in use."""
        return self.model(*args, **kwargs)

    def __enter__(self) -> "InjectedModel":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.eject()

    @property
    def subspace(self) -> Subspace:
        """The version in use, without the tail."""
        return self._subspace

    @property
    def task_ids(self) -> tuple[str, ...]:
        """The tasks that are held."""
        return tuple(self._tasks)

    @property
    def active_task(self) -> str | None:
        """The task whose term is added to every row; None for the plain base, or after ``activate_rows``."""
        return self._active

    def add_task(
        self,
        task_id: str,
        *,
        pseudo_rank: int | None = None,
        num_temporary: int | None = None,
        seed: int = 0,
        start: Coefficients | None = None,
        gradients: Mapping[str, Tensor] | None = None,
        reach: float | None = None,
    ) -> None:
        """
        Hold a task that is ready to be trained; one of the same name is replaced.

        Args:
            task_id: Its name.
            pseudo_rank: ``p``; that of ``start`` where there is one.
            num_temporary: ``f``.
            seed: Of the random start; the same seed gives the same start.
            start: Coefficients to go on from; None for a cold start, at which
                the model computes exactly what its base computes.
            gradients: For a cold start where the loss falls fastest: what
                ``gather_gradients`` found. None for a random one.
            reach: With ``gradients``: a layer gets only as many of the ``f`` temporary factors as let the task follow
                this share of what a weight change of rank ``p`` could follow of its gradient.

        Raises:
            RankTooLarge: A layer has no ``num_temporary`` directions left.
            ConfigError: The task is merged, or it is active in rows and would have
                temporary factors.
            BaseVersionTooOld: ``start`` is of an older version.
            VersionInFuture: ``start`` is of a newer version.
            ShapeMismatch: ``start`` is of other layers or another ``k`` or ``p``.
        """
        size = replace(
            self.config,
            pseudo_rank=self.config.pseudo_rank if pseudo_rank is None else pseudo_rank,
            num_temporary=self.config.num_temporary if num_temporary is None else num_temporary,
        )
        generator = torch.Generator().manual_seed(seed)
        if start is not None:
            _require_pseudo_rank(start, pseudo_rank)
            task = warm_start(self._subspace, start, size.num_temporary, generator)
        elif gradients is None:
            task = cold_start(self._subspace, size.pseudo_rank, size.num_temporary, generator)
        else:
            task = gradient_start(
                self._subspace, size.pseudo_rank, size.num_temporary, gradients, generator, reach
            )
        self._require_holdable(task_id, task)
        self._hold(task_id, task)
        self._show()

    def restore_task(self, task_id: str, parameters: Mapping[str, Tensor]) -> None:
        """
        Hold a task with values that ``named_trainable_parameters`` had: sizes are theirs.

        Args:
            task_id: Its name.
            parameters: Under the names that they had; what was empty is missing.

        Raises:
            ShapeMismatch: They do not fit the version in use.
            ConfigError: As in ``add_task``.
        """
        task = {
            name: LayerUpdate(
                *(_restored(f"{name}.{side}", basis, parameters) for side, basis in layer)
            )
            for name, layer in self._subspace.layers.items()
        }
        self._require_holdable(task_id, task)
        self._hold(task_id, task)
        self._show()

    def set_coefficients(self, task_id: str, coefficients: Coefficients) -> None:
        """
        Hold a task as its coefficients say it, without temporary factors: to use it, or to score it.

        Raises:
            BaseVersionTooOld, VersionInFuture, ShapeMismatch: As in ``add_task``.
        """
        self.add_task(task_id, num_temporary=0, start=coefficients)

    def drop_task(self, task_id: str) -> None:
        """
        Hold a task no longer; where it is active, also in single rows, the plain base is used.

        Raises:
            UnknownTask: It is not held.
        """
        self._require_unmerged("drop a task")
        self._task(task_id)
        if self._active == task_id:
            self._active = None
        if self._active_rows is not None:
            self._active_rows = tuple(
                None if active == task_id else active for active in self._active_rows
            )
        del self._tasks[task_id]
        self._show()

    def activate(self, task_id: str | None) -> None:
        """
        Let the model compute this task; None for the plain base.

        Raises:
            UnknownTask: It is not held.
            ConfigError: A task is merged into the base weights.
        """
        self._require_unmerged("activate a task")
        if task_id is not None:
            self._task(task_id)
        self._active, self._active_rows = task_id, None
        self._show()

    def activate_rows(self, task_ids: Sequence[str | None]) -> None:
        """
        Let each row of the next batches be computed by its own task; None for the plain base.

        For serving: nothing is trained through it, and the tasks must have no
        temporary factors. It holds until ``activate``: replaced and carried
        tasks are computed as they then are.

        Args:
            task_ids: One per row of the batch, which is the first dimension of
                what every adapted layer is given.

        Raises:
            UnknownTask: A task is not held.
            ConfigError: A task has temporary factors, or one is merged.
        """
        self._require_unmerged("activate tasks")
        for task_id in dict.fromkeys(task_ids):
            if task_id is not None:
                _require_servable(task_id, self._task(task_id))
        self._active, self._active_rows = None, tuple(task_ids)
        self._show()

    @contextmanager
    def gather_gradients(
        self, names: Collection[str] | None = None
    ) -> Iterator[Mapping[str, Tensor]]:
        """
        Let the plain base gather what its adapted weights' gradients would be.

        Whatever is run backward inside adds to them; the weights stay frozen. They take as much
        memory as the layers' weights in float32, twice that while they are gathered, until they are let go.

        Args:
            names: Of the layers whose gradients are wanted; None: all.

        Returns:
            Layer -> ``(n, d)``, filled at the end; zeros where nothing was run backward.

        Raises:
            ConfigError: A task is merged into the base weights, or the model was ejected.

        Examples:
            >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
            >>> subspace = Subspace.empty(find_targets(model, "all-linear"))
            >>> with inject(model, subspace) as injected, injected.gather_gradients() as gradients:
            ...     injected(torch.tensor([[1.0, 2.0]])).sum().backward()
            >>> gradients["0"].tolist()
            [[1.0, 2.0]]
        """
        self._require_injected("gather gradients")
        self._require_unmerged("gather gradients")
        probes = {
            name: torch.zeros(
                *reversed(self._subspace.shapes[name]),
                device=layer.weight.device,
                requires_grad=True,
            )
            for name, layer in self._layers.items()
            if names is None or name in names
        }
        gathered: dict[str, Tensor] = {}
        for name, layer in self._layers.items():
            layer.term = ProbeTerm(probes[name]) if name in probes else None
        try:
            yield gathered
        finally:
            self._show()
            for name, probe in probes.items():
                gathered[name] = torch.zeros_like(probe) if probe.grad is None else probe.grad

    @contextmanager
    def watch_coordinates(self) -> Iterator[Callable[[], Tensor]]:
        """
        Let the plain base be run, and tell where its adapted layers' inputs lie in the subspace.

        Returns:
            A function that gives the coordinates of the last batch: ``V_A' x`` of every layer side by
            side, sorted by layer, ``(..., c)`` with the leading dimensions of what the layers were given.

        Raises:
            ConfigError: A task is merged into the base weights.
        """
        self._require_unmerged("watch coordinates")
        terms = [CoordinatesTerm(layer.bases.a) for layer in self._layers.values()]
        for term, layer in zip(terms, self._layers.values(), strict=True):
            layer.term = term

        def last() -> Tensor:
            return torch.cat([term.last for term in terms if term.last is not None], dim=-1)

        try:
            yield last
        finally:
            self._show()

    def trainable_parameters(self, task_id: str) -> list[nn.Parameter]:
        """
        What an optimiser of this task works on: ``f (n + d) + 2 f p + 2 k p`` numbers per layer.

        The parameters live until the task is replaced, dropped or carried to
        another version; an optimiser must not outlive them.
        """
        return list(self.named_trainable_parameters(task_id).values())

    def named_trainable_parameters(self, task_id: str) -> dict[str, nn.Parameter]:
        """
        The same under names such as ``"encoder.layer.0.attention.self.query.a.coefficients"``.

        Raises:
            UnknownTask: It is not held.
        """
        return {
            f"{name}.{side}.{field}": parameter
            for name, layer in self._task(task_id).items()
            for side, update in layer
            for field in _FIELDS
            if (parameter := getattr(update, field)).numel()
        }

    def layer_updates(self, task_id: str) -> dict[str, LayerUpdate]:
        """
        What the task has learnt, as a ``TaskUpdate`` carries it: copies on the CPU.

        Temporary factors are orthonormal and orthogonal to the basis; the
        factors ``V E + T tau`` are those of the task.

        Raises:
            UnknownTask: It is not held.
        """
        return {
            name: LayerUpdate(
                *(
                    fold(self._subspace.layers[name][side].leading.float().cpu(), _copied(update))
                    for side, update in layer
                )
            )
            for name, layer in self._task(task_id).items()
        }

    def coefficients(self, task_id: str) -> Coefficients:
        """
        What the basis can say of the task: all of it, once its temporary factors are merged.

        Raises:
            UnknownTask: It is not held.
        """
        return Coefficients(
            {
                name: LayerCoefficients(*(update.coefficients for _, update in layer))
                for name, layer in self.layer_updates(task_id).items()
            },
            version=self._subspace.version,
        )

    def use_subspace(
        self, subspace: Subspace, coefficients: Mapping[str, Coefficients] | None = None
    ) -> None:
        """
        Go on in another version: every held task is carried over.

        Args:
            subspace: The new version.
            coefficients: Task id -> coefficients in the new version, such as
                the coordinator's after a merge; these tasks are replaced. All
                others are rebased, and keep their temporary factors.

        Raises:
            ShapeMismatch: A layer has other features in this version, or
                coefficients do not fit it; then nothing has changed.
            ConfigError: The version lacks a layer, or a task is merged.
        """
        self._require_unmerged("change the subspace")
        _require_same(self._subspace.shapes, subspace.shapes)
        new = _only(subspace, self._subspace.shapes)
        carried = {
            task_id: carry_over(_detached(task), self._subspace, new)
            for task_id, task in self._tasks.items()
        }
        for task_id, said in (coefficients or {}).items():
            carried[task_id] = warm_start(new, said, 0, torch.Generator())
        self._subspace = new
        for name, layer in self._layers.items():
            layer.use_subspace(new.layers[name])
        for task_id, task in carried.items():
            self._hold(task_id, task)
        self._show()

    def merge_into_base(self, task_id: str) -> None:
        """
        Let the weights themselves say the task, until ``unmerge``: a token costs nothing extra.

        Raises:
            UnknownTask: It is not held.
            ConfigError: A task is merged already.
        """
        self._require_unmerged("merge a task")
        task = self._task(task_id)
        self._merged = task_id
        self._show()
        for name, layer in self._layers.items():
            layer.merge(task[name])

    def unmerge(self) -> None:
        """Restore the base weights bit for bit, and what was active before."""
        for layer in self._layers.values():
            layer.unmerge()
        self._merged = None
        self._show()

    def eject(self) -> nn.Module:
        """Give the model back as it was, bit for bit. Again is no error."""
        for layer in self._layers.values():
            layer.remove()
        for weight, was_trainable in self._was_trainable:
            weight.requires_grad_(was_trainable)
        self._layers, self._tasks, self._merged = {}, {}, None
        self._active, self._active_rows = None, None
        self._was_trainable = []
        self._is_ejected = True
        return self.model

    def base_parameters(self) -> dict[str, nn.Parameter]:
        """The model's parameters under their names, with the base weights also while a task is merged."""
        originals = {f"{name}.weight": layer.weight for name, layer in self._layers.items()}
        return {name: originals.get(name, weight) for name, weight in self.model.named_parameters()}

    def _show(self) -> None:
        """Let every layer add what is active now: to be called after every change of state."""
        for name, layer in self._layers.items():
            layer.term = self._term(name, layer.bases)

    def _term(self, name: str, bases: Pair[Tensor]) -> Term | None:
        if self._merged is not None:
            return None
        if self._active_rows is not None:
            distinct = list(dict.fromkeys(self._active_rows))
            updates = [None if held is None else self._tasks[held][name] for held in distinct]
            return MixedTerm.of(bases, updates, [distinct.index(row) for row in self._active_rows])
        return None if self._active is None else TaskTerm(bases, self._tasks[self._active][name])

    def _hold(self, task_id: str, task: Mapping[str, LayerUpdate]) -> None:
        self._tasks[task_id] = {
            name: _trainable(layer, self._layers[name].weight.device)
            for name, layer in task.items()
        }

    def _require_holdable(self, task_id: str, task: Mapping[str, LayerUpdate]) -> None:
        self._require_injected(f"hold task {task_id!r}")
        if self._merged == task_id:
            self._require_unmerged("replace the merged task")
        if task_id in (self._active_rows or ()):
            _require_servable(task_id, task)

    def _task(self, task_id: str) -> dict[str, LayerUpdate]:
        if task_id in self._tasks:
            return self._tasks[task_id]
        nearest = difflib.get_close_matches(task_id, self._tasks, n=3)
        raise UnknownTask(
            f"task {task_id!r} is not held by this model: {_listing(nearest or self._tasks)}",
            task_id=task_id,
            nearest=", ".join(nearest),
        )

    def _require_injected(self, wish: str) -> None:
        if self._is_ejected:
            raise ConfigError(f"cannot {wish}: the model was ejected; inject it again", key="model")

    def _require_unmerged(self, wish: str) -> None:
        if self._merged is not None:
            raise ConfigError(
                f"cannot {wish} while {self._merged!r} is merged into the base weights: unmerge first",
                key="task_id",
            )


def _only(subspace: Subspace, names: Iterable[str]) -> Subspace:
    kept = {name: subspace.layers[name] for name in names}
    return replace(subspace, layers=kept).without_tail()


def _require_same(needed: Mapping[str, LayerShape], given: Mapping[str, LayerShape]) -> None:
    for name, shape in needed.items():
        if name not in given:
            raise ConfigError(
                f"the subspace has no bases for layer {name!r}: it has {_listing(list(given)[:5])}; "
                "adapt the layers that the subspace was made for",
                key="targets",
            )
        if given[name] != shape:
            raise ShapeMismatch(
                f"layer {name!r} is {tuple(shape)} (in, out) in the model and "
                f"{tuple(given[name])} in the subspace: load the model that the subspace was made for",
                layer=name,
            )


def _require_servable(task_id: str, task: Mapping[str, LayerUpdate]) -> None:
    if any(update.num_temporary for layer in task.values() for _, update in layer):
        raise ConfigError(
            f"task {task_id!r} has temporary factors and cannot share a batch: "
            "push it, then set_coefficients with what came of the merge",
            key="task_ids",
        )


def _require_pseudo_rank(start: Coefficients, pseudo_rank: int | None) -> None:
    for name, layer in start.layers.items():
        if pseudo_rank not in {None, layer.pseudo_rank}:
            raise ShapeMismatch(
                f"{name}: coefficients to start from have pseudo-rank {layer.pseudo_rank}, asked "
                f"for is {pseudo_rank}: leave pseudo_rank out, or start cold",
                layer=name,
            )


def _listing(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"


def _trainable(layer: LayerUpdate, device: torch.device) -> LayerUpdate:
    return LayerUpdate(
        *(
            SideUpdate(
                nn.Parameter(update.coefficients.to(device)),
                nn.Parameter(update.temporary.to(device)),
                nn.Parameter(update.temporary_coefficients.to(device)),
            )
            for _, update in layer
        )
    )


def _restored(side: str, basis: Basis, parameters: Mapping[str, Tensor]) -> SideUpdate:
    given = {each: parameters.get(f"{side}.{each}") for each in _FIELDS}
    coefficients = [given["coefficients"], given["temporary_coefficients"]]
    p = next((each.shape[-1] for each in coefficients if each is not None), 0)
    k, d = basis.num_factors, basis.features
    empty = {"coefficients": (k, p), "temporary": (d, 0), "temporary_coefficients": (0, p)}
    update = SideUpdate(
        *(torch.zeros(empty[each]) if tensor is None else tensor for each, tensor in given.items())
    )
    if update.coefficients.shape[0] != k or update.temporary.shape[0] != d:
        raise ShapeMismatch(
            f"{side}: coefficients {tuple(update.coefficients.shape)} and temporary factors "
            f"{tuple(update.temporary.shape)} do not fit a basis of {d} x {k}: they are of another version"
        )
    return update


def _detached(task: Mapping[str, LayerUpdate]) -> dict[str, LayerUpdate]:
    return {
        name: LayerUpdate(*(_copied(update) for _, update in layer)) for name, layer in task.items()
    }


def _copied(update: SideUpdate) -> SideUpdate:
    return SideUpdate(
        update.coefficients.detach().cpu().clone(),
        update.temporary.detach().cpu().clone(),
        update.temporary_coefficients.detach().cpu().clone(),
    )

"""
The values that everything else computes with: frozen, and checked once, when they are made.

Every per-side thing is a pair inside one object, so that side A cannot exist
without side B. Dimension letters, the same everywhere:

======  ==========================================================
``d``   features of a side: ``in`` for A, ``out`` for B
``k``   principal factors that are broadcast and used
``m``   columns that the coordinator keeps, ``m >= k``
``p``   pseudo-rank: columns of a task's coefficients
``f``   temporary factors
``r``   LoRA rank
======  ==========================================================
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Generic, Literal, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from share_dist.core.linalg import tall_gram
from share_dist.errors import (
    ConfigError,
    FingerprintMismatch,
    NotFinite,
    NotOrthonormal,
    ShapeMismatch,
    UpdateRefused,
)

Metric: TypeAlias = Literal["delta", "factors"]
METRICS: tuple[Metric, ...] = ("delta", "factors")

Side: TypeAlias = Literal["a", "b"]
SIDES: tuple[Side, Side] = ("a", "b")

ORTHONORMAL_TOLERANCE = 1e-4
"""Largest entry of ``|V.T V - I|`` that a basis may have when it comes from outside."""

WIRE_VERSION = 1
"""Version of the wire format; part of the fingerprint."""

ValueT = TypeVar("ValueT")


class LayerShape(NamedTuple):
    """Features of one adapted linear layer, ``y = W0 x`` with ``W0`` of shape ``(n, d)``."""

    in_features: int
    out_features: int

    def features(self, side: Side) -> int:
        """Features of one side: ``in`` for A, ``out`` for B."""
        return self.in_features if side == "a" else self.out_features


@dataclass(frozen=True, slots=True)
class Pair(Generic[ValueT]):
    """The same thing for side A and for side B of one layer."""

    a: ValueT
    b: ValueT

    def __getitem__(self, side: Side) -> ValueT:
        return self.a if side == "a" else self.b

    def __iter__(self) -> Iterator[tuple[Side, ValueT]]:
        yield "a", self.a
        yield "b", self.b


@dataclass(frozen=True, slots=True)
class Basis:
    """
    Orthonormal columns that all tasks share, for one side of one layer.

    Args:
        vectors: ``(d, m)``; orthonormal, the most energetic column first.
        energies: ``(m,)`` float64; the energy of each column, never increasing.
        num_factors: ``k``; the leading columns that are broadcast and used.
            The other ``m - k`` are the oversampled tail, which stays with the
            coordinator and keeps later merges near the optimum.
        cut_energy: Energy of the tasks that are merged here which truncation has cut since
            version 0: beside the energies, it makes up all that was ever merged. It stays with the tail.
    """

    vectors: Tensor
    energies: Tensor
    num_factors: int
    cut_energy: float = 0.0

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.energies.shape != self.vectors.shape[1:]:
            raise ShapeMismatch(
                f"a basis needs vectors (d, m) and energies (m,), got {tuple(self.vectors.shape)} "
                f"and {tuple(self.energies.shape)}: pass one energy per column"
            )
        if not 0 <= self.num_factors <= self.vectors.shape[1] <= self.vectors.shape[0]:
            raise ShapeMismatch(
                f"a basis of {self.vectors.shape[1]} columns in {self.vectors.shape[0]} features "
                f"cannot have num_factors={self.num_factors}: need 0 <= num_factors <= columns <= features"
            )
        if not (math.isfinite(self.cut_energy) and self.cut_energy >= 0):
            raise NotFinite(
                f"a basis has a cut_energy of {self.cut_energy}: need a number that is not negative",
                num_entries=1,
            )

    @property
    def features(self) -> int:
        """``d``."""
        return self.vectors.shape[0]

    @property
    def num_columns(self) -> int:
        """``m``."""
        return self.vectors.shape[1]

    @property
    def leading(self) -> Tensor:
        """The ``(d, k)`` principal factors that are broadcast and used."""
        return self.vectors[:, : self.num_factors]

    def without_tail(self) -> "Basis":
        """The same basis with its ``k`` leading columns only, and no account of what was cut."""
        return Basis(
            self.leading.contiguous(), self.energies[: self.num_factors].clone(), self.num_factors
        )

    @staticmethod
    def empty(features: int, dtype: torch.dtype = torch.float32) -> "Basis":
        """The basis of version 0: no columns."""
        return Basis(torch.zeros(features, 0, dtype=dtype), torch.zeros(0, dtype=torch.float64), 0)


class LayerSubspace(Pair[Basis]):
    """The two bases of one layer."""

    @property
    def shape(self) -> LayerShape:
        """Features of both sides."""
        return LayerShape(self.a.features, self.b.features)


@dataclass(frozen=True)
class Subspace:
    """
    All bases of all layers and sides, at one version.

    Args:
        layers: Layer name -> its two bases. Names as in the model's ``named_modules``.
        version: One more per merge; 0 is the empty subspace.
        metric: What a merge keeps best: ``"delta"`` the weight changes ``dW``
            themselves, ``"factors"`` the factors, as in the Share paper.
        digest: Of the version, as its coordinator says it: numbers of versions are made
            again where a store is restored, digests are not. Empty where it is not known.
    """

    layers: Mapping[str, LayerSubspace]
    version: int = 0
    metric: Metric = "delta"
    digest: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", dict(sorted(self.layers.items())))
        if self.metric not in METRICS:
            raise ConfigError(
                f"metric {self.metric!r} is unknown: choose one of {', '.join(METRICS)}",
                key="metric",
            )

    @staticmethod
    def empty(
        shapes: Mapping[str, LayerShape],
        metric: Metric = "delta",
        dtype: torch.dtype = torch.float32,
    ) -> "Subspace":
        """The subspace of version 0, which can say nothing yet."""
        return Subspace(
            {
                name: LayerSubspace(
                    Basis.empty(shape.in_features, dtype), Basis.empty(shape.out_features, dtype)
                )
                for name, shape in shapes.items()
            },
            version=0,
            metric=metric,
        )

    @property
    def shapes(self) -> dict[str, LayerShape]:
        """Layer name -> features of both sides."""
        return {name: layer.shape for name, layer in self.layers.items()}

    @property
    def num_factors(self) -> int:
        """The largest ``k`` of any side of any layer."""
        return max(
            (basis.num_factors for layer in self.layers.values() for _, basis in layer), default=0
        )

    def without_tail(self) -> "Subspace":
        """What is broadcast: every basis with its ``k`` leading columns only."""
        return replace(
            self,
            layers={
                name: LayerSubspace(layer.a.without_tail(), layer.b.without_tail())
                for name, layer in self.layers.items()
            },
        )


class LayerFactors(Pair[Tensor]):
    """
    One adapter's two factors of one layer, features first, scale folded in.

    ``a`` is ``(d, r)``, ``b`` is ``(n, r)`` and ``dW = b @ a.T``.
    """

    @property
    def shape(self) -> LayerShape:
        """Features of both sides."""
        return LayerShape(self.a.shape[0], self.b.shape[0])

    def delta_weight(self) -> Tensor:
        """``dW`` of shape ``(n, d)``, formed densely: for export and tests, not for merging."""
        return self.b @ self.a.mT


Factors: TypeAlias = Mapping[str, LayerFactors]
"""Layer name -> factors: one adapter, or one task after reconstruction."""


class LayerCoefficients(Pair[Tensor]):
    """
    What one task says in one layer's bases: ``(k_a, p)`` and ``(k_b, p)``.

    In the coordinator's keeping the rows are the ``m`` columns of each basis;
    the leading ``k`` rows are what is served.
    """

    @property
    def pseudo_rank(self) -> int:
        """``p``."""
        return self.a.shape[1]


@dataclass(frozen=True)
class Coefficients:
    """All that a task keeps, in the bases of one version."""

    layers: Mapping[str, LayerCoefficients]
    version: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", dict(sorted(self.layers.items())))
        for name, layer in self.layers.items():
            for side, tensor in layer:
                check_finite(tensor, name, side)


@dataclass(frozen=True, slots=True)
class SideUpdate:
    """
    What one task has learnt on one side of one layer; its factor is ``V E + T tau``.

    Args:
        coefficients: ``E``, ``(k, p)`` in the basis of the update's base version.
        temporary: ``T``, ``(d, f)``; temporary factors.
        temporary_coefficients: ``tau``, ``(f, p)``.
    """

    coefficients: Tensor
    temporary: Tensor
    temporary_coefficients: Tensor

    def __post_init__(self) -> None:
        shapes = [
            tuple(tensor.shape)
            for tensor in (self.coefficients, self.temporary, self.temporary_coefficients)
        ]
        if any(len(shape) != 2 for shape in shapes):
            raise ShapeMismatch(
                f"an update needs matrices E (k, p), T (d, f), tau (f, p), got {shapes}"
            )
        (_, p), (_, f), (f_tau, p_tau) = shapes
        if f != f_tau or p != p_tau:
            raise ShapeMismatch(
                f"E {shapes[0]}, T {shapes[1]} and tau {shapes[2]} do not fit together: "
                "need (k, p), (d, f) and (f, p)"
            )

    @property
    def num_temporary(self) -> int:
        """``f``."""
        return self.temporary.shape[1]

    @property
    def pseudo_rank(self) -> int:
        """``p``."""
        return self.coefficients.shape[1]


class LayerUpdate(Pair[SideUpdate]):
    """What one task has learnt in one layer."""


@dataclass(frozen=True)
class Head:
    """
    A task's own output layer: it is never in the subspace and travels with its task.

    Args:
        tensors: Parameter name -> tensor, such as ``weight`` and ``bias``; none
            where the task is read by the frozen model's own output layer.
        task_type: ``"text-classification"``, ``"token-classification"``,
            ``"text-regression"``, ``"causal-lm"`` or ``"image-classification"``.
        num_labels: Number of outputs: classes, or one number; 0 without tensors.
        label_names: Empty unless the worker was told to share them.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    task_type: str = ""
    num_labels: int = 0
    label_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", dict(sorted(self.tensors.items())))
        for name, tensor in self.tensors.items():
            check_finite(tensor, f"head {name}", "a")


@dataclass(frozen=True)
class TaskUpdate:
    """
    What a worker sends for one task. It holds no sample and nothing computed per sample.

    Args:
        update_id: Made by the client; the same id twice is the same push.
        task_id: Which task this is an update of.
        base_version: The version that the update was trained against.
        layers: Layer name -> what was learnt there.
        head: The task's output layer, if it has one.
        weight: Relative weight of this task in the merge; every task's ``dW``
            has norm one before it is applied, so 1 treats all tasks alike.
        num_samples: Training rows behind the update.
        scores: Named scores on the worker's own test rows.
        lease_epoch: The fencing number of the worker's lease.
        base_digest: Of the base version, where it is known.
    """

    update_id: str
    task_id: str
    base_version: int
    layers: Mapping[str, LayerUpdate]
    head: Head = field(default_factory=Head)
    weight: float = 1.0
    num_samples: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    lease_epoch: int = 0
    base_digest: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", dict(sorted(self.layers.items())))
        object.__setattr__(self, "scores", dict(sorted(self.scores.items())))
        for text, what in ((self.update_id, "update_id"), (self.task_id, "task_id")):
            if not text:
                raise ConfigError(f"an update needs a {what}: got an empty one", key=what)
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise UpdateRefused(
                f"update {self.update_id} for task {self.task_id!r} has weight {self.weight}: "
                "send a positive number",
                update_id=self.update_id,
                task_id=self.task_id,
                reason="weight",
            )
        for name, layer in self.layers.items():
            for side, update in layer:
                check_finite(update.coefficients, name, side)
                check_finite(update.temporary, name, side)
                check_finite(update.temporary_coefficients, name, side)


@dataclass(frozen=True, slots=True)
class MergedLayer:
    """
    What a merge remembers of one task in one layer.

    Args:
        coefficients: ``(m_a, p)`` and ``(m_b, p)``.
        grams: ``N_A = B.T B`` and ``N_B = A.T A`` of the raw factors as admitted, ``(p, p)``
            float64; the identity under the metric ``"factors"``.
        weights: The weight ``w`` of this task on each side.
        cut_energy: Energy of this task that truncation has cut since it was merged.
        cut_meanwhile: Norms of the second moments cut of all tasks since then, as ``account`` sums them up.
    """

    coefficients: LayerCoefficients
    grams: Pair[Tensor]
    weights: Pair[float]
    cut_energy: Pair[float] = Pair(0.0, 0.0)
    cut_meanwhile: Pair[float] = Pair(0.0, 0.0)


@dataclass(frozen=True)
class MergedTask:
    """One task inside the subspace of one version, as the coordinator keeps it."""

    task_id: str
    version: int
    layers: Mapping[str, MergedLayer]

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", dict(sorted(self.layers.items())))

    def served(self, subspace: Subspace) -> Coefficients:
        """The leading ``k`` rows on each side: what a worker or a client pulls."""
        return Coefficients(
            {
                name: LayerCoefficients(
                    layer.coefficients.a[: subspace.layers[name].a.num_factors].contiguous(),
                    layer.coefficients.b[: subspace.layers[name].b.num_factors].contiguous(),
                )
                for name, layer in self.layers.items()
            },
            version=self.version,
        )


@dataclass(frozen=True)
class Fingerprint:
    """
    What must agree before updates can be merged.

    ``k`` and ``p`` are not in it: they belong to a version and to an update.

    Args:
        base_model: SHA-256 (hex) over the frozen model's weights,
            made by ``share_dist.adapters.model_digest``.
        layers: The adapted layers and their features.
        metric: The subspace's metric.
        wire_version: Version of the wire format.
    """

    base_model: str
    layers: Mapping[str, LayerShape]
    metric: Metric = "delta"
    wire_version: int = WIRE_VERSION

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", dict(sorted(self.layers.items())))

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON of all fields."""
        canonical = json.dumps(
            {
                "base_model": self.base_model,
                "layers": [[name, *shape] for name, shape in self.layers.items()],
                "metric": self.metric,
                "wire_version": self.wire_version,
            },
            separators=(",", ":"),
            sort_keys=True,
        )
        return hashlib.sha256(canonical.encode()).hexdigest()

    def require(self, other: "Fingerprint") -> None:
        """
        Raise unless ``other`` may work with this one.

        Raises:
            FingerprintMismatch: With the first field that differs and both values.
        """
        for name in ("wire_version", "base_model", "metric", "layers"):
            expected, found = getattr(self, name), getattr(other, name)
            if expected == found:
                continue
            if name == "layers":
                expected, found = _first_difference(expected, found)
            raise FingerprintMismatch(
                f"{name} differs: the coordinator has {expected}, this worker has {found}. "
                "Load the same base model with the same targets, or use another coordinator",
                field=name,
                expected=str(expected),
                found=str(found),
            )


def _first_difference(
    expected: Mapping[str, LayerShape], found: Mapping[str, LayerShape]
) -> tuple[str, str]:
    name = min(name for name in {*expected, *found} if expected.get(name) != found.get(name))

    def say(shape: LayerShape | None) -> str:
        return f"no layer {name!r}" if shape is None else f"{name!r} {tuple(shape)}"

    return say(expected.get(name)), say(found.get(name))


def check_finite(tensor: Tensor, layer: str, side: Side) -> None:
    """
    Raise unless every entry is a number.

    Raises:
        NotFinite: With the layer, the side and how many entries are not.
    """
    # one pass without a temporary: both ends are NaN as soon as one entry is
    if not tensor.numel() or all(map(math.isfinite, map(float, tensor.aminmax()))):
        return
    count = int((~torch.isfinite(tensor)).sum())
    raise NotFinite(
        f"{layer}, side {side}: {count} of {tensor.numel()} entries are NaN or infinite: "
        "lower the learning rate or drop this update",
        layer=layer,
        side=side,
        num_entries=count,
    )


def check_orthonormal(
    subspace: Subspace, *, map_bases: Callable[..., Iterable[float]] = map
) -> None:
    """
    Raise unless every basis has orthonormal columns.

    Args:
        subspace: Whose bases.
        map_bases: Measures the bases, as ``map`` would; that of an executor does several at once.

    Raises:
        NotOrthonormal: With the first layer and side that has not, and by how much.
        NotFinite: Because an entry there is no number.
    """
    sides = [
        (name, side, basis) for name, layer in subspace.layers.items() for side, basis in layer
    ]
    deviations = map_bases(_deviation, [basis for *_, basis in sides])
    for (name, side, basis), deviation in zip(sides, deviations, strict=True):
        # one entry that is no number makes its column's product none: none is within the tolerance
        if not deviation <= ORTHONORMAL_TOLERANCE:
            check_finite(basis.vectors, name, side)
            raise NotOrthonormal(
                f"{name}, side {side}: columns deviate from orthonormal by {deviation:.1e}, "
                f"allowed is {ORTHONORMAL_TOLERANCE:.0e}: pull the subspace again",
                layer=name,
                side=side,
                deviation=deviation,
            )


def _deviation(basis: Basis) -> float:
    """
    Largest entry of ``|V.T V - I|``.

    By ``tall_gram``: a third of the tolerance off at worst, and a hundredth of it in practice.
    """
    if not basis.num_columns:
        return 0.0
    vectors = basis.vectors.to(torch.promote_types(basis.vectors.dtype, torch.float32))
    excess = tall_gram(vectors)
    excess.diagonal().sub_(1)
    return float(excess.abs().max())

"""Hypothesis strategies for the values of the library; small, and odd where oddness is allowed."""

import random
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from share_dist.core.values import (
    METRICS,
    SIDES,
    Basis,
    Coefficients,
    Fingerprint,
    Head,
    LayerCoefficients,
    LayerFactors,
    LayerShape,
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
)
from share_dist.wire.records import (
    ROLES,
    AuditEntry,
    Compaction,
    CoordinatorStatus,
    LayerDiff,
    LayerMeasure,
    Lease,
    NewerUpdate,
    Receipt,
    Removal,
    SubspaceSummary,
    TaskMove,
    TaskSummary,
    Token,
    TokenRequest,
    UpdateInspection,
    UpdateState,
    UpdateSummary,
    UploadProgress,
    VersionDiff,
    VersionEvent,
    VersionKind,
    VersionSummary,
    WorkerStatus,
)

seeds = st.integers(0, 2**32 - 1)
versions = st.integers(0, 2**40)
finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(1e-300, 1e300)
cut_energies = st.just(0.0) | positive
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
ids = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
scores = st.dictionaries(texts, finite, max_size=3)
metrics = st.sampled_from(METRICS)
moments = st.integers(0, 2**37).map(
    lambda eighths: datetime.fromtimestamp(eighths / 8, tz=timezone.utc)  # exact in binary
)

layer_names = st.one_of(
    st.sampled_from(["encoder.layer.0.attention.self.query", "a", "b.a", "x.a.coefficients"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8),
).filter(lambda name: not f"{name}.".startswith("head."))


def matrix(rows: int, columns: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal entries, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64).to(dtype)


def orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    """Orthonormal columns, the same for the same seed."""
    q, _ = torch.linalg.qr(matrix(rows, columns, seed, torch.float64))
    return q.float().contiguous()


SPECTRA = ("i^-0", "i^-0.25", "i^-0.5", "i^-1", "i^-2", "step", "repeated", "dominant", "rank one", "ill-scaled")  # fmt: skip
"""How the singular values of what is to be merged fall; the names of ``adapters``."""

SMALL = {"q": LayerShape(24, 18), "v": LayerShape(20, 24)}


class Adapters(NamedTuple):
    """
    Adapters from one population.

    Args:
        metric: What is to keep them.
        spectrum: One of ``SPECTRA``.
        factors: One entry each, over the same layers.
    """

    metric: Metric
    spectrum: str
    factors: list[dict[str, LayerFactors]]


@st.composite
def adapters(
    draw: Any,
    count: int = 5,
    rank: int = 4,
    dtype: torch.dtype = torch.float64,
    shapes: Mapping[str, LayerShape] = SMALL,
    of_metrics: st.SearchStrategy[Metric] = metrics,
    of_spectra: st.SearchStrategy[str] = st.sampled_from(SPECTRA),  # noqa: B008 - an immutable description
) -> Adapters:
    """
    Draw a metric, a spectrum and adapters of it: random mixtures of directions that all share.

    The mixtures fall as the spectrum says. ``repeated`` are orthonormal columns of each adapter's own, ``rank one``
    the same column in all places, and ``ill-scaled`` has the one factor large by up to ``1e30`` and the other small.
    """
    metric, spectrum, seed = draw(of_metrics), draw(of_spectra), draw(st.integers(0, 10_000))
    power = draw(st.integers(-30, 30)) if spectrum == "ill-scaled" else 0
    generator = torch.Generator().manual_seed(seed)
    width = min(features for shape in shapes.values() for features in shape)
    shared = {
        (name, side): orthonormal(shape.features(side), width, seed + index).double()
        for index, (name, shape) in enumerate(shapes.items())
        for side in SIDES
    }

    def factor(name: str, side: Side) -> Tensor:
        mixed = shared[name, side] * _amplitudes(spectrum, width)
        mixed = mixed @ torch.randn(width, rank, generator=generator, dtype=torch.float64)
        if spectrum == "repeated":
            mixed = torch.linalg.qr(mixed).Q
        if spectrum == "rank one":
            mixed = mixed[:, :1].repeat(1, rank)
        return (mixed * 10.0 ** (power if side == "a" else -power)).to(dtype)

    drawn = [
        {name: LayerFactors(factor(name, "a"), factor(name, "b")) for name in shapes}
        for _ in range(count)
    ]
    return Adapters(metric, spectrum, drawn)


def _amplitudes(spectrum: str, count: int) -> Tensor:
    index = torch.arange(1, count + 1, dtype=torch.float64)
    if spectrum.startswith("i^"):
        return index ** float(spectrum.removeprefix("i^"))
    few = {"step": count // 2, "dominant": 1}.get(spectrum, count)
    return torch.where(index <= few, 1.0, 0.01)


@st.composite
def shapes(draw: Any, min_layers: int = 0) -> dict[str, LayerShape]:
    names = draw(st.lists(layer_names, min_size=min_layers, max_size=3, unique=True))
    sizes = st.integers(1, 6)
    return {name: LayerShape(draw(sizes), draw(sizes)) for name in names}


@st.composite
def bases(draw: Any, features: int) -> Basis:
    columns = draw(st.integers(0, features))
    energies = sorted(draw(st.lists(positive, min_size=columns, max_size=columns)), reverse=True)
    return Basis(
        orthonormal(features, columns, draw(seeds)),
        torch.tensor(energies, dtype=torch.float64),
        num_factors=draw(st.integers(0, columns)),
        cut_energy=draw(cut_energies),
    )


@st.composite
def subspaces(draw: Any) -> Subspace:
    layers = {
        name: LayerSubspace(draw(bases(shape.in_features)), draw(bases(shape.out_features)))
        for name, shape in draw(shapes()).items()
    }
    return Subspace(layers, version=draw(versions), metric=draw(metrics))


@st.composite
def heads(draw: Any) -> Head:
    dtypes = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])
    names = draw(st.lists(texts | st.just("x.a.coefficients"), max_size=2, unique=True))
    sizes = st.integers(0, 3)
    return _head(
        {name: matrix(draw(sizes), draw(sizes), draw(seeds), draw(dtypes)) for name in names},
        draw(texts),
        draw(st.integers(0, 2**31)),
        tuple(draw(st.lists(texts, max_size=3))),
    )


def _head(*fields: Any) -> Head:
    # beartype looks at a label name chosen by chance; Hypothesis wants chance left as it was.
    state = random.getstate()
    try:
        return Head(*fields)
    finally:
        random.setstate(state)


@st.composite
def side_updates(draw: Any, features: int, pseudo_rank: int) -> SideUpdate:
    k, f = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    return SideUpdate(
        matrix(k, pseudo_rank, draw(seeds)),
        matrix(features, f, draw(seeds)),
        matrix(f, pseudo_rank, draw(seeds)),
    )


@st.composite
def updates(draw: Any) -> TaskUpdate:
    layers = {}
    for name, shape in draw(shapes()).items():
        p = draw(st.integers(0, 3))
        layers[name] = LayerUpdate(
            draw(side_updates(shape.in_features, p)), draw(side_updates(shape.out_features, p))
        )
    return TaskUpdate(
        update_id=draw(ids),
        task_id=draw(ids),
        base_version=draw(versions),
        layers=layers,
        head=draw(heads()),
        weight=draw(positive),
        num_samples=draw(versions),
        scores=draw(scores),
        lease_epoch=draw(versions),
    )


@st.composite
def layer_coefficients(draw: Any) -> LayerCoefficients:
    p = draw(st.integers(0, 3))
    rows = st.integers(0, 3)
    return LayerCoefficients(matrix(draw(rows), p, draw(seeds)), matrix(draw(rows), p, draw(seeds)))


@st.composite
def coefficients(draw: Any) -> Coefficients:
    layers = {name: draw(layer_coefficients()) for name in draw(shapes())}
    return Coefficients(layers, version=draw(versions))


@st.composite
def merged_tasks(draw: Any) -> dict[str, MergedTask]:
    version = draw(versions)
    tasks = {}
    for task_id in draw(st.lists(ids | st.just("a.b%2E/c"), max_size=3, unique=True)):
        layers = {}
        for name in draw(shapes(min_layers=1)):
            e = draw(layer_coefficients())
            p = e.pseudo_rank
            grams = Pair(*(matrix(p, p, draw(seeds), torch.float64) for _ in range(2)))
            weights, own, meanwhile = (
                Pair(draw(amounts), draw(amounts))
                for amounts in (positive, cut_energies, cut_energies)
            )
            layers[name] = MergedLayer(e, grams, weights, own, meanwhile)
        tasks[task_id] = MergedTask(task_id, version, layers)
    return tasks


fingerprints = st.builds(
    Fingerprint,
    base_model=ids,
    layers=shapes(),
    metric=metrics,
    wire_version=st.integers(0, 2**32 - 1),
)
durations = st.integers(0, 10**9).map(lambda micros: micros / 10**6)
leases = st.builds(
    Lease,
    worker_id=ids,
    lease_epoch=versions,
    duration_seconds=durations,
    current_version=versions,
    fingerprint=st.none() | fingerprints,
    store_id=texts,
)
states = st.sampled_from(UpdateState)
receipts = st.builds(
    Receipt,
    update_id=ids,
    state=states,
    version=versions,
    lag=versions,
    angle=finite,
    reason=texts,
)
task_summaries = st.builds(
    TaskSummary,
    task_id=ids,
    worker_id=texts,
    update_id=texts,
    state=states,
    base_version=versions,
    merged_version=versions,
    lag=versions,
    angle=finite,
    truncation=finite,
    cumulative_drift=finite,
    num_samples=versions,
    scores=scores,
    head=heads().map(lambda head: _head({}, head.task_type, head.num_labels, head.label_names)),
    pushed_at=moments,
    update_bytes=versions,
    head_bytes=versions,
    owner=texts,
    reason=texts,
    newer=st.none() | st.builds(NewerUpdate, update_id=texts, state=states, reason=texts),
)
counts = st.integers(0, 2**31)
version_events = st.builds(
    VersionEvent,
    version=versions,
    merged_at=moments,
    update_ids=st.lists(texts, max_size=3).map(tuple),
    task_ids=st.lists(texts, max_size=3).map(tuple),
    lowest_energy_kept=finite,
    mean_energy_kept=finite,
    angle=finite,
    num_factors=st.integers(0, 2**31),
    subspace_bytes=versions,
    drift=scores,
    merge_seconds=durations,
    kind=st.sampled_from(VersionKind),
    digest=texts,
    parent_digest=texts,
    content_version=versions,
    rotation_bytes=versions,
    num_moved=counts,
    largest_drift=finite,
)
worker_statuses = st.builds(
    WorkerStatus,
    worker_id=texts,
    lease_epoch=versions,
    is_live=st.booleans(),
    last_heartbeat_at=moments,
    base_version=versions,
    num_merged=counts,
)
coordinator_statuses = st.builds(
    CoordinatorStatus,
    current_version=versions,
    first_version=versions,
    fingerprint=st.none() | fingerprints,
    num_tasks=st.integers(0, 2**31),
    num_pending=st.integers(0, 2**31),
    num_quarantined=st.integers(0, 2**31),
    workers=st.lists(worker_statuses, max_size=2).map(tuple),
    num_watchers=st.integers(0, 2**31),
    started_at=moments,
    release=texts,
    subspace=ids,
    store_id=texts,
    digest=texts,
    num_parked=counts,
    num_synced_watchers=counts,
    num_catching_up_watchers=counts,
    num_slow_watchers=counts,
    bytes_in_flight=versions,
    principal=texts,
    role=texts,
    newest_version_at=st.none() | moments,
    merge_failure=texts,
    merges_fail_since=st.none() | moments,
)
some_texts = st.lists(texts, max_size=3).map(tuple)
some_versions = st.lists(versions, max_size=3).map(tuple)
upload_progresses = st.builds(
    UploadProgress, num_chunks=counts, num_bytes=versions, prefix_sha256=st.binary(max_size=32)
)
subspace_summaries = st.builds(
    SubspaceSummary,
    name=ids,
    fingerprint=st.none() | fingerprints,
    current_version=versions,
    first_version=versions,
    num_tasks=counts,
    num_pending=counts,
    role=texts,
)
version_summaries = st.builds(
    VersionSummary, event=version_events, is_kept=st.booleans(), stored_bytes=versions
)
layer_diffs = st.builds(
    LayerDiff,
    layer=texts,
    side=st.sampled_from("ab"),
    angle=finite,
    num_factors_a=counts,
    num_factors_b=counts,
)
version_diffs = st.builds(
    VersionDiff,
    version_a=versions,
    version_b=versions,
    layers=st.lists(layer_diffs, max_size=2).map(tuple),
    angle=finite,
    added_task_ids=some_texts,
    removed_task_ids=some_texts,
    drift=scores,
    num_moved=counts,
)
task_moves = st.builds(
    TaskMove, version=versions, drift=finite, is_own_merge=st.booleans(), update_ids=some_texts
)
task_histories = st.lists(task_moves, max_size=3).map(tuple)
compactions = st.builds(
    Compaction,
    versions=some_versions,
    freed_bytes=versions,
    first_version=versions,
    kept=st.dictionaries(versions, texts, max_size=3),
)
removals = st.builds(Removal, event=version_events, residue_bound=finite)
update_summaries = st.builds(
    UpdateSummary,
    sequence=versions,
    receipt=receipts,
    task_id=texts,
    worker_id=texts,
    base_version=versions,
    pushed_at=moments,
    update_bytes=versions,
    digest=texts,
)
layer_measures = st.builds(
    LayerMeasure,
    layer=texts,
    norm=finite,
    largest_singular=finite,
    smallest_singular=finite,
    energy_outside=finite,
)
update_inspections = st.builds(
    UpdateInspection,
    update=update_summaries,
    layers=st.lists(layer_measures, max_size=2).map(tuple),
    influence=scores,
)
roles = st.sampled_from(ROLES)
tokens = st.builds(
    Token,
    token_id=texts,
    principal=texts,
    role=roles,
    subspaces=some_texts,
    created_at=moments,
    expires_at=st.none() | moments,
    revoked_at=st.none() | moments,
)
token_requests = st.builds(
    TokenRequest,
    principal=ids,
    role=roles,
    subspaces=st.lists(ids, min_size=1, max_size=3).map(tuple),
    valid_seconds=versions,
)
audit_entries = st.builds(
    AuditEntry,
    sequence=versions,
    at=moments,
    principal=texts,
    action=texts,
    subspace=texts,
    subject=texts,
    digest=texts,
    detail=texts,
)

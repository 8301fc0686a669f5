"""One budget of bytes for all factors: every merge shares it out anew, and everything else goes on as ever."""

import contextlib
import re
from pathlib import Path

import pytest
import torch

from coordinator.config import SubspaceConfig, load_config
from coordinator.screening import screen
from coordinator.store import MemoryCatalog
from coordinator.versions import Snapshot
from share_dist.adapters import load_lora, save_lora
from share_dist.adapters.lora import LoraAdapter
from share_dist.client import AdminClient
from share_dist.client.mirror import Mirror
from share_dist.core.many import delta_error
from share_dist.core.rebase import rebase
from share_dist.core.subspace import project, reconstruct, update_from_factors
from share_dist.core.values import Fingerprint, LayerFactors, LayerShape, Subspace
from share_dist.errors import ConfigError
from share_dist.wire.records import UpdateState, VersionKind
from tests.coordinator.support import client_of, lineage_of, make_config, running, wait_until

LAYERS = {"flat": LayerShape(24, 20), "steep": LayerShape(24, 20)}
FINGERPRINT = Fingerprint("0" * 64, LAYERS)
FACTOR_OF_EACH = 4 * sum(sum(shape) for shape in LAYERS.values())
MAX_BYTES = 5 * FACTOR_OF_EACH
TASKS = ("ants", "bees", "cats", "dogs", "eels")


def adapter_of(task_id: str) -> dict[str, LayerFactors]:
    """In one layer every task is something new, in the other all are nearly the same."""
    own = torch.Generator().manual_seed(sum(task_id.encode()))
    shared = torch.Generator().manual_seed(0)

    def draw(features: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(features, 2, generator=generator)

    return {
        "flat": LayerFactors(draw(24, own), draw(20, own)),
        "steep": LayerFactors(
            draw(24, shared) + 0.01 * draw(24, own), draw(20, shared) + 0.01 * draw(20, own)
        ),
    }


def served_bytes(subspace: Subspace) -> int:
    return sum(
        basis.leading.numel() * 4 for layer in subspace.layers.values() for _, basis in layer
    )


@contextlib.contextmanager
def bench(catalog: MemoryCatalog | None = None, **values):
    options = {"num_factors": 12, "oversample": 4, "max_bytes": MAX_BYTES} | values
    with (
        running(make_config(Path("unused"), **options), catalog=catalog or MemoryCatalog()) as app,
        client_of(app.address, fingerprint=FINGERPRINT) as worker,
        AdminClient(app.address, timeout_seconds=20.0) as operator,
    ):
        worker.register()
        yield app, worker, operator


def push(worker, task_id: str, base: Subspace):
    update = update_from_factors(base, adapter_of(task_id), task_id, f"u-{task_id}")
    return worker.push(update, wait="merged")


def test_versions_of_different_k_go_through_everything(tmp_path):
    """
    Tasks are pushed whose layers have very different spectra. Every version keeps within the bytes; it is followed by
    rotations, pulled as an adapter, trained upon, rebased to, compared, rolled back over and removed from.
    """
    with bench() as (_, worker, operator):
        mirror, versions = Mirror(worker), {}
        for task_id in TASKS:
            receipt = push(worker, task_id, versions[max(versions)] if versions else worker.pull(0))
            assert receipt.state is UpdateState.MERGED
            pulled = worker.pull(receipt.version)
            mirror.advance()
            assert served_bytes(pulled) <= MAX_BYTES
            assert mirror.subspace.without_tail().shapes == pulled.shapes
            for name, layer in pulled.layers.items():
                for side, basis in layer:
                    followed = mirror.subspace.layers[name][side]
                    assert followed.num_factors == basis.num_factors
                    assert torch.allclose(followed.leading, basis.leading, atol=1e-5)
            versions[receipt.version] = pulled
        newest = versions[5]
        for side in ("a", "b"):
            # one k everywhere would have been 5
            assert newest.layers["flat"][side].num_factors > 5
            assert newest.layers["steep"][side].num_factors < 5

        said = worker.pull_task("dogs").coefficients
        save_lora(LoraAdapter(reconstruct(newest, said)), tmp_path / "dogs")
        error = delta_error(adapter_of("dogs"), load_lora(tmp_path / "dogs").factors)
        nearest = reconstruct(newest, project(newest, adapter_of("dogs")))
        assert error == pytest.approx(delta_error(adapter_of("dogs"), nearest), rel=1e-3)

        older = project(versions[2], adapter_of("ants"))
        moved = reconstruct(newest, rebase(older, versions[2], newest))
        assert moved["flat"].a.shape == (24, 2)

        diff = operator.diff(2, 5)
        counts = {(each.layer, each.side): (each.num_factors_a, each.num_factors_b) for each in diff.layers}  # fmt: skip
        for name, layer in newest.layers.items():
            for side, basis in layer:
                was = versions[2].layers[name][side].num_factors
                assert counts[name, side] == (was, basis.num_factors)

        event = operator.rollback(2, "back")
        assert event.kind is VersionKind.ROLLBACK
        back = worker.pull()
        assert [served_bytes(back), back.num_factors] == [served_bytes(versions[2]), versions[2].num_factors]  # fmt: skip
        removed = operator.remove_task("bees")
        assert removed.event.version == 7
        assert served_bytes(worker.pull()) <= MAX_BYTES
        late = update_from_factors(versions[4], adapter_of("fish"), "fish", "u-fish")
        assert worker.push(late, wait="merged").state is UpdateState.MERGED
        assert served_bytes(worker.pull()) <= MAX_BYTES
        largest = [each.event.num_factors for each in operator.versions()]
        assert largest[2:6] == [*(versions[number].num_factors for number in (3, 4, 5)), back.num_factors]  # fmt: skip


def test_a_smaller_budget_holds_from_the_next_merge_on():
    """A coordinator that is started with fewer bytes goes on from what it has."""
    catalog = MemoryCatalog()
    with bench(catalog) as (_, worker, _):
        for task_id in TASKS[:3]:
            push(worker, task_id, worker.pull())
        assert served_bytes(worker.pull()) > MAX_BYTES / 2
    with bench(catalog, max_bytes=MAX_BYTES // 2) as (_, worker, _):
        assert push(worker, "late", worker.pull()).state is UpdateState.MERGED
        assert served_bytes(worker.pull()) <= MAX_BYTES / 2


def test_bytes_win_over_growth_and_who_needs_both_is_parked():
    """
    What a drift budget would keep in place by more factors waits where the bytes do not allow them, with both
    numbers; what keeps both merges.
    """
    with bench(drift_budget=0.02) as (app, worker, operator):
        for task_id in TASKS[:2]:
            assert push(worker, task_id, worker.pull()).state is UpdateState.MERGED
        for task_id in TASKS[2:]:
            receipt = push(worker, task_id, worker.pull())
            if receipt.state is UpdateState.PARKED:
                break
        assert f"drift_budget is 0.02, in max_bytes of {MAX_BYTES}" in receipt.reason
        assert served_bytes(worker.pull()) <= MAX_BYTES
        for name in TASKS[: TASKS.index(task_id)]:
            operator.remove_task(name)
        wait_until(lambda: task_id in lineage_of(app).writer.snapshot.tasks)
        assert served_bytes(worker.pull()) <= MAX_BYTES


def test_growth_spends_what_the_bytes_leave():
    """Where ``num_factors`` is what holds a side back, a drift budget gets more of the bytes, and no more than these."""
    config = SubspaceConfig(num_factors=2, oversample=0, max_bytes=3 * FACTOR_OF_EACH)
    empty = Subspace.empty(LAYERS)
    first = [update_from_factors(empty, adapter_of(task_id), task_id) for task_id in TASKS[:1]]
    merged = screen(first, Snapshot(empty, {}, {}), {}, set(), config).outcome
    current = Snapshot(merged.subspace, merged.tasks, {})
    assert served_bytes(current.subspace) == 2 * FACTOR_OF_EACH
    update = update_from_factors(current.subspace, adapter_of("bees"), "bees")
    plain = screen([update], current, {}, set(), config).outcome
    moved = max(plain.report.drift.values())
    bound = 0.95 * moved / max(1e-9, _norm(current))
    grown = screen([update], current, {}, set(), config.model_copy(update={"drift_budget": bound}))
    assert grown.outcome is not None
    assert served_bytes(plain.subspace) < served_bytes(grown.outcome.subspace) <= config.max_bytes
    assert max(grown.outcome.report.drift.values()) < moved


def _norm(current: Snapshot) -> float:
    return sum(
        float(layer.delta_weight().square().sum())
        for layer in reconstruct(current.subspace, current.tasks["ants"].served(current.subspace)).values()
    ) ** 0.5  # fmt: skip


def test_layers_that_the_budget_cannot_hold_are_refused_at_the_door():
    """With what they take: at registration, before the store is bound, and when a bound store is opened again."""
    catalog = MemoryCatalog()
    too_few = f"max_bytes is {FACTOR_OF_EACH - 1}, .* which take {FACTOR_OF_EACH}"
    with pytest.raises(ConfigError, match=too_few), bench(catalog, max_bytes=FACTOR_OF_EACH - 1):
        pass
    with bench(catalog, max_bytes=FACTOR_OF_EACH) as (_, worker, _):
        push(worker, "ants", worker.pull())
        assert served_bytes(worker.pull()) == FACTOR_OF_EACH
    with pytest.raises(ConfigError, match=too_few), bench(catalog, max_bytes=FACTOR_OF_EACH - 1):
        pass


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"max_bytes": 0}, "max_bytes is 0: input should be greater than or equal to 1"),
        ({"max_bytes": 100, "max_subspace_bytes": 200}, "max_bytes is 100 and max_subspace_bytes is 200"),
        ({"max_bytes": 100, "subspaces": {"x": {"max_subspace_bytes": 200}}}, "give only one of them"),
    ],
)  # fmt: skip
def test_policies_that_contradict_themselves_are_refused(values, sentence):
    """By name, before anything is opened; also where one subspace has the other key for itself."""
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        load_config({"store": "s", **values}, environment={})

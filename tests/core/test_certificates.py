"""Certificates over long random streams: what is said of a task's drift and error is never less than the truth."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from share_dist.core.merge import merge
from share_dist.core.removal import remove_tasks
from share_dist.core.subspace import update_from_factors
from share_dist.core.values import LayerShape, Subspace, TaskUpdate
from tests.core.adapters import (
    METRICS,
    SPECTRA,
    delta_weights,
    distance,
    norm,
    random_factors,
)

SMALL = {"q": LayerShape(24, 18)}
STEPS = 20
NAMES = [f"task-{index}" for index in range(7)]


class Lineage:
    """A subspace, and beside it what every task was when it came, what was said of it since, and what is true."""

    def __init__(self, metric):
        self.subspace = Subspace.empty(SMALL, metric)
        self.tasks, self.older = {}, {}
        self.trained, self.served, self.said_error, self.said_drift = {}, {}, {}, {}

    def come(self, arrivals, rng, k, oversample):
        """Tasks come or are replaced, each trained up to three versions ago."""
        updates = []
        for name, adapter, weight in arrivals:
            base = rng.choice([self.subspace, *list(self.older.values())[-3:]])
            layers = update_from_factors(base, adapter, name).layers
            update_id = f"{self.subspace.version}-{name}"
            updates.append(TaskUpdate(update_id, name, base.version, layers, weight=weight))
        outcome = merge(
            self.subspace, self.tasks, updates, k, oversample=oversample, bases=self.older
        )
        self._follow(outcome)
        now = delta_weights(outcome.subspace, {name: outcome.tasks[name] for name, *_ in arrivals})
        for name, adapter, _ in arrivals:
            self.trained[name] = {each: layer.delta_weight() for each, layer in adapter.items()}
            self.served[name], self.said_drift[name] = now[name], 0.0
            lost = outcome.report.truncation[f"{self.subspace.version - 1}-{name}"]
            self.said_error[name] = lost * norm(self.trained[name])

    def go(self, names, k, oversample):
        """Tasks are taken out."""
        self._follow(remove_tasks(self.subspace, self.tasks, names, k, oversample=oversample))

    def _follow(self, outcome):
        before = delta_weights(self.subspace, self.tasks)
        now = delta_weights(
            outcome.subspace, {name: outcome.tasks[name] for name in outcome.report.drift}
        )
        for name, moved in outcome.report.drift.items():
            # float32 rounds what is measured here too
            assert abs(moved - distance(before[name], now[name])) <= 1e-5 * norm(before[name])
            self.said_drift[name] += moved
        self.older[self.subspace.version] = self.subspace
        self.subspace, self.tasks = outcome.subspace, outcome.tasks

    def check(self):
        """Nothing that was said is less than the truth."""
        for name, weights in delta_weights(self.subspace, self.tasks).items():
            rounding = 1e-5 * norm(self.trained[name])
            assert distance(weights, self.served[name]) <= self.said_drift[name] + rounding
            said = self.said_error[name] + self.said_drift[name]
            assert distance(weights, self.trained[name]) <= said + rounding


@settings(max_examples=3, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    metric=st.sampled_from(METRICS),
    spectrum=st.sampled_from([each for each in SPECTRA if each != "ill-scaled"]),
    k=st.integers(2, 12),
    oversample=st.integers(0, 6),
)
def test_truth_never_exceeds_what_was_said(seed, metric, spectrum, k, oversample):
    """
    Over twenty merges and removals, late, replacing and truncated: each drift is the one measured, a
    task is never further from how it was first served than its drifts add up to, nor further
    from how it was trained than its truncation and its drifts together.
    """
    rng, lineage = random.Random(seed), Lineage(metric)
    for _ in range(STEPS):
        if len(lineage.tasks) > 2 and rng.random() < 0.2:
            lineage.go(rng.sample(sorted(lineage.tasks), rng.randint(1, 2)), k, oversample)
        else:
            names = rng.sample(NAMES, rng.randint(1, 2))
            arrivals = [
                (
                    name,
                    random_factors(rng.randrange(10**6), spectrum, rank=2 * rng.randint(1, 3), shapes=SMALL),
                    rng.choice([0.2, 1.0, 5.0]),
                )
                for name in names
            ]  # fmt: skip
            lineage.come(arrivals, rng, k, oversample)
        lineage.check()


def test_the_bounds_are_not_idle():
    """Over a truncated stream something is truly lost, and what is said of it is within twenty times."""
    rng, lineage = random.Random(1), Lineage("delta")
    for index, name in enumerate(NAMES):
        lineage.come([(name, random_factors(index, shapes=SMALL), 1.0)], rng, 8, 4)
    for name, weights in delta_weights(lineage.subspace, lineage.tasks).items():
        truth = distance(weights, lineage.trained[name])
        assert truth > 0.1 * norm(lineage.trained[name])
        assert lineage.said_error[name] + lineage.said_drift[name] < 20 * truth

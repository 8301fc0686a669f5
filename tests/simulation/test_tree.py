"""A root above coordinators, and the report as people read it."""

import io

import torch
from rich.console import Console

from share_dist.commands.simulate_tables import tables_of
from share_dist.core.merge import merge
from share_dist.core.subspace import update_from_factors
from share_dist.core.values import Subspace
from share_dist.simulation import tree as module
from share_dist.simulation.asynchronous import run_asynchronously
from share_dist.simulation.moments import Moments
from share_dist.simulation.report import summarise, summarise_tree
from share_dist.simulation.scenario import make_scenario
from share_dist.simulation.trace import Trace
from tests.simulation.support import SHAPES, recordings, session_of

SCENARIO = make_scenario(workers=6, tasks=3, seed=2, num_factors=15, oversample=0)


def leaf_of(found):
    """What a coordinator that has merged some recordings leaves."""
    empty, moments = Subspace.empty(SHAPES), Moments()
    for each in found:
        moments.add(each.factors)
    updates = [update_from_factors(empty, each.factors, each.name) for each in found]
    return Trace(moments=moments, newest=merge(empty, {}, updates).subspace)


def test_a_root_holds_what_all_leaves_hold(monkeypatch):
    """Nothing was cut, so the root's bases capture all of everything that any leaf has merged."""
    found = recordings()
    traces = iter([leaf_of(found[:2]), leaf_of(found[2:])])
    monkeypatch.setattr(module, "simulate", lambda *_, **__: next(traces))
    tree = module.simulate_tree(SCENARIO, None, 2)
    assert abs(summarise_tree(SCENARIO, tree)["captured"] - 1) < 1e-4
    assert tree.received_bytes > 0


def test_a_tree_that_is_stopped_at_once_has_a_report(monkeypatch):
    """The first leaf ends before its first push, the others never begin; zeros are told, and that it is not whole."""
    begun = []

    def simulate(*_, **__):
        begun.append(True)
        return Trace(newest=Subspace.empty(SHAPES))

    monkeypatch.setattr(module, "simulate", simulate)
    tree = module.simulate_tree(SCENARIO, None, 3, should_stop=lambda: True)
    report = summarise_tree(SCENARIO, tree)
    assert len(begun) == 1
    assert (report["captured"], report["is_whole"]) == (0.0, False)
    assert torch.equal(tree.fused.layers["deep.query"].a.energies, torch.zeros(0).double())


def test_tables_say_what_is_synthetic_and_what_was_not_reached():
    """A run that was stopped is told as one, with how much of it was never trained."""
    link_stops = iter([False] * 9 + [True])
    trace = run_asynchronously(session_of(should_stop=lambda: next(link_stops)))
    report = {"asynchronous": summarise(SCENARIO, trace), "num_recorded": 5}
    console = Console(file=io.StringIO(), width=160)
    for table in tables_of(report):
        console.print(table)
    text = " ".join(console.file.getvalue().split())
    synthetic = sum(push.is_synthetic for push in trace.pushes)
    assert synthetic
    assert f"9 updates, {9 - synthetic} recorded (of 5), {synthetic} synthetic, ended before all of 18" in text  # fmt: skip

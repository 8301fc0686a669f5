"""Tiny recorded adapters, and a link to no coordinator."""

import torch

from share_dist.adapters import LoraAdapter, save_lora
from share_dist.core.subspace import evenly_split
from share_dist.core.values import Head, LayerFactors, LayerShape, Pair, Subspace
from share_dist.simulation.link import Base, Pushed
from share_dist.simulation.recorded import Recording
from share_dist.simulation.scenario import make_scenario
from share_dist.simulation.session import Session, constant
from share_dist.simulation.updates import Updates
from share_dist.wire.records import Receipt, UpdateState

SHAPES = {"deep.query": LayerShape(24, 20), "deep.value": LayerShape(24, 16)}
RANK = 3
NUM_RECORDED = 5


def make_factors(seed, shared=0.0):
    """Random factors; ``shared`` of them in one direction that is the same for all seeds."""
    generator = torch.Generator().manual_seed(seed)

    def side(features):
        drawn = torch.randn(features, RANK, generator=generator) / features**0.5
        drawn[0] += shared
        return drawn

    return {name: LayerFactors(side(d), side(n)) for name, (d, n) in SHAPES.items()}


def recordings(count=NUM_RECORDED, shared=0.0):
    made = []
    for index in range(count):
        factors = make_factors(index, shared)
        even = {name: evenly_split(layer) for name, layer in factors.items()}
        even = {name: LayerFactors(each.a.float(), each.b.float()) for name, each in even.items()}
        head = Head({"classifier.weight": torch.ones(2, 3)})
        made.append(Recording(f"task-{index}", even, head))
    return made


def write_adapters(folder, count=NUM_RECORDED):
    for index in range(count):
        save_lora(LoraAdapter(make_factors(index)), folder / f"seed-0/task-{index}")
    return folder


class NoCoordinator:
    """Counts what is asked of it; merges are nothing but numbers."""

    def __init__(self):
        self.version = self.pending = 0
        self.heard = 0
        self.base_versions = []

    def cpu_seconds(self):
        return 0.0

    def stored_bytes(self):
        return 0

    def be_heard(self, base):
        self.heard += 1

    def pull(self, version):
        return Base(version, "", (Pair(0, 0),) * len(SHAPES), 1000)

    def update_bytes(self, drawn, base):
        return 500

    def push(self, task_id, drawn, base, wait):
        self.base_versions.append(base.version)
        if wait == "merged":
            self.version += 1
        lag = self.version - 1 - base.version
        receipt = Receipt(task_id, UpdateState.MERGED, self.version, lag, 0.1)
        return Pushed(receipt, 1.0, 500)

    def with_tail(self):
        return Subspace.empty(SHAPES)

    def newest(self):
        return Subspace.empty(SHAPES)


def session_of(clock=None, link=None, **options):
    """A session of six workers with three tasks each, unless told otherwise, before no coordinator."""
    own = {name: options.pop(name) for name in ("should_stop", "num_pushes", "is_member") if name in options}  # fmt: skip
    scenario = make_scenario(**{"workers": 6, "tasks": 3, "seed": 2, **options})
    updates = Updates(recordings(), scenario.seed)
    return Session(link or NoCoordinator(), scenario, updates, clock or constant(1.0), **own)

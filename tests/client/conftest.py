"""A scripted coordinator and a client of it."""

import pytest
import torch

from share_dist.client import RetryPolicy, ShareClient
from share_dist.core.values import (
    Basis,
    Coefficients,
    Fingerprint,
    Head,
    LayerCoefficients,
    LayerShape,
    LayerSubspace,
    LayerUpdate,
    SideUpdate,
    Subspace,
    TaskUpdate,
)
from tests.fakes import FakeServer, ScriptedCoordinator, summary_of
from tests.strategies import orthonormal

Q = "encoder.0.query"
FINGERPRINT = Fingerprint("ab" * 32, {Q: LayerShape(6, 4)}, metric="factors")
QUICK = RetryPolicy(first_wait_seconds=0.01, longest_wait_seconds=0.05)


def subspace_of(version: int) -> Subspace:
    def basis(features: int) -> Basis:
        return Basis(orthonormal(features, 2, version), torch.tensor([2.0, 1.0]).double(), 2)

    return Subspace({Q: LayerSubspace(basis(6), basis(4))}, version, metric="factors")


def update_of(update_id: str = "u1") -> TaskUpdate:
    def side(features: int) -> SideUpdate:
        return SideUpdate(torch.ones(2, 1), torch.ones(features, 1), torch.ones(1, 1))

    return TaskUpdate(
        update_id,
        task_id="movies",
        base_version=1,
        layers={Q: LayerUpdate(side(6), side(4))},
        head=Head({"weight": torch.ones(2, 5)}, "text-classification", 2),
        scores={"accuracy": 0.75},
        num_samples=640,
    )


def task_of(version: int):
    update = update_of()
    coefficients = Coefficients({Q: LayerCoefficients(torch.ones(2, 1), torch.ones(2, 1))}, version)
    return summary_of(update), coefficients, update.head


@pytest.fixture
def server():
    with FakeServer(ScriptedCoordinator(FINGERPRINT)) as server:
        server.servicer.subspaces = {version: subspace_of(version) for version in (1, 2)}
        server.servicer.tasks = {"movies": task_of(2)}
        yield server


@pytest.fixture
def coordinator(server):
    return server.servicer


@pytest.fixture
def client(server):
    with ShareClient(server.address, worker_id="w0", retry=QUICK) as client:
        yield client

"""The versions at hand: few, bounded in bytes, and read once however many ask."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from coordinator import versions
from coordinator.versions import AS_KEPT, WHOLE, VersionCache, encode_served
from share_dist.core.values import Basis, LayerSubspace, Subspace

FEATURES, FACTORS = 1000, 10
VERSION_BYTES = 2 * FEATURES * FACTORS * 4


class Reader:
    """Where versions are read: it notes which were, and holds none."""

    def __init__(self):
        self.read = []

    def subspace(self, version):
        self.read.append(version)
        time.sleep(0.01)  # as a disk does: whoever else asks comes meanwhile
        return make_version(version)


def make_version(version):
    a, b = (
        Basis(torch.eye(FEATURES, FACTORS), torch.ones(FACTORS, dtype=torch.float64), FACTORS)
        for _ in range(2)
    )
    return Subspace({"layer": LayerSubspace(a, b)}, version)


def remember(cache, numbers):
    for number in numbers:
        subspace = make_version(number)
        cache.remember(subspace, encode_served(subspace))


@pytest.fixture
def tight(monkeypatch):
    """Bounds in which one older version has no room, neither whole nor as it is sent."""
    monkeypatch.setattr(versions, "OLDER_SUBSPACE_BYTES", VERSION_BYTES // 2)
    monkeypatch.setattr(versions, "OLDER_PAYLOAD_BYTES", VERSION_BYTES // 2)


@pytest.mark.usefixtures("tight")
def test_of_large_versions_the_newest_is_held_and_the_one_before():
    """However many large versions are made, three times the bytes of one are held."""
    cache = VersionCache(Reader())
    held = []
    for number in range(1, 8):
        remember(cache, [number])
        held.append(cache.num_bytes)
    payload_bytes = cache.served(7).num_bytes
    assert held[0] == VERSION_BYTES + payload_bytes
    assert set(held[1:]) == {2 * VERSION_BYTES + payload_bytes}


@pytest.mark.usefixtures("tight")
def test_late_updates_find_their_large_version_in_memory():
    """The older version that was asked for last stays, beside the newest; another takes its place."""
    reader = Reader()
    cache = VersionCache(reader)
    remember(cache, range(1, 5))
    for _ in range(3):
        for version in (2, 4):
            assert cache.subspace(version).version == version
    assert reader.read == [2]
    cache.subspace(1)
    cache.subspace(2)
    assert reader.read == [2, 1, 2]


def test_small_versions_are_held_by_number():
    """Where bytes are no matter, the four versions that were used last are held, and no more."""
    reader = Reader()
    cache = VersionCache(reader)
    remember(cache, range(1, 10))
    payload_bytes = cache.served(9).num_bytes
    assert cache.num_bytes == 4 * (VERSION_BYTES + payload_bytes)
    assert [cache.subspace(version).version for version in (6, 7, 8, 9)] == [6, 7, 8, 9]
    assert reader.read == []


@pytest.mark.usefixtures("tight")
def test_the_newest_version_is_held_in_every_form_that_is_asked_for():
    """A second form does not push the first one out, though both exceed the bound of older ones."""
    cache = VersionCache(Reader())
    remember(cache, [1])
    assert cache.served(1, WHOLE) is cache.served(1, WHOLE)
    assert cache.served(1, AS_KEPT) is cache.served(1, AS_KEPT)


def test_what_is_in_memory_does_not_grow_with_use():
    """Asking again for what is held, in any order, leaves as many bytes as before."""
    cache = VersionCache(Reader())
    remember(cache, range(1, 5))
    before = cache.num_bytes
    for version in (1, 4, 2, 3, 3, 1) * 5:
        cache.subspace(version)
        cache.served(version)
    assert cache.num_bytes == before


def test_a_version_is_read_once_for_all_who_ask_at_once():
    """Many late updates of one version share one reading of it, and one copy in memory."""
    reader = Reader()
    cache = VersionCache(reader)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(cache.subspace, [3] * 32))
    assert reader.read == [3]
    assert all(each is found[0] for each in found)

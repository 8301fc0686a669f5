"""Blobs in an object store that speaks S3: large ones, odd answers, and a server that has gone."""

import hashlib

import pytest

from coordinator.store.blobs import open_blobs
from share_dist.errors import StoreCorrupt, StoreUnavailable
from tests.coordinator import s3

pytestmark = pytest.mark.system


def digest_of(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


def test_what_is_written_is_read_listed_and_removed(object_store):
    """From no byte to more than one part of an upload; removed twice is removed."""
    blobs = open_blobs(object_store.make_bucket(), "store")
    payloads = {digest_of(each): each for each in (b"", b"small", bytes(range(256)) * 2**17)}
    for digest, payload in payloads.items():
        blobs.write(digest, payload, "update")
        blobs.write(digest, payload, "merge")
    assert sorted(blobs.digests()) == sorted(payloads)
    for digest, payload in payloads.items():
        assert blobs.read(digest) == payload
        blobs.remove(digest)
        blobs.remove(digest)
        with pytest.raises(StoreCorrupt, match="found no file"):
            blobs.read(digest)
    assert list(blobs.digests()) == []


def test_catalogs_in_one_bucket_do_not_see_each_other(object_store):
    """Each has a folder of its own."""
    url = object_store.make_bucket()
    one, two = open_blobs(url, "one"), open_blobs(url, "two")
    one.write(digest_of(b"x"), b"x", "update")
    assert (len(list(one.digests())), len(list(two.digests()))) == (1, 0)


def test_what_cannot_be_asked_is_unavailable(monkeypatch):
    """A bucket that is not there and a server that has gone are the store's own errors, with the URL."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with s3.running():
        absent = open_blobs("s3://no-such-bucket/blobs", "store")
        with pytest.raises(StoreUnavailable, match=r"s3://no-such-bucket/blobs"):
            absent.write(digest_of(b"x"), b"x", "update")
    # a server that ends goes on with the connections that it has: this one was never there
    with s3.found_at("http://127.0.0.1:9"):
        lost = open_blobs("s3://tests-lost/blobs", "store")
        for call in (lambda: lost.write(digest_of(b"x"), b"x", "update"), lambda: lost.read(digest_of(b"x")), lambda: list(lost.digests()), lambda: lost.remove(digest_of(b"x"))):  # fmt: skip
            with pytest.raises(StoreUnavailable, match=r"s3://tests-.*check the object store"):
                call()

"""An object store that speaks S3, on loopback, for the tests of blobs behind a URL."""

import contextlib
import uuid
from collections.abc import Iterator
from urllib.request import Request, urlopen

import pytest

ACCESS = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_DEFAULT_REGION": "us-east-1",
    # nobody is asked where these may come from instead
    "AWS_EC2_METADATA_DISABLED": "true",
}


class ObjectStore:
    """
    A server that runs.

    Args:
        url: Where it listens.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def make_bucket(self) -> str:
        """Make a bucket of its own; return the URL of a folder in it."""
        name = f"tests-{uuid.uuid4().hex}"
        with urlopen(Request(f"{self.url}/{name}", method="PUT")):
            return f"s3://{name}/blobs"


@contextlib.contextmanager
def running() -> Iterator[ObjectStore]:
    """Run a server, and let every client of S3 in this process find it."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        with found_at(f"http://{host}:{port}"):
            yield ObjectStore(f"http://{host}:{port}")
    finally:
        server.stop()


@contextlib.contextmanager
def found_at(url: str) -> Iterator[None]:
    """Let every client of S3 that is made meanwhile look for the server there, and keep none of them."""
    import s3fs

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ACCESS, "AWS_ENDPOINT_URL": url}.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        try:
            yield
        finally:
            s3fs.S3FileSystem.clear_instance_cache()

"""A model hub of folders, over HTTP on loopback: what huggingface_hub asks for where it lists and fetches models."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

REVISION = hashlib.sha1(b"the only one").hexdigest()
TAG = "v1"


class Hub(ThreadingHTTPServer):
    """
    Serves ``folder/AUTHOR/NAME/*`` as repositories of one revision each, which has a tag.

    Args:
        folder: Of authors.

    Attributes:
        asked: The paths of all requests, in their order.
        refuses: Repositories that are gated.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.asked: list[str] = []
        self.refuses: set[str] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def repositories(self) -> list[str]:
        """Ids, as no hub sorts them."""
        found = self.folder.glob("*/*")
        return sorted((f"{path.parent.name}/{path.name}" for path in found), reverse=True)


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """Serve a folder until the block ends."""
    with Hub(folder) as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, has_body: bool) -> None:
        self.server.asked.append(self.path)
        asked = urlsplit(self.path)
        parts = asked.path.strip("/").split("/")
        repository = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if parts == ["api", "models"]:
            (author,) = parse_qs(asked.query)["author"]
            named = [each for each in self.server.repositories() if each.startswith(f"{author}/")]
            self._send(json.dumps([{"id": each} for each in named]).encode(), has_body=has_body)
        elif repository in self.server.refuses:
            self._refuse(403, "GatedRepo")
        elif parts[4:5] == ["revision"] and parts[5] not in {"main", TAG, REVISION}:
            self._refuse(404, "RevisionNotFound")
        elif parts[0] == "api" and repository and (self.server.folder / repository).is_dir():
            files = sorted((self.server.folder / repository).iterdir())
            tree = [
                {
                    "type": "file",
                    "path": each.name,
                    "size": each.stat().st_size,
                    "oid": _digest(each.read_bytes()),
                }
                for each in files
            ]
            whole = {
                "id": repository,
                "sha": REVISION,
                "siblings": [{"rfilename": each.name} for each in files],
            }
            said = tree if parts[4] == "tree" else whole
            self._send(json.dumps(said).encode(), has_body=has_body)
        elif parts[2:3] == ["resolve"] and (file := self.server.folder / repository / parts[4]).is_file():  # fmt: skip
            self._send(file.read_bytes(), has_body=has_body)
        else:
            self.send_error(404)

    def _refuse(self, status: int, why: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.send_header("X-Error-Code", why)
        self.end_headers()

    def _send(self, body: bytes, *, has_body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{_digest(body)}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()
        if has_body:
            self.wfile.write(body)

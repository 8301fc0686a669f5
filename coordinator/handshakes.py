"""
Handshakes that fail: gRPC ends them before any code of ours is called, and tells nobody but its log.

So a coordinator with TLS listens to that log. Standard error of the process becomes a pipe
for what gRPC itself writes; Python's own goes on to where it went, and so does all that
is not about a handshake. Only handshakes are traced: a connection that stands costs nothing.
"""

import contextlib
import fcntl
import itertools
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

_PIPE_BYTES: Final = 2**20
_MAX_ENTRY_BYTES: Final = 2**16

_BEGINNING: Final = re.compile(rb"^[IWEF]\d{4} [0-9:.]+ +\d+ ([\w.]+):\d+\] ", re.MULTILINE)
"""How each of gRPC's entries begins; what follows in other lines belongs to it."""

_ABOUT_HANDSHAKES: Final = {b"handshaker.cc", b"channel_trace.h", b"ssl_transport_security.cc", b"trace.cc"}  # fmt: skip
"""Sources whose entries are for us; the others are somebody else's."""

_END: Final = (b"exit_early=0}\n", b"exit_early=1}\n")
"""How an entry about the step of a handshake ends."""

_FAILED: Final = re.compile(
    rb"CallNextHandshakerLocked: error=(?!OK )(.*?)\s*(?:=== Source Location Trace.*?)?"
    rb" shutdown=.*?endpoint_peer_address=([^,}]*)",
    re.DOTALL,
)

_LEFT: Final = b"Handshake read failed"
"""The peer went away by itself, as a port scan or a balancer's health check does: nobody refused it."""

_WORDS: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no client certificate was shown",
    "WRONG_VERSION_NUMBER": "the client does not speak TLS",
    "HTTP_REQUEST": "the client does not speak TLS",
    "NO_SHARED_CIPHER": "no cipher in common",
}
"""What BoringSSL calls a few failures, and what they are."""


class FailedHandshake(NamedTuple):
    """Who tried, as gRPC says it, and why it did not come about."""

    peer: str
    reason: str


class Tap:
    """
    Listens to what gRPC logs; made by ``listen``.

    Args:
        source: Where gRPC's log can be read.
        rest: File descriptor for what is not about handshakes.
    """

    def __init__(self, source: int, rest: int) -> None:
        self._source = source
        self._rest = rest
        self._told: Callable[[FailedHandshake], None] | None = None
        threading.Thread(target=self._read_all, name="handshakes", daemon=True).start()

    def tell(self, told: Callable[[FailedHandshake], None] | None) -> None:
        """Tell of every handshake that fails from now on; from a thread of its own."""
        self._told = told

    def _read_all(self) -> None:
        held = b""
        while read := os.read(self._source, 2**16):
            entries, held = split(held + read)
            for entry in entries:
                self._take(entry)

    def _take(self, entry: bytes) -> None:
        failed = read_entry(entry)
        if failed is not None and self._told is not None:
            self._told(failed)
        beginning = _BEGINNING.match(entry)
        if beginning is None or beginning[1] not in _ABOUT_HANDSHAKES:
            with contextlib.suppress(OSError):
                os.write(self._rest, entry)


_tap: Tap | None = None


def listen() -> Tap:
    """
    Begin to listen; before gRPC is imported, for it reads its environment then.

    A second call returns what the first one did: a process has one standard error.
    """
    global _tap  # noqa: PLW0603 - as standard error is
    if _tap is None:
        assert "grpc" not in sys.modules, "gRPC has read its environment already"
        tracers = filter(None, (os.environ.get("GRPC_TRACE"), "handshaker"))
        os.environ["GRPC_TRACE"] = ",".join(tracers)
        # one that was set could silence what is listened for
        os.environ.pop("GRPC_VERBOSITY", None)
        _tap = Tap(*_divert_standard_error())
    return _tap


def current() -> Tap | None:
    """Return what listens in this process, if anything does."""
    return _tap


def split(read: bytes) -> tuple[list[bytes], bytes]:
    r"""
    Cut what was read into entries.

    Returns:
        Entries that are whole, and what may still go on.

    Examples:
        >>> split(b"I0102 03:04:05.6 7 a.cc:8] one\nI0102 03:04:05.7 7 a.cc:9] t")
        ([b'I0102 03:04:05.6 7 a.cc:8] one\n'], b'I0102 03:04:05.7 7 a.cc:9] t')
    """
    whole, _, rest = read.rpartition(b"\n")
    if not whole:
        return ([read], b"") if len(read) > _MAX_ENTRY_BYTES else ([], read)
    whole += b"\n"
    cuts = [match.start() for match in _BEGINNING.finditer(whole)]
    cuts = sorted({0, *cuts, len(whole)})
    entries = [whole[start:end] for start, end in itertools.pairwise(cuts)]
    if _is_going_on(entries[-1]):
        rest = entries.pop() + rest
    return entries, rest


def read_entry(entry: bytes) -> FailedHandshake | None:
    """Read who failed and why in one entry of gRPC's log; None where nobody was refused in it."""
    found = _FAILED.search(entry)
    if found is None or _LEFT in found[1]:
        return None
    error, peer = (part.decode(errors="replace") for part in found.groups())
    return FailedHandshake(peer, _in_words(error))


def _in_words(error: str) -> str:
    _, _, said = error.partition("OPENSSL_internal:")
    name, _, detail = said.partition(":")
    if name in _WORDS:
        return _WORDS[name]
    if name == "CERTIFICATE_VERIFY_FAILED":
        return f"the client's certificate was refused: {detail.partition(': OK')[0].strip()}"
    return (name.lower().replace("_", " ") if name else error.partition("\n")[0])[:200]


def _is_going_on(entry: bytes) -> bool:
    """Whether an entry for us may still lack its end: those of other sources are passed on at once."""
    beginning = _BEGINNING.match(entry)
    is_ours = beginning is not None and beginning[1] in _ABOUT_HANDSHAKES
    return is_ours and not entry.endswith(_END) and len(entry) < _MAX_ENTRY_BYTES


def _divert_standard_error() -> tuple[int, int]:
    """Make a pipe of descriptor 2; return its other end, and where standard error was."""
    sys.stderr.flush()
    before = os.dup(2)
    reader, writer = os.pipe()
    with contextlib.suppress(OSError, AttributeError):
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    # a flood loses lines rather than stop gRPC until they are read
    os.set_blocking(writer, False)
    os.dup2(writer, 2)
    os.close(writer)
    sys.stderr = os.fdopen(os.dup(before), "w", buffering=1, errors="backslashreplace")
    return reader, before


@contextlib.contextmanager
def told(to: Callable[[FailedHandshake], None]) -> Iterator[None]:
    """Have failed handshakes told for a while, where this process listens to them."""
    tap = current()
    if tap is not None:
        tap.tell(to)
    try:
        yield
    finally:
        if tap is not None:
            tap.tell(None)

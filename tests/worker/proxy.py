"""A stretch of network between a worker and its coordinator that can be cut without anybody being told."""

import contextlib
import socket
import threading

from typing_extensions import Self


class Proxy:
    """
    Forwards bytes to a coordinator.

    While it is cut, what is sent stays on the way, as TCP would send it again and again; nobody's
    connection ends. With ``for_good`` connections from before the cut stay dead after it is
    healed, as behind a firewall that forgot them.

    Args:
        address: Of the coordinator.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._flows = threading.Event()
        self._flows.set()
        self._sockets: list[socket.socket] = []
        self._dead: set[socket.socket] = set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()
        # a thread that waits in a call of the system wakes up by this alone
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def cut(self, *, for_good: bool = False) -> None:
        """Let nothing through."""
        self._flows.clear()
        if for_good:
            self._dead.update(self._sockets)

    def heal(self) -> None:
        """Let everything through again."""
        self._flows.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._flows.wait()
                self._join(near)

    def _join(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(self._target)
        except OSError:
            near.close()
            return
        self._sockets += [near, far]
        for one, other in ((near, far), (far, near)):
            threading.Thread(target=self._forward, args=(one, other), daemon=True).start()

    def _forward(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                self._flows.wait()
                if one in self._dead:
                    continue
                other.sendall(data)
            if one not in self._dead:
                other.shutdown(socket.SHUT_WR)

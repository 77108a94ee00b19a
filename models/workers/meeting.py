"""How the two sockets between a node and a worker process come about."""

from __future__ import annotations

import secrets
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from meshnode.errors import ModelError
from meshnode.models.workers.child import CHANNEL_VARIABLE

if TYPE_CHECKING:
    import subprocess

_TOKEN_BYTES: Final = 32


class Meeting:
    """How the two sockets reach the process: inherited, or (Windows) dialled by it with a secret."""

    def __init__(self, *, inherits: bool) -> None:
        """Make the sockets, or listen for the process.

        Attributes:
            environment: Variables that the process needs for it.
            inherited: Descriptors of its work and its side socket; -1 for none.
        """
        self.environment: dict[str, str] = {}
        self.inherited = [-1, -1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener: socket.socket | None = None
        if inherits:
            self._pairs = [socket.socketpair(), socket.socketpair()]
            self.inherited = [theirs.fileno() for _, theirs in self._pairs]
            return
        self._token = secrets.token_hex(_TOKEN_BYTES).encode()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4)
        port = self._listener.getsockname()[1]
        self.environment[CHANNEL_VARIABLE] = f"{port}:{self._token.decode()}"

    def sockets(
        self, process: subprocess.Popen[bytes], timeout_s: float
    ) -> tuple[socket.socket, socket.socket]:
        """Return our ends of the work and the side socket."""
        if self._listener is None:
            for _, theirs in self._pairs:
                theirs.close()
            return self._pairs[0][0], self._pairs[1][0]
        found: dict[bytes, socket.socket] = {}
        deadline = time.monotonic() + timeout_s
        try:
            while len(found) < 2 and process.poll() is None and time.monotonic() < deadline:
                self._listener.settimeout(0.5)
                with suppress(TimeoutError):
                    self._take(self._listener.accept()[0], found)
        finally:
            self._listener.close()
        if len(found) < 2:
            for each in found.values():
                each.close()
            raise ModelError("the model cannot be opened: its process did not come up")
        return found[b"w"], found[b"s"]

    def _take(self, connected: socket.socket, found: dict[bytes, socket.socket]) -> None:
        connected.settimeout(5)
        said = b""
        with suppress(OSError):
            while len(said) < 1 + len(self._token) and (more := connected.recv(256)):
                said += more
        if secrets.compare_digest(said[1:], self._token) and said[:1] not in found:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.settimeout(None)
            found[said[:1]] = connected
        else:
            connected.close()

    def close(self) -> None:
        """Let go of all ends."""
        for pair in self._pairs:
            for each in pair:
                each.close()
        if self._listener is not None:
            self._listener.close()

"""TLS without a socket: bytes in, bytes out, for connections that run inside of another one's streams.

A loop with a network of its own (the simulator's), whose TLS is a stand-in, offers `tls_session`;
everywhere else OpenSSL works on buffers in memory.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any, Protocol, cast

from meshnode.limits import KIB

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshnode.types import Buffer

_READ_BYTES = 64 * KIB
"""Plaintext read at a time: four records."""


class TlsSession(Protocol):
    """One side of a TLS connection.

    Attributes:
        done: Whether the handshake is over, so that data may be sent.
        ended: Whether the other side said that nothing more comes.
        ssl_object: Tells of the connection, as transports do; `getpeercert` once `done`.
    """

    done: bool
    ended: bool
    ssl_object: Any

    def start(self) -> bytes:
        """Return what this side sends first."""
        ...

    def receive(self, data: Buffer) -> tuple[bytes, bytes]:
        """Take bytes of the other side; return what to send, and what it said.

        Raises:
            ssl.SSLError: if that is no TLS, or was changed on its way.
        """
        ...

    def send(self, data: Iterable[Buffer]) -> bytes:
        """Return what to send to say this; only once `done`."""
        ...


def begin_session(context: ssl.SSLContext, *, server_side: bool) -> TlsSession:
    """Begin one side of a connection, in the world that the running loop is in."""
    made = getattr(asyncio.get_running_loop(), "tls_session", None)
    if made is not None:
        return cast("TlsSession", made(context, server_side=server_side))
    return MemorySession(context, server_side=server_side)


class MemorySession:
    """A side of a connection that OpenSSL carries out on buffers; see `TlsSession`."""

    def __init__(self, context: ssl.SSLContext, *, server_side: bool) -> None:
        """Begin with this context."""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.ssl_object: Any = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side
        )
        self.done = False
        self.ended = False

    def __repr__(self) -> str:
        state = "ended" if self.ended else "open" if self.done else "in handshake"
        return f"<MemorySession {state}>"

    def start(self) -> bytes:
        """Return what this side sends first: nothing, at a server."""
        self._shake_hands()
        return self._outgoing.read()

    def receive(self, data: Buffer) -> tuple[bytes, bytes]:
        """Take bytes of the other side; return what to send, and what it said."""
        self._incoming.write(data)
        if not self.done:
            self._shake_hands()
        said: list[bytes] = []
        while self.done and not self.ended:
            try:
                piece = self.ssl_object.read(_READ_BYTES)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                piece = b""
            self.ended = not piece
            said.append(piece)
        return self._outgoing.read(), b"".join(said)

    def send(self, data: Iterable[Buffer]) -> bytes:
        """Return what to send to say this."""
        joined = b"".join(data)  # each write would be a record of its own
        if joined:
            self.ssl_object.write(joined)
        return self._outgoing.read()

    def _shake_hands(self) -> None:
        try:
            self.ssl_object.do_handshake()
        except ssl.SSLWantReadError:
            return
        self.done = True

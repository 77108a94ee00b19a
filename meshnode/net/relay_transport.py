"""What a connection writes to and reads from when it runs through a relay: a transport over a stream.

    Connection of the two ends
        RelayedTransport: TLS between the two ends
            a conversation on the link to the relay (TLS of its own)

Flow. What this side writes and the relay does not take yet waits in the outer link, and above
`HIGH_WATER_BYTES` the connection keeps it to itself, where its own streams take turns. What comes is
handed on at once, so that its credit returns at once: the connection within bounds what its streams
hold, as on a socket.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any

from meshnode.errors import LinkLost, MeshError
from meshnode.limits import KIB
from meshnode.net.tls_session import begin_session

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshnode.net.connection import Connection
    from meshnode.types import Buffer, NodeId

PART_BYTES = 128 * KIB
"""Bytes sent in one part. Above `IMMEDIATE_BYTES`, so that parts take turns with those of other streams of
the link and overtake none; few enough that a relay, which passes whole parts on, has one soon."""

HIGH_WATER_BYTES = 2 * PART_BYTES
"""Bytes that wait for the relay before the connection is told to pause: as much as before a socket."""


class RelayedTransport(asyncio.Transport):
    """A transport with TLS inside of a conversation. It is the conversation's handler.

    A conversation that the other side ends, or that its link loses, ends the connection within.
    """

    def __init__(
        self,
        outer: Connection,
        inner: asyncio.Protocol,
        tls: ssl.SSLContext,
        *,
        relay: NodeId,
        server_side: bool,
    ) -> None:
        """Wait for `begin`.

        Args:
            outer: The link to the relay.
            inner: What runs within; told `connection_made` when TLS stands.
            tls: Its context.
            relay: Who is at the other end of the outer link.
            server_side: Whether this is the end that was called.
        """
        self._session = begin_session(tls, server_side=server_side)
        self._extra: dict[str, Any] = {"peername": (str(relay), 0)}
        super().__init__(self._extra)
        self._outer = outer
        self._inner = inner
        self._stream = 0
        self._loop = asyncio.get_running_loop()
        self._secured: asyncio.Future[None] = self._loop.create_future()
        self._made = False
        self._closing = False
        self._lost = False
        self._draining: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "closed" if self._lost else "closing" if self._closing else "open"
        return f"<RelayedTransport {state} by {self._outer!r}>"

    def begin(self, stream: int) -> None:
        """Speak on this stream from now on."""
        self._stream = stream
        self._put(self._session.start())

    async def secured(self) -> None:
        """Wait until TLS stands and the connection within has been told.

        Raises:
            MeshError: if it never will.
        """
        await asyncio.shield(self._secured)

    # StreamHandler

    def part(self, meta: bytes, data: memoryview, end: bool) -> None:
        """Take bytes of the other end."""
        del meta
        if data.nbytes:
            self._outer.consumed(self._stream, data.nbytes)
        if self._lost:
            return
        try:
            output, said = self._session.receive(data) if data.nbytes else (b"", b"")
        except ssl.SSLError as error:
            self._finish(LinkLost(f"what came through the relay is not TLS ({error.reason})"))
            return
        self._put(output)
        if self._session.done and not self._made and not self._closing:
            self._made = True
            self._extra["ssl_object"] = self._session.ssl_object
            self._inner.connection_made(self)
            self._secured.set_result(None)
        if said and not self._closing:
            self._inner.data_received(said)
        if end or self._session.ended:
            self._finish(None)

    def lost(self, error: MeshError) -> None:
        """The conversation is over."""
        self._finish(error, tell_relay=False)

    # asyncio.Transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what is known of the connection: `peername` is the relay's, `ssl_object` the other end's."""
        return self._extra.get(name, default)

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Send bytes."""
        self.writelines((data,))

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        """Send several pieces as one."""
        if not self._closing:
            self._put(self._session.send(list_of_data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Do nothing: what waits before a relay is bounded by `HIGH_WATER_BYTES`."""

    def is_closing(self) -> bool:
        """Whether it is closed or about to be."""
        return self._closing

    def close(self) -> None:
        """Send what was written, and end."""
        if not self._closing:
            self._closing = True
            self._send(b"", end=True)

    def abort(self) -> None:
        """End at once."""
        self._closing = True
        self._finish(None)

    # Inside

    def _put(self, data: bytes) -> None:
        view = memoryview(data)
        for start in range(0, len(view), PART_BYTES):
            self._send(view[start : start + PART_BYTES], end=False)
        if self._draining is None and self._made and self._queued_bytes > HIGH_WATER_BYTES:
            self._inner.pause_writing()
            self._draining = asyncio.ensure_future(self._drain())

    @property
    def _queued_bytes(self) -> int:
        return self._outer.queued_bytes(self._stream)

    def _send(self, data: Buffer, *, end: bool) -> None:
        try:
            self._outer.reply(self._stream, b"", (data,), end=end)
        except (MeshError, ValueError) as error:
            self._finish(LinkLost(f"the relay takes nothing more: {error}"))

    async def _drain(self) -> None:
        await self._outer.drained(self._stream, HIGH_WATER_BYTES // 2)
        self._draining = None
        if not self._lost:
            self._inner.resume_writing()

    def _finish(self, error: MeshError | None, *, tell_relay: bool = True) -> None:
        """Give the stream up, and tell the connection within, soon."""
        if self._lost:
            return
        self._lost = self._closing = True
        if tell_relay:
            self._outer.refuse(self._stream, error or LinkLost("the link through it was closed"))
            self._outer.cancel(self._stream)
        if self._draining is not None:
            self._draining.cancel()
        if self._made:
            self._loop.call_soon(self._inner.connection_lost, error)
        elif not self._secured.done():
            self._secured.set_exception(error or LinkLost("the other end hung up"))
            self._secured.exception()  # who began it may have given up: that is no mistake

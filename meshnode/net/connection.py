"""One TLS connection between two nodes: first the hello, then the multiplexed link.

The deciding parts (hello, frames, credit, liveness) are sans-IO cores; this class feeds them bytes
and time, and hands what they say to a `LinkOwner`. Writes are collected and flushed once per turn
of the event loop, so that many small answers share one TLS record and one system call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from meshnode.config import HANDSHAKE_TIMEOUT_S
from meshnode.errors import HandshakeError, LinkLost, MeshError, ProtocolError, error_of
from meshnode.trust.hello import AcceptorHello, DiallerHello, HelloResult
from meshnode.types import Address, Buffer
from meshnode.wire.link import (
    Dead,
    GoingAway,
    Link,
    LinkConfig,
    LinkEvent,
    NoteReceived,
    PartReceived,
    Recovered,
    RttMeasured,
    Stalled,
    StreamOpened,
    StreamReset,
    StreamWritable,
)

if TYPE_CHECKING:
    from meshnode.clock import Clock


class StreamHandler(Protocol):
    """Receives what the peer sends on one stream that we opened."""

    def part(self, meta: bytes, data: memoryview, end: bool) -> None:
        """Take one part; after `end` nothing more comes."""

    def lost(self, error: MeshError) -> None:
        """The stream was reset or its link broke; nothing more comes."""


class LinkOwner(Protocol):
    """What a connection tells the hub that owns it."""

    def established(self, connection: Connection) -> None:
        """The hello succeeded; `connection.hello` is set."""

    def closed(self, connection: Connection, error: MeshError | None) -> None:
        """The connection is gone; with an error if it was not asked for."""

    def stream_opened(
        self, connection: Connection, stream: int, meta: bytes, data: memoryview
    ) -> None:
        """The peer asks something; answer with `reply`."""

    def stream_cancelled(self, connection: Connection, stream: int) -> None:
        """The peer does not want the answer any more."""

    def note_received(self, connection: Connection, payload: bytes) -> None:
        """A one-way message arrived."""

    def health_changed(self, connection: Connection) -> None:
        """The link stalled, recovered, is going away, or its RTT was measured."""


Hello = DiallerHello | AcceptorHello

HelloFactory = Callable[[asyncio.Transport], Hello]
"""Makes the hello once the TLS connection stands, since it is bound to its certificate."""


class Connection(asyncio.Protocol):
    """A connection in one of three phases: hello, link, closed."""

    def __init__(
        self,
        owner: LinkOwner,
        make_hello: HelloFactory,
        clock: Clock,
        *,
        dialler: bool,
        config: LinkConfig,
    ) -> None:
        """Wait for the transport. `dialler` is true on the side that opened the connection."""
        self.dialler = dialler
        self.hello: HelloResult | None = None
        self.remote = Address("", 0)
        self._owner = owner
        self._make_hello = make_hello
        self._clock = clock
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._handshake: Hello | None = None
        self._link: Link | None = None
        self._handlers: dict[int, StreamHandler] = {}
        self._writable: dict[int, asyncio.Future[None]] = {}
        self._flush_due = False
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._error: MeshError | None = None
        self._closed = False

    def __repr__(self) -> str:
        phase = "closed" if self._closed else "link" if self._link else "hello"
        side = "to" if self.dialler else "from"
        return f"<Connection {side} {self.remote} {phase} {self._link!r}>"

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the hello."""
        self._transport = cast("asyncio.Transport", transport)
        peer: tuple[Any, ...] = transport.get_extra_info("peername", ("", 0))
        self.remote = Address(str(peer[0]).partition("%")[0], int(peer[1]))
        self._timer = self._loop.call_later(HANDSHAKE_TIMEOUT_S, self._handshake_timed_out)
        self._handshake = self._make_hello(self._transport)
        self._transport.write(self._handshake.start())

    def data_received(self, data: bytes) -> None:
        """Feed the hello, then the link."""
        if self._closed:
            return
        try:
            link = self._link
            if link is None:
                data = self._continue_handshake(data)
                link = self._link
            if link is None or not data:
                return
            for event in link.receive(data, self._clock.now()):
                self._dispatch(event)
        except ProtocolError as error:
            self.close(error)
            return
        self._schedule_flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is in flight; the owner hears of it once."""
        if self._error is None and exc is not None:
            self._error = LinkLost(f"the connection to {self.remote} broke: {exc}")
        self._finish()

    def pause_writing(self) -> None:
        """Keep output in the link, where streams take turns, until the socket takes more."""
        self._paused = True

    def resume_writing(self) -> None:
        """The socket takes more."""
        self._paused = False
        self._schedule_flush()

    # What the hub and its users call

    @property
    def established(self) -> bool:
        """Whether the hello succeeded and the connection stands."""
        return self._link is not None and not self._closed

    @property
    def usable(self) -> bool:
        """Whether a new stream may be opened and can be expected to be answered."""
        link = self._link
        return link is not None and not self._closed and not link.stalled and not link.going_away

    @property
    def stalled(self) -> bool:
        """Whether the peer has stopped answering while it owed us something."""
        return self._link is not None and self._link.stalled

    @property
    def rtt_s(self) -> float | None:
        """Smoothed round-trip time in seconds, or None before the first ping came back."""
        return self._link.rtt_s if self._link else None

    def open(
        self, meta: bytes, data: Sequence[Buffer], handler: StreamHandler, *, end: bool = True
    ) -> int:
        """Open a stream with one part; the handler receives what comes back.

        Raises:
            LinkLost: if the link is not usable.
            Saturated: if too many streams are open on it.
        """
        if self._link is None or self._closed:
            raise LinkLost(f"there is no link to {self.remote}")
        stream = self._link.open_stream(meta, data, end=end)
        self._handlers[stream] = handler
        self._schedule_flush()
        if len(self._handlers) == 1:
            self._arm_timer()
        return stream

    def reply(self, stream: int, meta: bytes, data: Sequence[Buffer] = (), *, end: bool) -> None:
        """Send one part on a stream that the peer opened; nothing happens if it is gone."""
        if self._link is not None and not self._closed:
            self._link.send(stream, meta, data, end=end)
            self._schedule_flush()

    def cancel(self, stream: int) -> None:
        """Tell the peer that nobody waits for this stream any more."""
        handler = self._handlers.pop(stream, None)
        if handler is not None and self._link is not None and not self._closed:
            self._link.reset(stream)
            self._schedule_flush()

    def refuse(self, stream: int) -> None:
        """Reset a stream that the peer opened."""
        if self._link is not None and not self._closed:
            self._link.reset(stream, "not_serving", "this node is still starting")
            self._schedule_flush()

    def note(self, payload: bytes) -> None:
        """Send a one-way message."""
        if self._link is not None and not self._closed:
            self._link.send_note(payload)
            self._schedule_flush()

    def go_away(self) -> None:
        """Open no new streams on this link; those that run finish."""
        if self._link is not None and not self._closed:
            self._link.go_away()
            self._schedule_flush()

    async def drained(self, stream: int) -> None:
        """Wait until little of what was sent on this stream is still queued here."""
        while (
            self._link is not None
            and not self._closed
            and self._link.queued_bytes(stream) > self._config.window_bytes
        ):
            waiter = self._writable.get(stream)
            if waiter is None:
                waiter = self._writable[stream] = self._loop.create_future()
            await asyncio.shield(waiter)

    def close(self, error: MeshError | None = None) -> None:
        """Close the connection, after flushing what may still be written."""
        if self._closed:
            return
        self._error = self._error or error
        if self._transport is not None:
            if self._link is not None and not self._paused:
                self._transport.writelines(self._link.take_output())
            self._transport.close()
            # A peer that reads nothing would keep a closing transport open for ever.
            self._loop.call_later(HANDSHAKE_TIMEOUT_S, self._transport.abort)
        self._finish()

    def abort(self, error: MeshError) -> None:
        """Drop the connection at once."""
        self._error = self._error or error
        if self._transport is not None:
            self._transport.abort()
        self._finish()

    def close_when_idle(self, grace_s: float) -> None:
        """Close once no stream is open, and after `grace_s` at the latest."""
        self.go_away()
        deadline = self._loop.time() + grace_s
        self._close_if_idle(deadline)

    # Inside

    def _close_if_idle(self, deadline: float) -> None:
        if self._closed or self._link is None:
            return
        if self._link.idle or self._loop.time() >= deadline:
            self.close()
        else:
            self._loop.call_later(0.02, self._close_if_idle, deadline)

    def _continue_handshake(self, data: bytes) -> bytes:
        handshake = self._handshake
        assert handshake is not None
        assert self._transport is not None
        out = handshake.receive(data)
        if out:
            self._transport.write(out)
        if handshake.failed is not None:
            self.close(handshake.failed)
            return b""
        if handshake.result is None:
            return b""
        self.hello = handshake.result
        self._handshake = None
        if self._timer is not None:
            self._timer.cancel()
        now = self._clock.now()
        self._link = Link(dialler=self.dialler, config=self._config, now=now)
        self._owner.established(self)
        self._arm_timer()
        return self.hello.leftover

    def _handshake_timed_out(self) -> None:
        self.abort(HandshakeError(f"{self.remote} did not finish its hello in time"))

    def _dispatch(self, event: LinkEvent) -> None:
        kind = type(event)
        if kind is PartReceived:
            self._part_received(cast("PartReceived", event))
        elif kind is StreamOpened:
            opened = cast("StreamOpened", event)
            assert self._link is not None
            if opened.data.nbytes:
                self._link.consumed(opened.stream, opened.data.nbytes)
            self._owner.stream_opened(self, opened.stream, opened.meta, opened.data)
        elif kind is StreamReset:
            self._stream_reset(cast("StreamReset", event))
        elif kind is NoteReceived:
            self._owner.note_received(self, cast("NoteReceived", event).payload)
        elif kind is StreamWritable:
            waiter = self._writable.pop(cast("StreamWritable", event).stream, None)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        elif kind is Dead:
            self.abort(LinkLost(f"{self.remote} has been silent for too long"))
        elif kind is Stalled:
            self._fail_handlers(LinkLost("the peer stopped answering"))
            self._owner.health_changed(self)
        elif kind in (Recovered, GoingAway, RttMeasured):
            self._owner.health_changed(self)

    def _part_received(self, event: PartReceived) -> None:
        assert self._link is not None
        if event.data.nbytes:
            self._link.consumed(event.stream, event.data.nbytes)
        handler = self._handlers.get(event.stream)
        if handler is None:
            return
        if event.end:
            del self._handlers[event.stream]
        handler.part(event.meta, event.data, event.end)

    def _stream_reset(self, event: StreamReset) -> None:
        waiter = self._writable.pop(event.stream, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        handler = self._handlers.pop(event.stream, None)
        if handler is not None:
            handler.lost(error_of(event.code, event.message))
        else:
            self._owner.stream_cancelled(self, event.stream)

    def _schedule_flush(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self._paused or self._closed or self._link is None or self._transport is None:
            return
        out = self._link.take_output()
        if out:
            self._transport.writelines(out)

    def _arm_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._link is None or self._closed:
            return
        due = self._link.next_tick(self._clock.now())
        if due is not None:
            delay = max(0.0, due - self._clock.now())
            self._timer = self._loop.call_later(delay, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._link is None or self._closed:
            return
        for event in self._link.tick(self._clock.now()):
            self._dispatch(event)
        self._flush()
        self._arm_timer()

    def _fail_handlers(self, error: MeshError) -> None:
        handlers, self._handlers = self._handlers, {}
        for stream, handler in handlers.items():
            if self._link is not None and not self._closed:
                self._link.reset(stream)
            handler.lost(error)

    def _finish(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for waiter in self._writable.values():
            if not waiter.done():
                waiter.set_result(None)
        self._writable.clear()
        self._fail_handlers(self._error or LinkLost(f"the link to {self.remote} was closed"))
        self._owner.closed(self, self._error)

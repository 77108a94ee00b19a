"""What protocols get: stream transports and servers of virtual hosts, with asyncio's behaviour."""

from __future__ import annotations

import asyncio
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Final

from meshnode.sim.virtual.tls import Handshake, StandInObject

if TYPE_CHECKING:
    import ssl as ssl_module
    from collections.abc import Callable, Iterable

    from meshnode.sim.virtual.loop_base import LoopBase
    from meshnode.sim.virtual.sockets import VirtualSocket
    from meshnode.sim.virtual.streams import StreamEnd

HIGH_WATER_BYTES: Final = 65_536
"""What waits to be sent before a protocol is told to pause, as in asyncio."""

HANDSHAKE_TIMEOUT_S: Final = 60.0
"""As in asyncio."""


class StreamTransport(asyncio.Transport):
    """A transport over one end of a connection.

    Attributes:
        reads: Whether it takes what comes; else that waits in the kernel, and fills the window.
    """

    def __init__(
        self,
        loop: LoopBase,
        sock: VirtualSocket,
        protocol: asyncio.BaseProtocol,
        *,
        tls: ssl_module.SSLContext | None = None,
        server: VirtualServer | None = None,
        server_side: bool = False,
        handshake_timeout_s: float | None = None,
    ) -> None:
        """Take over a connected socket; `start` tells the protocol, at once or after the handshake.

        Args:
            loop: Where it runs.
            sock: Whose end of a connection it reads.
            protocol: Told of everything.
            tls: A context, for the stand-in of TLS.
            server: Whose connection it is.
            server_side: Whether it was accepted, where there is no server.
            handshake_timeout_s: For TLS.
        """
        end = sock.end
        assert end is not None
        self._about: dict[str, Any] = {
            "socket": sock, "sockname": end.sockname, "peername": end.peername
        }  # fmt: skip
        super().__init__(self._about)
        self._loop = loop
        self._sock = sock
        self._end: StreamEnd = end
        self._server = server
        self._context: Context = copy_context()
        self._tls = tls
        self._handshake = (
            Handshake(tls, server_side=server_side or server is not None) if tls else None
        )
        self._handshake_timeout_s = handshake_timeout_s or HANDSHAKE_TIMEOUT_S
        self._handshake_timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._made = False
        self._closing = False
        self._lost = False
        self._eof = False
        self._paused_writing = False
        self._high, self._low = HIGH_WATER_BYTES, HIGH_WATER_BYTES // 4
        self.reads = False
        self._wants_reads = True
        self.set_protocol(protocol)
        if server is not None:
            server.attached(self)

    def __repr__(self) -> str:
        state = "closed" if self._lost else "closing" if self._closing else "open"
        return f"<StreamTransport {self._end!r} {state}>"

    # Beginning.

    def start(self, waiter: asyncio.Future[None] | None = None) -> None:
        """Begin, soon; the waiter is told once the protocol has been, or why it never will be."""
        self._waiter = waiter
        self._loop.call_soon(self._begin, context=self._context)

    def _begin(self) -> None:
        if self._end.error is not None and not self._closing:
            self.broken(self._end.error)
            return
        if self._closing:
            return
        if self._handshake is None:
            self._ready()
            return
        self._handshake_timer = self._loop.call_later(self._handshake_timeout_s, self._too_slow)
        self.reads = True
        self._end.attach(self)
        first = self._handshake.start()
        if first:
            self._end.send(first)

    def _ready(self) -> None:
        """Tell the protocol, and read."""
        self._made = True
        self._protocol.connection_made(self)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if not self._closing:
            self.reads = self._wants_reads
            self._end.attach(self)

    def _shake(self, data: bytes) -> None:
        handshake = self._handshake
        assert handshake is not None
        try:
            answer = handshake.receive(data)
        except OSError as error:
            self._fail_handshake(error)
            return
        if answer:
            self._end.send(answer)
        if not handshake.done:
            return
        self._handshake = None
        self._stop_handshake_timer()
        made = StandInObject(self._tls, handshake.peer_certificate)
        self._about.update(
            ssl_object=made,
            sslcontext=self._tls,
            cipher=made.cipher(),
            compression=None,
            peercert={},
        )
        self._ready()
        if handshake.leftover and not self._closing:
            self._data_received(handshake.leftover)

    def _too_slow(self) -> None:
        self._fail_handshake(
            ConnectionAbortedError(
                f"SSL handshake is taking longer than {self._handshake_timeout_s} seconds: "
                "aborting the connection"
            )
        )

    def _fail_handshake(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
        self.abort()

    def _stop_handshake_timer(self) -> None:
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
            self._handshake_timer = None

    # What the kernel calls.

    def receive(self, data: bytes) -> None:
        """Hand the protocol what has come."""
        process = self._end.process
        try:
            self._context.run(self._data_received if self._handshake is None else self._shake, data)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - as asyncio does
            self._context.run(self._protocol_failed, "data_received", error)
        if process.turn_s:
            process.block(process.turn_s)

    def receive_eof(self) -> None:
        """Tell the protocol that nothing more comes."""
        if self._handshake is not None:
            self._context.run(self._fail_handshake, ConnectionResetError("the peer hung up"))
            return
        try:
            keep_open = self._context.run(self._eof_received)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - as asyncio does
            self._context.run(self._protocol_failed, "eof_received", error)
            return
        if not keep_open or self._tls is not None:
            self.close()

    def forget(self) -> None:
        """Its process has died: nobody is told anything any more."""
        self._lost = self._closing = True
        self.reads = False

    def broken(self, error: OSError) -> None:
        """The connection is lost."""
        self._lose(error)

    def outbox_changed(self) -> None:
        """Some of what waited has been sent: let the protocol go on, or end if that was wanted."""
        if self._closing:
            if not self._end.outbox_bytes and not self._lost:
                self._finish()
        elif self._paused_writing and self._end.outbox_bytes <= self._low:
            self._loop.call_soon(self._resume_writing, context=self._context)

    def _resume_writing(self) -> None:
        if self._paused_writing and not self._lost and self._end.outbox_bytes <= self._low:
            self._paused_writing = False
            self._protocol.resume_writing()

    def _protocol_failed(self, what: str, error: BaseException) -> None:
        self._loop.protocol_failed(what, error)
        self._hang_up()
        self._lose(error)

    # Writing.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes."""
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if type(data) is not bytes:
            if not isinstance(data, bytes | bytearray | memoryview):
                raise TypeError(f"data must be bytes-like, not {type(data).__name__}")
            data = bytes(data)
        if self._lost or not data:
            return
        end = self._end
        end.send(data)
        if end.outbox_bytes > self._high and not self._paused_writing:
            self._paused_writing = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send several pieces."""
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        """Send nothing more; what comes is still read."""
        if self._eof or self._closing:
            return
        self._eof = True
        self._end.send_fin()

    def can_write_eof(self) -> bool:
        """Whether one direction can be ended alone: not with TLS."""
        return self._tls is None

    def get_write_buffer_size(self) -> int:
        """Return the bytes that wait to be sent."""
        return self._end.outbox_bytes

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the low and the high limit."""
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set when the protocol is told to pause, and to go on."""
        if high is None:
            high = HIGH_WATER_BYTES if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high, self._low = high, low

    # Reading.

    def is_reading(self) -> bool:
        """Whether it takes what comes."""
        return self._wants_reads and not self._closing

    def pause_reading(self) -> None:
        """Leave what comes in the kernel."""
        self._wants_reads = self.reads = False

    def resume_reading(self) -> None:
        """Take what has come and comes."""
        self._wants_reads = True
        if self._made and not self._closing and not self.reads:
            self.reads = True
            self._end.attach(self)

    # Ending.

    def is_closing(self) -> bool:
        """Whether it is closed or about to be."""
        return self._closing

    def close(self) -> None:
        """Read no more, send what waits, then end."""
        if self._closing:
            return
        self._closing = True
        self.reads = False
        if not self._end.outbox_bytes:
            self._finish()

    def abort(self) -> None:
        """End at once; what waits to be sent is lost.

        As with asyncio, the other side sees an end like any other, unless this one has left something
        unread or its socket's SO_LINGER is 0: a reset then.
        """
        if not self._lost:
            self._hang_up()
            self._lose(None)

    def _hang_up(self) -> None:
        if self._sock.resets_when_closed:
            self._end.reset()
        else:
            self._end.hang_up()

    def _finish(self) -> None:
        self._end.send_fin()
        self._end.close()
        self._lose(None)

    def _lose(self, error: BaseException | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self.reads = False
        self._loop.call_soon(self._connection_lost, error, context=self._context)

    def _connection_lost(self, error: BaseException | None) -> None:
        self._stop_handshake_timer()
        self._sock.released()
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_exception(error or ConnectionResetError("the connection was closed"))
        try:
            if self._made:
                self._protocol.connection_lost(error)
        finally:
            if self._server is not None:
                self._server.detached(self)

    # Protocols.

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return who is told."""
        told: asyncio.BaseProtocol = self._protocol
        return told

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Tell another protocol from now on.

        Raises:
            NotImplementedError: if it wants to be given buffers.
        """
        if isinstance(protocol, asyncio.BufferedProtocol):
            raise NotImplementedError(
                "virtual transports do not fill buffers: use asyncio.Protocol"
            )
        self._protocol: Any = protocol
        told: Any = protocol
        self._data_received: Callable[[bytes], None] = told.data_received
        self._eof_received: Callable[[], bool | None] = told.eof_received


class VirtualServer(asyncio.AbstractServer):
    """Listens at some sockets of a host and gives each connection a protocol.

    Attributes:
        sockets: Where; empty once it is closed.
    """

    def __init__(
        self,
        loop: LoopBase,
        sockets: list[VirtualSocket],
        factory: Callable[[], asyncio.BaseProtocol],
        tls: ssl_module.SSLContext | None,
        backlog: int,
        handshake_timeout_s: float | None,
    ) -> None:
        """Prepare; `begin` listens."""
        self._loop = loop
        self._sockets: tuple[VirtualSocket, ...] | None = tuple(sockets)
        self._factory = factory
        self._tls = tls
        self._backlog = backlog
        self._handshake_timeout_s = handshake_timeout_s
        self._context = copy_context()
        self._serving = False
        self._transports: dict[StreamTransport, None] = {}
        self._waiters: list[asyncio.Future[None]] = []
        self._forever: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<VirtualServer at {list(self.sockets)}, {len(self._transports)} connections>"

    @property
    def sockets(self) -> tuple[VirtualSocket, ...]:
        """Where it listens."""
        return self._sockets or ()

    def begin(self) -> None:
        """Listen, and take connections."""
        if self._serving or self._sockets is None:
            return
        self._serving = True
        for sock in self._sockets:
            sock.listen(self._backlog)
            sock.on_connection(lambda sock=sock: self._wake(sock))  # type: ignore[misc]

    def _wake(self, sock: VirtualSocket) -> None:
        self._loop.call_soon(self._accept, sock, context=self._context)

    def _accept(self, sock: VirtualSocket) -> None:
        while self._serving and (accepted := sock.take_connection()) is not None:
            transport = StreamTransport(
                self._loop,
                accepted,
                self._factory(),
                tls=self._tls,
                server=self,
                handshake_timeout_s=self._handshake_timeout_s,
            )
            transport.start()

    def attached(self, transport: StreamTransport) -> None:
        """Count a connection."""
        self._transports[transport] = None

    def detached(self, transport: StreamTransport) -> None:
        """Count a connection no more."""
        self._transports.pop(transport, None)
        self._wake_waiters()

    def _wake_waiters(self) -> None:
        if self._sockets is None and not self._transports:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def get_loop(self) -> LoopBase:
        """Return its loop."""
        return self._loop

    def is_serving(self) -> bool:
        """Whether it takes connections."""
        return self._serving

    async def start_serving(self) -> None:
        """Take connections, if it does not yet."""
        self.begin()

    async def serve_forever(self) -> None:
        """Take connections until this is cancelled; then close."""
        self.begin()
        self._forever = self._loop.create_future()
        try:
            await self._forever
        finally:
            self._forever = None
            self.close()
            await self.wait_closed()

    def close(self) -> None:
        """Take no more connections; those that are go on."""
        sockets, self._sockets = self._sockets, None
        if sockets is None:
            return
        self._serving = False
        for sock in sockets:
            sock.close()
        if self._forever is not None and not self._forever.done():
            self._forever.cancel()
        self._wake_waiters()

    def close_clients(self) -> None:
        """Close all connections."""
        for transport in [*self._transports]:
            transport.close()

    def abort_clients(self) -> None:
        """Abort all connections."""
        for transport in [*self._transports]:
            transport.abort()

    async def wait_closed(self) -> None:
        """Wait until it is closed and its connections have ended, as from Python 3.12 on."""
        if self._sockets is None and not self._transports:
            return
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

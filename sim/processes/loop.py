"""The event loop of a node at depth C: the real one, whose connections to other nodes take their time.

It is asyncio's selector loop, on every platform. Connections between nodes go through wires
(`meshnode.sim.processes.wires`); all others, such as curl's to the gateway, are as ever. Its clock is
the node's, which a fault may let run fast or slow.
"""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import selectors
import socket
from typing import TYPE_CHECKING, Any, Final

from meshnode.sim.processes.wires import DatagramWire, StreamWire

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from meshnode.sim.node_clock import NodeClock
    from meshnode.sim.processes.wires import Wires

_HANDSHAKE_TIMEOUT_S: Final = 60.0  # asyncio's own


class _ClockedSelector(selectors.DefaultSelector):
    """Waits for as long as the node's clock says."""

    def __init__(self, clock: NodeClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(timeout and timeout / self._clock.rate)


class WiredLoop(asyncio.SelectorEventLoop):
    """An event loop whose connections to other nodes go through wires.

    Attributes:
        wires: What they go through; set it before anything connects.
    """

    def __init__(self, clock: NodeClock) -> None:
        """Live by this clock."""
        self._clock = clock
        self.wires: Wires | None = None
        super().__init__(_ClockedSelector(clock))

    def time(self) -> float:
        """Return the seconds of the node's clock."""
        return self._clock.now()

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """Connect; to another node it takes its round trip, or as long as nothing gets through."""
        wires = self.wires
        is_stream = sock.type == socket.SOCK_STREAM
        peer = wires.whereabouts.listener_at(address) if wires and is_stream else None
        if wires is None or peer is None or peer == wires.me:
            await super().sock_connect(sock, address)
            return
        wires.whereabouts.dial_from(sock)
        await wires.reach(peer)
        try:
            await super().sock_connect(sock, address)
        finally:
            await wires.travel(peer, wires.me)

    async def create_connection(
        self, protocol_factory: Callable[[], Any], *args: Any, **options: Any
    ) -> tuple[Any, Any]:
        """Make a connection's transport; one to another node goes through a wire."""
        sock = options.get("sock")
        peer = None if sock is None or self.wires is None else self._listener(sock)
        if peer is None:
            return await super().create_connection(protocol_factory, *args, **options)
        return await self._wired(peer, protocol_factory(), server_side=False, **options)

    async def connect_accepted_socket(
        self, protocol_factory: Callable[[], Any], sock: socket.socket, **options: Any
    ) -> tuple[Any, Any]:
        """Make an accepted connection's transport; one from another node goes through a wire."""
        peer = None if self.wires is None else self._dialler(sock)
        if peer is None:
            return await super().connect_accepted_socket(protocol_factory, sock, **options)
        return await self._wired(peer, protocol_factory(), server_side=True, sock=sock, **options)

    async def create_datagram_endpoint(
        self, protocol_factory: Callable[[], Any], *args: Any, **options: Any
    ) -> tuple[Any, Any]:
        """Make a datagram socket's transport; the mesh's goes through a wire."""
        sock, wires = options.get("sock"), self.wires
        if sock is None or wires is None:
            return await super().create_datagram_endpoint(protocol_factory, *args, **options)
        if wires.whereabouts.listener_at(sock.getsockname()) != wires.me:
            return await super().create_datagram_endpoint(protocol_factory, *args, **options)
        reader = protocol_factory()
        transport, _ = await super().create_datagram_endpoint(
            lambda: DatagramWire(wires, reader), *args, **options
        )
        return transport, reader

    def _listener(self, sock: socket.socket) -> str | None:
        assert self.wires is not None
        try:
            return self.wires.whereabouts.listener_at(sock.getpeername())
        except OSError:  # it is gone already
            return None

    def _dialler(self, sock: socket.socket) -> str | None:
        assert self.wires is not None
        try:
            return self.wires.whereabouts.dialler_at(sock.getpeername())
        except OSError:  # it is gone already
            return None

    async def _wired(
        self,
        peer: str,
        protocol: asyncio.Protocol,
        *,
        server_side: bool,
        sock: socket.socket,
        ssl: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """Connect a protocol through a wire, with TLS on top of the wire if asked for."""
        assert self.wires is not None
        connect: Any = super().connect_accepted_socket
        if ssl is None:
            wire = StreamWire(self.wires, peer, protocol)
            await connect(lambda: wire, sock)
            return wire.transport, protocol
        waiter: asyncio.Future[None] = self.create_future()
        tls = asyncio.sslproto.SSLProtocol(
            self,
            protocol,
            ssl,
            waiter,
            server_side,
            server_hostname,
            ssl_handshake_timeout=int(ssl_handshake_timeout or _HANDSHAKE_TIMEOUT_S),
        )
        above: Any = tls._app_transport  # what asyncio's own loops hand out
        wire = StreamWire(self.wires, peer, tls)
        below, _ = await connect(lambda: wire, sock)
        try:
            await waiter
        except BaseException:
            below.abort()
            raise
        return above, protocol

"""UDP between hosts: what is sent arrives late, twice or not at all, as the network model says."""

from __future__ import annotations

import asyncio
import errno
import struct
from collections import deque
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final

from meshnode.sim.virtual.addresses import plain, spelled
from meshnode.sim.virtual.kernel import failure
from meshnode.sim.virtual.streams import LOOPBACK_S
from meshnode.sim.virtual.tasks import VirtualHandle

if TYPE_CHECKING:
    from meshnode.sim.virtual.host import Process, VirtualHost
    from meshnode.sim.virtual.sockets import VirtualSocket

MAX_DATAGRAM_BYTES: Final = 65_507
"""What one UDP datagram holds over IPv4."""

RECEIVE_BUFFER_BYTES: Final = 212_992
"""What a kernel keeps for a process that does not read: Linux's net.core.rmem_default."""

_OVERHEAD_BYTES: Final = 512  # that a kernel counts for one datagram

_STEP = struct.Struct("<IHI")


class DatagramPort:
    """A bound UDP socket in a kernel.

    Attributes:
        host: Whose kernel.
        process: Whose socket.
        address: Where it is bound, without brackets or mapping; "" for everywhere.
        port: Its port.
        transport: Who reads it, once there is one.
    """

    def __init__(
        self, host: VirtualHost, process: Process, family: int, address: str, port: int
    ) -> None:
        """Make the kernel's side of a bound socket."""
        self.host = host
        self.process = process
        self.family = family
        self.address = address
        self.port = port
        self.transport: VirtualDatagramTransport | None = None
        self._unread: deque[tuple[bytes, tuple[Any, ...]]] = deque()
        self._unread_bytes = 0
        self._pumping = False

    def __repr__(self) -> str:
        return f"<DatagramPort {self.address or '*'}:{self.port} of {self.process!r}>"

    def send(self, data: bytes, address: str, port: int) -> None:
        """Send a datagram; it is lost where nobody is."""
        host = self.host
        loop = host.loop
        if host.kernel.is_own(address):
            loop.after(LOOPBACK_S, self._loop_back, data, address, port)
            return
        target = loop.by_address.get(address)
        if target is None:
            return
        if loop.network.is_held(host.name, target.name):
            loop.hold_datagram(self, target, data, port)
            return
        self.send_now(target, data, port)

    def send_now(self, target: VirtualHost, data: bytes, port: int) -> None:
        """Send a datagram that nothing holds (any more)."""
        loop = self.host.loop
        now = loop.now()
        for delay_s in loop.network.arrivals(self.host.name, target.name, len(data), now):
            loop.at(now + delay_s, _arrives, target, target.address, port, data, self)

    def _loop_back(self, data: bytes, address: str, port: int) -> None:
        _arrives(self.host, address, port, data, self)

    def arrived(self, data: bytes, source: DatagramPort) -> None:
        """Take a datagram; what does not fit into the buffer is lost."""
        host = source.host
        same = host is self.host
        where = spelled(
            self.family,
            "127.0.0.1"
            if same and not source.address
            else host.address
            if not same
            else source.address,
            source.port,
        )
        transport = self.transport
        if transport is not None and not self._unread and not self.process.gated:
            transport.receive(data, where)
            return
        size = len(data) + _OVERHEAD_BYTES
        if self._unread_bytes + size > RECEIVE_BUFFER_BYTES:
            return
        self._unread.append((data, where))
        self._unread_bytes += size
        self.pump_later()

    def pump_later(self) -> None:
        """Let the process read what has come, when it runs."""
        if not self._pumping and self._unread and self.transport is not None:
            self._pumping = True
            loop = self.host.loop
            loop.ready(VirtualHandle(self._pump, (), self.process, loop.kernel_context))

    def _pump(self) -> None:
        self._pumping = False
        while self._unread and self.transport is not None and not self.process.gated:
            data, where = self._unread.popleft()
            self._unread_bytes -= len(data) + _OVERHEAD_BYTES
            self.transport.receive(data, where)
        self.pump_later()


def _arrives(
    target: VirtualHost, address: str, port: int, data: bytes, source: DatagramPort
) -> None:
    if target.off:
        return
    loop = target.loop
    if target is not source.host:
        told = _STEP.pack(source.host.number, port, len(data))
        content = data if source.host.covers_content else b""
        loop.trace.step(loop.now(), target.number, told, content)
    bound = target.kernel.datagram_port_at(address, port)
    if bound is not None:
        bound.arrived(data, source)


class VirtualDatagramTransport(asyncio.DatagramTransport):
    """The transport of a UDP socket of a virtual host."""

    def __init__(
        self,
        sock: VirtualSocket,
        port: DatagramPort,
        protocol: asyncio.DatagramProtocol,
        remote: tuple[Any, ...] | None,
    ) -> None:
        """Read a socket; `connection_made` is told at once."""
        super().__init__({"socket": sock, "sockname": sock.getsockname(), "peername": remote})
        self._sock = sock
        self._port = port
        self._protocol = protocol
        self._remote = remote
        self._closing = False
        self._context = copy_context()

    def __repr__(self) -> str:
        return f"<VirtualDatagramTransport {self._port!r}{' closed' if self._closing else ''}>"

    def start(self) -> None:
        """Begin: tell the protocol, and read what has come."""
        self._protocol.connection_made(self)
        self._port.transport = self
        self._port.pump_later()

    def receive(self, data: bytes, where: tuple[Any, ...]) -> None:
        """Hand the protocol a datagram."""
        if self._closing or (self._remote is not None and where[:2] != self._remote[:2]):
            return
        process = self._port.process
        loop = self._port.host.loop
        try:
            self._context.run(self._protocol.datagram_received, data, where)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - as asyncio does
            self._context.run(loop.protocol_failed, "datagram_received", error)
        if process.turn_s:
            process.block(process.turn_s)

    def sendto(self, data: bytes | bytearray | memoryview, addr: Any | None = None) -> None:
        """Send a datagram.

        Raises:
            ValueError: if there is nowhere to send it, or elsewhere than it is connected to.
        """
        if self._closing:
            return
        if addr is None:
            if self._remote is None:
                raise ValueError("this socket is not connected: name an address to send to")
            addr = self._remote
        if len(data) > MAX_DATAGRAM_BYTES:
            self._protocol.error_received(failure(errno.EMSGSIZE))
            return
        self._port.send(bytes(data), plain(addr[0]), addr[1])

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self._closing

    def close(self) -> None:
        """Close the socket; the protocol hears of it soon."""
        self._end(None)

    def abort(self) -> None:
        """Close the socket."""
        self._end(None)

    def _end(self, error: Exception | None) -> None:
        if not self._closing:
            self._closing = True
            self._port.transport = None
            self._sock.close()
            self._port.host.loop.call_soon(
                self._protocol.connection_lost, error, context=self._context
            )

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return who is told."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Tell another protocol from now on."""
        self._protocol = protocol  # type: ignore[assignment]

    def get_write_buffer_size(self) -> int:
        """Return 0: datagrams are on their way at once."""
        return 0

"""The part of the virtual loop that makes sockets, connections, servers and datagram endpoints.

All of it belongs to the host that the calling code runs on; the world has no sockets.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from meshnode.errors import UsageError
from meshnode.sim.virtual.addresses import plain, spelled
from meshnode.sim.virtual.datagrams import DatagramPort, VirtualDatagramTransport
from meshnode.sim.virtual.dialling import Dialling
from meshnode.sim.virtual.host import running_process
from meshnode.sim.virtual.kernel import ANY, Listener, failure
from meshnode.sim.virtual.loop_base import LoopBase
from meshnode.sim.virtual.sockets import VirtualSocket
from meshnode.sim.virtual.streams import LOOPBACK_S, StreamEnd, join
from meshnode.sim.virtual.tls import StandInSession
from meshnode.sim.virtual.transports import StreamTransport, VirtualServer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshnode.sim.virtual.host import Process, VirtualHost

MAX_HELD_DATAGRAMS: Final = 100_000
"""Datagrams that wait because a path is held; the oldest are lost: 100 nodes send as many in ten minutes."""

RESOLVE_S: Final = 0.0005
"""What looking up a name takes."""

AddressInfo = tuple[Any, socket.SocketKind, int, str, Any]


class Endpoints(LoopBase):
    """Sockets, connections, servers and datagrams, for `VirtualLoop`."""

    def __init__(self) -> None:
        """Begin with nothing that waits."""
        super().__init__()
        self._held: deque[tuple[DatagramPort, VirtualHost, bytes, int]]
        self._held = deque(maxlen=MAX_HELD_DATAGRAMS)

    # Names.

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        *,
        family: int = 0,
        type: int = 0,  # noqa: A002 - asyncio's signature
        proto: int = 0,
        flags: int = 0,
    ) -> list[AddressInfo]:
        """Look up a name: a literal, a host's name, `localhost`, or one of `names`.

        Raises:
            socket.gaierror: if there is none such.
        """
        del flags
        await asyncio.sleep(RESOLVE_S)
        kinds = [socket.SocketKind(type)] if type else [socket.SOCK_STREAM, socket.SOCK_DGRAM]
        number = int(port or 0)
        found = [
            (made, kind, proto, "", spelled(made, address, number))
            for address in self.addresses_of(host)
            for made in [socket.AF_INET6 if ":" in address else socket.AF_INET]
            for kind in kinds
            if family in (0, made)
        ]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return found

    def addresses_of(self, name: Any) -> tuple[str, ...]:
        """Return what a name resolves to; nothing if there is none such."""
        text = name.decode() if isinstance(name, bytes) else str(name or "localhost")
        try:
            return (plain(str(ipaddress.ip_address(text.partition("%")[0]))),)
        except ValueError:
            pass
        text = text.rstrip(".")
        if text == "localhost":
            return ("127.0.0.1",)
        if text in self.hosts:
            return (self.hosts[text].address,)
        known: tuple[str, ...] = self.names.get(text, ())
        return known

    async def getnameinfo(self, sockaddr: Any, flags: int = 0) -> tuple[str, str]:
        """Return the name of the host at an address, and the port."""
        del flags
        await asyncio.sleep(RESOLVE_S)
        host = self.by_address.get(plain(sockaddr[0]))
        return (host.name if host else sockaddr[0], str(sockaddr[1]))

    # Sockets.

    def open_socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, proto: int = 0
    ) -> VirtualSocket:
        """Make a socket of the host that this runs on; instead of `socket.socket(...)`.

        Raises:
            UsageError: in the world, which has none.
            OSError: if there are no such sockets.
        """
        return VirtualSocket(_own_process(), family, kind, proto)

    def tls_session(self, context: Any, *, server_side: bool) -> StandInSession:
        """Begin one side of a TLS connection that has no socket of its own."""
        return StandInSession(context, server_side=server_side)

    async def sock_accept(self, sock: Any) -> tuple[Any, Any]:
        """Wait for a connection to a socket that listens.

        Raises:
            OSError: if it does not listen, or is closed.
        """
        if sock.listener is None:
            raise failure(errno.EINVAL)
        while (accepted := sock.take_connection()) is None:
            came = self.create_future()
            sock.on_connection(partial(_wake, came))
            try:
                await came
            finally:
                if sock.listener is not None:
                    sock.on_connection(None)
        return accepted, accepted.getpeername()

    async def sock_connect(self, sock: Any, address: Any) -> None:
        """Connect a socket.

        Raises:
            OSError: if nobody listens there, or nothing answers.
        """
        host = address[0]
        if not plain(host) or not _is_literal(host):
            found = await self.getaddrinfo(host, address[1], type=sock.type)
            host = found[0][4][0]
        dialling = Dialling(sock, plain(host), address[1])
        try:
            await dialling.outcome
        except BaseException:
            dialling.give_up()
            raise

    # Streams.

    async def create_connection(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: Any = None,
        port: Any = None,
        *,
        ssl: Any = None,
        family: int = 0,
        proto: int = 0,
        flags: int = 0,
        sock: Any = None,
        local_addr: Any = None,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        **options: Any,
    ) -> tuple[Any, Any]:
        """Connect to a server; return the transport and the protocol.

        Raises:
            OSError: if nobody answers at any of the name's addresses, or TLS fails.
        """
        del flags, server_hostname, options
        if sock is None:
            if host is None:
                raise ValueError("host and port was not specified and no sock specified")
            sock = await self._connect_to_any(host, port, family, proto, local_addr)
        return await self._take_over(sock, protocol_factory, ssl, ssl_handshake_timeout, None)

    async def _connect_to_any(
        self, host: Any, port: int, family: int, proto: int, local: Any
    ) -> VirtualSocket:
        problem: OSError | None = None
        for found in await self.getaddrinfo(
            host, port, family=family, type=socket.SOCK_STREAM, proto=proto
        ):
            sock = self.open_socket(found[0], socket.SOCK_STREAM)
            try:
                if local is not None:
                    sock.bind(local)
                await self.sock_connect(sock, found[4])
            except OSError as error:
                sock.close()
                problem = problem or error
            except BaseException:
                sock.close()
                raise
            else:
                made: VirtualSocket = sock
                return made
        assert problem is not None
        raise problem

    async def connect_accepted_socket(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        sock: Any,
        *,
        ssl: Any = None,
        ssl_handshake_timeout: float | None = None,
        **options: Any,
    ) -> tuple[Any, Any]:
        """Give a connection that was accepted elsewhere a protocol; return its transport and that.

        Raises:
            OSError: if TLS fails.
        """
        del options
        return await self._take_over(sock, protocol_factory, ssl, ssl_handshake_timeout, True)

    async def _take_over(
        self,
        sock: VirtualSocket,
        factory: Callable[[], asyncio.BaseProtocol],
        tls: Any,
        timeout_s: float | None,
        server_side: bool | None,
    ) -> tuple[StreamTransport, asyncio.BaseProtocol]:
        protocol = factory()
        transport = StreamTransport(
            self,
            sock,
            protocol,
            tls=self.tls_context(tls),
            server_side=bool(server_side),
            handshake_timeout_s=timeout_s,
        )
        waiter = self.create_future()
        transport.start(waiter)
        try:
            await waiter
        except BaseException:
            transport.abort()
            raise
        return transport, protocol

    def tls_context(self, tls: Any) -> Any:
        """Return what stands for TLS: a context, or a new one for `ssl=True`."""
        if tls is True:
            from meshnode.sim.virtual.tls import StandInContext

            return StandInContext()
        return tls or None

    async def create_server(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: Any = None,
        port: Any = None,
        *,
        family: int = 0,
        flags: int = 0,
        sock: Any = None,
        backlog: int = 100,
        ssl: Any = None,
        ssl_handshake_timeout: float | None = None,
        start_serving: bool = True,
        **options: Any,
    ) -> Any:
        """Listen, at an address of this host or with a socket that is bound.

        Raises:
            OSError: if the address is in use or not this host's.
        """
        del flags, options
        sockets = [sock] if sock is not None else await self._bind_all(host, port, family)
        server = VirtualServer(
            self, sockets, protocol_factory, self.tls_context(ssl), backlog, ssl_handshake_timeout
        )
        if start_serving:
            server.begin()
            await asyncio.sleep(0)
        return server

    async def _bind_all(self, host: Any, port: int | None, family: int) -> list[VirtualSocket]:
        names: Sequence[Any] = [host] if isinstance(host, str) or host is None else host
        sockets: list[VirtualSocket] = []
        try:
            for name in names:
                for made, address in await self._where(name, family):
                    sock = self.open_socket(made, socket.SOCK_STREAM)
                    sockets.append(sock)
                    sock.bind((address, port or 0))
        except OSError:
            for sock in sockets:
                sock.close()
            raise
        return sockets

    async def _where(self, name: Any, family: int) -> list[tuple[int, str]]:
        if name in ANY or name is None:
            six = name == "::" or family == socket.AF_INET6
            return [(socket.AF_INET6, "::") if six else (socket.AF_INET, "0.0.0.0")]  # noqa: S104
        if not _is_literal(name):
            found = await self.getaddrinfo(name, 0, family=family, type=socket.SOCK_STREAM)
            return [(each[0], each[4][0]) for each in found]
        return [(socket.AF_INET6 if ":" in name else socket.AF_INET, name)]

    # Unix sockets: paths of a host, in no file system.

    async def create_unix_server(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        path: Any = None,
        *,
        backlog: int = 100,
        ssl: Any = None,
        **options: Any,
    ) -> Any:
        """Listen at a path of this host; no file is made.

        Raises:
            OSError: if somebody listens there.
        """
        del options
        process = _own_process()
        assert process.host is not None
        if str(path) in process.host.kernel.unix:
            raise failure(errno.EADDRINUSE)
        sock = VirtualSocket(process, socket.AF_INET, socket.SOCK_STREAM)
        sock.listener = process.host.kernel.unix[str(path)] = Listener(process, backlog)
        sock.unix_path = str(path)
        server = VirtualServer(self, [sock], protocol_factory, self.tls_context(ssl), backlog, None)
        server.begin()
        return server

    async def create_unix_connection(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        path: Any = None,
        *,
        ssl: Any = None,
        **options: Any,
    ) -> tuple[Any, Any]:
        """Connect to a path of this host.

        Raises:
            OSError: if nobody listens there.
        """
        del options
        process = _own_process()
        assert process.host is not None
        await asyncio.sleep(LOOPBACK_S)
        listener = process.host.kernel.unix.get(str(path))
        if listener is None:
            raise failure(errno.ECONNREFUSED)
        number = self.next_number()
        family = socket.AF_INET
        mine = StreamEnd(process.host, process, number, family, ("", 0), (str(path), 0))
        other = StreamEnd(process.host, listener.process, number, family, (str(path), 0), ("", 0))
        join(mine, other)
        listener.came(other)
        sock = VirtualSocket(process, family, socket.SOCK_STREAM, 0, mine)
        return await self._take_over(sock, protocol_factory, ssl, None, None)

    # Datagrams.

    async def create_datagram_endpoint(
        self,
        protocol_factory: Callable[[], Any],
        local_addr: Any = None,
        remote_addr: Any = None,
        *,
        family: int = 0,
        proto: int = 0,
        sock: Any = None,
        **options: Any,
    ) -> tuple[Any, Any]:
        """Bind a UDP socket; return its transport and protocol.

        Raises:
            OSError: if the address is in use or not this host's.
        """
        del proto, options
        remote: tuple[Any, ...] | None = None
        if remote_addr is not None:
            found = await self.getaddrinfo(*remote_addr, family=family, type=socket.SOCK_DGRAM)
            family, remote = found[0][0], found[0][4]
        if sock is None:
            if local_addr is None:
                local_addr = ("::" if family == socket.AF_INET6 else "0.0.0.0", 0)  # noqa: S104
            where = (await self._where(local_addr[0], family))[0]
            sock = self.open_socket(where[0], socket.SOCK_DGRAM)
            try:
                sock.bind((where[1], local_addr[1]))
            except OSError:
                sock.close()
                raise
        protocol = protocol_factory()
        transport = VirtualDatagramTransport(sock, sock.datagram_port, protocol, remote)
        transport.start()
        return transport, protocol

    def hold_datagram(
        self, port: DatagramPort, target: VirtualHost, data: bytes, to_port: int
    ) -> None:
        """Keep a datagram until its path is not held any more."""
        self._held.append((port, target, data, to_port))

    def _network_changed(self) -> None:
        """Send what waited, where it may go now."""
        self.lines.paths_changed()
        held, self._held = self._held, deque(maxlen=MAX_HELD_DATAGRAMS)
        for port, target, data, to_port in held:
            if self.network.is_held(port.host.name, target.name):
                self._held.append((port, target, data, to_port))
            else:
                port.send_now(target, data, to_port)
        for host in self.hosts.values():
            for end in [*host.kernel.ends]:
                end.path_changed()


def _own_process() -> Process:
    process = running_process()
    if process is None:
        raise UsageError("only hosts have sockets: start this with host.run(...)")
    return process


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)

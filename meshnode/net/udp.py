"""The UDP socket: datagrams in, datagrams out. What is inside them is sealed by meshnode.trust."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, cast

from meshnode.net import sockets
from meshnode.net.connection import plain_host
from meshnode.types import Address

if TYPE_CHECKING:
    from collections.abc import Callable


class DatagramSocket(asyncio.DatagramProtocol):
    """A bound UDP socket. A datagram that cannot be sent is lost, as UDP may lose any.

    Attributes:
        send_errors: Datagrams that could not be sent, and ICMP errors that came back.
    """

    def __init__(self, receive: Callable[[bytes, Address], None], *, maps_ipv4: bool) -> None:
        """Hand each datagram and where it came from to `receive`; `open` makes one."""
        self._receive = receive
        self._maps_ipv4 = maps_ipv4
        self._transport: asyncio.DatagramTransport | None = None
        self._lost = asyncio.Event()
        self.send_errors = 0

    @classmethod
    async def open(
        cls, address: Address, receive: Callable[[bytes, Address], None]
    ) -> DatagramSocket:
        """Bind the socket.

        Raises:
            OSError: if the address is in use or not ours.
        """
        loop = asyncio.get_running_loop()
        bound = await sockets.bind(address, socket.SOCK_DGRAM)
        maps_ipv4 = bound.family == socket.AF_INET6
        _, protocol = await loop.create_datagram_endpoint(
            lambda: cls(receive, maps_ipv4=maps_ipv4), sock=bound
        )
        return protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self._transport = cast("asyncio.DatagramTransport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the socket is closed."""
        del exc
        self._lost.set()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Pass it on; where it came from may be forged, and means nothing until it is opened."""
        self._receive(data, Address(plain_host(addr[0]), addr[1]))

    def error_received(self, exc: Exception) -> None:
        """Count an ICMP error: a port is closed or a host unreachable; probes will notice."""
        del exc
        self.send_errors += 1

    def send(self, data: bytes, to: Address) -> None:
        """Send one datagram to an IP literal."""
        if self._transport is None or self._transport.is_closing():
            return
        # An IPv6 socket reaches IPv4 under its mapped form (RFC 4291, 2.5.5.2).
        host = f"::ffff:{to.host}" if self._maps_ipv4 and ":" not in to.host else to.host
        try:
            self._transport.sendto(data, (host, to.port))
        except (OSError, ValueError):
            self.send_errors += 1  # no route, or an address of a family that this socket lacks

    async def close(self) -> None:
        """Close the socket; returns when it is."""
        if self._transport is not None:
            self._transport.close()
            await self._lost.wait()

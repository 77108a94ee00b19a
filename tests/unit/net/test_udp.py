"""The UDP socket over loopback, IPv4 and IPv6."""

from __future__ import annotations

import socket

import pytest

from meshnode.net import sockets
from meshnode.net.udp import DatagramSocket
from meshnode.types import Address
from tests.unit.net.conftest import LOOPBACK, eventually


def ignore(data: bytes, source: Address) -> None:
    """Hear nothing."""


def port_of(protocol: DatagramSocket) -> int:
    assert protocol._transport is not None
    return int(protocol._transport.get_extra_info("sockname")[1])


async def test_datagrams_arrive_with_the_address_that_they_came_from() -> None:
    heard: list[tuple[bytes, Address]] = []
    one = await DatagramSocket.open(LOOPBACK, ignore)
    two = await DatagramSocket.open(LOOPBACK, lambda *datagram: heard.append(datagram))
    to = Address("127.0.0.1", port_of(two))
    one.send(b"small", to)
    await eventually(lambda: heard == [(b"small", Address("127.0.0.1", port_of(one)))])
    await one.close()
    await two.close()
    one.send(b"closed", to)


async def test_a_socket_for_both_ip_versions_reaches_and_hears_ipv4() -> None:
    heard: list[tuple[bytes, str]] = []

    def hear(data: bytes, source: Address) -> None:
        heard.append((data, source.host))

    both = await DatagramSocket.open(Address("::", 0), hear)
    four = await DatagramSocket.open(LOOPBACK, hear)
    four.send(b"to six", Address("127.0.0.1", port_of(both)))
    both.send(b"to four", Address("127.0.0.1", port_of(four)))
    both.send(b"to itself", Address("::1", port_of(both)))
    four_at, six_at = "127.0.0.1", "::1"  # IPv4 is shown as such, not as mapped into IPv6
    expected = [(b"to four", four_at), (b"to itself", six_at), (b"to six", four_at)]
    await eventually(lambda: sorted(heard) == expected)
    await both.close()
    await four.close()


async def test_what_cannot_be_sent_is_counted() -> None:
    protocol = await DatagramSocket.open(LOOPBACK, ignore)
    protocol.send(b"x", Address("::1", 9))
    protocol.error_received(ConnectionRefusedError())
    await eventually(lambda: protocol.send_errors >= 2)
    await protocol.close()


async def test_a_port_in_use_is_an_error() -> None:
    protocol = await DatagramSocket.open(LOOPBACK, ignore)
    with pytest.raises(OSError, match="in use"):
        await DatagramSocket.open(Address("127.0.0.1", port_of(protocol)), ignore)
    await protocol.close()


async def test_a_socket_that_was_never_bound_is_closed_without_waiting() -> None:
    protocol = DatagramSocket(ignore, maps_ipv4=False)
    protocol.send(b"x", LOOPBACK)
    await protocol.close()


async def test_a_name_is_resolved_and_a_scope_is_kept() -> None:
    assert (socket.AF_INET, ("127.0.0.1", 5)) in await sockets._resolve(
        Address("localhost", 5), socket.SOCK_STREAM
    )
    index, name = socket.if_nameindex()[0]
    assert await sockets._resolve(Address(f"fe80::1%{name}", 5), socket.SOCK_STREAM) == [
        (socket.AF_INET6, ("fe80::1", 5, 0, index))
    ]

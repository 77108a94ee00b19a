"""The UDP socket over loopback, IPv4 and IPv6."""

from __future__ import annotations

import socket

import pytest

from meshnode.limits import MAX_DATAGRAM_BYTES
from meshnode.net import sockets
from meshnode.net.udp import DatagramSocket
from meshnode.types import Address
from tests.unit.net.conftest import LOOPBACK, eventually


def port_of(protocol: DatagramSocket) -> int:
    assert protocol._transport is not None
    return int(protocol._transport.get_extra_info("sockname")[1])


async def test_datagrams_arrive_and_oversized_ones_do_not() -> None:
    heard: list[bytes] = []
    one = await DatagramSocket.open(LOOPBACK, heard.append)
    two = await DatagramSocket.open(LOOPBACK, heard.append)
    to = Address("127.0.0.1", port_of(two))
    one.send(bytes(MAX_DATAGRAM_BYTES + 1), to)
    one.send(b"small", to)
    await eventually(lambda: heard == [b"small"])
    await one.close()
    await two.close()
    one.send(b"closed", to)


async def test_a_socket_for_both_ip_versions_reaches_and_hears_ipv4() -> None:
    heard: list[bytes] = []
    both = await DatagramSocket.open(Address("::", 0), heard.append)
    four = await DatagramSocket.open(LOOPBACK, heard.append)
    four.send(b"to six", Address("127.0.0.1", port_of(both)))
    both.send(b"to four", Address("127.0.0.1", port_of(four)))
    both.send(b"to itself", Address("::1", port_of(both)))
    await eventually(lambda: sorted(heard) == [b"to four", b"to itself", b"to six"])
    await both.close()
    await four.close()


async def test_what_cannot_be_sent_is_counted() -> None:
    protocol = await DatagramSocket.open(LOOPBACK, lambda _: None)
    protocol.send(b"x", Address("::1", 9))
    protocol.error_received(ConnectionRefusedError())
    await eventually(lambda: protocol.send_errors >= 2)
    await protocol.close()


async def test_a_port_in_use_is_an_error() -> None:
    protocol = await DatagramSocket.open(LOOPBACK, lambda _: None)
    with pytest.raises(OSError, match="in use"):
        await DatagramSocket.open(Address("127.0.0.1", port_of(protocol)), lambda _: None)
    await protocol.close()


async def test_a_socket_that_was_never_bound_is_closed_without_waiting() -> None:
    protocol = DatagramSocket(lambda _: None, maps_ipv4=False)
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

"""Where a daemon listens, and what it tells others of that."""

from __future__ import annotations

import socket

import pytest

from meshnode.errors import ConfigError
from meshnode.net import listening, sockets
from meshnode.types import Address

EVERYWHERE = Address("::", 8471)


def test_without_ipv6_all_of_ipv4_is_listened_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "has_ipv6", lambda: True)
    assert listening.usable(EVERYWHERE) == EVERYWHERE
    monkeypatch.setattr(sockets, "has_ipv6", lambda: False)
    assert listening.usable(EVERYWHERE) == Address("0.0.0.0", 8471)
    assert listening.usable(Address("::1", 8471)) == Address("::1", 8471)


def test_a_machine_without_ipv6_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoIPv6(socket.socket):
        def __init__(self, family: int = -1, *args: int) -> None:
            if family == socket.AF_INET6:
                raise OSError("Address family not supported by protocol")
            super().__init__(family, *args)

    monkeypatch.setattr(socket, "socket", NoIPv6)
    assert not sockets.has_ipv6()


@pytest.mark.parametrize("host", ["203.0.113.7", "2001:db8::7", "cloud.example", "10.0.0.1"])
def test_an_address_that_leads_here_may_be_advertised(host: str) -> None:
    listening.check_advertised([Address(host, 9000)], EVERYWHERE)


@pytest.mark.parametrize(
    ("host", "listen"),
    [
        ("127.0.0.1", "::"),
        ("localhost", "0.0.0.0"),
        ("::1", "192.0.2.1"),
        ("169.254.169.254", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("224.0.0.1", "::"),
        ("255.255.255.255", "::"),
        ("240.0.0.1", "::"),
        ("0.0.0.1", "::"),
        ("127.1", "127.0.0.1"),
    ],
)
def test_one_that_leads_others_to_themselves_or_nowhere_is_refused(host: str, listen: str) -> None:
    with pytest.raises(ConfigError, match=r"--advertise .*(leads nowhere|to that device)"):
        listening.check_advertised([Address(host, 9000)], Address(listen, 8471))


def test_loopback_is_advertised_by_a_node_that_listens_there() -> None:
    listening.check_advertised([Address("127.0.0.1", 9000)], Address("127.0.0.1", 0))
    listening.check_advertised([Address("::1", 9000)], Address("localhost", 0))


@pytest.mark.skipif(not sockets.has_ipv6(), reason="this machine has no IPv6")
async def test_the_default_address_takes_ipv4_and_ipv6() -> None:
    with await sockets.bind(Address("::", 0), socket.SOCK_STREAM) as listening:
        port = listening.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), 5).close()


def test_only_a_host_of_this_machine_can_be_listened_at_whoever_has_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listening.check_host_is_here("--http", Address("127.0.0.1", taken.getsockname()[1]))
    listening.check_host_is_here("--http", Address("0.0.0.0", 1))
    listening.check_host_is_here("--http", Address("localhost", 8470))
    with pytest.raises(ConfigError, match=r"8\.8\.8\.8 is no address of this machine.*--http"):
        listening.check_host_is_here("--http", Address("8.8.8.8", 80))
    with pytest.raises(ConfigError, match=r"cannot listen at a\.invalid:80: .*--http"):
        listening.check_host_is_here("--http", Address("a.invalid", 80))

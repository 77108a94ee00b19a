"""The Host and Origin checks against forged headers and DNS rebinding."""

from __future__ import annotations

import pytest

from meshnode.errors import Forbidden
from meshnode.gateway.protocols.origin import OriginPolicy


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8470",
        "127.0.0.1",
        "127.9.9.9:1",
        "localhost:8470",
        "LocalHost",
        "[::1]:8470",
        "[::1]",
    ],
)
def test_loopback_names_are_mine(host: str) -> None:
    policy = OriginPolicy("127.0.0.1")
    policy.check(host, None)
    policy.check(host, None)  # remembered


@pytest.mark.parametrize(
    "host",
    [
        "",
        ":8470",
        "evil.example",
        "evil.example:8470",
        "127.0.0.1.evil.example",
        "localhost.evil.example:8470",
        "192.168.1.5:8470",
        "127.0.0.1:port",
        "127.0.0.1:8470:1",
        "127.0.0.1:999999",
        "[::1",
        "[localhost]:1",
        "[::1]8470",
        "[2001:db8::1]",
        "localhost@evil",
        "2130706433",
    ],
)
def test_other_names_are_not(host: str) -> None:
    with pytest.raises(Forbidden, match="Host"):
        OriginPolicy("127.0.0.1").check(host, None)


def test_no_name_is_nobodys_and_never_local() -> None:
    policy = OriginPolicy("127.0.0.1")
    assert policy.check(None, None) is False
    for origin in ("http://none", "https://localhost", "null"):
        with pytest.raises(Forbidden, match="origins"):
            policy.check(None, origin)


def test_the_bound_address_is_mine_in_any_spelling() -> None:
    OriginPolicy("192.168.1.5").check("192.168.1.5:8470", None)
    OriginPolicy("2001:DB8:0::1").check("[2001:db8::1]:8470", None)
    OriginPolicy("Edge-Box.lan").check("edge-box.LAN:8470", None)
    with pytest.raises(Forbidden):
        OriginPolicy("192.168.1.5").check("192.168.1.6", None)


@pytest.mark.parametrize("bound", ["0.0.0.0", "::"])
def test_a_gateway_on_all_interfaces_takes_literals_but_no_names(bound: str) -> None:
    policy = OriginPolicy(bound)
    policy.check("192.168.1.5:8470", None)
    policy.check("[2001:db8::1]", None)
    with pytest.raises(Forbidden):
        policy.check("evil.example", None)


def test_pages_of_other_origins_are_refused() -> None:
    policy = OriginPolicy("127.0.0.1")
    policy.check("localhost:8470", "http://localhost:8470")
    policy.check("localhost:8470", "HTTPS://LOCALHOST:8470")
    for origin in ("null", "", "http://localhost:3000", "http://evil.example", "localhost:8470"):
        with pytest.raises(Forbidden, match="origins"):
            policy.check("localhost:8470", origin)


def test_the_memory_of_valid_hosts_is_bounded() -> None:
    policy = OriginPolicy("127.0.0.1")
    for port in range(200):
        policy.check(f"127.0.0.1:{port}", None)
    assert len(policy._remembered) == 64
    assert "127.0.0.1" in repr(policy)
    assert "any address" in repr(OriginPolicy("::"))


def test_only_loopback_names_are_local() -> None:
    policy = OriginPolicy("0.0.0.0", ["mesh.example.com"])
    for _ in range(2):  # remembered, too
        for host in ("127.0.0.1:8470", "localhost", "[::1]", "[::ffff:127.0.0.1]:1"):
            assert policy.check(host, None) is True
        for host in ("192.168.1.5:8470", "mesh.example.com", "[2001:db8::1]", "0.0.0.0"):
            assert policy.check(host, None) is False


def test_allowed_names_are_exact() -> None:
    policy = OriginPolicy("127.0.0.1", ["Mesh.Example.com", "192.0.2.7"])
    for host in ("mesh.example.com", "MESH.example.com:443", "192.0.2.7:80"):
        policy.check(host, None)
    for host in ("example.com", "a.mesh.example.com", "mesh.example.com.evil.org", "192.0.2.8"):
        with pytest.raises(Forbidden, match="--allow-host"):
            policy.check(host, None)


def test_a_proxys_page_may_come_by_https_and_without_its_port() -> None:
    policy = OriginPolicy("127.0.0.1", ["mesh.example.com"])
    policy.check("mesh.example.com", "https://mesh.example.com")
    policy.check("mesh.example.com:8470", "https://mesh.example.com")
    policy.check("127.0.0.1:8470", "https://mesh.example.com")
    for origin in ("http://mesh.example.com:1", "https://mesh.example.com.evil.org", "https://"):
        with pytest.raises(Forbidden, match="origins"):
            policy.check("mesh.example.com", origin)

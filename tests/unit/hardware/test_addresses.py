"""Where peers reach this machine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from meshnode.hardware import addresses
from meshnode.limits import MAX_MEMBER_ADDRESSES


@pytest.fixture
def interfaces(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """A machine's interfaces and their addresses; one whose name begins with `down` is down."""
    found: dict[str, list[str]] = {}

    def addresses() -> dict[str, list[Any]]:
        return {
            name: [SimpleNamespace(address=each) for each in group] for name, group in found.items()
        }

    def stats() -> dict[str, Any]:
        return {
            name: SimpleNamespace(isup=not name.startswith("down"))
            for name in found
            if name != "odd"
        }

    monkeypatch.setattr(psutil, "net_if_addrs", addresses)
    monkeypatch.setattr(psutil, "net_if_stats", stats)
    return found


@pytest.mark.parametrize("host", ["192.0.2.7", "127.0.0.1", "::1", "node.example", "localhost"])
def test_a_socket_bound_to_one_place_is_reached_there(host: str) -> None:
    assert addresses.reachable_hosts(host) == (host,)


def test_a_wildcard_is_reached_at_what_others_can_use(interfaces: dict[str, list[str]]) -> None:
    interfaces["lo"] = ["127.0.0.1", "::1", "00:00:00:00:00:00"]
    interfaces["eth0"] = ["192.0.2.7", "2001:db8::7", "fe80::7%eth0", "169.254.1.1", "aa:bb:cc"]
    interfaces["wlan0"] = ["198.51.100.7", "192.0.2.7"]
    interfaces["docker0"] = ["172.17.0.1"]
    interfaces["br-12345"] = ["172.18.0.1"]
    interfaces["veth1"] = ["172.19.0.1"]
    interfaces["down0"] = ["203.0.113.1"]
    interfaces["odd"] = ["203.0.113.2"]
    assert addresses.reachable_hosts("0.0.0.0") == ("192.0.2.7", "198.51.100.7")
    assert addresses.reachable_hosts("::") == ("192.0.2.7", "198.51.100.7", "2001:db8::7")


def test_a_machine_without_a_network_is_reached_at_loopback(
    interfaces: dict[str, list[str]],
) -> None:
    interfaces["lo"] = ["127.0.0.1", "::1"]
    assert addresses.reachable_hosts("0.0.0.0") == ("127.0.0.1",)
    assert addresses.reachable_hosts("::") == ("127.0.0.1", "::1")


def test_no_more_addresses_are_told_than_a_record_holds(interfaces: dict[str, list[str]]) -> None:
    interfaces["eth0"] = [f"2001:db8::{index:x}" for index in range(1, 40)] + ["192.0.2.7"]
    hosts = addresses.reachable_hosts("::")
    assert len(hosts) == MAX_MEMBER_ADDRESSES
    assert hosts[0] == "192.0.2.7"

"""Where peers reach this machine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from meshnode.hardware import addresses
from meshnode.limits import MAX_MEMBER_ADDRESSES

if TYPE_CHECKING:
    from pathlib import Path


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


def test_bridges_of_containers_are_not_told_and_a_router_s_own_is(
    interfaces: dict[str, list[str]],
) -> None:
    bridges = (
        *(
            "docker0",
            "br-0a1b2c3d4e5f",
            "veth12",
            "virbr0",
            "cni0",
            "flannel.1",
            "lxcbr0",
            "lxdbr0",
        ),
        *("podman1", "cali12", "vmnet8", "bridge100", "vEthernet (WSL)", "VirtualBox Host-Only"),
    )
    for index, name in enumerate(bridges):
        interfaces[name] = [f"172.{16 + index}.0.1"]
    interfaces["br-lan"] = ["192.168.1.1"]
    assert addresses.reachable_hosts("::") == ("192.168.1.1",)


def test_a_vpn_s_address_is_told_after_the_others(interfaces: dict[str, list[str]]) -> None:
    interfaces["a-tailscale"] = ["100.101.102.103", "fd7a:115c:a1e0::1"]
    interfaces["tun0"] = ["10.8.0.2"]
    interfaces["wg0"] = ["10.9.0.2"]
    interfaces["wlan0"] = ["192.168.1.7", "fd00:1::7", "2001:db8::7"]
    assert addresses.reachable_hosts("::") == (
        *("192.168.1.7", "2001:db8::7", "fd00:1::7"),
        *("100.101.102.103", "10.8.0.2", "10.9.0.2", "fd7a:115c:a1e0::1"),
    )


def test_link_local_is_told_only_where_there_is_nothing_else(
    interfaces: dict[str, list[str]],
) -> None:
    interfaces["lo"] = ["127.0.0.1", "::1"]
    interfaces["eth0"] = ["169.254.7.7", "fe80::7%eth0"]
    assert addresses.reachable_hosts("::") == ("169.254.7.7",)
    interfaces["wlan0"] = ["192.168.1.7"]
    assert addresses.reachable_hosts("::") == ("192.168.1.7",)


def test_addresses_that_the_system_soon_exchanges_come_last(
    interfaces: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = tmp_path / "if_inet6"
    table.write_text(
        "20010db8000000000000000000000001 02 40 00 01 eth0\n"
        "20010db8000000000000000000000002 02 40 00 00 eth0\n"
        "20010db8000000000000000000000003 02 40 00 20 eth0\n"
        "a line that is none\n"
    )
    monkeypatch.setattr(addresses, "_IPV6_ADDRESSES", table)
    interfaces["eth0"] = ["2001:db8::1", "2001:db8::3", "2001:db8::2"]
    assert addresses.reachable_hosts("::") == ("2001:db8::2", "2001:db8::1", "2001:db8::3")
    monkeypatch.setattr(addresses, "_IPV6_ADDRESSES", tmp_path / "none")
    assert addresses.reachable_hosts("::") == ("2001:db8::1", "2001:db8::3", "2001:db8::2")

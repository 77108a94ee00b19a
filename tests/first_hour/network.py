"""Devices as network namespaces: a home behind a router, the internet, and a box in a cloud.

    laptop 192.168.1.10 ─┐
    minipc 192.168.1.20 ─┴─ router (NAT) 198.51.100.2 ── internet ── 203.0.113.7 cloud
                                                            └─────── 198.51.100.130 office

The internet knows no way to private addresses, and the router lets nobody in, as at most homes.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

from tests.network.devices import Device, Network, bridge


def build_home_and_cloud(network: Network) -> None:
    """Make the devices of the picture at the top of this file."""
    laptop, minipc, router = (network.add(name) for name in ("laptop", "minipc", "router"))
    internet, cloud, office = (network.add(name) for name in ("internet", "cloud", "office"))
    bridge(network, router, [laptop, minipc])
    router.address("lan", "192.168.1.1/24")
    laptop.address("eth0", "192.168.1.10/24", "192.168.1.1")
    minipc.address("eth0", "192.168.1.20/24", "192.168.1.1")
    network.cable(router, "wan", internet, "home")
    network.cable(cloud, "eth0", internet, "cloud")
    network.cable(office, "eth0", internet, "office")
    internet.address("home", "198.51.100.1/25")
    internet.address("office", "198.51.100.129/25")
    internet.address("cloud", "203.0.113.1/24")
    router.address("wan", "198.51.100.2/25", "198.51.100.1")
    office.address("eth0", "198.51.100.130/25", "198.51.100.129")
    cloud.address("eth0", "203.0.113.7/24", "203.0.113.1")
    for forwarder in (router, internet):
        forwarder.set("net/ipv4/ip_forward", "1")
    cloud.nft(
        """table inet firewall {
            chain input { type filter hook input priority filter; policy drop;
                iif lo accept; ct state established,related accept; }
        }"""
    )
    router.nft(
        """table ip home {
            chain out { type nat hook postrouting priority srcnat; oifname "wan" masquerade; }
            chain pass { type filter hook forward priority filter; policy drop;
                iifname "lan" accept; ct state established,related accept;
                ct status dnat accept; }
        }"""
    )


def build_pair(network: Network, *, version: int = 4) -> tuple[Device, Device]:
    """Make two devices on one network, of IPv4 or of IPv6 only."""
    switch, one, other = (network.add(name) for name in ("switch", "laptop", "minipc"))
    bridge(network, switch, [one, other])
    prefix, length = ("192.168.1.", 24) if version == 4 else ("fd00:1::", 64)
    switch.address("lan", f"{prefix}1/{length}")
    for number, device in ((10, one), (20, other)):
        device.address("eth0", f"{prefix}{number}/{length}", f"{prefix}1")
    return one, other


def tools_of(folder: Path) -> Path:
    """Make a folder for PATH: the `python3` that runs the tests, and the stand-ins."""
    shutil.copytree(Path(__file__).with_name("stand_ins"), folder)
    wrapper = folder / "python3"
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for program in folder.iterdir():
        program.chmod(0o755)
    return folder


def offline_environment() -> dict[str, str]:
    """Return what lets pip find its requirements without a network: those of the tests."""
    return {
        "PYTHONPATH": sysconfig.get_paths()["purelib"],
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # sic: this variable is the value of `build_isolation`
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
    }

"""At which addresses others may reach this machine."""

from __future__ import annotations

import ipaddress

import psutil

from meshnode.limits import MAX_MEMBER_ADDRESSES
from meshnode.membership.addresses import Kind, kind_of

_VIRTUAL_PREFIXES = (
    "br-", "cali", "cni", "docker", "flannel", "lxcbr", "lxdbr", "podman", "vboxnet", "veth",
    "virbr", "vmnet",
)  # fmt: skip
"""Interfaces that only this machine's containers see; peers elsewhere cannot use them."""


def reachable_hosts(listen_host: str) -> tuple[str, ...]:
    """Return the IP addresses at which peers can reach a socket bound to `listen_host`.

    A wildcard stands for every interface that is up, without loopback, link-local and
    container-only addresses. Where there is nothing else (a machine without a network), loopback
    remains, so that several nodes on it still meet.
    """
    try:
        bound = ipaddress.ip_address(listen_host)
    except ValueError:
        return (listen_host,)
    if not bound.is_unspecified:
        return (listen_host,)
    found: list[str] = []
    stats = psutil.net_if_stats()
    for name, addresses in sorted(psutil.net_if_addrs().items()):
        if name.startswith(_VIRTUAL_PREFIXES) or not getattr(stats.get(name), "isup", False):
            continue
        for entry in addresses:
            address = _usable_address(entry.address, bound.version)
            if address is not None and address not in found:
                found.append(address)
    found.sort(key=lambda host: ":" in host)  # IPv4 first: more networks carry it
    alone = ("127.0.0.1",) if bound.version == 4 else ("127.0.0.1", "::1")
    return tuple(found[:MAX_MEMBER_ADDRESSES]) or alone


def _usable_address(text: str, bound_version: int) -> str | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None  # a MAC address
    if kind_of(str(address)) is not Kind.ROUTED:
        return None
    # A socket bound to 0.0.0.0 takes IPv4 only; one bound to :: takes both.
    if bound_version == 4 and address.version == 6:
        return None
    return str(address)

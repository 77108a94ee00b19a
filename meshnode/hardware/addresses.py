"""At which addresses others may reach this machine.

A machine has more addresses than others can use. What is told of them, and in which order::

    interface                                    told
    -----------------------------------------    ------------------------------------------------
    an ordinary one (eth0, wlan0, en0, ...)      first: IPv4, global IPv6, unique local IPv6
    a VPN's (tun, wg, tailscale, 100.64/10)      after those: it may be slow, and ends at a stranger
    containers' and virtual machines' bridges    never: 172.17.0.1 is another machine at each node
    loopback                                     only where there is nothing else at all

Link-local addresses (a cable between two machines, a network without DHCP) are told only where there
is nothing but them; of IPv6 only with a scope that means nothing elsewhere, so never. Of several
IPv6 addresses in one network those that the system will soon exchange (RFC 8981) come last.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import psutil

from meshnode.limits import MAX_MEMBER_ADDRESSES
from meshnode.membership.addresses import Kind, is_of_vpn, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_BRIDGES: Final = re.compile(
    r"docker|br-(?!lan|wan)|veth|virbr|vnet|cni|cali|cilium|flannel|weave|kube|lxc|lxd|incus|podman"
    r"|nerdctl|vboxnet|vmnet|vmenet|bridge1\d\d|anpi|awdl|llw|ifb|dummy"
    r"|vethernet|virtualbox|vmware|hyper-v",
    re.IGNORECASE,
)
"""Interfaces that only this machine's containers and virtual machines see; `br-lan` is a router's own."""

_VPNS: Final = re.compile(
    r"tun|tap|wg|wireguard|tailscale|utun|zt|zerotier|ppp|nebula|netbird|wt\d|nordlynx|proton|ipsec",
    re.IGNORECASE,
)

_TEMPORARY: Final = 0x01
_DEPRECATED: Final = 0x20
_IPV6_ADDRESSES: Final = Path("/proc/net/if_inet6")

_UNIQUE_LOCAL: Final = ipaddress.ip_network("fc00::/7")

_Literal = ipaddress.IPv4Address | ipaddress.IPv6Address


class _Found(NamedTuple):
    """An address of this machine; the fields are in the order in which addresses are told."""

    is_link_local: bool
    is_vpn: bool
    is_ipv6: bool  # IPv4 first: more networks carry it
    is_unique_local: bool
    passes: bool
    interface: str
    position: int
    host: str


def reachable_hosts(listen_host: str) -> tuple[str, ...]:
    """Return the IP addresses at which peers can reach a socket bound to `listen_host`, best first.

    A wildcard stands for every interface that is up, by the rules of this module's text. Where there
    is nothing else (a machine without a network), loopback remains, so that several nodes on it
    still meet.
    """
    try:
        bound = ipaddress.ip_address(listen_host)
    except ValueError:
        return (listen_host,)
    if not bound.is_unspecified:
        return (listen_host,)
    found = sorted(each for each in _all() if bound.version == 6 or not each.is_ipv6)
    usual = [each for each in found if not each.is_link_local] or found
    hosts = tuple(dict.fromkeys(each.host for each in usual))
    alone = ("127.0.0.1",) if bound.version == 4 else ("127.0.0.1", "::1")
    return hosts[:MAX_MEMBER_ADDRESSES] or alone


def multicast_hosts() -> tuple[str, ...]:
    """Return an address of each interface that others on its local network may be found through.

    An IPv4 address where there is one. VPNs are left out, since multicast does not cross them.
    """
    usable = [each for each in _all() if not each.is_vpn]
    usable.sort(key=lambda each: (each.is_ipv6, each.position))
    first: dict[str, str] = {}
    for each in usable:
        first.setdefault(each.interface, each.host)
    return tuple(first[interface] for interface in sorted(first))


def _all() -> Iterator[_Found]:
    """Find the addresses that others may be able to use."""
    stats = psutil.net_if_stats()
    passing = _passing()
    for name, addresses in psutil.net_if_addrs().items():
        if _BRIDGES.match(name) or not getattr(stats.get(name), "isup", False):
            continue
        for position, entry in enumerate(addresses):
            literal = _literal(entry.address)
            if literal is not None:
                yield _Found(
                    is_link_local=literal.is_link_local,
                    is_vpn=_VPNS.match(name) is not None or is_of_vpn(str(literal)),
                    is_ipv6=literal.version == 6,
                    is_unique_local=literal in _UNIQUE_LOCAL if literal.version == 6 else False,
                    passes=str(literal) in passing,
                    interface=name,
                    position=position,
                    host=str(literal),
                )


def _literal(text: str) -> _Literal | None:
    """Read an interface's address; None for what others cannot dial, such as a MAC address."""
    try:
        literal = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    kind = kind_of(str(literal))
    if kind is Kind.ROUTED or (kind is Kind.LINK_LOCAL and literal.version == 4):
        return literal
    return None


def _passing() -> frozenset[str]:
    """Return the IPv6 addresses that are temporary or used no more, where the system tells (Linux)."""
    try:
        lines = _IPV6_ADDRESSES.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return frozenset()
    rows = (line.split() for line in lines)
    return frozenset(
        str(ipaddress.IPv6Address(int(row[0], 16)))
        for row in rows
        if len(row) == 6 and int(row[4], 16) & (_TEMPORARY | _DEPRECATED)
    )

"""Which of a member's addresses may be dialled.

A member's record is signed but its addresses are only its claim: a remote peer that lists
`127.0.0.1` or `169.254.169.254` would make other nodes knock at their own machine or at a cloud's
metadata service. Loopback and link-local addresses are therefore dialled only by a node that lists
one of the same kind itself, that is, where the mesh lives on one machine or one cable.

Names are left to the dialler, which resolves them and must check what they resolve to in the same
way (`kind_of` takes its result). Numbers that only a resolver would take for IPv4 (`127.1`,
`0x7f000001`) are not names and are never dialled.

A member with several addresses is dialled in the order of what is likely to lead to it soonest
(`dialable`): a neighbour's address first, then private ones (a site's other networks), then public
ones, and what leads through a VPN last. Which network is a neighbour's is judged by the usual sizes,
since addresses travel without their masks.
"""

from __future__ import annotations

import ipaddress
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from meshnode.types import Address

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence


_PRIVATE = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)
"""Networks that lead to different devices in different places (RFC 1918, 6598, 4193)."""

_VPN = tuple(ipaddress.ip_network(text) for text in ("100.64.0.0/10", "fd7a:115c:a1e0::/48"))
"""Shared address space (RFC 6598) as VPNs use it, and Tailscale's own block."""

_REMEMBERED: Final = 4096
"""Hosts whose reading is kept: reading one costs more than sealing a datagram for it."""

_NEIGHBOURS_BITS = {4: 24, 6: 64}
"""The size of most local networks, by IP version."""

_THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")
"""Nobody's address, though some systems take all of it for themselves (RFC 1122, 3.2.1.3)."""

_TRANSLATED = tuple(ipaddress.ip_network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48"))
"""IPv4 as networks without it see it: within a reserved block, and dialled all the same (RFC 6052, 8215)."""


class Kind(Enum):
    """Where an address leads."""

    LOOPBACK = "loopback"
    LINK_LOCAL = "link-local"
    ROUTED = "routed"
    NOWHERE = "nowhere"


@lru_cache(maxsize=_REMEMBERED)
def kind_of(host: str) -> Kind:
    """Return where a host leads: a name is taken to be routed, but for `localhost`."""
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        name = host.rstrip(".").lower()
        if name == "localhost" or name.endswith(".localhost"):
            return Kind.LOOPBACK
        # What ends in a number is an IPv4 address to a resolver (WHATWG URL standard, 3.5).
        last = name.rpartition(".")[2]
        is_number = not last or last.isdigit() or last.startswith("0x")
        return Kind.NOWHERE if is_number else Kind.ROUTED
    if isinstance(literal, ipaddress.IPv6Address) and literal.ipv4_mapped is not None:
        literal = literal.ipv4_mapped
    if literal.is_loopback:
        return Kind.LOOPBACK
    if literal.is_link_local:
        return Kind.LINK_LOCAL
    return Kind.NOWHERE if _leads_nowhere(literal) else Kind.ROUTED


def _leads_nowhere(literal: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether no device has it: unspecified, multicast, broadcast, or of a reserved block."""
    if literal.is_unspecified or literal.is_multicast or literal in _THIS_NETWORK:
        return True
    return literal.is_reserved and not any(literal in network for network in _TRANSLATED)


def datagram_address(
    advertised: Sequence[Address],
    remote: Address | None,
    *,
    has_dialled: bool,
    kinds: Collection[Kind],
    own: Collection[str] = (),
) -> Address | None:
    """Return where a member takes datagrams: an IP literal with a port, or None if none is known.

    Args:
        advertised: The addresses of its signed record; not empty.
        remote: Where its authenticated link ends, if there is one.
        has_dialled: Whether this node opened that link.
        kinds: Where this node may send.
        own: The hosts at which this node is reached itself.

    | there is                                             | then                                      |
    |------------------------------------------------------|-------------------------------------------|
    | a link that we dialled                               | its far end: that port is open for both   |
    | a link from a host that it advertises                | that host, at the port that it advertises |
    | a link from elsewhere, and it advertises a public IP | that: the far end may be a NAT or a proxy |
    | a link from elsewhere                                | the far end's host, at its first port     |
    | no link                                              | a neighbour's address, else a public one, |
    |                                                      | else the first that may be used           |
    """
    literals = [each for each in advertised if _is_literal(each.host)]
    if remote is None:
        usable = [each for each in literals if kind_of(each.host) in kinds]
        near = _networks(own)
        return next(
            (each for each in usable if _network(each.host) in near),
            next((each for each in usable if _is_public(each)), usable[0] if usable else None),
        )
    if has_dialled:
        return remote
    same = next((each for each in literals if each.host == remote.host), None)
    public = next((each for each in literals if _is_public(each)), None)
    return same or public or Address(remote.host, advertised[0].port)


def seeds_of_invite(
    own: Sequence[Address], others: Iterable[Sequence[Address]], limit: int
) -> tuple[Address, ...]:
    """Return the addresses that an invite shall name: the inviter's, then one of each other member.

    A device elsewhere may reach none of a home's addresses and all of a box's in a cloud, and any member
    can admit it; so one place is kept for another member, public addresses first.

    Args:
        own: The inviter's addresses, in the order in which they are to be tried.
        others: Those of each live member.
        limit: How many an invite may name; at least 2.
    """
    firsts = [addresses[0] for addresses in others if addresses]
    firsts = [each for each in dict.fromkeys(firsts) if kind_of(each.host) is Kind.ROUTED]
    firsts = sorted((each for each in firsts if each not in own), key=is_private)
    kept = own[: limit - 1] if firsts else own[:limit]
    return (*kept, *firsts)[:limit]


def is_private(address: Address) -> bool:
    """Whether it leads to different devices in different places."""
    if not _is_literal(address.host):
        return False
    literal = ipaddress.ip_address(address.host)
    return any(literal in network for network in _PRIVATE)


@lru_cache(maxsize=_REMEMBERED)
def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_public(address: Address) -> bool:
    return _is_global(address.host)


@lru_cache(maxsize=_REMEMBERED)
def _is_global(host: str) -> bool:
    return ipaddress.ip_address(host).is_global


def is_name(host: str) -> bool:
    """Whether a host has to be looked up."""
    return not _is_literal(host)


def is_of_vpn(host: str) -> bool:
    """Whether an IP address is of a block that VPNs hand out."""
    if not _is_literal(host):
        return False
    literal = ipaddress.ip_address(host)
    return any(literal in network for network in _VPN)


@lru_cache(maxsize=_REMEMBERED)
def _network(host: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """Return the local network that an address is most likely in, or None for a name."""
    if not _is_literal(host):
        return None
    literal = ipaddress.ip_address(host)
    return ipaddress.ip_network((literal, _NEIGHBOURS_BITS[literal.version]), strict=False)


def _networks(hosts: Iterable[str]) -> Collection[object]:
    return {_network(host) for host in hosts} - {None}


def dialable(addresses: Iterable[Address], own: Iterable[Address]) -> tuple[Address, ...]:
    """Return those of a member's addresses that a node with these own addresses may dial.

    Those that are likely to answer soonest come first: see the module's text. Among equals the order
    is that of the member's record.
    """
    hosts = [address.host for address in own]
    allowed = {Kind.ROUTED} | {kind_of(host) for host in hosts} - {Kind.NOWHERE}
    near = _networks(hosts)
    usable = [address for address in addresses if kind_of(address.host) in allowed]
    return tuple(sorted(usable, key=lambda address: _rank(address, near)))


def _rank(address: Address, near: Collection[object]) -> int:
    if kind_of(address.host) is Kind.LINK_LOCAL:
        return 4
    if is_of_vpn(address.host):
        return 3
    if kind_of(address.host) is Kind.LOOPBACK or _network(address.host) in near:
        return 0
    return 1 if is_private(address) else 2

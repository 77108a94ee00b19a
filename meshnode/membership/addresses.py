"""Which of a member's addresses may be dialled.

A member's record is signed but its addresses are only its claim: a remote peer that lists
`127.0.0.1` or `169.254.169.254` would make other nodes knock at their own machine or at a cloud's
metadata service. Loopback and link-local addresses are therefore dialled only by a node that lists
one of the same kind itself, that is, where the mesh lives on one machine or one cable.

Names are left to the dialler, which resolves them and must check what they resolve to in the same
way (`kind_of` takes its result). Numbers that only a resolver would take for IPv4 (`127.1`,
`0x7f000001`) are not names and are never dialled.
"""

from __future__ import annotations

import ipaddress
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshnode.types import Address


class Kind(Enum):
    """Where an address leads."""

    LOOPBACK = "loopback"
    LINK_LOCAL = "link-local"
    ROUTED = "routed"
    NOWHERE = "nowhere"


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
    return Kind.NOWHERE if literal.is_unspecified or literal.is_multicast else Kind.ROUTED


def dialable(addresses: Iterable[Address], own: Iterable[Address]) -> tuple[Address, ...]:
    """Return those of a member's addresses that a node with these own addresses may dial, in order."""
    allowed = {Kind.ROUTED} | {kind_of(address.host) for address in own} - {Kind.NOWHERE}
    return tuple(address for address in addresses if kind_of(address.host) in allowed)

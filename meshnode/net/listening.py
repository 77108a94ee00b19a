"""At which addresses a node may listen, which it may tell others, and what to do about one that cannot be.

A start and `meshnode config check` ask the same here; a start then takes the ports.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from meshnode.errors import ConfigError
from meshnode.membership.addresses import Kind, kind_of
from meshnode.net import sockets
from meshnode.types import Address

if TYPE_CHECKING:
    from collections.abc import Iterable

_ANY_IPV6, _ANY_IPV4 = "::", "0.0.0.0"  # noqa: S104 - other devices must reach the mesh


def usable(listen: Address) -> Address:
    """Return where to listen: all of IPv4 instead of all of both where the machine has no IPv6."""
    if listen.host == _ANY_IPV6 and not sockets.has_ipv6():
        return Address(_ANY_IPV4, listen.port)
    return listen


def check_advertised(addresses: Iterable[Address], listen: Address) -> None:
    """Refuse to tell others an address that leads them to themselves, or nowhere.

    Loopback and link-local addresses are told only by a node that listens there itself: its peers
    are then on the same machine or cable.

    Raises:
        ConfigError: if one is such an address.
    """
    for address in addresses:
        kind, shown = kind_of(address.host), address if address.port else address.host
        if kind is Kind.NOWHERE:
            raise ConfigError(
                f"--advertise {shown} leads nowhere; give the host and port at which other devices "
                "reach this node"
            )
        if kind is not Kind.ROUTED and kind is not kind_of(listen.host):
            raise ConfigError(
                f"--advertise {shown}: on another device that {kind.value} address leads to that device "
                "itself; give one that leads to this node, or let it --listen there alone"
            )


def check_host_is_here(option: str, address: Address) -> None:
    """Refuse to listen at a host that is not this machine's; whether the port is free does not matter.

    Blocks while a name is looked up.

    Args:
        option: What named it, such as `--http`.
        address: Where to listen.

    Raises:
        ConfigError: if the host cannot be listened at; the message says what to do.
    """
    try:
        found = socket.getaddrinfo(address.host, 0, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, where = found[0]
        with socket.socket(family, kind) as probe:
            probe.bind(where)
    except (OSError, UnicodeError) as error:
        reason = error if isinstance(error, OSError) else OSError(str(error))
        raise port_error(option, address, reason) from error


def port_error(option: str, address: Address, error: OSError) -> ConfigError:
    """Return what to tell whoever named an address that cannot be listened at.

    Args:
        option: The option that named it, such as `--listen`.
        address: The address.
        error: What the operating system said.
    """
    other = Address(address.host, 0)
    anywhere = str(other).removesuffix(":0")
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"port {address.port} of {address.host} is in use by another program, perhaps another "
            f"meshnode; stop it, or name another port with {option} {anywhere}:PORT"
        )
    if error.errno == errno.EACCES:
        return ConfigError(
            f"this user may not open port {address.port}; name one above 1023 with "
            f"{option} {anywhere}:PORT"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError(
            f"cannot listen at {address}: {address.host} is no address of this machine; name one that "
            f"is with {option} (to be reached at an address that is elsewhere, such as a router's, "
            "use --advertise)"
        )
    reason = error.strerror or str(error)
    return ConfigError(f"cannot listen at {address}: {reason}; name another address with {option}")

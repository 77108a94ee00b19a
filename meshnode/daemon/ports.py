"""The sockets of a start, and what to do where one cannot be had.

Ports come before anything else of a start, so that one that is taken costs neither an invite nor a
mesh that nobody wanted.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from meshnode.errors import ConfigError
from meshnode.membership.addresses import Kind, kind_of
from meshnode.net import sockets
from meshnode.net.tls import ServerTls, server_tls
from meshnode.net.udp import DatagramSocket
from meshnode.types import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from meshnode.net.links import LinkHub

_PORT_TRIES = 20  # free TCP ports whose UDP twin is taken are rare; this many in a row are a fault
_ANY_IPV6, _ANY_IPV4 = "::", "0.0.0.0"  # noqa: S104 - other devices must reach the mesh


def usable(listen: Address) -> Address:
    """Return where to listen: all of IPv4 instead of all of both where the machine has no IPv6."""
    if listen.host == _ANY_IPV6 and not sockets.has_ipv6():
        return Address(_ANY_IPV4, listen.port)
    return listen


async def open_mesh(
    hub: LinkHub, listen: Address, receive: Callable[[bytes], None]
) -> tuple[DatagramSocket, Address]:
    """Bind the mesh's TCP and UDP socket to one port.

    Args:
        hub: Takes the TCP socket.
        listen: The address; port 0 takes one that is free for both.
        receive: Takes datagrams.

    Returns:
        The UDP socket, which the caller closes, and the address with its port.

    Raises:
        ConfigError: if it cannot be had; the message says what to do.
    """
    for _ in range(_PORT_TRIES):
        try:
            bound = await hub.listen(listen)
        except OSError as error:
            raise port_error("--listen", listen, error) from error
        try:
            return await DatagramSocket.open(bound, receive), bound
        except OSError as error:
            if listen.port != 0:
                raise port_error("--listen", listen, error) from error
            hub.unlisten()  # a free TCP port whose UDP twin is taken: try another one
    raise ConfigError(f"no port of {listen.host} is free for both TCP and UDP")


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


async def require_free(option: str, address: Address) -> None:
    """Fail now rather than after a mesh was founded or joined.

    Raises:
        ConfigError: if nothing can listen at the address.
    """
    try:
        probe = await sockets.bind(address, socket.SOCK_STREAM)
    except OSError as error:
        raise port_error(option, address, error) from error
    probe.close()


def mesh_tls(data_dir: Path) -> ServerTls:
    """Make this start's TLS key, which passes through a file of the data folder.

    Raises:
        ConfigError: if that cannot be written.
    """
    try:
        return server_tls(data_dir)
    except OSError as error:
        raise ConfigError(
            f"no temporary file can be written in {data_dir} ({error.strerror or error}); free some "
            "space, or name another folder with --data-dir"
        ) from error


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

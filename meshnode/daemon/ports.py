"""The sockets of a start.

Ports come before anything else of a start, so that one that is taken costs neither an invite nor a
mesh that nobody wanted.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from meshnode.errors import ConfigError
from meshnode.net import sockets
from meshnode.net.listening import port_error
from meshnode.net.tls import ServerTls, server_tls
from meshnode.net.udp import DatagramSocket

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from meshnode.net.links import LinkHub
    from meshnode.types import Address

_PORT_TRIES = 20  # free TCP ports whose UDP twin is taken are rare; this many in a row are a fault


async def open_mesh(
    hub: LinkHub, listen: Address, receive: Callable[[bytes, Address], None]
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

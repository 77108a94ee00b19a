"""The ports of a rehearsal: a block in a row that is free, and that no other rehearsal takes meanwhile."""

from __future__ import annotations

import os
import socket
from typing import Final

from meshnode.errors import ConfigError
from meshnode.sim.processes.whereabouts import LOOPBACK

DEFAULT_BASE_PORT: Final = 18_500
"""The first gateway's port where nobody chose one: free on most machines, and below those that systems
give to outgoing connections."""

_BLOCKS: Final = 50  # places that are tried for a block


def choose_ports(nodes: int, base_port: int) -> tuple[int, socket.socket]:
    """Return the first of so many ports that are free: one per gateway, then one per node for the mesh.

    Args:
        nodes: How many nodes there are.
        base_port: The first port; 0 to look for a free block.

    Returns:
        The port, and a socket that keeps other rehearsals away from this block for as long as it is open.

    Raises:
        ConfigError: if a port of the chosen block is taken, or no block is free.
    """
    count = 2 * nodes
    if base_port:
        if base_port + count > 65_536:
            raise _no_ports(65_536, base_port, count)
        taken, guard = _reserve(base_port, count)
        if guard is None:
            raise _no_ports(taken, base_port, count)
        return base_port, guard
    for block in range(_BLOCKS):
        first = DEFAULT_BASE_PORT + block * 100
        _, guard = _reserve(first, count)
        if guard is not None:
            return first, guard
    raise ConfigError(
        f"no {count} ports in a row are free from {DEFAULT_BASE_PORT} on; name the first one with "
        "--base-port"
    )


def _no_ports(taken: int, first: int, count: int) -> ConfigError:
    return ConfigError(
        f"port {taken} cannot be had; {count // 2} nodes take ports {first} to {first + count - 1} of "
        f"{LOOPBACK}: name another first one with --base-port"
    )


def _reserve(first: int, count: int) -> tuple[int, socket.socket | None]:
    """Return 0 and a guard of a block of ports, or the first of them that is taken and None.

    The guard is bound to the UDP port beside the first gateway's, which nobody needs.
    """
    guard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        guard.bind((LOOPBACK, first))
        taken = _taken(first, count)
    except OSError:
        taken = first
    if taken is None:
        return 0, guard
    guard.close()
    return taken, None


def _taken(first: int, count: int) -> int | None:
    """Return the first port of a block that is taken, for TCP or UDP; the guard's own does not count."""
    for port in range(first, first + count):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            if port == first and kind is socket.SOCK_DGRAM:
                continue
            with socket.socket(socket.AF_INET, kind) as probe:
                if os.name == "posix" and kind is socket.SOCK_STREAM:  # as the daemon binds it
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((LOOPBACK, port))
                except OSError:
                    return port
    return None

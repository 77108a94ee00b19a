"""How socket addresses are spelled, by family: IPv4 alone, or mapped into IPv6 (RFC 4291, 2.5.5.2)."""

from __future__ import annotations

import socket
from typing import Any


def plain(address: str) -> str:
    """Return an address without its scope, and an IPv4 address as one."""
    if "%" in address:
        address = address.partition("%")[0]
    return address.removeprefix("::ffff:")


def spelled(family: int, address: str, port: int) -> tuple[Any, ...]:
    """Return the address as a socket of this family tells it."""
    if family == socket.AF_INET6:
        return ("::ffff:" + address if ":" not in address else address, port, 0, 0)
    return (address, port)

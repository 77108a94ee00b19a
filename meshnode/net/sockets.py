"""Sockets as meshnode wants them: bound for both IP versions where asked, connected with a limit."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
import os
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

from meshnode.errors import LinkLost
from meshnode.limits import (
    CONNECT_TIMEOUT_S,
    DIAL_STAGGER_S,
    LISTEN_BACKLOG,
    MAX_RESOLVED_ADDRESSES,
)
from meshnode.membership.addresses import Kind, kind_of
from meshnode.net.racing import staggered

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Sequence

    from meshnode.types import Address


_Where = tuple[int, tuple[Any, ...]]  # address family and socket address


def new(family: int, kind: socket.SocketKind) -> socket.socket:
    """Return a socket of the world that the running loop is in.

    A loop with a network of its own (the simulator's) offers `open_socket`; everywhere else the
    operating system makes sockets.
    """
    open_socket = getattr(asyncio.get_running_loop(), "open_socket", None)
    made: socket.socket = (open_socket or socket.socket)(family, kind)
    return made


async def bind(address: Address, kind: socket.SocketKind) -> socket.socket:
    """Return a non-blocking socket bound to an address; a TCP one listens already.

    The unspecified IPv6 address takes IPv4 as well, on every platform.

    Raises:
        OSError: if the address is in use or not ours.
    """
    family, where = (await _resolve(address, kind))[0]
    made = new(family, kind)
    try:
        made.setblocking(False)
        if os.name == "posix" and kind is socket.SOCK_STREAM:
            # Restart at once on the same port; elsewhere it would let two programs share it.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind(where)
        if kind is socket.SOCK_STREAM:
            made.listen(LISTEN_BACKLOG)
    except OSError:
        made.close()
        raise
    return made


def has_ipv6() -> bool:
    """Whether a socket can be bound to all addresses of both IP versions here."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


async def connect(address: Address, kinds: Collection[Kind] | None) -> socket.socket:
    """Return a TCP socket that is connected to one of the addresses that a host resolves to.

    Args:
        address: A literal or a name.
        kinds: Where it may lead once it is resolved; None for anywhere.

    Raises:
        LinkLost: if it leads elsewhere.
        OSError: if nothing answers there.
    """
    found = [
        place
        for place in _in_turn(await _resolve(address, socket.SOCK_STREAM))
        if kinds is None or kind_of(place[1][0].partition("%")[0]) in kinds
    ]
    attempts = [partial(_connect_to, *place) for place in found[:MAX_RESOLVED_ADDRESSES]]
    failure: Exception | None = None
    connected: socket.socket | None = None
    race = staggered(attempts, DIAL_STAGGER_S, (OSError,), _close)
    try:
        async with contextlib.aclosing(race) as outcomes:
            async for _, outcome in outcomes:
                if not isinstance(outcome, Exception):
                    connected = outcome
                    break
                failure = failure or outcome
    except BaseException:
        if connected is not None:  # cancelled while the others were being closed
            connected.close()
        raise
    if connected is not None:
        return connected
    if failure is None:
        raise LinkLost(f"{address} leads to where another node's addresses may not lead")
    raise failure


async def connect_any(
    addresses: Sequence[Address], kinds: Collection[Kind] | None
) -> AsyncGenerator[tuple[Address, socket.socket | Exception]]:
    """Connect to a node's addresses, the next begun when the one before is slow.

    Close the generator when one of them has proved right; the others are closed then.

    Yields:
        An address, and its connected socket or why there is none.
    """
    attempts = [partial(connect, address, kinds) for address in addresses]
    race = staggered(attempts, DIAL_STAGGER_S, (OSError, LinkLost), _close)
    async with contextlib.aclosing(race) as outcomes:
        async for number, outcome in outcomes:
            yield addresses[number], outcome


def _in_turn(places: list[_Where]) -> list[_Where]:
    """Mix the IP versions, beginning with that of the first: one of them may lead nowhere."""
    first = [place for place in places if place[0] == places[0][0]]
    other = [place for place in places if place[0] != places[0][0]]
    pairs = itertools.zip_longest(first, other)
    return [place for pair in pairs for place in pair if place is not None]


def _close(unwanted: socket.socket) -> None:
    unwanted.close()


async def _connect_to(family: int, where: tuple[Any, ...]) -> socket.socket:
    made = new(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await asyncio.get_running_loop().sock_connect(made, where)
    except BaseException:
        made.close()
        raise
    return made


async def _resolve(address: Address, kind: socket.SocketKind) -> list[_Where]:
    try:
        literal = ipaddress.ip_address(address.host)
    except ValueError:
        found = await asyncio.get_running_loop().getaddrinfo(address.host, address.port, type=kind)
        return [(family, where) for family, _, _, _, where in found]
    if literal.version == 4:
        return [(socket.AF_INET, (address.host, address.port))]
    scope = socket.if_nametoindex(literal.scope_id) if literal.scope_id else 0
    host = address.host.partition("%")[0]
    return [(socket.AF_INET6, (host, address.port, 0, scope))]

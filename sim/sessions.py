"""Lets `aiohttp` reach the hosts of a virtual world, also where a program makes its own sessions.

Inside a world the event loop has virtual sockets, and aiohttp must be told to use them. Code under test
does not do that; so while a world runs it, the connector that aiohttp makes by default is one that asks
the running loop first. Outside of worlds, in the same process, it is aiohttp's own as ever.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import aiohttp

from meshnode.sim.virtual.connector import VirtualConnector

if TYPE_CHECKING:
    from collections.abc import Iterator

_NOT_IN_WORLDS = (
    "keepalive_timeout",
    "limit",
    "resolver",
    "socket_factory",
    "use_dns_cache",
    "ttl_dns_cache",
)
"""Options of `aiohttp.TCPConnector` that a world decides by itself."""


class _Kind(type):
    """The world's connectors are `aiohttp.TCPConnector`s to code that looks."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, aiohttp.connector.TCPConnector)


class _Connector(aiohttp.TCPConnector, metaclass=_Kind):
    """Makes a connector of the world where one runs, else aiohttp's own."""

    def __new__(cls, **options: Any) -> Any:
        """Make one on the running loop."""
        if not hasattr(asyncio.get_running_loop(), "open_socket"):
            return aiohttp.connector.TCPConnector(**options)
        kept = {name: value for name, value in options.items() if name not in _NOT_IN_WORLDS}
        return VirtualConnector(**kept)


@contextmanager
def sessions_of_the_world() -> Iterator[None]:
    """While this lasts, `aiohttp.ClientSession()` and `aiohttp.TCPConnector()` reach the world's hosts."""
    with (
        mock.patch.object(aiohttp, "TCPConnector", _Connector),
        mock.patch("aiohttp.client.TCPConnector", _Connector),
    ):
        yield

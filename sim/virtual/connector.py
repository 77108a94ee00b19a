"""A connector for `aiohttp.ClientSession` on a virtual host: its sockets are the host's.

async with aiohttp.ClientSession(connector=VirtualConnector()) as session:
    ...
"""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from aiohttp.resolver import ThreadedResolver

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler

IDLE_S: Final = 15.0
"""How long an idle connection is kept, as aiohttp does."""


class VirtualConnector(aiohttp.TCPConnector):
    """aiohttp's own, with sockets, names and time of the virtual loop.

    Names are looked up each time and connections are not limited in number, as aiohttp reads the real
    clock for the one and the global random numbers for the other.
    """

    def __init__(self, *, idle_s: float = IDLE_S, **options: Any) -> None:
        """Make one on the running loop; options are aiohttp's.

        Args:
            idle_s: How long an idle connection is kept, in virtual seconds.
            options: `TCPConnector`'s others.
        """
        loop: Any = asyncio.get_running_loop()
        super().__init__(
            resolver=ThreadedResolver(),
            socket_factory=lambda info: loop.open_socket(info[0], info[1], info[2]),
            use_dns_cache=False,
            keepalive_timeout=None,
            limit=0,
            **options,
        )
        self._idle_s = idle_s
        self._idle_since: weakref.WeakKeyDictionary[ResponseHandler, float] = (
            weakref.WeakKeyDictionary()
        )

    def _release(self, key: Any, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        self._idle_since[protocol] = self._loop.time()
        super()._release(key, protocol, should_close=should_close)

    async def _get(self, key: Any, traces: Any) -> Any:
        """Reuse no connection that was idle for too long: aiohttp would ask the real clock."""
        idle = self._conns.get(key)
        limit = self._loop.time() - self._idle_s
        while idle and self._idle_since.get(idle[0][0], limit) < limit:
            idle.popleft()[0].close()
        return await super()._get(key, traces)

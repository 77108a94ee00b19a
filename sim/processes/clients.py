"""Clients at depth C: HTTP connections to gateways of this machine, kept alive, as programs have them.

A client is in the region of the gateway that it asks first: that one is at no distance, and others are a
round trip away. It goes elsewhere as the client library does: at once where a connection is refused or
breaks, and where a gateway has said nothing for long and shows no sign of life.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import aiohttp

from meshnode.limits import (
    CLIENT_CONNECT_TIMEOUT_S,
    CLIENT_PROBE_TIMEOUT_S,
    MAX_CLIENT_SILENCE_S,
)
from meshnode.sim.http_calls import http_call, outcome_of, read_answer
from meshnode.sim.stage import GATEWAY_LOST, TIMED_OUT, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.sim.http_calls import HttpAnswer
    from meshnode.sim.stage import Call

LIVENESS_PATH: Final = "/healthz"
"""What every gateway answers that lives."""

PATIENCE_S: Final = 0.25
"""For how long a client waits beyond its own limit for the gateway to say that the time is over."""

_LOST: Final = (aiohttp.ClientError, ConnectionError)


class Clients:
    """All clients of a rehearsal, on one event loop.

    Attributes:
        open_calls: How many calls have no outcome yet.
    """

    def __init__(self, url_of: Callable[[str], str], rtt_s: Callable[[str, str], float]) -> None:
        """Begin without connections.

        Args:
            url_of: Returns where the gateway of a node is.
            rtt_s: Returns the round trip between two nodes in seconds.
        """
        self.open_calls = 0
        self._url_of = url_of
        self._rtt_s = rtt_s
        self._session: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Clients with {self.open_calls} calls open>"

    def send(self, call: Call, done: Callable[[Call, Outcome], None]) -> None:
        """Make a call now; `done` is told its outcome."""
        self.open_calls += 1
        task = asyncio.get_running_loop().create_task(self._make(call, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up all calls and connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _make(self, call: Call, done: Callable[[Call, Outcome], None]) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        asked = 0
        outcome: Outcome | None = None
        try:
            async with asyncio.timeout(call.timeout_s + PATIENCE_S):
                for gateway in (call.gateway, *call.others):
                    asked += 1
                    left_s = call.timeout_s - (loop.time() - began)
                    answer = await self._ask(call, gateway, max(left_s, 0.001))
                    if answer is not None:
                        outcome = outcome_of(answer, loop.time() - began, asked)
                        break
        except TimeoutError:
            outcome = Outcome(TIMED_OUT, loop.time() - began, gateways=asked)
        finally:
            self.open_calls -= 1
        done(call, outcome or Outcome(GATEWAY_LOST, loop.time() - began, gateways=asked))

    async def _ask(self, call: Call, gateway: str, left_s: float) -> HttpAnswer | None:
        """Ask a gateway; None if it is lost."""
        url = self._url_of(gateway)
        if not url:
            return None
        if gateway != call.gateway:
            await asyncio.sleep(self._rtt_s(call.gateway, gateway))
        asking = asyncio.ensure_future(self._post(call, url, left_s))
        try:
            while True:
                finished, _ = await asyncio.wait((asking,), timeout=MAX_CLIENT_SILENCE_S)
                if finished:
                    return asking.result()
                if call.others and not await self._lives(url):
                    return None
        except _LOST:
            return None
        finally:
            asking.cancel()

    async def _post(self, call: Call, url: str, left_s: float) -> HttpAnswer:
        request = http_call(call, left_s if left_s < call.timeout_s - 0.001 else None)
        async with self._connected().post(
            url + request.path, data=request.body, headers=request.headers
        ) as response:
            await response.read()
            return read_answer(response.status, response.headers)

    async def _lives(self, url: str) -> bool:
        limit = aiohttp.ClientTimeout(total=CLIENT_PROBE_TIMEOUT_S)
        try:
            async with self._connected().get(url + LIVENESS_PATH, timeout=limit):
                return True
        except (*_LOST, TimeoutError):
            return False

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            limit = aiohttp.ClientTimeout(total=None, sock_connect=CLIENT_CONNECT_TIMEOUT_S)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=limit
            )
        return self._session

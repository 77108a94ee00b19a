"""Requests at a steady rate through several gateways, whatever becomes of them, and what became of each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp

from meshnode.sim.running.result import percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TIMEOUT_S: Final = 30.0
"""How long a client waits: longer than any answer may take, so that a hang shows as such."""

UNIX_CONNECTIONS: Final = 100
"""Connections to a control socket at most; requests beyond them wait, which counts. It is fewer than its backlog holds:
asyncio takes a Unix socket for connected that the kernel refused for a full backlog, and fails when it writes."""

BROKEN: Final = 0
"""The status of a request whose connection broke."""


@dataclass(frozen=True, slots=True)
class Record:
    """One request.

    Attributes:
        sent_s: When it was due, on the monotonic clock: a late sender hides nothing.
        took_s: Until its answer was complete.
        status: Of HTTP; `BROKEN` if the connection broke.
        code: Of its error, or empty.
        node: Who answered, as `Mesh-Route` says.
        attempts: Tries that it took, likewise; those beside a slow one included.
        tried: Which of them failed and why, likewise: `serve-1:link_lost`; empty if none did.
        document: The answer.
    """

    sent_s: float
    took_s: float
    status: int
    code: str
    node: str
    attempts: int
    tried: str
    document: Any

    @property
    def ok(self) -> bool:
        """Whether it was answered."""
        return self.status == 200

    @property
    def failed_over(self) -> int:
        """How many tries failed and were followed by another: the last of an error is its answer."""
        failed = self.tried.count(":")
        return failed if self.ok else max(0, failed - 1)


@dataclass(frozen=True, slots=True)
class Gateway:
    """Where to send requests.

    Attributes:
        url: Such as `http://127.0.0.1:8470`.
        socket: The path of a control socket to go through instead of the network; empty for none.
    """

    url: str
    socket: str = ""

    def session(self) -> aiohttp.ClientSession:
        """Return a session to it, with as many connections as it takes."""
        connector: aiohttp.BaseConnector
        if self.socket:
            connector = aiohttp.UnixConnector(self.socket, limit=UNIX_CONNECTIONS)
        else:
            connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(TIMEOUT_S)
        return aiohttp.ClientSession(self.url, connector=connector, timeout=timeout)


class SteadyLoad:
    """An open loop: a request is sent when it is due, however many are under way.

    Attributes:
        records: Of all that have ended.
    """

    def __init__(
        self, gateways: Sequence[Gateway], path: str, body: Callable[[], Any], rate: float
    ) -> None:
        """Send to each gateway in turn, `rate` requests a second in all."""
        self.records: list[Record] = []
        self._gateways = gateways
        self._path = path
        self._body = body
        self._every_s = 1 / rate
        self._tasks: set[asyncio.Task[None]] = set()
        self._sender: asyncio.Task[None] | None = None
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        sessions = [
            await self._stack.enter_async_context(each.session()) for each in self._gateways
        ]
        self._sender = asyncio.create_task(self._send_all(sessions))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._sender is not None
        self._sender.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._sender
        await asyncio.gather(*self._tasks)
        await self._stack.aclose()

    async def _send_all(self, sessions: Sequence[aiohttp.ClientSession]) -> None:
        due_s = time.monotonic()
        number = 0
        while True:
            await asyncio.sleep(due_s - time.monotonic())
            session = sessions[number % len(sessions)]
            task = asyncio.create_task(self._send(session, due_s))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            number += 1
            due_s += self._every_s

    async def _send(self, session: aiohttp.ClientSession, due_s: float) -> None:
        self.records.append(await ask(session, self._path, self._body(), due_s))


async def ask(
    session: aiohttp.ClientSession, path: str, body: Any, due_s: float | None = None
) -> Record:
    """Return what became of one request."""
    due_s = time.monotonic() if due_s is None else due_s
    status, document, headers = BROKEN, None, {}
    try:
        async with session.post(path, json=body) as answer:
            headers = dict(answer.headers)
            document = json.loads(await answer.read() or b"null")
            status = answer.status
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        document = {"error": f"{type(error).__name__}: {error}"}
    route = dict(
        pair.strip().partition("=")[::2] for pair in headers.get("Mesh-Route", "").split(";")
    )
    return Record(
        due_s,
        time.monotonic() - due_s,
        status,
        headers.get("Mesh-Error", ""),
        route.get("node", ""),
        int(route.get("attempts") or 0),
        route.get("tried", "").strip('"'),
        document,
    )


def between(records: Sequence[Record], from_s: float, to_s: float) -> list[Record]:
    """Return those that were due in a span of the monotonic clock."""
    return [each for each in records if from_s <= each.sent_s < to_s]


def p99_ms(records: Sequence[Record]) -> float:
    """Return the 99th percentile of their times in milliseconds."""
    return percentile([each.took_s for each in records], 0.99) * 1000

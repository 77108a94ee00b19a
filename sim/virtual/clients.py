"""HTTP clients of the virtual world: they ask gateways as programs do, on connections that they keep.

One `HttpClient` stands for all programs of a region. It is small where aiohttp's client is general:
a call of a rehearsal should cost the gateway's work, not the client's. What it does about a gateway that
fails follows the client library (`meshnode.client`): one that does not answer a connection, or breaks
it, or is silent and gives no sign of life, is lost, and the next is asked with what time is left. Where
none is left the client has given up, whoever was lost before.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

from meshnode.client.plan import MIN_TRY_S, SHORTEST_SILENCE_S
from meshnode.limits import CLIENT_CONNECT_TIMEOUT_S, CLIENT_IDLE_S, CLIENT_PROBE_TIMEOUT_S
from meshnode.sim.clients import PATIENCE_S
from meshnode.sim.http_calls import HttpAnswer, http_call, outcome_of, read_answer
from meshnode.sim.stage import GATEWAY_LOST, TIMED_OUT, Call, Outcome
from meshnode.sim.virtual.gateway_watch import request_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.sim.virtual.gateway_watch import GatewayWatch
    from meshnode.sim.virtual.host import VirtualHost
    from meshnode.sim.virtual.streams import StreamEnd
    from meshnode.types import Address

_HEAD_END: Final = b"\r\n\r\n"
_LIVE: Final = "/v2/health/live"


class GatewayGone(Exception):
    """A connection to a gateway could not be made, or ended before its answer.

    Attributes:
        unheard: Whether not one byte of an answer had come.
    """

    def __init__(self, unheard: bool = True) -> None:
        """Say how far the answer had come."""
        super().__init__("the gateway is gone")
        self.unheard = unheard


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection, one request at a time.

    Attributes:
        used: Whether it has answered before.
        idle_since: When it last did.
        asked: What it was asked last, by its id; "" before.
        end: The client's end of it.
    """

    end: StreamEnd

    def __init__(
        self, on_lost: Callable[[_Connection], None], on_excess: Callable[[str, int], None]
    ) -> None:
        self.used = False
        self.idle_since = 0.0
        self.asked = ""
        self._on_lost = on_lost
        self._on_excess = on_excess
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, dict[str, str]]] | None = None
        self._data = bytearray()
        self._head: tuple[int, dict[str, str]] | None = None
        self._missing = 0
        self._heard = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.end = transport.get_extra_info("socket").end

    def ask(self, request: bytes, asked: str) -> asyncio.Future[tuple[int, dict[str, str]]]:
        """Send a request, which has this id; return the future of its answer's status and headers."""
        assert self._transport is not None
        self.asked = asked
        answer = self._answer = asyncio.get_running_loop().create_future()
        self._heard = False
        self._transport.write(request)
        return answer

    @property
    def heard(self) -> bool:
        """Whether anything of the present answer has come."""
        return self._heard

    @property
    def closing(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._transport is None or self._transport.is_closing()

    def data_received(self, data: bytes) -> None:
        """Take what came of an answer; what nobody has asked for is told."""
        if self._answer is None:
            self._on_excess(self.asked, len(data))
            return
        self._heard = True
        if self._head is None:
            self._data += data
            end = self._data.find(_HEAD_END)
            if end < 0:
                return
            self._head = _read_head(bytes(self._data[:end]))
            self._missing = int(self._head[1].get("Content-Length", 0))
            self._missing -= len(self._data) - end - len(_HEAD_END)
            self._data.clear()
        else:
            self._missing -= len(data)
        if self._missing <= 0:
            excess = -self._missing
            self._complete(self._head)
            if excess:
                self._on_excess(self.asked, excess)

    def _complete(self, head: tuple[int, dict[str, str]]) -> None:
        answer, self._answer, self._head = self._answer, None, None
        self.used = True
        if head[1].get("Connection") == "close":
            self.close()
        if answer is not None and not answer.done():
            answer.set_result(head)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is asked."""
        del exc
        self._transport = None
        self._on_lost(self)
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(GatewayGone(unheard=not self._heard))
            answer.exception()  # noted: whoever asked may have given up meanwhile

    def give_up(self) -> None:
        """Take the gateway for lost: no sign of life came."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(GatewayGone(unheard=False))
        self.close()

    def close(self) -> None:
        """End it; an answer that is still to come is not waited for."""
        if self._answer is not None:
            self._answer.cancel()
        if self._transport is not None:
            self._transport.abort()


class HttpClient:
    """The programs of one region that ask gateways.

    Attributes:
        host: Where they run.
        headers: What each request has besides its own headers.
    """

    def __init__(self, host: VirtualHost, watch: GatewayWatch) -> None:
        """Ask from a host; tell the watch how gateways answer."""
        self.host = host
        self._watch = watch
        self.headers: dict[str, str] = {}
        self._idle: dict[Address, list[_Connection]] = {}

    def __repr__(self) -> str:
        return f"<HttpClient {self.host.name}>"

    def close(self) -> None:
        """Close all connections on which nothing is asked."""
        idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    async def call(self, call: Call, gateways: list[Address]) -> Outcome:
        """Make a call at the first gateway, at the others if that is lost; return what became of it.

        Args:
            call: The call.
            gateways: Where they listen, in the order in which they are asked.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number, gateway in enumerate(gateways, 1):
            left_s = began + call.timeout_s - loop.time()
            try:
                async with asyncio.timeout(left_s + PATIENCE_S):
                    answer = await self._ask(call, gateway, number, left_s, len(gateways) - number)
            except GatewayGone:
                if began + call.timeout_s - loop.time() >= MIN_TRY_S:
                    continue
                return Outcome(TIMED_OUT, loop.time() - began, gateways=number)
            except TimeoutError:
                return Outcome(TIMED_OUT, loop.time() - began, gateways=number)
            return outcome_of(answer, loop.time() - began, number)
        took_s = loop.time() - began
        return Outcome(GATEWAY_LOST, took_s, gateways=len(gateways))

    async def _ask(
        self, call: Call, gateway: Address, number: int, left_s: float, others: int
    ) -> HttpAnswer:
        """Ask one gateway.

        Args:
            call: The call.
            gateway: Where it listens.
            number: Counts the gateways that the call has asked.
            left_s: What is left of the call's time.
            others: How many gateways could be asked instead; they shall have as much time as this one.

        Raises:
            GatewayGone: if it is lost.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + left_s
        share_s = left_s / (others + 1) if others else left_s
        asked = request_id(call, number)
        while True:
            connection = await self._connection(gateway, min(CLIENT_CONNECT_TIMEOUT_S, share_s))
            was_used = connection.used
            left_s = until - loop.time()  # connecting took some
            request = self._call_request(call, gateway, asked, left_s)
            try:
                status, headers = await self._answer(
                    connection, request, asked, gateway, share_s / 2 if others else None
                )
            except GatewayGone as gone:
                self._watch.answered(asked, None)
                self._watch.hung_up(connection.end, gateway, call)
                if was_used and gone.unheard:
                    continue  # it was closed for being idle while the request was on its way
                raise
            except BaseException:
                self._watch.silent(connection.end, gateway, call, left_s)
                self._watch.answered(asked, None)
                connection.close()
                raise
            self._keep(gateway, connection)
            answer = read_answer(status, headers)
            self._watch.answered(asked, answer)
            if (got := headers.get("X-Request-Id", "")) != asked:
                self._watch.crossed(gateway, asked, got)
            return answer

    def _call_request(self, call: Call, gateway: Address, asked: str, left_s: float) -> bytes:
        made = http_call(call, None if left_s == call.timeout_s else left_s)
        headers = {**self.headers, **made.headers, "X-Request-Id": asked}
        return _request("POST", made.path, gateway, headers, made.body)

    async def _answer(
        self,
        connection: _Connection,
        request: bytes,
        asked: str,
        gateway: Address,
        patience_s: float | None,
    ) -> tuple[int, dict[str, str]]:
        """Send a request; look for a sign of life of a silent gateway where another could be asked."""
        answer = connection.ask(request, asked)
        if patience_s is None:
            return await answer
        watch = _Watch(self, connection, gateway, patience_s)
        try:
            return await answer
        finally:
            watch.end()

    async def lives(self, gateway: Address, probe_s: float) -> bool:
        """Whether a gateway answers at all, on a connection of its own."""
        try:
            async with asyncio.timeout(probe_s):
                connection = await self._connect(gateway, probe_s)
                try:
                    request = _request("GET", _LIVE, gateway, self.headers, b"")
                    await connection.ask(request, "a sign of life")
                finally:
                    connection.close()
        except (GatewayGone, TimeoutError):
            return False
        return True

    async def _connection(self, gateway: Address, connect_s: float) -> _Connection:
        idle = self._idle.get(gateway)
        oldest = asyncio.get_running_loop().time() - CLIENT_IDLE_S
        while idle:
            connection = idle.pop()
            if not connection.closing and connection.idle_since >= oldest:
                return connection
            connection.close()
        return await self._connect(gateway, connect_s)

    async def _connect(self, gateway: Address, connect_s: float) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(connect_s):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._lost, partial(self._watch.unasked, gateway)),
                    gateway.host,
                    gateway.port,
                )
        except (OSError, TimeoutError):
            raise GatewayGone from None
        return connection

    def _keep(self, gateway: Address, connection: _Connection) -> None:
        if not connection.closing:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.setdefault(gateway, []).append(connection)

    def _lost(self, connection: _Connection) -> None:
        for idle in self._idle.values():
            if connection in idle:
                idle.remove(connection)


class _Watch:
    """Looks for signs of life of a gateway that owes an answer, until `end`."""

    __slots__ = (
        "_client",
        "_connection",
        "_gateway",
        "_patience_s",
        "_probe",
        "_silence_s",
        "_timer",
    )

    def __init__(
        self, client: HttpClient, connection: _Connection, gateway: Address, patience_s: float
    ) -> None:
        self._client = client
        self._connection = connection
        self._gateway = gateway
        self._patience_s = patience_s
        self._silence_s = min(SHORTEST_SILENCE_S, patience_s)
        self._probe: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(self._silence_s, self._silent)

    def end(self) -> None:
        """Look no more."""
        self._timer.cancel()
        if self._probe is not None:
            self._probe.cancel()

    def _silent(self) -> None:
        if not self._connection.heard:
            self._probe = asyncio.ensure_future(self._ask())

    async def _ask(self) -> None:
        probe_s = min(CLIENT_PROBE_TIMEOUT_S, self._patience_s)
        if await self._client.lives(self._gateway, probe_s):
            self._silence_s *= 2
            self._timer = asyncio.get_running_loop().call_later(self._silence_s, self._silent)
        else:
            self._connection.give_up()


def _request(
    method: str, path: str, gateway: Address, headers: dict[str, str], body: bytes
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {gateway}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append(f"Content-Length: {len(body)}\r\n\r\n")
    return "\r\n".join(lines).encode() + body


def _read_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(": ") for line in lines)
    return int(first.split(" ", 2)[1]), {name: value for name, _, value in pairs}

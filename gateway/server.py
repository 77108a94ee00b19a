"""The HTTP server: aiohttp's connection handling around a `Dispatcher`.

aiohttp's low-level server is used, not its `Application`: the router, the signals and the
middlewares of that cost more than a small model. What it leaves open is decided here:

| limit | where |
|---|---|
| connections | `MAX_HTTP_CONNECTIONS`; more are closed at once |
| one header line; their number | aiohttp's parser, with our numbers; 431; 400 |
| all headers together | `MAX_HEADER_BYTES`; 431 |
| time for headers, and idle connections | `KEEP_ALIVE_S`: aiohttp's timer closes a connection on which no complete request has arrived |
| a body | `MAX_BODY_BYTES`, by its Content-Length before it is read, chunked bodies as they grow; 413 |
| time for a body | `BODY_GRACE_S` and then `MIN_BODY_BYTES_PER_S`; 408 |
| all large bodies, and all large answers, at once | `bodies`; 503 |
| time to take a large answer | the same pace as for a body, then the connection is closed |

A client that hangs up cancels the task that works for it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import operator
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from meshnode.errors import ConfigError, MeshError, Saturated, TooLarge
from meshnode.gateway.access import Approach, require
from meshnode.gateway.answering import JOINED_BYTES, DateHeader, PlainAnswer, send
from meshnode.gateway.bodies import Bodies, Body
from meshnode.gateway.listening import TcpSite, bind_unix
from meshnode.gateway.protocols.caller import OWNER
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse
from meshnode.gateway.protocols.request_target import one_host, split_target
from meshnode.gateway.protocols.status import (
    HttpRefusal,
    error_response,
    failure_response,
    refusal_response,
)
from meshnode.limits import (
    BODY_GRACE_S,
    KEEP_ALIVE_S,
    LINGER_S,
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    MAX_HEADER_LINE_BYTES,
    MAX_HEADERS,
    MAX_HTTP_CONNECTIONS,
    MAX_REQUEST_ID_LENGTH,
    MIN_BODY_BYTES_PER_S,
)
from meshnode.types import Address, Buffer

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from meshnode.gateway.access import Access
    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.gateway.metrics import GatewayMetrics
    from meshnode.gateway.protocols.caller import Caller

log = logging.getLogger(__name__)

_Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_REQUEST_ID = re.compile(rf"[A-Za-z0-9._:/+=-]{{1,{MAX_REQUEST_ID_LENGTH}}}")
_STATUS_LABELS = {status: (str(status),) for status in (200, 400, 404, 503)}
_HOST, _ORIGIN, _EXPECT = hdrs.HOST, hdrs.ORIGIN, hdrs.EXPECT
_AUTHORIZATION = hdrs.AUTHORIZATION
_X_REQUEST_ID: Final = "X-Request-Id"
_X_API_KEY: Final = "X-API-Key"
_NAME_OF_HEADER: Final = operator.itemgetter(0)


class HttpServer:
    """One entrance: a dispatcher at any number of listening sockets."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        metrics: GatewayMetrics,
        access: Access | None,
        *,
        bodies: Bodies | None = None,
        grace_s: float = 10.0,
        wall_s: Callable[[], float] = time.time,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """Make a server; call within a running loop.

        Args:
            dispatcher: What answers.
            metrics: Where responses are counted.
            access: Who may ask; None where file permissions let nobody but the owner in.
            bodies: Counts the memory of bodies, for all entrances together.
            grace_s: How long `stop` lets running requests finish, in seconds.
            wall_s: Returns seconds since the Unix epoch.
            random_bytes: Draws so many bytes that nobody can guess, for the ids of requests.
        """
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._responses = metrics.responses
        self._access = access
        self._loop = asyncio.get_running_loop()
        self._bodies = bodies or Bodies()
        self._is_leaving = False
        self._id_prefix = random_bytes(4).hex() + "-"
        self._ids = itertools.count(1)
        self._wall_s = wall_s
        self._date = DateHeader(wall_s)
        self._runner = web.ServerRunner(
            _Server(
                self._handle,
                metrics,
                keepalive_timeout=KEEP_ALIVE_S,
                lingering_time=LINGER_S,
                max_line_size=MAX_HEADER_LINE_BYTES,
                max_field_size=MAX_HEADER_LINE_BYTES,
                max_headers=MAX_HEADERS,
                auto_decompress=False,
                access_log=None,
            ),
            shutdown_timeout=grace_s,
        )

    def __repr__(self) -> str:
        return f"<HttpServer of {self._dispatcher} at {self._runner.addresses}>"

    async def listen_tcp(self, address: Address, tls: ssl.SSLContext | None = None) -> Address:
        """Accept connections at an address and return it with its real port.

        Args:
            address: Where; port 0 takes any free one, and `::` IPv4 as well.
            tls: Speak HTTPS with this, else HTTP.

        Raises:
            ConfigError: if the address cannot be bound.
        """
        await self._setup()
        try:
            await TcpSite(self._runner, address, tls).start()
        except OSError as error:
            raise ConfigError(
                f"the gateway cannot listen at {address}: {error.strerror or error}; choose "
                "another with --http HOST:PORT, or --no-gateway"
            ) from error
        return Address(address.host, self._runner.addresses[-1][1])

    async def listen_unix(self, path: Path) -> None:
        """Accept connections at a Unix socket that only its owner can open.

        A socket file that nobody listens at, left by a crash, is replaced.

        Raises:
            ConfigError: if somebody listens there, or the path cannot be bound.
        """
        await self._setup()
        try:
            await web.SockSite(self._runner, bind_unix(path)).start()
        except OSError as error:
            raise ConfigError(f"the control socket {path} cannot be opened: {error}") from error

    async def stop_accepting(self) -> None:
        """Take no new connections; those that stand are closed with their next answer."""
        self._is_leaving = True
        for site in tuple(self._runner.sites):
            await site.stop()

    def close_idle(self) -> None:
        """Close the connections on which nothing runs."""
        if self._runner.server is not None:
            for connection in self._runner.server.connections:
                if isinstance(connection, _Connection):
                    connection.close_if_idle()

    async def stop(self) -> None:
        """Stop listening, let running requests finish for the grace period, cancel the rest."""
        await self._runner.cleanup()

    async def _setup(self) -> None:
        if self._runner.server is None:
            await self._runner.setup()

    # One request.

    async def _handle(self, raw: web.BaseRequest) -> web.StreamResponse:
        headers = raw.headers
        request_id = headers.get(_X_REQUEST_ID)
        if request_id is None or not _REQUEST_ID.fullmatch(request_id):
            request_id = f"{self._id_prefix}{next(self._ids):x}"
        held: Body | None = None
        target = raw.raw_path
        authority, target = (None, target) if target.startswith("/") else split_target(target)
        try:
            caller = self._admit(raw, authority)
            path, _, query = target.partition("?")
            match = self._dispatcher.match(raw.method, path)
            if not caller.scope.allows(match.scope):
                require(caller, match.scope)
            body: Buffer = b""
            if match.takes_body:
                content = raw.content
                if content.is_eof():
                    body = content.read_nowait()
                    if len(body) > MAX_BODY_BYTES:
                        raise _too_large()
                else:
                    body, held = await self._read_body(raw)
                self._metrics.request_body_bytes += len(body)
            reply = match.answer(
                HttpRequest(raw.method, path, query, headers, body, caller), request_id
            )
            response = reply if isinstance(reply, HttpResponse) else await reply
        except MeshError as error:
            self._metrics.errors.add((error.code,))
            response = error_response(error, with_code=_is_mesh_api(target))
        except HttpRefusal as refusal:
            response = refusal_response(refusal, with_code=_is_mesh_api(target))
        except Exception:
            log.exception(
                "request %s failed: %s %s",
                request_id,
                raw.method,
                target[:200],
                extra={"request_id": request_id},
            )
            response = failure_response(request_id, with_code=_is_mesh_api(target))
        finally:
            if held is not None:
                held.end()
        if response.size_bytes > JOINED_BYTES:
            return await self._reply_large(raw, response, request_id, target)
        return await self._reply(raw, response, request_id)

    async def _reply_large(
        self, raw: web.BaseRequest, response: HttpResponse, request_id: str, target: str
    ) -> web.StreamResponse:
        """Answer, unless too many large answers wait for their readers."""
        try:
            with self._bodies.answering(response.size_bytes):
                return await self._reply(raw, response, request_id)
        except Saturated as error:
            self._metrics.errors.add((error.code,))
            instead = error_response(error, with_code=_is_mesh_api(target))
        return await self._reply(raw, instead, request_id)

    async def _reply(
        self, raw: web.BaseRequest, response: HttpResponse, request_id: str
    ) -> web.StreamResponse:
        """Count an answer, and write it unless aiohttp does so at once."""
        self._responses.add(_STATUS_LABELS.get(response.status) or (str(response.status),))
        size_bytes = response.size_bytes
        self._metrics.response_body_bytes += size_bytes
        if (
            size_bytes <= JOINED_BYTES
            and raw.keep_alive
            and raw.version == HttpVersion11
            and raw.method != "HEAD"
            and "Connection" not in response.headers
            and not self._is_leaving
        ):
            return PlainAnswer(response, request_id, self._date.text())
        if self._is_leaving:
            response = msgspec.structs.replace(
                response, headers={**response.headers, "Connection": "close"}
            )
        return await send(raw, response, request_id, self._date.text())

    def _admit(self, raw: web.BaseRequest, authority: str | None) -> Caller:
        """Say who asks, before anything else of a request is looked at.

        Args:
            raw: The request.
            authority: What its target names as the host, if it names one.
        """
        if sum(map(len, itertools.chain.from_iterable(raw.raw_headers))) > MAX_HEADER_BYTES:
            raise HttpRefusal(431, f"the headers have more than {MAX_HEADER_BYTES} bytes")
        if self._access is None:
            return OWNER
        headers = raw.headers
        host = headers.get(_HOST)
        if authority is not None:
            host = one_host(authority, host)
        approach = Approach(
            raw.remote or "",
            host,
            headers.get(_ORIGIN),
            headers.get(_AUTHORIZATION),
            headers.get(_X_API_KEY),
            b"\n".join(map(_NAME_OF_HEADER, raw.raw_headers)),
        )
        return self._access.admit(approach, self._loop.time(), self._wall_s())

    async def _read_body(self, raw: web.BaseRequest) -> tuple[bytearray, Body]:
        """Read a body that has not arrived completely; `Body.end` lets it go.

        Raises:
            TooLarge: if it exceeds its limit, by its Content-Length or as it grows.
            Saturated: if too many large bodies are being held, or this one is dropped for others.
            HttpRefusal: if it arrives too slowly.
        """
        announced = raw.content_length or 0
        if announced > MAX_BODY_BYTES:
            raise _too_large()
        timer = asyncio.timeout(BODY_GRACE_S)
        held = self._bodies.begin(announced, lambda: timer.reschedule(self._loop.time()))
        # One buffer that grows: pieces to be joined would take twice the memory at the end.
        data = bytearray()
        started = self._loop.time()
        try:
            async with timer:
                await _continue(raw)
                while chunk := await raw.content.readany():
                    data += chunk
                    held.grow(len(chunk))
                    if len(data) > MAX_BODY_BYTES:
                        raise _too_large()
                    timer.reschedule(started + BODY_GRACE_S + len(data) / MIN_BODY_BYTES_PER_S)
            held.complete()
        except TimeoutError:
            if held.dropped is not None:
                raise held.dropped from None
            raise HttpRefusal(408, "the body arrives too slowly", {"Connection": "close"}) from None
        except (web.RequestPayloadError, HttpProcessingError) as error:
            raise HttpRefusal(400, "the body is not valid HTTP", {"Connection": "close"}) from error
        finally:
            if not held.is_complete:
                held.end()
        return data, held


def _too_large() -> TooLarge:
    return TooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes")


def _is_mesh_api(target: str) -> bool:
    return target.startswith("/mesh/")


async def _continue(raw: web.BaseRequest) -> None:
    """Tell a client that waits for permission (curl, from 1 MiB on) to send its body."""
    if raw.headers.get(_EXPECT, "").lower() == "100-continue":
        await raw.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        raw.writer.output_size = 0  # of the answer; as aiohttp's own handler does


class _Server(web.Server):
    """Makes our kind of connection, and closes those beyond the limit at once."""

    def __init__(self, handler: _Handler, metrics: GatewayMetrics, **options: Any) -> None:
        super().__init__(handler, handler_cancellation=True)
        self._metrics = metrics
        self._running_loop = asyncio.get_running_loop()
        self._options = options
        self._open = 0

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._running_loop, **self._options)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self._open += 1
        self._metrics.connections += 1
        if self._open > MAX_HTTP_CONNECTIONS:
            transport.abort()

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        self._open -= 1
        self._metrics.connections -= 1
        super().connection_lost(handler, exc)


class _Connection(web.RequestHandler):
    """Answers what is not HTTP in JSON too, and without a stack trace per port scan."""

    __slots__ = ()

    def close_if_idle(self) -> None:
        """Close the connection unless a request has arrived or is being answered."""
        if self._current_request is None and not self._messages and self.transport is not None:
            self.transport.close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Called by aiohttp for bytes that its parser refuses."""
        if status == 500:
            log.error("a connection failed", exc_info=exc)
            response = failure_response("-")
        else:
            if isinstance(exc, LineTooLong):
                status = 431
            log.debug("malformed HTTP from %s: %s", request.remote, message)
            response = refusal_response(HttpRefusal(status, "the request is not valid HTTP"))
        assert isinstance(response.body, bytes)
        answer = web.Response(
            body=response.body,
            status=response.status,
            headers={**response.headers, "Server": "meshnode"},
        )
        answer.force_close()
        return answer

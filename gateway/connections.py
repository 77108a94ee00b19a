"""The connections of the HTTP server: how many there are, how long an answer waits, and what is said to no HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from meshnode.gateway.answering import PlainAnswer, hang_up
from meshnode.gateway.listening import is_from_owner
from meshnode.gateway.protocols.status import HttpRefusal, failure_response, refusal_response
from meshnode.limits import BODY_GRACE_S, MAX_HEADER_LINE_BYTES, MAX_HEADERS, MAX_HTTP_CONNECTIONS

if TYPE_CHECKING:
    from meshnode.gateway.metrics import GatewayMetrics
    from meshnode.gateway.protocols.http import HttpResponse

log = logging.getLogger(__name__)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

X_REQUEST_ID: Final = "X-Request-Id"
"""Header of the id that a request has in logs."""


class Connections(web.Server):
    """Makes our kind of connection, and closes those beyond the limit at once."""

    def __init__(
        self,
        handler: Handler,
        metrics: GatewayMetrics,
        on_refused: Callable[[web.BaseRequest, HttpResponse], str],
        **options: Any,
    ) -> None:
        """Answer requests by a handler.

        Args:
            handler: Answers one.
            metrics: Where connections are counted.
            on_refused: Told of answers to what is no request; returns the id that they get.
            options: Of aiohttp's connections.
        """
        super().__init__(handler, handler_cancellation=True)
        self.on_refused = on_refused
        self._metrics = metrics
        self._running_loop = asyncio.get_running_loop()
        self._options = options
        self._open = 0

    def __call__(self) -> web.RequestHandler:
        """Return what answers on a new connection."""
        return Connection(self, loop=self._running_loop, **self._options)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Count a connection, or close it at once."""
        super().connection_made(handler, transport)
        self._open += 1
        self._metrics.connections += 1
        sock = transport.get_extra_info("socket")
        if self._open > MAX_HTTP_CONNECTIONS or not (sock is None or is_from_owner(sock)):
            transport.abort()

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        """Count a connection no more."""
        self._open -= 1
        self._metrics.connections -= 1
        super().connection_lost(handler, exc)


class Connection(web.RequestHandler):
    """Answers what is not HTTP in JSON too, and without a stack trace per port scan."""

    __slots__ = ()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Called by aiohttp to write an answer; here a client does not keep it waiting, and its connection, for ever."""
        if isinstance(resp, PlainAnswer):  # it sees to that itself, at less cost
            return await super().finish_response(request, resp, start_time)
        try:
            async with asyncio.timeout(BODY_GRACE_S):
                return await super().finish_response(request, resp, start_time)
        except TimeoutError:
            hang_up(request)
            return resp, True

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
            sentence = "the request is not valid HTTP"
            if isinstance(exc, LineTooLong):
                status, sentence = 431, f"a header has more than {MAX_HEADER_LINE_BYTES} bytes"
            elif "Too many headers" in str(exc):
                status, sentence = 431, f"the request has more than {MAX_HEADERS} headers"
            log.debug("malformed HTTP from %s: %s", request.remote, message)
            response = refusal_response(HttpRefusal(status, sentence))
        assert isinstance(response.body, bytes)
        headers = {**response.headers, "Server": "meshnode"}
        if isinstance(self._manager, Connections):
            headers[X_REQUEST_ID] = self._manager.on_refused(request, response)
        answer = web.Response(body=response.body, status=response.status, headers=headers)
        answer.force_close()
        return answer

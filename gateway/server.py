"""The HTTP server: aiohttp's connection handling around a `Dispatcher`.

aiohttp's low-level server is used, not its `Application`: the router, the signals and the
middlewares of that cost more than a small model. What it leaves open is decided here:

| limit | where |
|---|---|
| connections | `MAX_HTTP_CONNECTIONS`; more are closed at once |
| one header line; their number | aiohttp's parser, with our numbers; 431 |
| all headers together | `MAX_HEADER_BYTES`; 431 |
| time for headers, and idle connections | `KEEP_ALIVE_S`: aiohttp's timer closes a connection on which no complete request has arrived |
| a body | `MAX_BODY_BYTES`, by its Content-Length before it is read, chunked bodies as they grow; 413 |
| time for a body | `BODY_GRACE_S` and then `MIN_BODY_BYTES_PER_S`; 408 |
| all large bodies, and all large answers, at once | `bodies`; 503 |
| time to take a large answer | the same pace as for a body, then the connection is closed |
| time to take a small answer, or a part of a stream | `BODY_GRACE_S`, likewise |

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
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import msgspec
from aiohttp import HttpVersion11, hdrs, web
from multidict import CIMultiDict

from meshnode.errors import ConfigError, MeshError, Saturated
from meshnode.gateway.access import Approach, require
from meshnode.gateway.answering import (
    JOINED_BYTES,
    DateHeader,
    PlainAnswer,
    send,
    send_stream,
)
from meshnode.gateway.bodies import Bodies
from meshnode.gateway.connections import X_REQUEST_ID, Connection, Connections
from meshnode.gateway.docs_page import OPEN_PATHS
from meshnode.gateway.key_limits import KeyLimits
from meshnode.gateway.listening import TcpSite, bind_unix
from meshnode.gateway.protocols.caller import OWNER, READER
from meshnode.gateway.protocols.event_ids import LAST_EVENT_ID, goes_on
from meshnode.gateway.protocols.header_lines import each_once, has_repetitions
from meshnode.gateway.protocols.holding import Holding
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, HttpStream
from meshnode.gateway.protocols.request_target import one_host, split_target
from meshnode.gateway.protocols.status import (
    HttpRefusal,
    error_response,
    failure_response,
    refusal_response,
)
from meshnode.gateway.reading import read_body, whole_body
from meshnode.limits import (
    KEEP_ALIVE_S,
    LINGER_S,
    MAX_HEADER_BYTES,
    MAX_HEADER_LINE_BYTES,
    MAX_HEADERS,
    MAX_REQUEST_ID_LENGTH,
)
from meshnode.types import Address, Buffer

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from meshnode.gateway.access import Access
    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.gateway.metrics import GatewayMetrics
    from meshnode.gateway.protocols.access_record import AccessRecord
    from meshnode.gateway.protocols.caller import Caller
    from meshnode.gateway.protocols.cors import Cors

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(rf"[A-Za-z0-9._:/+=-]{{1,{MAX_REQUEST_ID_LENGTH}}}")
_STATUS_LABELS = {status: (str(status),) for status in (200, 400, 404, 503)}
_HOST, _ORIGIN = hdrs.HOST, hdrs.ORIGIN
_AUTHORIZATION = hdrs.AUTHORIZATION
_X_API_KEY: Final = "X-API-Key"
_USER_AGENT: Final = hdrs.USER_AGENT
_Response = TypeVar("_Response", HttpResponse, HttpStream)
_NAME_OF_HEADER: Final = operator.itemgetter(0)


class AccessLog(Protocol):
    """Where requests are told (`meshnode.daemon.access_log`)."""

    def begin(
        self, request_id: str, method: str, path: str, remote: str = "", user_agent: str = ""
    ) -> AccessRecord:
        """Return the record of a request that has just come."""
        ...

    def end(self, record: AccessRecord) -> None:
        """Write a record whose request has been answered, or given up."""
        ...


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
        cors: Cors | None = None,
        key_limits: KeyLimits | None = None,
        access_log: AccessLog | None = None,
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
            cors: The other origins whose pages may ask; None for none.
            key_limits: Counts what callers with keys ask, for all entrances together.
            access_log: Told of every request; None for no such log.
        """
        self._cors = cors if cors is not None and cors.is_open else None
        self._key_limits = key_limits or KeyLimits()
        self._access_log = access_log
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
            Connections(
                self._handle if access_log is None else self._handle_logged,
                metrics,
                self._refused,
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
                if isinstance(connection, Connection):
                    connection.close_if_idle()

    async def stop(self) -> None:
        """Stop listening, let running requests finish for the grace period, cancel the rest."""
        await self._runner.cleanup()

    async def _setup(self) -> None:
        if self._runner.server is None:
            await self._runner.setup()

    # One request.

    def _has_place(
        self, caller: Caller, method: str, target: str, headers: Mapping[str, str]
    ) -> bool:
        """Whether a request goes on with a stream of this gateway, which has its place already."""
        return goes_on(method, target, headers) and self._dispatcher.streams.has(
            headers[LAST_EVENT_ID], caller.key_id, target.partition("?")[0]
        )

    def _request_id(self, raw: web.BaseRequest) -> str:
        """Return a request's id: its client's, if it has a plain one."""
        request_id = raw.headers.get(X_REQUEST_ID)
        if request_id is None or not _REQUEST_ID.fullmatch(request_id):
            return f"{self._id_prefix}{next(self._ids):x}"
        return request_id

    def _refused(self, raw: web.BaseRequest, response: HttpResponse) -> str:
        """Count and tell an answer to bytes that are no request; return its id."""
        request_id = f"{self._id_prefix}{next(self._ids):x}"
        self._responses.add((str(response.status),))
        if self._access_log is not None:
            record = self._access_log.begin(request_id, "", "", raw.remote or "")
            record.answered(response.status, response.headers, response.size_bytes)
            self._access_log.end(record)
        return request_id

    async def _handle_logged(self, raw: web.BaseRequest) -> web.StreamResponse:
        assert self._access_log is not None
        headers = raw.headers
        target = raw.raw_path
        path = (target if target.startswith("/") else split_target(target)[1]).partition("?")[0]
        record = self._access_log.begin(
            self._request_id(raw), raw.method, path, raw.remote or "", headers.get(_USER_AGENT, "")
        )
        try:
            return await self._handle(raw, record)
        finally:
            self._access_log.end(record)

    async def _handle(
        self, raw: web.BaseRequest, record: AccessRecord | None = None
    ) -> web.StreamResponse:
        holding = Holding()
        try:
            return await self._answer(raw, record, holding)
        finally:
            holding.end()

    async def _answer(
        self, raw: web.BaseRequest, record: AccessRecord | None, holding: Holding
    ) -> web.StreamResponse:
        """Answer one request; a small answer is returned ready to be written, others have been written then."""
        request_id = self._request_id(raw) if record is None else record.request_id
        target = raw.raw_path
        authority, target = (None, target) if target.startswith("/") else split_target(target)
        try:
            if self._cors is not None and raw.method == "OPTIONS":
                preflight = self._preflight(raw, authority, self._cors)
                if preflight is not None:
                    return await self._reply(raw, preflight, request_id, record)
            headers, names = self._headers(raw)
            caller = self._admit(self._approach(raw, authority, headers, names), raw, record)
            if caller.limit is not None and self._key_limits.begin(
                caller,
                self._loop.time(),
                takes_place=not self._has_place(caller, raw.method, target, headers),
            ):
                holding.place = partial(self._key_limits.end, caller)
            path, _, query = target.partition("?")
            match = self._dispatcher.match(raw.method, path)
            if not caller.scope.allows(match.scope):
                require(caller, match.scope)
            body: Buffer = b""
            if match.takes_body:
                if raw.content.is_eof():
                    body = whole_body(raw)
                else:
                    body, held = await read_body(raw, self._bodies)
                    holding.body = held.end
                self._count_body(len(body), record)
            reply = self._dispatcher.answer(
                match,
                HttpRequest(raw.method, path, query, headers, body, caller, record, holding),
                request_id,
            )
            response = reply if isinstance(reply, HttpResponse) else await reply
            if isinstance(response, HttpStream):
                return await self._reply_stream(raw, response, request_id, record)
        except Exception as error:  # noqa: BLE001 - a defect is answered, too
            response = self._told(error, raw.method, target, request_id)
        finally:
            body = b""
            holding.answered()
        if response.size_bytes > JOINED_BYTES:
            return await self._reply_large(raw, response, request_id, target, record)
        return await self._reply(raw, response, request_id, record)

    def _preflight(
        self, raw: web.BaseRequest, authority: str | None, cors: Cors
    ) -> HttpResponse | None:
        """Return the answer to a browser that asks whether a page may ask; None if this is no such question."""
        preflight = cors.preflight(raw.headers.get(_ORIGIN, ""), raw.headers)
        if preflight is not None and self._access is not None:
            self._access.check(self._approach(raw, authority, *self._headers(raw)))
        return preflight

    def _told(self, error: Exception, method: str, target: str, request_id: str) -> HttpResponse:
        """Return the answer for what went wrong, as the dialect of the path tells it; a defect is logged."""
        form = self._dispatcher.error_form(target)
        if isinstance(error, MeshError):
            self._metrics.errors.add((error.code,))
            return error_response(error, form)
        if isinstance(error, HttpRefusal):
            return refusal_response(error, form)
        log.error(
            "request %s failed: %s %s",
            request_id,
            method,
            target[:200],
            exc_info=error,
            extra={"request_id": request_id},
        )
        return failure_response(request_id, form)

    async def _reply_large(
        self,
        raw: web.BaseRequest,
        response: HttpResponse,
        request_id: str,
        target: str,
        record: AccessRecord | None,
    ) -> web.StreamResponse:
        """Answer, unless too many large answers wait for their readers."""
        try:
            with self._bodies.answering(response.size_bytes):
                return await self._reply(raw, response, request_id, record)
        except Saturated as error:
            self._metrics.errors.add((error.code,))
            instead = error_response(error, self._dispatcher.error_form(target))
        return await self._reply(raw, instead, request_id, record)

    async def _reply(
        self,
        raw: web.BaseRequest,
        response: HttpResponse,
        request_id: str,
        record: AccessRecord | None,
    ) -> web.StreamResponse:
        """Count an answer, and write it unless aiohttp does so at once."""
        if self._cors is not None:
            response = self._shared(raw, response)
        if record is not None:
            record.answered(response.status, response.headers, response.size_bytes)
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

    def _shared(self, raw: web.BaseRequest, response: _Response) -> _Response:
        """Return an answer with what lets a page of another origin read it, if such a page asks and may.

        Every answer says that it depends on the origin: one without may not be given to a page by a cache.
        """
        assert self._cors is not None
        if "Access-Control-Allow-Origin" in response.headers:
            return response
        origin = raw.headers.get(_ORIGIN)
        shared = self._cors.shared(response.headers, origin)
        return msgspec.structs.replace(response, headers=shared)

    async def _reply_stream(
        self,
        raw: web.BaseRequest,
        stream: HttpStream,
        request_id: str,
        record: AccessRecord | None,
    ) -> web.StreamResponse:
        """Count an answer that is still being made, and write it as it comes."""
        if self._cors is not None:
            stream = self._shared(raw, stream)
        if record is not None:
            record.answered(stream.status, stream.headers, 0)
            record.is_broken = True  # until its end was sent
        self._responses.add(_STATUS_LABELS.get(stream.status) or (str(stream.status),))

        def count(size_bytes: int) -> None:
            self._metrics.response_body_bytes += size_bytes
            if record is not None:
                record.response_bytes += size_bytes

        answer, is_whole = await send_stream(
            raw, stream, request_id, self._date.text(), count, is_last=self._is_leaving
        )
        if record is not None and is_whole:
            record.is_broken = False
        return answer

    def _count_body(self, size_bytes: int, record: AccessRecord | None) -> None:
        self._metrics.request_body_bytes += size_bytes
        if record is not None:
            record.request_bytes = size_bytes

    def _admit(
        self, approach: Approach, raw: web.BaseRequest, record: AccessRecord | None
    ) -> Caller:
        """Say who asks, before anything else of a request is looked at; `record` is told."""
        caller = self._recognised(approach, raw)
        if record is not None:
            record.caller = caller
        return caller

    def _recognised(self, approach: Approach, raw: web.BaseRequest) -> Caller:
        if self._access is None:
            return OWNER
        if raw.method in ("GET", "HEAD") and raw.raw_path.partition("?")[0] in OPEN_PATHS:
            self._access.check(approach)
            return READER
        return self._access.admit(approach, self._loop.time(), self._wall_s())

    def _headers(self, raw: web.BaseRequest) -> tuple[Mapping[str, str], bytes]:
        """Return a request's headers, each once, and the names of all lines; they keep to their limit.

        Raises:
            HttpRefusal: if they are too large.
            InvalidRequest: if they contradict each other.
        """
        if sum(map(len, itertools.chain.from_iterable(raw.raw_headers))) > MAX_HEADER_BYTES:
            raise HttpRefusal(431, f"the headers have more than {MAX_HEADER_BYTES} bytes")
        names = b"\n".join(map(_NAME_OF_HEADER, raw.raw_headers))
        if not has_repetitions(names):
            return raw.headers, names
        return CIMultiDict(each_once(raw.headers.items())), names

    def _approach(
        self,
        raw: web.BaseRequest,
        authority: str | None,
        headers: Mapping[str, str],
        names: bytes,
    ) -> Approach:
        """Return what shows who sent a request.

        Args:
            raw: The request.
            authority: What its target names as the host, if it names one.
            headers: Its headers.
            names: Their names.
        """
        host = headers.get(_HOST)
        if authority is not None:
            host = one_host(authority, host)
        return Approach(
            raw.remote or "",
            host,
            headers.get(_ORIGIN),
            headers.get(_AUTHORIZATION),
            headers.get(_X_API_KEY),
            names,
        )

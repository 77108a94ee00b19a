"""The connections of an asynchronous client: aiohttp's, with the same meaning of every failure."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import aiohttp
from yarl import URL

from meshnode.client.calls import Message, Reply
from meshnode.client.driving import tls_context
from meshnode.client.event_stream import is_event_stream
from meshnode.client.plan import Fault, Try
from meshnode.client.tries import (
    LIVENESS_PATH,
    TryFailed,
    foreign_daemon,
    hung_up,
    no_daemon,
    tls_failed,
    too_large,
    untrusted,
    why_unreachable,
)
from meshnode.errors import TooLarge
from meshnode.limits import (
    CLIENT_IDLE_S,
    CLIENT_PROBE_TIMEOUT_S,
    CLIENT_PROGRESS_BYTES,
    CLIENT_STREAM_LOOK_S,
    MAX_CLIENT_ANSWER_BYTES,
    MAX_CLIENT_CONNECTIONS,
    MAX_CLIENT_SILENCE_S,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
    from types import SimpleNamespace

    from meshnode.client.calls import Call
    from meshnode.client.endpoints import Endpoint, Target
    from meshnode.errors import MeshError
    from meshnode.types import Buffer

T = TypeVar("T")

_JOINED_BYTES: Final = 64 * 1024  # below it one copy is cheaper than a second packet
_WRITTEN_AT_ONCE_BYTES: Final = 256 * 1024
_NO_DAEMON: Final = (FileNotFoundError, NotADirectoryError, ConnectionRefusedError)


class _Progress:
    """How far one exchange is.

    Attributes:
        is_reused: Whether its connection was kept from an earlier exchange.
        sent: Whether the request is on its way.
        moved_at: When something last moved that counts.
    """

    def __init__(self, now: float) -> None:
        self.is_reused = False
        self.sent = False
        self.moved_at = now


class _Lost(Exception):
    """A connection that ended before it had answered. aiohttp repeats no request that ends so."""

    def __init__(self, cause: aiohttp.ClientError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class AsyncLiveAnswer:
    """A stream that a gateway has begun to send.

    Attributes:
        head: Its status and headers, as a reply without a body.
    """

    def __init__(
        self,
        head: Reply,
        response: aiohttp.ClientResponse,
        held: AsyncExitStack,
        is_alive: Callable[[float], Awaitable[bool]] | None,
    ) -> None:
        """Use `AsyncPool.open`; without `is_alive` only silence ends it."""
        self.head = head
        self._is_alive = is_alive
        self._look_s = CLIENT_STREAM_LOOK_S
        self._response = response
        self._held = held

    def __repr__(self) -> str:
        return f"<AsyncLiveAnswer of {self.head.url}>"

    async def read(self, timeout_s: float) -> bytes:
        """Return the next bytes, as soon as there are some; empty at the end.

        Raises:
            TryFailed: if the stream breaks off, nothing comes in so many seconds, or nothing comes and the gateway
                gives no sign of life.
        """
        reading = asyncio.ensure_future(self._response.content.readany())
        try:
            await self._watch(reading, timeout_s)
            return await reading
        except (aiohttp.ClientError, OSError) as error:
            why = str(error) or type(error).__name__
            raise TryFailed(Fault.BROKEN, f"broke off before it had answered ({why})") from None
        finally:
            if not reading.done():
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def _watch(self, reading: asyncio.Future[bytes], timeout_s: float) -> None:
        """Return when something is read; raise when the time is over, or the gateway silent."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while not reading.done():
            left_s = deadline - loop.time()
            if left_s <= 0:
                raise TryFailed(Fault.SILENT, f"said nothing for {timeout_s:.3g} s")
            wait_s = left_s if self._is_alive is None else min(self._look_s, left_s)
            await asyncio.wait({reading}, timeout=wait_s)
            if reading.done() or self._is_alive is None:
                continue
            self._look_s = min(2 * self._look_s, MAX_CLIENT_SILENCE_S)
            left_s = max(deadline - loop.time(), 0.0)
            if not await self._is_alive(min(CLIENT_PROBE_TIMEOUT_S, left_s)) and not reading.done():
                raise TryFailed(Fault.SILENT, "gives no sign of life")

    async def close(self) -> None:
        """Close the connection; a second time does nothing."""
        self._response.close()
        await self._held.aclose()


class AsyncPool:
    """The connections to all gateways of a client, in one event loop."""

    def __init__(self, target: Target) -> None:
        """Make an empty pool; call within the running loop."""
        self._endpoints = target.endpoints
        self._loop = asyncio.get_running_loop()
        self._headers = {"Accept-Encoding": "identity"}
        if target.api_key:
            self._headers["Authorization"] = f"Bearer {target.api_key}"
        self._slots = [asyncio.Semaphore(MAX_CLIENT_CONNECTIONS) for _ in target.endpoints]
        self._kept: aiohttp.ClientSession | None = None
        self._fresh: aiohttp.ClientSession | None = None
        self._tls: ssl.SSLContext | bool = True
        if not target.is_local:
            if any(endpoint.tls for endpoint in target.endpoints):
                self._tls = tls_context(target)
            keeping = aiohttp.TCPConnector(limit=0, keepalive_timeout=CLIENT_IDLE_S, ssl=self._tls)
            self._kept = _session(keeping)
            self._fresh = _session(aiohttp.TCPConnector(limit=0, force_close=True, ssl=self._tls))

    def __repr__(self) -> str:
        return f"<AsyncPool of {len(self._endpoints)} gateways>"

    @property
    def is_elsewhere(self) -> bool:
        """Whether another event loop than the pool's is running."""
        return asyncio.get_running_loop() is not self._loop

    async def close(self) -> None:
        """Close all connections."""
        # A loop that has ended took its connections with it; their transports cannot be told.
        with suppress(RuntimeError) if self._loop.is_closed() else nullcontext():
            for session in (self._kept, self._fresh):
                if session is not None:
                    await session.close()

    async def attempt(self, call: Call, step: Try) -> Reply:
        """Ask a gateway once, on a fresh connection if the call must not be repeated.

        Raises as `Pool.attempt` does.
        """
        message = call.message(step.timeout_s)
        progress = _Progress(self._loop.time())
        return await self._watched(self._ask(call, step, message, progress), step, progress)

    async def open(self, call: Call, step: Try) -> Reply | AsyncLiveAnswer:
        """Ask a gateway for a stream once, on a connection of its own; raises as `Pool.open` does."""
        message = call.message(step.timeout_s)
        progress = _Progress(self._loop.time())
        async with AsyncExitStack() as held:
            work = self._begin(call, step, message, progress, held)
            response = await self._watched(work, step, progress)
            endpoint = self._endpoints[step.gateway]
            names = {name.lower(): value for name, value in response.headers.items()}
            head = Reply(response.status, names, b"", step.gateway, str(endpoint))
            if is_event_stream(response.status, names):
                is_alive = None if step.silence_s is None else partial(self._is_alive, step)
                return AsyncLiveAnswer(head, response, held.pop_all(), is_alive)
            body = await self._watched(self._rest(response, endpoint, progress), step, progress)
        return replace(head, body=body)

    async def _watched(self, asked: Coroutine[Any, Any, T], step: Try, progress: _Progress) -> T:
        work = asyncio.ensure_future(asked)
        try:
            await self._watch(work, step, progress)
            return await work
        finally:
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)

    async def _begin(
        self,
        call: Call,
        step: Try,
        message: Message,
        progress: _Progress,
        held: AsyncExitStack,
    ) -> aiohttp.ClientResponse:
        """Return an answer whose head is here; what it holds on to is put on the stack."""
        endpoint = self._endpoints[step.gateway]
        await held.enter_async_context(self._slots[step.gateway])
        headers = {**self._headers, **message.headers}
        try:
            reached, base = await held.enter_async_context(
                self._reach(self._fresh, endpoint, headers)
            )
            response = await held.enter_async_context(
                reached.request(
                    call.method,
                    URL(base + call.path, encoded=True),
                    data=_body(message.parts, headers),
                    headers=headers,
                    allow_redirects=False,
                    timeout=_timeout(step),
                    trace_request_ctx=progress,
                )
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _meaning(endpoint, error, progress) from None
        except _Lost as lost:
            if not progress.sent:
                raise _meaning(endpoint, lost.cause, progress) from None
            raise hung_up(endpoint) from None
        progress.moved_at = self._loop.time()
        return response

    async def _rest(
        self, response: aiohttp.ClientResponse, endpoint: Endpoint, progress: _Progress
    ) -> Buffer:
        try:
            return await self._read(response, progress)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _meaning(endpoint, error, progress) from None

    async def _watch(self, work: asyncio.Future[T], step: Try, progress: _Progress) -> None:
        """Return when the exchange has ended; raise when the time is over, or the gateway silent."""
        deadline = self._loop.time() + step.timeout_s
        silence_s = step.silence_s
        while not work.done():
            now = self._loop.time()
            if now >= deadline:
                raise _out_of_time(step, progress)
            check = deadline
            if silence_s is not None:
                check = progress.moved_at + silence_s if progress.sent else now + silence_s
                if check <= now:
                    if not await self._is_alive(step, min(step.probe_s, deadline - now)):
                        raise TryFailed(
                            Fault.SILENT, "accepts connections but gives no sign of life"
                        )
                    silence_s *= 2  # it lives; the model takes its time
                    progress.moved_at = self._loop.time()
                    continue
            await asyncio.wait({work}, timeout=min(check, deadline) - now)

    async def _is_alive(self, step: Try, timeout_s: float) -> bool:
        """Whether the gateway answers anything at all on another connection."""
        probe = Try(step.gateway, timeout_s, timeout_s, None, timeout_s)
        url = URL(self._endpoints[step.gateway].url + LIVENESS_PATH, encoded=True)
        connector = aiohttp.TCPConnector(force_close=True, ssl=self._tls)
        async with _session(connector) as session:
            try:
                async with (
                    asyncio.timeout(timeout_s),
                    session.get(url, timeout=_timeout(probe), allow_redirects=False) as response,
                ):
                    await self._read(response, _Progress(self._loop.time()))
                    return True
            except (TimeoutError, aiohttp.ClientError, OSError, TooLarge, _Lost):
                return False

    async def _ask(self, call: Call, step: Try, message: Message, progress: _Progress) -> Reply:
        endpoint = self._endpoints[step.gateway]
        async with self._slots[step.gateway]:
            try:
                if call.repeatable:
                    try:
                        return await self._exchange(self._kept, call, step, message, progress)
                    except _Lost:
                        # It had been closed meanwhile: that says nothing about the gateway.
                        if not progress.is_reused:
                            raise
                        progress.is_reused = progress.sent = False
                return await self._exchange(self._fresh, call, step, message, progress)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise _meaning(endpoint, error, progress) from None
            except _Lost as lost:
                if not progress.sent:
                    raise _meaning(endpoint, lost.cause, progress) from None
                raise hung_up(endpoint) from None

    async def _exchange(
        self,
        session: aiohttp.ClientSession | None,
        call: Call,
        step: Try,
        message: Message,
        progress: _Progress,
    ) -> Reply:
        endpoint = self._endpoints[step.gateway]
        headers = {**self._headers, **message.headers}
        async with (
            self._reach(session, endpoint, headers) as (reached, base),
            reached.request(
                call.method,
                URL(base + call.path, encoded=True),
                data=_body(message.parts, headers),
                headers=headers,
                allow_redirects=False,
                timeout=_timeout(step),
                trace_request_ctx=progress,
            ) as response,
        ):
            progress.moved_at = self._loop.time()
            body = await self._read(response, progress)
        names = {name.lower(): value for name, value in response.headers.items()}
        return Reply(response.status, names, body, step.gateway, str(endpoint))

    @asynccontextmanager
    async def _reach(
        self, session: aiohttp.ClientSession | None, endpoint: Endpoint, headers: dict[str, str]
    ) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
        """Yield a session that reaches an endpoint, and what its URLs begin with."""
        if session is not None:
            yield session, endpoint.url
            return
        # A control channel: nothing is held between calls, and the daemon may be another by now.
        address = endpoint.control_address()
        if address.token:
            headers["Authorization"] = f"Bearer {address.token}"
        connector: aiohttp.BaseConnector
        if address.unix is not None:
            connector = aiohttp.UnixConnector(address.unix, force_close=True)
        else:
            connector = aiohttp.TCPConnector(force_close=True)
        async with _session(connector) as own:
            yield own, f"http://{address.tcp or 'localhost'}"

    async def _read(self, response: aiohttp.ClientResponse, progress: _Progress) -> Buffer:
        if (response.content_length or 0) > MAX_CLIENT_ANSWER_BYTES:
            raise too_large()
        body = bytearray()
        counted = 0
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) - counted >= CLIENT_PROGRESS_BYTES:
                counted = len(body)
                progress.moved_at = self._loop.time()
            if len(body) > MAX_CLIENT_ANSWER_BYTES:
                raise too_large()
        return body


def _session(connector: aiohttp.BaseConnector) -> aiohttp.ClientSession:
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_note_reused)
    trace.on_request_headers_sent.append(_note_sent)
    trace.on_request_chunk_sent.append(_note_sent)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept", "Content-Type"),
        trace_configs=[trace],
        middlewares=(_never_twice,),
    )


async def _never_twice(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Keep aiohttp from sending a request again by itself, as it does with a lost GET or DELETE."""
    try:
        return await handler(request)
    except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError):
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _Lost(error) from None


async def _note_reused(
    _session: aiohttp.ClientSession,
    context: SimpleNamespace,
    _params: aiohttp.TraceConnectionReuseconnParams,
) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.is_reused = True


async def _note_sent(
    _session: aiohttp.ClientSession,
    context: SimpleNamespace,
    _params: aiohttp.TraceRequestHeadersSentParams | aiohttp.TraceRequestChunkSentParams,
) -> None:
    progress = context.trace_request_ctx
    if progress is not None:
        progress.sent = True
        progress.moved_at = asyncio.get_running_loop().time()


def _timeout(step: Try) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(
        total=None, connect=step.connect_s, ceil_threshold=step.timeout_s + 1
    )


def _body(parts: Sequence[Buffer], headers: dict[str, str]) -> bytes | AsyncIterator[Buffer] | None:
    """Return the body, and set its length where aiohttp could not know it."""
    if not parts:
        return None
    size_bytes = sum(memoryview(part).nbytes for part in parts)
    if len(parts) == 1 and isinstance(parts[0], bytes):
        return parts[0]
    if size_bytes <= _JOINED_BYTES:
        return b"".join(parts)
    headers["Content-Length"] = str(size_bytes)
    return _pieces(parts)


async def _pieces(parts: Sequence[Buffer]) -> AsyncIterator[Buffer]:
    for part in parts:
        view = memoryview(part).cast("B")
        for start in range(0, len(view), _WRITTEN_AT_ONCE_BYTES):
            yield view[start : start + _WRITTEN_AT_ONCE_BYTES]


def _out_of_time(step: Try, progress: _Progress) -> TryFailed:
    if not progress.sent:
        return TryFailed(Fault.UNREACHABLE, f"no connection within {step.timeout_s:.3g} s")
    return TryFailed(Fault.SILENT, f"no complete answer within {step.timeout_s:.3g} s")


def _meaning(endpoint: Endpoint, error: Exception, progress: _Progress) -> TryFailed | MeshError:
    """Translate what aiohttp raised."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return untrusted(error.certificate_error)
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return tls_failed(endpoint, error.os_error)
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if endpoint.control is not None and isinstance(cause, _NO_DAEMON):
        return no_daemon(endpoint)
    if endpoint.control is not None and isinstance(cause, PermissionError):
        return foreign_daemon(endpoint)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return TryFailed(Fault.UNREACHABLE, f"{error.host!r} cannot be resolved")
    if not progress.sent:
        reason = why_unreachable(cause) if isinstance(cause, OSError) else str(error)
        return TryFailed(Fault.UNREACHABLE, reason)
    why = str(error) or type(error).__name__
    if isinstance(error, aiohttp.ClientResponseError):
        why = "what came is no HTTP"
    elif isinstance(error, aiohttp.ClientPayloadError):
        why = "the answer is not complete"
    return TryFailed(Fault.BROKEN, f"broke off before it had answered ({why})")

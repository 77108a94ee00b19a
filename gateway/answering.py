"""How answers are written: small ones as ready bytes, large ones and streams in parts at the client's pace."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import sys
from contextlib import aclosing
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import HttpVersion11, web
from multidict import CIMultiDict

from meshnode.errors import MeshError
from meshnode.limits import BODY_GRACE_S, KIB, MIN_BODY_BYTES_PER_S

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from aiohttp.abc import AbstractStreamWriter

    from meshnode.gateway.protocols.http import HttpResponse, HttpStream
    from meshnode.types import Buffer

log = logging.getLogger(__name__)

_RESET: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
# SO_LINGER, on and for no time: what closes the socket resets the connection.

JOINED_BYTES: Final = 64 * KIB
"""Up to it one copy of an answer is cheaper than a second write."""


async def send(
    raw: web.BaseRequest, response: HttpResponse, request_id: str, date: str
) -> web.StreamResponse:
    """Return an answer that aiohttp writes, or write a large one without joining it."""
    headers = CIMultiDict(response.headers)
    headers["Server"] = "meshnode"
    headers["X-Request-Id"] = request_id
    headers["Date"] = date  # by the node's clock; aiohttp's own would be the machine's
    body = response.body
    if response.size_bytes > JOINED_BYTES:
        parts = [body] if isinstance(body, bytes) else body
        return await _send_parts(raw, response.status, headers, parts)
    if not isinstance(body, bytes):
        body = b"".join(body)
    answer = web.Response(body=body, status=response.status, headers=headers)
    if "Connection" in headers:
        answer.force_close()
    return answer


async def _send_parts(
    raw: web.BaseRequest, status: int, headers: CIMultiDict[str], parts: Sequence[Buffer]
) -> web.StreamResponse:
    """Send a large answer without joining it, as long as the client takes it at a fair pace."""
    size_bytes = sum(memoryview(part).nbytes for part in parts)
    answer = web.StreamResponse(status=status, headers=headers)
    answer.content_length = size_bytes
    if "Connection" in headers:
        answer.force_close()
    seconds = BODY_GRACE_S + size_bytes / MIN_BODY_BYTES_PER_S
    try:
        async with asyncio.timeout(seconds):
            await answer.prepare(raw)
            if raw.method == "HEAD":
                return answer
            for part in parts:
                await answer.write(memoryview(part).cast("B"))
    except (TimeoutError, ConnectionError):
        hang_up(raw)
    return answer


async def send_stream(
    raw: web.BaseRequest,
    stream: HttpStream,
    request_id: str,
    date: str,
    on_sent: Callable[[int], None],
    *,
    is_last: bool,
) -> tuple[web.StreamResponse, bool]:
    """Send an answer as it is made; return it and whether all of it was sent.

    A client that takes nothing for `BODY_GRACE_S` is hung up on. When the stream fails after its beginning,
    the error is its last event or line if it consists of such, and the connection ends without the body's
    end otherwise.

    Args:
        raw: The request.
        stream: The answer; it is closed, however this ends.
        request_id: For the headers.
        date: Likewise.
        on_sent: Told the bytes of each part that was sent.
        is_last: Close the connection afterwards.
    """
    headers = CIMultiDict(stream.headers)
    headers["Server"] = "meshnode"
    headers["X-Request-Id"] = request_id
    headers["Date"] = date
    answer = web.StreamResponse(status=stream.status, headers=headers)
    if is_last:
        answer.force_close()
    if stream.size_bytes is not None:
        answer.content_length = stream.size_bytes
    is_whole = False
    # An asynchronous generator; the protocol of its type has no name for closing it.
    parts: AsyncGenerator[Buffer, None] = stream.parts  # type: ignore[assignment]
    async with aclosing(parts):
        try:
            async with asyncio.timeout(BODY_GRACE_S):
                await answer.prepare(raw)
            if raw.method == "HEAD":
                return answer, True
            async for part in parts:
                async with asyncio.timeout(BODY_GRACE_S):
                    await answer.write(memoryview(part).cast("B"))
                on_sent(memoryview(part).nbytes)
            is_whole = True
        except (TimeoutError, ConnectionError):
            hang_up(raw)
        except MeshError as error:
            last = _last_words(error, headers.get("Content-Type", ""))
            if last and stream.size_bytes is None:
                await _write_last(raw, answer, last)
            elif raw.version < HttpVersion11:
                hang_up(raw)
            elif raw.transport is not None:
                raw.transport.close()  # what was written still goes out
        except Exception:
            log.exception("the answer to request %s broke off", request_id)
            hang_up(raw)
    return answer, is_whole


async def _write_last(raw: web.BaseRequest, answer: web.StreamResponse, last: bytes) -> None:
    try:
        async with asyncio.timeout(BODY_GRACE_S):
            await answer.write(last)
    except (TimeoutError, ConnectionError):
        hang_up(raw)


def hang_up(raw: web.BaseRequest) -> None:
    """End a request's connection at once: what was not sent is dropped.

    A body without a length ends with the connection in HTTP/1.0. There the connection is reset, so that what came
    is not taken for the whole.
    """
    transport = raw.transport
    if transport is None:
        return
    sock = transport.get_extra_info("socket") if raw.version < HttpVersion11 else None
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


def _last_words(error: MeshError, content_type: str) -> bytes:
    """Return an error as the last part of a stream of events or lines; nothing for other bodies."""
    text = msgspec.json.encode({"error": str(error), "code": error.code})
    match content_type.partition(";")[0].strip().lower():
        case "text/event-stream":
            return b"event: error\ndata: " + text + b"\n\n"
        case "application/x-ndjson":
            return text + b"\n"
    return b""


class PlainAnswer(web.StreamResponse):
    """A small answer to a plain HTTP/1.1 request, ready as bytes.

    aiohttp's own response spends more on its header table than a small model on its answer.
    """

    def __init__(self, response: HttpResponse, request_id: str, date: str) -> None:
        super().__init__()
        lines = [
            _STATUS_LINES[response.status],
            *map(": ".join, response.headers.items()),
            "Server: meshnode",
            "X-Request-Id: " + request_id,
            "Date: " + date,
            "Content-Length: " + str(response.size_bytes),
            "\r\n",
        ]
        head = "\r\n".join(lines)
        if head.count("\n") != len(lines) or head.count("\r") != len(lines):
            raise ValueError("a header's value contains a line end")
        body = response.body
        self._wire = head.encode() + (body if isinstance(body, bytes) else b"".join(body))

    @property
    def keep_alive(self) -> bool:
        """The connection stays open."""
        return True

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter:
        """Write everything, and wait a while if the client does not read what it is sent.

        Raises:
            ConnectionResetError: if it goes on not reading; it has been hung up on.
        """
        writer = request.writer
        transport = request.transport
        await writer.write(self._wire)
        if transport is not None and transport.get_write_buffer_size():
            try:
                async with asyncio.timeout(BODY_GRACE_S):
                    await writer.drain()
            except TimeoutError:
                hang_up(request)
                raise ConnectionResetError("the client does not read its answers") from None
        return writer

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""


class DateHeader:
    """The Date header's value, formatted once a second."""

    def __init__(self, wall_s: Callable[[], float]) -> None:
        """Follow this clock, which returns seconds since the Unix epoch."""
        self._wall_s = wall_s
        self._second = 0
        self._text = ""

    def text(self) -> str:
        """Return it for now."""
        second = int(self._wall_s())
        if second != self._second:
            self._second = second
            self._text = formatdate(second, usegmt=True)
        return self._text


_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}" for status in HTTPStatus}

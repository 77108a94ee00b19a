"""How answers are written: small ones as ready bytes, large ones in parts at the client's pace."""

from __future__ import annotations

import asyncio
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from aiohttp import web
from multidict import CIMultiDict

from meshnode.limits import BODY_GRACE_S, KIB, MIN_BODY_BYTES_PER_S

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiohttp.abc import AbstractStreamWriter

    from meshnode.gateway.protocols.http import HttpResponse
    from meshnode.types import Buffer

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
    await answer.prepare(raw)
    if raw.method == "HEAD":
        return answer
    seconds = BODY_GRACE_S + size_bytes / MIN_BODY_BYTES_PER_S
    try:
        async with asyncio.timeout(seconds):
            for part in parts:
                await answer.write(memoryview(part).cast("B"))
    except (TimeoutError, ConnectionError):
        if raw.transport is not None:
            raw.transport.abort()
    return answer


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
        """Write everything, and wait if the client does not read what it is sent."""
        writer = request.writer
        await writer.write(self._wire)
        await writer.drain()
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

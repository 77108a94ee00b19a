"""How bodies are read: within their limits of size, time and the gateway's memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from meshnode.errors import TooLarge
from meshnode.gateway.protocols.status import HttpRefusal
from meshnode.limits import BODY_GRACE_S, MAX_BODY_BYTES, MIN_BODY_BYTES_PER_S

if TYPE_CHECKING:
    from meshnode.gateway.bodies import Bodies, Body


def whole_body(raw: web.BaseRequest) -> bytes:
    """Return a body that has arrived completely.

    Raises:
        TooLarge: if it exceeds its limit.
    """
    body = raw.content.read_nowait()
    if len(body) > MAX_BODY_BYTES:
        raise _too_large()
    return body


async def read_body(raw: web.BaseRequest, bodies: Bodies) -> tuple[bytearray, Body]:
    """Read a body that has not arrived completely; `Body.end` lets it go.

    Args:
        raw: The request.
        bodies: Counts the memory of all bodies.

    Raises:
        TooLarge: if it exceeds its limit, by its Content-Length or as it grows.
        Saturated: if too many large bodies are being held, or this one is dropped for others.
        HttpRefusal: if it arrives too slowly.
    """
    announced = raw.content_length or 0
    if announced > MAX_BODY_BYTES:
        raise _too_large()
    loop = asyncio.get_running_loop()
    timer = asyncio.timeout(BODY_GRACE_S)
    held = bodies.begin(announced, lambda: timer.reschedule(loop.time()))
    # One buffer that grows: pieces to be joined would take twice the memory at the end.
    data = bytearray()
    started = loop.time()
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


async def _continue(raw: web.BaseRequest) -> None:
    """Tell a client that waits for permission (curl, from 1 MiB on) to send its body."""
    if raw.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
        await raw.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        raw.writer.output_size = 0  # of the answer; as aiohttp's own handler does

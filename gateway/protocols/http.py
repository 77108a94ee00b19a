"""An HTTP request and a response as plain data, between a web server and a dialect.

Both are msgspec structs because one of each is made per request: building one takes a fifth of
the time of a frozen dataclass.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

import msgspec

from meshnode.gateway.protocols.access_record import AccessRecord
from meshnode.gateway.protocols.caller import LOCAL, Caller
from meshnode.gateway.protocols.holding import Holding
from meshnode.types import Buffer

JSON_HEADERS: Mapping[str, str] = {"Content-Type": "application/json"}
"""Headers of every JSON answer; shared, so copy before changing."""


class HttpRequest(msgspec.Struct, frozen=True):
    """A request whose body has arrived completely.

    Attributes:
        method: Upper case.
        path: Decoded path without the query, beginning with `/`.
        query: What follows `?`, undecoded.
        headers: Lookups ignore case, or all keys are lower case.
        body: The bytes as sent: still under the Content-Encoding of the headers.
        caller: Who asks; may do what the route needs.
        record: What the access log will tell of it; None where there is no such log.
        holding: What it takes of the gateway until its answer has ended; None for nothing.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: Buffer = b""
    caller: Caller = LOCAL
    record: AccessRecord | None = None
    holding: Holding | None = None


class HttpResponse(msgspec.Struct, frozen=True):
    """A response: `body` is one buffer, or several that are sent one after the other."""

    status: int
    headers: Mapping[str, str]
    body: bytes | list[Buffer] = b""

    @property
    def size_bytes(self) -> int:
        """Length of the whole body in bytes."""
        if isinstance(self.body, bytes):
            return len(self.body)
        return sum(memoryview(part).nbytes for part in self.body)


class Lasting(Protocol):
    """What makes the parts of a stream, where that does not end with the stream's reader."""

    def remember(self, tell_end: Callable[[bytes | None], None]) -> None:
        """Keep all parts, for those who repeat the request; call at once when the stream is there.

        Args:
            tell_end: Called once, when the work has ended: with the whole body, or None if it failed or is too large.
        """
        ...

    async def again(self) -> HttpStream | None:
        """Wait until nobody reads the stream and return it from its beginning; None if the work ended instead."""
        ...


class HttpStream(msgspec.Struct, frozen=True):
    """A response whose body is still being made.

    Attributes:
        status: Of the answer.
        headers: Without Content-Length.
        parts: Pieces of the body; closing it, when the client is gone, stops who makes them. What it raises
            is told in the body where its form has a place for it; otherwise the connection ends, so
            that nobody takes a part for the whole.
        size_bytes: Length of the whole body, where it is known.
        lasting: What goes on when `parts` is closed; None where nothing does.
    """

    status: int
    headers: Mapping[str, str]
    parts: AsyncIterator[Buffer]
    size_bytes: int | None = None
    lasting: Lasting | None = None


def json_response(value: object, status: int = 200) -> HttpResponse:
    """Return `value` (what msgspec can encode) as a JSON answer."""
    return HttpResponse(status, JSON_HEADERS, msgspec.json.encode(value))

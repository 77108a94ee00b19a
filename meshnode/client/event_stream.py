"""Server-sent events as a client reads them: bytes in any pieces become events. Pure.

The format is that of the HTML standard (section "Server-sent events", `text/event-stream`): lines that end in
LF, CR or CRLF, fields `event`, `data`, `id` and `retry`, and a blank line that ends an event. An event that the
connection cut short is no event. Comments (`: ...`) are heartbeats: they say that the other side lives.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from meshnode.errors import ProtocolError, TooLarge
from meshnode.limits import MAX_CLIENT_ANSWER_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

MEDIA_TYPE: Final = "text/event-stream"
LAST_ID_HEADER: Final = "Last-Event-ID"
DEFAULT_KIND: Final = "message"

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


def is_event_stream(status: int, headers: Mapping[str, str]) -> bool:
    """Whether an answer with this head is a stream of events; names of headers are in lower case."""
    return status == 200 and headers.get("content-type", "").partition(";")[0].strip() == MEDIA_TYPE


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event.

    Attributes:
        kind: Its type; `message` where the stream names none.
        data: Its content.
        id: The last id that was told, with this event or an earlier one; empty if there was none.
    """

    kind: str
    data: str
    id: str = ""

    def document(self) -> dict[str, Any]:
        """Return its data as a JSON object.

        Raises:
            ProtocolError: if it is none.
        """
        try:
            found = json.loads(self.data)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ProtocolError(f"an event {self.kind[:40]!r} of the stream is no JSON object")
        return found


class EventParser:
    """Reads one stream of events."""

    def __init__(self, last_id: str = "") -> None:
        """Begin at the first byte, after this id."""
        self._buffer = bytearray()
        self._scanned = 0
        self._is_first = True
        self._after_return = False
        self._kind = ""
        self._data: list[str] = []
        self._data_bytes = 0
        self._id = last_id
        self.last_id = last_id

    def __repr__(self) -> str:
        return f"<EventParser after {self.last_id!r}, {len(self._buffer)} bytes of a line>"

    def feed(self, piece: bytes) -> list[ServerEvent]:
        """Take the next bytes; return the events that they complete.

        Raises:
            TooLarge: if an event exceeds `MAX_CLIENT_ANSWER_BYTES`.
        """
        self._buffer += piece
        events = []
        while (line := self._next_line()) is not None:
            if self._is_first:
                self._is_first = False
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if line:
                self._field(line.decode("utf-8", "replace"))
            elif (event := self._ended()) is not None:
                events.append(event)
        if len(self._buffer) + self._data_bytes > MAX_CLIENT_ANSWER_BYTES:
            raise TooLarge(
                f"an event of the stream exceeds {MAX_CLIENT_ANSWER_BYTES} bytes; ask for fewer outputs"
            )
        return events

    def _next_line(self) -> bytes | None:
        """Take a line off the buffer, without its end; None if it has none yet."""
        buffer = self._buffer
        if self._after_return and buffer:
            self._after_return = False
            if buffer[:1] == b"\n":  # the second half of a CRLF that came in two pieces
                del buffer[:1]
        newline = buffer.find(b"\n", self._scanned)
        end = buffer.find(b"\r", self._scanned, newline if newline >= 0 else len(buffer))
        if end < 0:
            end = newline
        if end < 0:
            self._scanned = len(buffer)
            return None
        self._after_return = buffer[end] == 0x0D
        line = bytes(buffer[:end])
        del buffer[: end + 1]
        self._scanned = 0
        return line

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
            self._data_bytes += len(value)
        elif name == "event":
            self._kind = value
        elif name == "id" and "\0" not in value:
            self._id = value

    def _ended(self) -> ServerEvent | None:
        kind, data = self._kind, self._data
        self.last_id = self._id  # only now: the connection may cut an event short
        self._kind, self._data, self._data_bytes = "", [], 0
        if not data:
            return None
        return ServerEvent(kind or DEFAULT_KIND, "\n".join(data), self.last_id)

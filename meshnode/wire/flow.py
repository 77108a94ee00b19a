"""Both halves of a stream: parts that wait for credit, and parts that are being put together.

Credit. Each side may have sent at most `window_bytes` of data that the receiver has not granted
again. The receiver keeps two numbers per stream:

- `granted`: what the peer may still send,
- `held`: data of complete parts that the application has not consumed.

It wants the peer to have `window - held`. What is missing is due, and goes out as one WINDOW when
it is half the window, so that a stream of small parts costs few of them. Data of a part that is
still incomplete does not count as held: its credit returns at once, or a part larger than the
window would never arrive. When it is complete all of it is held, and nothing is granted until the
application catches up. So a stream holds at most one largest part and a window, whatever its
peer does; the link bounds the sum over streams.

Sending. A part is announced, then cut into frames of what credit and `MAX_FRAME_DATA_BYTES`
allow, as views of the caller's buffers. Small parts for which credit is at hand never get here.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from meshnode.limits import MAX_FRAME_DATA_BYTES
from meshnode.wire.config import IMMEDIATE_BYTES
from meshnode.wire.frames import DATA, END, HEADER, HEADER_BYTES, announcement_frame, part_header

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshnode.types import Buffer


def size_of(data: Iterable[Buffer]) -> int:
    """Return the bytes of all buffers together."""
    total = 0
    for piece in data:
        total += piece.nbytes if type(piece) is memoryview else len(piece)
    return total


def byte_views(data: Iterable[Buffer]) -> list[memoryview]:
    """Return views of the buffers' bytes, without the empty ones.

    Raises:
        TypeError: if a buffer is not C-contiguous.
    """
    views = [memoryview(piece) for piece in data]
    return [view.cast("B") for view in views if view.nbytes]


class Incoming:
    """A part that is being put together in a buffer of its own.

    Attributes:
        meta: The part's message.
        data: All of the part's bytes, the last `left_bytes` of which are still to come.
        left_bytes: How many are to come.
    """

    __slots__ = ("data", "left_bytes", "meta")

    def __init__(self, meta: bytes, total_bytes: int) -> None:
        """Allocate the whole part."""
        self.meta = meta
        self.data = memoryview(bytearray(total_bytes))
        self.left_bytes = total_bytes

    def __repr__(self) -> str:
        return f"<Incoming {len(self.data) - self.left_bytes} of {len(self.data)} bytes>"

    def next_place(self, size_bytes: int) -> memoryview:
        """Return where the next piece belongs."""
        start = len(self.data) - self.left_bytes
        return self.data[start : start + size_bytes]


class _Part:
    """A part that waits to be sent, or what is left of it."""

    __slots__ = ("announced", "end", "left_bytes", "meta", "pieces")

    def __init__(
        self, meta: bytes, pieces: Iterable[memoryview], size_bytes: int, end: bool
    ) -> None:
        self.meta = meta
        self.pieces = deque(pieces)
        self.left_bytes = size_bytes
        self.end = end
        self.announced = False

    def cut(self, size_bytes: int, out: list[Buffer]) -> None:
        """Move this many bytes from the front to `out`."""
        self.left_bytes -= size_bytes
        while size_bytes:
            piece = self.pieces.popleft()
            if len(piece) > size_bytes:
                self.pieces.appendleft(piece[size_bytes:])
                piece = piece[:size_bytes]
            out.append(piece)
            size_bytes -= len(piece)


class Outgoing:
    """The parts of one stream that wait for their turn or for credit, in order.

    Attributes:
        queued_bytes: Data, meta and headers that wait.
        in_turn: Whether the link has the stream in its round of those that may send.
        ending: Whether the last part ends the sending half; none can be added.
    """

    __slots__ = ("_parts", "ending", "in_turn", "queued_bytes")

    def __init__(self) -> None:
        """Begin with nothing."""
        self._parts: deque[_Part] = deque()
        self.queued_bytes = 0
        self.in_turn = False
        self.ending = False

    def __repr__(self) -> str:
        return f"<Outgoing {len(self._parts)} parts {self.queued_bytes} bytes>"

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._parts)

    def add(self, meta: bytes, data: Iterable[Buffer], size_bytes: int, *, end: bool) -> None:
        """Queue a part."""
        self._parts.append(_Part(meta, byte_views(data), size_bytes, end))
        self.queued_bytes += HEADER_BYTES + len(meta) + size_bytes
        self.ending = end

    def may_send(self, credit: int) -> bool:
        """Whether a frame can be written with this credit."""
        return credit > 0 or not self._parts[0].announced

    def announce(self, kind: int, stream: int) -> bytes:
        """Return the announcement of the part in front."""
        part = self._parts[0]
        part.announced = True
        self.queued_bytes -= HEADER_BYTES + len(part.meta)
        return announcement_frame(kind, stream, part.meta, part.left_bytes)

    def write_frame(self, stream: int, credit: int, out: list[Buffer]) -> int:
        """Write one frame, and before it an announcement where one is needed.

        Returns:
            The data bytes written, to be taken off the credit.
        """
        part = self._parts[0]
        if not part.announced:
            if part.left_bytes <= min(credit, IMMEDIATE_BYTES):
                return self._write_whole(stream, out)
            out.append(self.announce(DATA, stream))
        size_bytes = min(part.left_bytes, credit, MAX_FRAME_DATA_BYTES)
        if size_bytes:
            done = size_bytes == part.left_bytes
            out.append(HEADER.pack(size_bytes, 0, DATA, END if done and part.end else 0, stream))
            part.cut(size_bytes, out)
            self.queued_bytes -= size_bytes
            if done:
                self._parts.popleft()
        return size_bytes

    def _write_whole(self, stream: int, out: list[Buffer]) -> int:
        part = self._parts.popleft()
        size_bytes = part.left_bytes
        out.append(part_header(DATA, END if part.end else 0, stream, part.meta, size_bytes))
        part.cut(size_bytes, out)
        self.queued_bytes -= HEADER_BYTES + len(part.meta) + size_bytes
        return size_bytes


NO_DATA: Final = memoryview(b"")
"""The data of a part without any."""


class Stream:
    """One stream of a link, seen from one side.

    Attributes:
        id: Its number on the link.
        ours: Whether this side opened it.
        conversation: Whether it opened it to send more than one part, and has more to send.
        known: Whether the application knows it: it opened it, or got its first part.
        credit: Data bytes that we may send.
        granted: Data bytes that the peer may send.
        held: Data bytes of complete parts that were not consumed.
        sent_end: Whether our last frame was handed out.
        received_end: Whether the peer's last part came.
        incoming: The part that is being received in pieces.
        outgoing: Parts that wait; None when nothing does.
    """

    __slots__ = (
        "conversation", "credit", "granted", "held", "id", "incoming", "known", "ours", "outgoing",
        "received_end", "sent_end",
    )  # fmt: skip

    def __init__(
        self, stream: int, window_bytes: int, *, ours: bool, conversation: bool = False
    ) -> None:
        """Begin with a full window both ways."""
        self.id = stream
        self.ours = ours
        self.conversation = conversation
        self.known = ours
        self.credit = window_bytes
        self.granted = window_bytes
        self.held = 0
        self.sent_end = False
        self.received_end = False
        self.incoming: Incoming | None = None
        self.outgoing: Outgoing | None = None

    def __repr__(self) -> str:
        halves = ("" if self.sent_end else " sending") + ("" if self.received_end else " receiving")
        return (
            f"<Stream {self.id}{halves} credit={self.credit} granted={self.granted} "
            f"held={self.held} {self.incoming or ''}{self.outgoing or ''}>"
        )

    @property
    def buffered_bytes(self) -> int:
        """Received data that the link accounts for: held, and reserved for an incomplete part."""
        return self.held + (len(self.incoming.data) if self.incoming is not None else 0)

    def take_due_credit(self, window_bytes: int, *, at_once: bool = False) -> int:
        """Return the credit to grant now: all that is due, or 0 while that is less than half the window.

        Args:
            window_bytes: What the peer may have sent.
            at_once: Grant what is due, however little: for a stream that is slowed down, whose sender would
                otherwise send by halves of a window with long silences between them.
        """
        if self.received_end:
            return 0
        due = window_bytes - self.held - self.granted
        if due <= 0 or (2 * due < window_bytes and not at_once):
            return 0
        self.granted += due
        return due

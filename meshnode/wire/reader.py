"""Cutting the received bytes into frames.

Chunks end anywhere. A frame that lies within one chunk is passed on as a position in it. One that
straddles chunks is gathered first: its header, if need be byte by byte, then its body, either in a
new buffer of its length or, when the owner names a place, where it is finally wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.errors import ProtocolError
from meshnode.limits import MAX_FRAME_BYTES
from meshnode.wire.frames import HEADER, HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

Frame = tuple[int, int, int, int, int]
"""A header: length, meta length, type, flags, stream."""

_unpack_header = HEADER.unpack_from


class FrameReader:
    """Gathers frames; bounded by one header and one body of at most `MAX_FRAME_BYTES`."""

    __slots__ = ("_body", "_filled", "_find_place", "_frame", "_head", "_on_frame")

    def __init__(
        self,
        on_frame: Callable[[Frame, memoryview, int], None],
        find_place: Callable[[Frame], memoryview | None],
    ) -> None:
        """Report to the owner.

        Args:
            on_frame: Called with each whole frame, the bytes it is in and where its body begins.
            find_place: Called with a frame whose body is not complete; may return where to put
                it, as many bytes as the frame's length.
        """
        self._on_frame = on_frame
        self._find_place = find_place
        self._head = b""
        self._frame: Frame = (0, 0, 0, 0, 0)
        self._body: memoryview | None = None
        self._filled = 0

    def __repr__(self) -> str:
        if self._body is not None:
            return f"<FrameReader {self._filled} of {len(self._body)} bytes of a body>"
        return f"<FrameReader {len(self._head)} bytes of a header>"

    def feed(self, view: memoryview) -> None:
        """Take the next chunk.

        Raises:
            ProtocolError: if a frame is longer than allowed, or its meta longer than itself.
        """
        size = len(view)
        at = self._resume(view) if self._head or self._body is not None else 0
        while size - at >= HEADER_BYTES:
            frame = _unpack_header(view, at)
            length = frame[0]
            if length > MAX_FRAME_BYTES or frame[1] > length:
                raise _bad_length(frame)
            at += HEADER_BYTES
            if length > size - at:
                self._fill(self._begin(frame), view, at)
                return
            self._on_frame(frame, view, at)
            at += length
        if at < size:
            self._head = view[at:].tobytes()

    def _resume(self, view: memoryview) -> int:
        """Go on with what an earlier chunk began. Returns how much of this one that took."""
        if self._body is not None:
            return self._fill(self._body, view, 0)
        at = min(HEADER_BYTES - len(self._head), len(view))
        head = self._head + view[:at].tobytes()
        if len(head) < HEADER_BYTES:
            self._head = head
            return at
        self._head = b""
        frame = _unpack_header(head)
        if frame[0] > MAX_FRAME_BYTES or frame[1] > frame[0]:
            raise _bad_length(frame)
        return self._fill(self._begin(frame), view, at)

    def _begin(self, frame: Frame) -> memoryview:
        place = self._find_place(frame)
        self._frame = frame
        self._filled = 0
        self._body = memoryview(bytearray(frame[0])) if place is None else place
        return self._body

    def _fill(self, body: memoryview, view: memoryview, at: int) -> int:
        filled = self._filled
        size = min(len(body) - filled, len(view) - at)
        body[filled : filled + size] = view[at : at + size]
        self._filled = filled + size
        if self._filled == len(body):
            self._body = None
            self._on_frame(self._frame, body, 0)
        return at + size


def _bad_length(frame: Frame) -> ProtocolError:
    return ProtocolError(
        f"a frame of {frame[0]} bytes with {frame[1]} of meta; the limit is {MAX_FRAME_BYTES}"
    )

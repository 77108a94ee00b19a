"""What a link has to write, and in which order.

Three kinds leave in this order:

1. Ready frames: control frames, notes, announcements and parts of up to `IMMEDIATE_BYTES` for
   which credit is at hand, in the order given. Opens are always among them, so that their ids
   rise on the wire.
2. The answer to the peer's latest ping.
3. Everything else, one frame per stream in turn, for streams that have credit. Without credit a
   stream leaves the round until `credit_came`.

A driver that takes output only as fast as its transport drains bounds nothing by itself, so ready
bytes and the frames that the peer causes are counted here.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from meshnode.errors import ProtocolError
from meshnode.limits import MAX_WINDOW_BYTES
from meshnode.wire.config import IMMEDIATE_BYTES, JOIN_BYTES
from meshnode.wire.flow import Outgoing, byte_views
from meshnode.wire.frames import END, HEADER, HEADER_BYTES, PONG, token_frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.types import Buffer
    from meshnode.wire.config import LinkConfig
    from meshnode.wire.flow import Stream

_pack_header = HEADER.pack


class Outbox:
    """Frames on their way out.

    Attributes:
        pong: Token of the peer's latest unanswered ping. Only the latest: a flood costs nothing.
        drained: Streams whose waiting parts were all handed out, for the link to look at.
        ready_bytes: Size of the ready frames.
    """

    __slots__ = ("_answers", "_config", "_ready", "_turns", "drained", "pong", "ready_bytes")

    def __init__(self, config: LinkConfig) -> None:
        """Begin empty."""
        self._config = config
        self._ready: list[Buffer] = []
        self._answers = 0
        self._turns: deque[Stream] = deque()
        self.pong: int | None = None
        self.drained: list[Stream] = []
        self.ready_bytes = 0

    def __repr__(self) -> str:
        return f"<Outbox ready={self.ready_bytes} bytes, {len(self._turns)} streams in turn>"

    def __bool__(self) -> bool:
        """Whether anything can be written now."""
        return bool(self._ready) or self.pong is not None or bool(self._turns)

    @property
    def full(self) -> bool:
        """Whether the driver lags so far behind that nothing new should be added."""
        return self.ready_bytes > self._config.max_ready_bytes

    def put(self, frame: bytes) -> None:
        """Add a ready frame."""
        self._ready.append(frame)
        self.ready_bytes += len(frame)

    def answer(self, frame: bytes) -> None:
        """Add a ready frame that the peer caused.

        Raises:
            ProtocolError: if it causes them faster than it reads.
        """
        self._answers += 1
        if self._answers > self._config.max_answer_frames:
            raise ProtocolError("the peer causes frames faster than it reads them")
        self.put(frame)

    def send(
        self, stream: Stream, kind: int, meta: bytes, data: Sequence[Buffer], size: int, end: bool
    ) -> bool:
        """Make a part of a stream without waiting parts ready; if that cannot be, announce it.

        Returns:
            Whether the sending half has ended with it.
        """
        if size > IMMEDIATE_BYTES or size > stream.credit:
            outgoing = Outgoing()
            outgoing.add(meta, data, size, end=end)
            stream.outgoing = outgoing
            self.put(outgoing.announce(kind, stream.id))
            self.credit_came(stream)
            return False
        meta_size = len(meta)
        header = _pack_header(meta_size + size, meta_size, kind, END if end else 0, stream.id)
        if size > JOIN_BYTES:
            self._ready += [header + meta, *byte_views(data)]
        else:
            self._ready.append(b"".join((header, meta, *data)) if size else header + meta)
        self.ready_bytes += HEADER_BYTES + meta_size + size
        stream.credit -= size
        stream.sent_end = end
        return end

    def enqueue(
        self, stream: Stream, meta: bytes, data: Sequence[Buffer], size: int, end: bool
    ) -> None:
        """Queue a part behind those that wait."""
        outgoing = Outgoing() if stream.outgoing is None else stream.outgoing
        outgoing.add(meta, data, size, end=end)
        stream.outgoing = outgoing
        self.credit_came(stream)

    def credit_came(self, stream: Stream) -> None:
        """Let a stream take its turns if it has something to send and may."""
        outgoing = stream.outgoing
        if outgoing is not None and not outgoing.in_turn and outgoing.may_send(stream.credit):
            outgoing.in_turn = True
            self._turns.append(stream)

    def take(self, limit_bytes: int | None) -> list[Buffer]:
        """Return what may be written now; large parts stop after about `limit_bytes`."""
        out = self._ready
        self._ready = []
        self.ready_bytes = 0
        self._answers = 0
        if self.pong is not None:
            out.append(token_frame(PONG, self.pong))
            self.pong = None
        if self._turns:
            self._take_turns(out, MAX_WINDOW_BYTES if limit_bytes is None else limit_bytes)
        return out

    def _take_turns(self, out: list[Buffer], limit_bytes: int) -> None:
        turns = self._turns
        while turns and limit_bytes > 0:
            stream = turns.popleft()
            outgoing = stream.outgoing
            if outgoing is None:  # it was reset while it waited
                continue
            size = outgoing.write_frame(stream.id, stream.credit, out)
            stream.credit -= size
            limit_bytes -= size + HEADER_BYTES
            if not outgoing:
                stream.outgoing = None
                stream.sent_end = outgoing.ending
                self.drained.append(stream)
            elif outgoing.may_send(stream.credit):
                turns.append(stream)
            else:
                outgoing.in_turn = False

"""A multiplexed link as a state machine without I/O.

One authenticated connection carries many streams. A stream is a conversation: whoever opens it
sends parts, the other side answers with parts, and each side ends its half; a unary inference is
one part each way. Either side opens streams. On one that its opener goes on sending on, no answer is
owed: its silence says nothing about the peer. `frames` says how all this looks as bytes, `flow` how
credit works, `outbox` in which order things leave, `liveness` when a peer counts as stalled or
dead. This module ties them together:

- The driver hands every received chunk to `receive` and acts on the events that it returns. A
  small part arrives as a view of the chunk, so **a chunk must not change afterwards**, and lives
  as long as a part of it. A frame
  that straddles chunks is read into a buffer of its own, pieces of a large part straight into
  their place.
- After each call that may have produced something, the driver writes `take_output()`. Buffers
  given to `send` appear there as views, so **they must not change until written**. A driver whose
  transport is full waits, or asks for a limited amount; the link is bounded meanwhile.
- It calls `tick` at the time that `next_tick` names, and asks anew after a tick, after opening a
  stream, and when `ping_is_out` is over.

Small parts and control frames leave at once, in the order given; large ones, and those that lack
credit, send one frame per stream in turn, so that a large tensor never delays a small one for
long. Parts of one stream never overtake each other.

A stream's life, seen from one side; it is forgotten once both halves are done:

| state           | our last part  | peer's last part | further parts of the peer | reset |
|-----------------|----------------|------------------|---------------------------|-------|
| open            | ended          | answering        | delivered                 | gone  |
| ended (by us)   | (ValueError)   | gone             | delivered                 | gone  |
| answering       | gone           | ProtocolError    | ProtocolError             | gone  |
| gone            | ignored        | ignored          | ignored                   | ignored |

Going away is one-sided. Who says GOAWAY takes no new streams, and may still open some until the
peer says it too: a node that leaves goes on asking others for its last clients. Who hears it opens
none any more; streams that it opened before it heard are served. A link on which both have said it
and that is idle carries nothing any more, and no stream can be on its way.

Nothing is remembered about streams that are gone. Ids only rise, so an id at or below the highest
used that is not in the table is gone, and its late frames are normal; one above it is an error.

After a `ProtocolError` the link is in no defined state: the driver closes the connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshnode.errors import LinkLost, ProtocolError, Saturated, TooLarge
from meshnode.limits import MAX_FRAME_DATA_BYTES, MAX_META_BYTES, MAX_WINDOW_BYTES
from meshnode.wire.config import LinkConfig
from meshnode.wire.events import (
    Dead,
    GoingAway,
    LinkEvent,
    NoteReceived,
    PartReceived,
    Recovered,
    RttMeasured,
    Stalled,
    StreamOpened,
    StreamReset,
    StreamWritable,
)
from meshnode.wire.flow import NO_DATA, Incoming, Stream, size_of
from meshnode.wire.frames import (
    AMOUNT,
    DATA,
    END,
    GOAWAY,
    GOAWAY_FRAME,
    HEADER_BYTES,
    MORE,
    NOTE,
    OPEN,
    PING,
    PONG,
    RESET,
    TOTAL,
    WINDOW,
    note_frame,
    read_number,
    read_reset,
    reset_frame,
    token_frame,
    window_frame,
)
from meshnode.wire.liveness import Liveness, Verdict
from meshnode.wire.outbox import Outbox
from meshnode.wire.reader import Frame, FrameReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.types import Buffer

__all__ = [
    "Dead", "GoingAway", "Link", "LinkConfig", "LinkEvent", "NoteReceived", "PartReceived",
    "Recovered", "RttMeasured", "Stalled", "StreamOpened", "StreamReset", "StreamWritable",
]  # fmt: skip

MAX_STREAM_ID: Final = 2**32 - 1
"""Ids are used once. At 15,000 streams per second they last 39 hours; then the link goes away."""


class Link:
    """One side of a link, after the hello. See the module's text.

    Attributes:
        said_goaway: We told the peer to open no more streams.
        heard_goaway: The peer told us.
    """

    def __init__(self, *, dialler: bool, config: LinkConfig, now: float) -> None:
        """Begin with an empty link at `now`; both sides need the same `window_bytes`."""
        self.said_goaway = False
        self.heard_goaway = False
        self._config = config
        self._dialler = dialler
        self._parity = 1 if dialler else 0
        self._streams: dict[int, Stream] = {}
        self._next_id = 1 if dialler else 2
        self._ours = 0
        self._conversations = 0  # those of ours on which we go on sending
        self._highest_peer_id = 0
        self._refused = 0
        self._buffered_bytes = 0
        self._unasked_bytes = 0  # of this chunk: what a peer sends that hears nothing, too
        self._now = now
        self._events: list[LinkEvent] = []
        self._liveness = Liveness(config, now, dialler=dialler)
        self._outbox = Outbox(config)
        self._reader = FrameReader(self._on_frame, self._find_place)

    def __repr__(self) -> str:
        side = "dialler" if self._dialler else "acceptor"
        away = " going away" if self.going_away else ""
        return (
            f"<Link {side}{away} streams={len(self._streams)} ({self._ours} ours) "
            f"buffered={self._buffered_bytes} {self._outbox!r} {self._liveness!r}>"
        )

    # What the driver may ask.

    @property
    def rtt_s(self) -> float | None:
        """Smoothed round-trip time in seconds, None until the first ping was answered."""
        return self._liveness.rtt_s

    @property
    def ping_is_out(self) -> bool:
        """Whether a ping waits for its answer."""
        return self._liveness.ping_is_out

    @property
    def open_streams(self) -> int:
        """Streams that are open, whoever opened them."""
        return len(self._streams)

    @property
    def stalled(self) -> bool:
        """Whether the peer owes answers and is silent; nothing can be opened meanwhile."""
        return self._liveness.stalled

    @property
    def going_away(self) -> bool:
        """Whether either side takes no new streams: the link needs a successor."""
        return self.said_goaway or self.heard_goaway

    @property
    def spent(self) -> bool:
        """Whether nothing can ever be opened from here again."""
        return self.heard_goaway or self._next_id > MAX_STREAM_ID

    @property
    def has_output(self) -> bool:
        """Whether `take_output` would return anything."""
        return bool(self._outbox)

    @property
    def idle(self) -> bool:
        """Whether no stream is open and nothing waits to be written."""
        return not self._streams and not self._outbox

    def left_bytes(self, stream: int) -> int:
        """Return how much is still to come of the part that is on its way; 0 if none is."""
        found = self._streams.get(stream)
        return 0 if found is None or found.incoming is None else found.incoming.left_bytes

    def queued_bytes(self, stream: int) -> int:
        """Return the bytes that wait for credit or their turn; 0 for a stream that is gone."""
        found = self._streams.get(stream)
        return 0 if found is None or found.outgoing is None else found.outgoing.queued_bytes

    # What the application does.

    def open_stream(self, meta: bytes, data: Sequence[Buffer] = (), *, end: bool = True) -> int:
        """Open a stream with its first part.

        Args:
            meta: The part's message, at most `MAX_META_BYTES`.
            data: C-contiguous buffers of its data, not to be changed until written.
            end: Whether this is all that we send; else the peer owes no answer.

        Returns:
            The stream's id.

        Raises:
            LinkLost: if the peer goes away or is stalled, or the ids have run out.
            Saturated: if too many streams are open, or the driver does not get rid of its output.
            TooLarge: if meta or data exceed their limits.
            TypeError, BufferError: if a buffer is not C-contiguous. Nothing was sent in all cases.
        """
        if self.spent or self._liveness.stalled:
            reason = "the peer does not answer" if self.stalled else "the link is going away"
            raise LinkLost(f"no stream can be opened: {reason}")
        if self._ours >= self._config.max_streams or self._outbox.full:
            raise Saturated(f"{self._ours} streams are open, {self._outbox!r}")
        size = self._checked_size(meta, data)
        stream_id = self._next_id
        stream = Stream(stream_id, self._config.window_bytes, ours=True, conversation=not end)
        self._outbox.send(stream, OPEN, meta, data, size, end)
        self._streams[stream_id] = stream
        self._ours += 1
        self._conversations += stream.conversation
        self._next_id = stream_id + 2
        if self._next_id > MAX_STREAM_ID:
            self.go_away()
        return stream_id

    def send(self, stream: int, meta: bytes, data: Sequence[Buffer] = (), *, end: bool) -> None:
        """Send a part on a stream; does nothing if the stream is gone.

        Args:
            stream: Its id.
            meta: The part's message, at most `MAX_META_BYTES`.
            data: C-contiguous buffers of its data, not to be changed until written.
            end: Whether this is the last part that we send.

        Raises:
            Saturated: if too much waits on this stream already; wait for `StreamWritable`.
            TooLarge: if meta or data exceed their limits.
            ValueError: if the sending half has ended.
            TypeError, BufferError: if a buffer is not C-contiguous. Nothing was sent in all cases.
        """
        found = self._streams.get(stream)
        if found is None:
            return
        outgoing = found.outgoing
        if found.sent_end or (outgoing is not None and outgoing.ending):
            raise ValueError(f"the sending half of {found!r} has ended")
        size = self._checked_size(meta, data)
        if outgoing is not None and outgoing.queued_bytes > self._config.max_queued_bytes:
            raise Saturated(f"{outgoing.queued_bytes} bytes wait on stream {stream}")
        if end and found.conversation:  # from now on it waits for the peer alone
            found.conversation = False
            self._conversations -= 1
        if outgoing is not None or self._outbox.full:
            self._outbox.enqueue(found, meta, data, size, end)
            return
        ended = self._outbox.send(found, DATA, meta, data, size, end)
        if ended and found.received_end:
            self._forget(found)

    def reset(self, stream: int, code: str = "cancelled", message: str = "") -> None:
        """End a stream early, both halves; what waits on it is dropped. No event follows."""
        found = self._streams.get(stream)
        if found is not None:
            self._forget(found)
            self._outbox.put(reset_frame(stream, code, message))

    def consumed(self, stream: int, size_bytes: int, *, at_once: bool = False) -> None:
        """Give back credit for data of complete parts that the application is done with.

        The peer is told when half a window is due, or `at_once`.

        Does nothing if the stream is gone. After the peer's last part it only frees room under
        `max_buffered_bytes`, which happens by itself when the stream ends.

        Raises:
            ValueError: if that is more than was delivered.
        """
        found = self._streams.get(stream)
        if found is None:
            return
        if not 0 <= size_bytes <= found.held:
            raise ValueError(f"{size_bytes} bytes cannot be consumed: {found!r}")
        found.held -= size_bytes
        self._buffered_bytes -= size_bytes
        self._grant(found, at_once=at_once)

    def send_note(self, payload: bytes) -> None:
        """Send a one-way message outside of streams, at most `MAX_META_BYTES`.

        Raises:
            Saturated: if the driver does not get rid of its output.
            TooLarge: if it is too long. Nothing was sent in both cases.
        """
        self._checked_size(payload, ())
        if self._outbox.full:
            raise Saturated(f"nothing more can be added to {self._outbox!r}")
        self._outbox.put(note_frame(payload))

    def go_away(self) -> None:
        """Ask the peer to open no more streams; running ones finish.

        Streams that the peer opened before it heard are served, and this side may still open some.
        """
        if not self.said_goaway:
            self._outbox.put(GOAWAY_FRAME)
        self.said_goaway = True

    def ping(self, now: float) -> None:
        """Ask the peer for a sign of life now; `ping_is_out` until it has answered."""
        self._outbox.put(token_frame(PING, self._liveness.ask(now)))

    def _checked_size(self, meta: bytes, data: Sequence[Buffer]) -> int:
        if len(meta) > MAX_META_BYTES:
            raise TooLarge(f"a message of {len(meta)} bytes; the limit is {MAX_META_BYTES}")
        size = size_of(data)
        if size > self._config.max_part_bytes:
            raise TooLarge(f"{size} bytes of data; the limit is {self._config.max_part_bytes}")
        return size

    # Output.

    def take_output(self, limit_bytes: int | None = None) -> list[Buffer]:
        """Return what may be written now, in order.

        Args:
            limit_bytes: Stop large parts after about this many bytes, for a driver that wants
                small parts to overtake them; `has_output` tells whether more waits.
        """
        out = self._outbox.take(limit_bytes)
        if self._outbox.drained:
            self._on_drained()
        return out

    def _on_drained(self) -> None:
        for stream in self._outbox.drained:
            if not stream.sent_end:
                self._events.append(StreamWritable(stream.id))
            elif stream.received_end:
                self._forget(stream)
        self._outbox.drained.clear()

    def _grant(self, stream: Stream, *, at_once: bool = False) -> None:
        due = stream.take_due_credit(self._config.window_bytes, at_once=at_once)
        if due:
            self._outbox.put(window_frame(stream.id, due))

    # Time.

    def tick(self, now: float) -> list[LinkEvent]:
        """Send a ping or notice silence, as is due; call it when `next_tick` says."""
        verdict = self._liveness.tick(now, owed=self._ours > self._conversations)
        if verdict is Verdict.PING:
            self._outbox.put(token_frame(PING, self._liveness.token))
        elif verdict is Verdict.STALLED:
            self._events.append(Stalled())
        elif verdict is Verdict.DEAD:
            self._events.append(Dead())
        return self._take_events()

    def next_tick(self, now: float) -> float | None:
        """Return when `tick` is due; at `now` if events wait, None once the link is dead."""
        due = self._liveness.next_tick(now, owed=self._ours > self._conversations)
        return now if self._events else due

    def _take_events(self) -> list[LinkEvent]:
        events = self._events
        self._events = []
        return events

    # Input.

    def receive(self, data: Buffer, now: float) -> list[LinkEvent]:
        """Take the bytes that came and return what they mean.

        Raises:
            ProtocolError: if they break the protocol; close the connection.
        """
        self._now = now
        self._unasked_bytes = 0
        self._reader.feed(memoryview(data))
        if len(data) and self._liveness.heard(now, unasked=self._unasked_bytes >= len(data)):
            self._events.insert(0, Recovered())
        return self._take_events()

    def _find_place(self, frame: Frame) -> memoryview | None:
        """Say where a frame's body belongs if it is a piece of a part: it is not copied again."""
        length, meta_size, kind, _, stream_id = frame
        stream = self._streams.get(stream_id)
        if kind != DATA or meta_size or stream is None or stream.incoming is None:
            return None
        place = stream.incoming.next_place(length)
        return place if len(place) == length else None

    def _on_frame(self, frame: Frame, view: memoryview, at: int) -> None:
        """Act on a whole frame, whose body is at `at` in `view`."""
        length, meta_size, kind, flags, stream_id = frame
        meta_end = at + meta_size
        end = at + length
        if kind in (OPEN, DATA):
            stream = self._accept(stream_id) if kind == OPEN else self._find(stream_id)
            if stream is not None:
                self._on_part(stream, flags, view, at, meta_end, end)
        elif kind == WINDOW:
            self._on_window(stream_id, view[meta_end:end])
        elif kind == RESET:
            self._on_reset(stream_id, view[at:meta_end])
        else:
            self._on_link_control(kind, view[at:meta_end], view[meta_end:end])

    def _accept(self, stream_id: int) -> Stream | None:
        """Enter a stream that the peer opens, or refuse it."""
        if stream_id <= self._highest_peer_id or (stream_id & 1) == self._parity:
            raise ProtocolError(f"stream {stream_id} opened after {self._highest_peer_id}")
        self._highest_peer_id = stream_id
        if len(self._streams) - self._ours >= self._config.max_streams:
            self._refused += 1
            if self._refused > self._config.max_refused_streams:
                raise ProtocolError(f"{self._refused} streams opened beyond the limit")
            limit = f"the limit is {self._config.max_streams} streams"
            self._outbox.answer(reset_frame(stream_id, Saturated.code, limit))
            return None
        self._refused = 0
        stream = Stream(stream_id, self._config.window_bytes, ours=False)
        self._streams[stream_id] = stream
        return stream

    def _find(self, stream_id: int) -> Stream | None:
        """Return a stream, or None for one that is gone."""
        stream = self._streams.get(stream_id)
        if stream is None:
            ours = (stream_id & 1) == self._parity
            if not 0 < stream_id < (self._next_id if ours else self._highest_peer_id + 1):
                raise ProtocolError(f"a frame for stream {stream_id}, which was never opened")
        return stream

    def _on_part(
        self, stream: Stream, flags: int, view: memoryview, at: int, meta_end: int, end: int
    ) -> None:
        """Take an OPEN or DATA frame: a whole part, an announcement or a piece."""
        if stream.received_end:
            raise ProtocolError(f"data after the end of stream {stream.id}")
        if stream.incoming is not None:
            if at != meta_end:
                raise ProtocolError(f"a part begins within another on stream {stream.id}")
            self._on_piece(stream, stream.incoming, flags, view[meta_end:end])
            return
        meta = view[at:meta_end].tobytes()
        if flags & MORE:
            self._on_announcement(stream, flags, meta, view[meta_end:end])
            return
        data = NO_DATA
        size = end - meta_end
        if size:
            self._spend(stream, size)
            if self._buffered_bytes + size > self._config.max_buffered_bytes:
                self._abort(stream, Saturated.code, "too much data waits to be consumed")
                return
            self._buffered_bytes += size
            stream.held += size
            data = view[meta_end:end]
        self._deliver(stream, meta, data, flags)

    def _on_announcement(self, stream: Stream, flags: int, meta: bytes, data: memoryview) -> None:
        total = read_number(TOTAL, data, "an announcement")
        if not total or flags & END:
            raise ProtocolError(f"an announcement of {total} bytes with flags {flags}")
        if total > self._config.max_part_bytes:
            limit = f"{total} bytes of data; the limit is {self._config.max_part_bytes}"
            self._abort(stream, TooLarge.code, limit)
        elif self._buffered_bytes + total > self._config.max_buffered_bytes:
            self._abort(stream, Saturated.code, "too much data waits to be consumed")
        else:
            stream.incoming = Incoming(meta, total)
            self._buffered_bytes += total

    def _on_piece(self, stream: Stream, incoming: Incoming, flags: int, data: memoryview) -> None:
        size = len(data)
        left = incoming.left_bytes - size
        if not size or left < 0 or (left and flags & END):
            raise ProtocolError(f"{size} bytes for {incoming!r} with flags {flags}")
        self._spend(stream, size)
        if data.obj is not incoming.data.obj:  # else it was read into its place
            incoming.next_place(size)[:] = data
        incoming.left_bytes = left
        if left:
            self._grant(stream)
            return
        stream.incoming = None
        stream.held += len(incoming.data)
        self._deliver(stream, incoming.meta, incoming.data, flags)

    def _spend(self, stream: Stream, size: int) -> None:
        if size > stream.granted or size > MAX_FRAME_DATA_BYTES:
            raise ProtocolError(f"{size} bytes of data with a credit of {stream.granted}")
        stream.granted -= size

    def _deliver(self, stream: Stream, meta: bytes, data: memoryview, flags: int) -> None:
        end = flags & END == END
        if stream.known:
            self._events.append(PartReceived(stream.id, meta, data, end))
        else:
            stream.known = True
            self._events.append(StreamOpened(stream.id, meta, data, end))
        if end:
            stream.received_end = True
            if stream.sent_end:
                self._forget(stream)

    def _on_window(self, stream_id: int, data: memoryview) -> None:
        stream = self._find(stream_id)
        amount = read_number(AMOUNT, data, "a WINDOW")
        if stream is None:
            return
        stream.credit += amount
        if not amount or stream.credit > MAX_WINDOW_BYTES:
            raise ProtocolError(f"a grant of {amount} bytes makes a credit of {stream.credit}")
        self._outbox.credit_came(stream)

    def _on_reset(self, stream_id: int, meta: memoryview) -> None:
        stream = self._find(stream_id)
        reset = read_reset(meta)
        if stream is None:
            return
        self._forget(stream)
        if stream.known:
            self._events.append(StreamReset(stream_id, reset.code, reset.message))

    def _on_link_control(self, kind: int, meta: memoryview, data: memoryview) -> None:
        """Act on a frame that concerns the whole link; one of an unknown type is skipped."""
        if kind in (PING, NOTE):
            self._unasked_bytes += HEADER_BYTES + len(meta) + len(data)
        if kind == PING:
            self._outbox.pong = read_number(TOTAL, data, "a PING")
        elif kind == PONG:
            sample_s = self._liveness.answered(read_number(TOTAL, data, "a PONG"), self._now)
            if sample_s is not None:
                self._events.append(RttMeasured(sample_s))
        elif kind == NOTE:
            self._events.append(NoteReceived(meta.tobytes()))
        elif kind == GOAWAY and not self.heard_goaway:
            self.heard_goaway = True
            self._events.append(GoingAway())

    def _abort(self, stream: Stream, code: str, message: str) -> None:
        """Reset a stream that broke a limit, and tell the application if it knows the stream."""
        self._forget(stream)
        self._outbox.answer(reset_frame(stream.id, code, message))
        if stream.known:
            self._events.append(StreamReset(stream.id, code, message))

    def _forget(self, stream: Stream) -> None:
        del self._streams[stream.id]
        self._ours -= stream.ours
        self._conversations -= stream.conversation
        self._buffered_bytes -= stream.buffered_bytes
        stream.outgoing = None

"""Streams of server-sent events that survive the connection over which they began.

    answer ── piece by piece ──> buffer ──> the reader of the moment: a connection
                                  └─ what was sent stays for a while, so that another connection goes on after it

Each event has an id, `STREAM.NUMBER.NODE`. A client whose connection broke asks again with the last id that it saw
(`Last-Event-ID`) and gets what follows; nothing runs anew. This gateway has the events; any other one asks the node that
makes the answer and keeps it (`meshnode.daemon.kept_streams`), and numbers on: so an event's number is that of its
part. A name says, too, what was asked (`made_for`): whoever comes back for the rest with another request is refused, at
every gateway. That node then tells this one that it is no reader any more, and the stream is forgotten here: should its client
come back, this gateway asks for the rest as any other one does. For `STREAM_RESUME_S` the answer goes on without a
reader, until its buffer is full; then it waits, and when the time is over its work is cancelled. Where a client says
that it will not come back, that happens as soon as it hangs up. A place that the request had (`Holding`) is given
back when the work has ended, not when its reader leaves.

A request with an `Idempotency-Key` that is repeated meets the stream that there is (`HttpStream.lasting`): it is given
what was made so far from the beginning, and then what follows.

A reader that is slow makes the model wait, not the buffer grow. Comments keep a quiet connection from looking dead.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshnode.errors import Cancelled, MeshError, NotFound, NotServing, Saturated
from meshnode.gateway.protocols.event_ids import DRAWN_BYTES, EventId, made_for
from meshnode.gateway.protocols.http import HttpStream
from meshnode.gateway.protocols.native import failure_event
from meshnode.gateway.replay_buffer import ReplayBuffer, SharedRoom
from meshnode.limits import (
    MAX_EVENT_STREAMS,
    MAX_IDEMPOTENT_ANSWER_BYTES,
    MAX_STREAM_KEPT_BYTES,
    MAX_STREAMS_KEPT_BYTES,
    STREAM_HEARTBEAT_S,
    STREAM_RESUME_S,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping

    from meshnode.gateway.protocols.holding import Holding
    from meshnode.types import Buffer, NodeId

log = logging.getLogger(__name__)

HEARTBEAT: Final = b": still working\n\n"
_STOPPING: Final = NotServing("this node is stopping; ask another, from the beginning")


class EventStreams:
    """The streams of one gateway, those without a reader included."""

    def __init__(self, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> None:
        """Begin with none; `random_bytes` draws so many bytes that nobody can guess."""
        self._random_bytes = random_bytes
        self._streams: dict[str, _Stream] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.room = SharedRoom()
        """What all of them hold."""

    def __repr__(self) -> str:
        return f"<EventStreams: {len(self._streams)} streams, {self.kept_bytes} bytes>"

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def kept_bytes(self) -> int:
        """What all of them hold."""
        return self.room.kept_bytes

    def new_name(self, asked: bytes = b"") -> str:
        """Return a name for a stream that nobody guesses; `asked` as in `made_for`."""
        return made_for(self._random_bytes(DRAWN_BYTES).hex(), asked)

    def has(self, last_event_id: str, owner: str, path: str) -> bool:
        """Whether the stream of an event is here, and no other gateway went further with it for this owner."""
        found = EventId.parse(last_event_id)
        stream = self._streams.get(found.stream) if found is not None else None
        if found is None or stream is None:
            return False
        is_known = found.executor is not None and (stream.owner, stream.path) == (owner, path)
        return not (is_known and stream.is_behind(found.number))

    def open(
        self,
        answer: HttpStream,
        owner: str,
        *,
        resume: bool,
        path: str = "",
        holding: Holding | None = None,
        name: str = "",
        after: int = 0,
        executor: Callable[[], NodeId | None] = lambda: None,
    ) -> HttpStream:
        """Return an answer as a stream whose events have ids.

        Args:
            answer: Each of its pieces is an event without an id. Owned by this from now on.
            owner: Who may take it up again: the id of an API key, or empty for callers without one.
            resume: Whether it waits for its client to come back.
            path: Where it was asked for, and only there is it taken up again.
            holding: What the request takes of the gateway; kept until the work has ended.
            name: Its name, if it has one already.
            after: How many events its client has already; the answer's pieces follow them.
            executor: Returns the node that makes the answer, if that is known.

        Raises:
            Saturated: if there are too many; the answer is closed in the background.
        """
        if len(self._streams) >= MAX_EVENT_STREAMS and not self._drop_one():
            self._in_background(_close(answer))
            raise Saturated("this gateway has too many streams; try again later")
        stream_id = name or self.new_name()
        former = self._streams.get(stream_id)
        if former is not None:  # its reader went on elsewhere meanwhile
            former.end()
        place = _Place(owner, path, after, executor)
        stream = _Stream(self, stream_id, place, answer.headers, resume=resume)
        self._streams[stream_id] = stream
        task = stream.task = self._in_background(stream.fill(answer))
        task.add_done_callback(stream.work_ended)
        if holding is not None:
            holding.outlast(task)
        return stream.read(after)

    def resumed(self, last_event_id: str, owner: str, path: str = "") -> HttpStream:
        """Return what follows an event of a stream.

        Args:
            last_event_id: The event's.
            owner: Who asks.
            path: Where.

        Raises:
            NotFound: if there is no such stream of this owner, or what follows is not kept any more.
        """
        found = EventId.parse(last_event_id)
        stream = self._streams.get(found.stream) if found is not None else None
        if (
            found is None
            or stream is None
            or (stream.owner, stream.path) != (owner, path)
            or not stream.holds_after(found.number)
        ):
            raise no_such_stream(last_event_id)
        return stream.read(found.number)

    async def close(self) -> None:
        """Stop the work on all of them; who reads one is told so, or its connection is cut if it can go on elsewhere."""
        for stream in tuple(self._streams.values()):
            stream.leave(_STOPPING)
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def forget(self, stream: _Stream) -> None:
        """Let go of a stream that has ended."""
        if self._streams.get(stream.name) is stream:
            del self._streams[stream.name]

    def _drop_one(self) -> bool:
        """Make room by ending the oldest stream that nobody reads, one that is complete if there is any; say whether."""
        unread = [stream for stream in self._streams.values() if not stream.is_read]
        if unread:
            next((stream for stream in unread if stream.is_complete), unread[0]).end()
        return bool(unread)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def no_such_stream(last_event_id: str, why: str = "") -> NotFound:
    """Return the error for an event after which nobody can go on."""
    return NotFound(
        f"this gateway cannot go on after the event {last_event_id[:60]!r}: there is no such stream at this path, or nobody "
        f"read it for {STREAM_RESUME_S:.0f} s{why}; ask anew without Last-Event-ID"
    )


class _Place(NamedTuple):
    """Whose a stream is, where it was asked for, what its client has already, and who makes it."""

    owner: str
    path: str
    after: int
    executor: Callable[[], NodeId | None]


class _Stream:
    """One answer: filled by a task, read by at most one connection."""

    def __init__(
        self,
        all_streams: EventStreams,
        name: str,
        place: _Place,
        headers: Mapping[str, str],
        *,
        resume: bool,
    ) -> None:
        self.owner = place.owner
        self.path = place.path
        self.task: asyncio.Task[None] | None = None
        self._all = all_streams
        self.name = name
        self._executor = place.executor
        self._headers = headers
        self._resume = resume
        self._events = ReplayBuffer[bytes](
            all_streams.room,
            place.after,
            max_bytes=MAX_STREAM_KEPT_BYTES,
            max_shared_bytes=MAX_STREAMS_KEPT_BYTES,
        )
        self._is_complete = False
        self._reader: _Reader | None = None
        self._news = asyncio.Event()
        self._leave: asyncio.TimerHandle | None = None
        self._has_last_event = False
        self._failed = False
        self._goes_on_elsewhere = False
        self._copy: bytearray | None = None  # of all events, for repetitions of the request
        self._tell_end: Callable[[bytes | None], None] | None = None
        self._turn = asyncio.Event()  # set when a reader leaves, and at the end of the work

    def __repr__(self) -> str:
        state = "complete" if self._is_complete else "running"
        return (
            f"<Stream {self.name} {state}: {self._events.sent} of {self._events.last} events sent>"
        )

    @property
    def is_read(self) -> bool:
        """Whether a connection reads it now."""
        return self._reader is not None

    @property
    def is_complete(self) -> bool:
        """Whether its work has ended."""
        return self._is_complete

    def holds_after(self, number: int) -> bool:
        """Whether all events after this number are here, or will be."""
        return self._events.holds_after(number)

    def is_behind(self, number: int) -> bool:
        """Whether an event is told of that was never here."""
        return self._events.last < number

    def read(self, after: int, before: bytes = b"") -> HttpStream:
        """Return the events after a number; the connection of an earlier reader is cut.

        Args:
            after: The number.
            before: The text of earlier events, given first.
        """
        reader = self._reader = _Reader(self, after, before)
        self._events.sent = after
        self._news.set()
        self._wait_for_reader()  # it may never begin to read
        return HttpStream(200, self._headers, reader, lasting=self)

    def remember(self, tell_end: Callable[[bytes | None], None]) -> None:
        """Keep a copy of all that is told, and tell the end of the work; see `Lasting`."""
        self._tell_end = tell_end
        if self._events.first == 1:
            self._copy = bytearray().join(self._events.all())

    async def again(self) -> HttpStream | None:
        """Wait until nobody reads it, and return it from its beginning; None if it has ended; see `Lasting`."""
        while not self._is_complete:
            if self._reader is None and self._copy is not None:
                return self.read(self._events.last, bytes(self._copy))
            self._turn.clear()
            await self._turn.wait()
        return None

    def work_ended(self, _task: asyncio.Task[None]) -> None:
        """Tell who remembers it what has come of it."""
        tell, self._tell_end = self._tell_end, None
        copy, self._copy = self._copy, None
        if tell is not None:
            tell(None if copy is None or self._failed else bytes(copy))

    async def fill(self, answer: HttpStream) -> None:
        """Take the answer, as fast as it is read."""
        parts: AsyncGenerator[Buffer, None] = answer.parts  # type: ignore[assignment]
        try:
            async with aclosing(parts):
                async for piece in parts:
                    await self._events.until_there_is_room()
                    self._append(bytes(piece))
        except MeshError as error:
            self._failed = True
            if isinstance(error, Cancelled) and self._resume and self._executor() is not None:
                self._gone_elsewhere()
                return
            self._append(failure_event(error))
        except Exception:
            self._failed = True
            log.exception("the stream %s broke off", self.name)
            self._append(failure_event(MeshError("the gateway failed; its log says why")))
        self._has_last_event = True
        self._complete()

    def end(self) -> None:
        """Stop the work, and forget what is kept."""
        self._failed = self._failed or not self._is_complete
        if self._leave is not None:
            self._leave.cancel()
        if self.task is not None:
            self.task.cancel()
        self._events.clear()
        self._complete()
        self._all.forget(self)

    def _gone_elsewhere(self) -> None:
        """Be found here no more: another gateway took the stream up. A reader's connection ends, the stream has not."""
        self._goes_on_elsewhere = True
        self._complete()
        self._all.forget(self)
        if self._reader is None:
            self._events.clear()
            if self._leave is not None:
                self._leave.cancel()

    def leave(self, error: MeshError) -> None:
        """Stop the work, since this gateway stops; the reader is told why, after what is kept for it.

        Where another gateway can go on, the connection only ends instead: the stream has not.
        """
        if self._is_complete:
            return
        if self.task is not None:
            self.task.cancel()
        self._failed = True
        if self._resume and self._executor() is not None and self._tell_end is None:
            self._goes_on_elsewhere = True
        else:
            self._append(failure_event(error))
            self._has_last_event = True
        self._complete()

    def _complete(self) -> None:
        self._is_complete = True
        self._news.set()
        self._turn.set()

    def _append(self, piece: bytes) -> None:
        executor = self._executor()
        at = f".{executor}" if executor else ""
        text = b"id: %s.%d%s\n%s" % (self.name.encode(), self._events.last + 1, at.encode(), piece)
        self._events.append(text, len(text))
        if self._copy is not None:
            self._copy += text
            if len(self._copy) > MAX_IDEMPOTENT_ANSWER_BYTES:
                self._copy = None
        self._news.set()

    async def events_for(
        self, me: _Reader, after: int, before: bytes
    ) -> AsyncGenerator[Buffer, None]:
        """Yield the events after a number to the reader of the moment, until another comes.

        Raises:
            ConnectionAbortedError: if that is not all: an end without `done` or `error` would be taken for one.
        """
        if self._leave is not None:
            self._leave.cancel()
        try:
            if before:
                yield before
            while self._reader is me:
                found = self._events.after(after)
                if found is not None:
                    yield found.piece
                    after = found.number
                    if self._reader is me:
                        self._events.has_sent(after)
                elif self._goes_on_elsewhere:
                    raise ConnectionAbortedError("another gateway goes on with the stream")
                elif self._is_told(after):
                    return
                elif self._is_complete:
                    raise ConnectionAbortedError("the stream was ended for another one")
                elif not await self._something_new():
                    yield HEARTBEAT
            if not self._is_told(after):
                raise ConnectionAbortedError("another connection goes on with the stream")
        finally:
            self.left(me)

    def _is_told(self, number: int) -> bool:
        """Whether nothing follows an event."""
        return self._has_last_event and number >= self._events.last

    def left(self, reader: _Reader) -> None:
        """Wait for another one, if this reader was the last."""
        if self._reader is not reader:
            return
        self._reader = None
        self._turn.set()
        if self._resume and not self._goes_on_elsewhere:
            self._wait_for_reader()
        else:
            self.end()

    async def _something_new(self) -> bool:
        """Wait; return False when a sign of life is due."""
        self._news.clear()
        try:
            async with asyncio.timeout(STREAM_HEARTBEAT_S):
                await self._news.wait()
        except TimeoutError:
            return False
        return True

    def _wait_for_reader(self) -> None:
        if self._leave is not None:
            self._leave.cancel()
        self._leave = asyncio.get_running_loop().call_later(STREAM_RESUME_S, self.end)


class _Reader:
    """One connection's way through a stream; closing it counts, too, if it was never begun."""

    def __init__(self, stream: _Stream, after: int, before: bytes) -> None:
        self._stream = stream
        self._events = stream.events_for(self, after, before)

    def __aiter__(self) -> _Reader:
        return self

    async def __anext__(self) -> Buffer:
        return await anext(self._events)

    async def aclose(self) -> None:
        await self._events.aclose()
        self._stream.left(self)


async def _close(answer: HttpStream) -> None:
    parts: AsyncGenerator[Buffer, None] = answer.parts  # type: ignore[assignment]

    async def begin() -> None:
        await anext(parts, None)

    # Closing an answer that was never begun would not tell anybody of its end.
    begun = asyncio.ensure_future(begin())
    await asyncio.sleep(0)
    begun.cancel()
    await asyncio.gather(begun, return_exceptions=True)
    await parts.aclose()

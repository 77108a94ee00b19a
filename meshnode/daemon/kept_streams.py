"""Streamed answers that this node makes, kept for a while: a gateway may die, and another one takes its place.

    model ── parts ──> kept, with their numbers ──> the reader of the moment: a link, or this node's own gateway
                         └ what was sent stays for a while, so that another gateway goes on after it

A gateway that wants an answer kept gives it a name that nobody guesses (`KeptAs`). Where its link is lost, the work goes
on for `STREAM_RESUME_S` without a reader, until the buffer is full; then it waits, and when the time is over it is
cancelled. A gateway that says that nobody waits any more ends it at once. Whoever knows the name and has the owner's
key takes it up at any gateway (`ResumeStream`): there is one reader at a time, and the last one counts.

Parts are copied: those of processes lie in memory that the process wants back.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol

import msgspec

from meshnode.errors import Cancelled, InferenceFailed, MeshError, NotFound, NotServing
from meshnode.gateway.replay_buffer import ReplayBuffer, SharedRoom
from meshnode.limits import (
    MAX_KEPT_ANSWER_BYTES,
    MAX_KEPT_ANSWERS,
    MAX_KEPT_ANSWERS_BYTES,
    STREAM_RESUME_S,
)
from meshnode.types import InferResponse, ResponsePart

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from meshnode.gateway.executors import LocalExecutor
    from meshnode.types import InferRequest, KeptAs, NodeId, Scalar

log = logging.getLogger(__name__)

_PART_OVERHEAD_BYTES = 256  # of a part beside its data


class PeerStreams(Protocol):
    """The way to streams that other nodes keep."""

    async def resume(self, node: NodeId, keep: KeptAs, timeout_s: float) -> InferResponse:
        """Return what follows; NotFound if it is not kept there, LinkLost if the node is not reached."""
        ...


class KeptStreams:
    """The answers of one node that are kept.

    Attributes:
        room: What all of them hold.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._kept: dict[str, _Kept] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.room = SharedRoom()

    def __repr__(self) -> str:
        return f"<KeptStreams: {len(self._kept)} streams, {self.kept_bytes} bytes>"

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def kept_bytes(self) -> int:
        """What all of them hold."""
        return self.room.kept_bytes

    @property
    def unread(self) -> int:
        """Streams that are still made, and that nobody reads at present: their gateway was lost."""
        return sum(kept.is_made_for_later for kept in self._kept.values())

    def keep(self, request: InferRequest, response: InferResponse) -> InferResponse:
        """Return an answer that is kept, if its request says so and it is a stream; else the answer itself.

        Where there are too many that somebody reads, or another owner has one of that name, it is not kept.
        """
        name = request.keep
        if name is None or response.single is not None or not self._has_room(name):
            return response
        kept = self._kept[name.stream] = _Kept(self, response, name)
        task = kept.task = asyncio.get_running_loop().create_task(kept.fill(response))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return kept.read(name.after)

    def resume(self, name: KeptAs) -> InferResponse:
        """Return what follows the parts that somebody has; its `head` is set.

        Raises:
            NotFound: if there is no such answer of this owner, or what follows is not kept any more.
        """
        kept = self._kept.get(name.stream)
        if kept is None or kept.owner != name.owner or not kept.holds_after(name.after):
            raise NotFound("this node keeps no such stream, or not all that is missing of it")
        return kept.read(name.after)

    def reader_lost(self, stream: str) -> None:
        """Note that the link of a stream's reader was lost: somebody else may come for it."""
        kept = self._kept.get(stream)
        if kept is not None:
            kept.wait_for_reader()

    async def close(self) -> None:
        """Stop the work on all of them; who reads one is told so."""
        tasks = tuple(self._tasks)
        for kept in tuple(self._kept.values()):
            kept.end(NotServing("this node is stopping"))
        await asyncio.gather(*tasks, return_exceptions=True)

    def forget(self, kept: _Kept) -> None:
        """Let go of a stream that has ended; another one may have its name by now."""
        if self._kept.get(kept.name) is kept:
            del self._kept[kept.name]

    def _has_room(self, name: KeptAs) -> bool:
        known = self._kept.get(name.stream)
        if known is not None:
            if known.owner != name.owner:
                return False
            known.end(_taken_up())  # its gateway begins it anew
        if len(self._kept) < MAX_KEPT_ANSWERS:
            return True
        unread = [kept for kept in self._kept.values() if not kept.is_read]
        if unread:
            next((kept for kept in unread if kept.is_complete), unread[0]).end(_taken_up())
        return bool(unread)


def _taken_up() -> Cancelled:
    """Return what a reader is told that is none any more: a new one each time, since raising one adds to its traceback."""
    return Cancelled("another gateway took the stream up")


class _Kept:
    """One answer: filled by a task, read by at most one reader."""

    def __init__(self, all_kept: KeptStreams, response: InferResponse, name: KeptAs) -> None:
        self.owner = name.owner
        self.task: asyncio.Task[None] | None = None
        self._all = all_kept
        self.name = name.stream
        self._model, self._version = response.model, response.version
        self._head: Mapping[str, Scalar] | None = None
        self._parts = ReplayBuffer[ResponsePart](
            all_kept.room,
            name.after,
            max_bytes=MAX_KEPT_ANSWER_BYTES,
            max_shared_bytes=MAX_KEPT_ANSWERS_BYTES,
        )
        self._is_complete = False
        self._has_ended = False
        self._error: MeshError | None = None
        self._reader: _Reader | None = None
        self._news = asyncio.Event()
        self._leave: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        state = "complete" if self._is_complete else "running"
        return f"<Kept {self.name} {state}: {self._parts.sent} of {self._parts.last} parts sent>"

    @property
    def is_read(self) -> bool:
        return self._reader is not None

    @property
    def is_complete(self) -> bool:
        return self._is_complete

    @property
    def is_made_for_later(self) -> bool:
        is_read = self._reader is not None and self._reader.has_begun
        return not (self._is_complete or is_read)

    def holds_after(self, number: int) -> bool:
        return self._parts.holds_after(number)

    def read(self, after: int) -> InferResponse:
        """Return the parts after a number; an earlier reader is told that it is none any more."""
        reader = self._reader = _Reader(self, after)
        self._parts.sent = after
        self._news.set()
        self.wait_for_reader()  # it may never begin to read
        response = InferResponse(self._model, self._version, reader)
        response.head = self._head
        return response

    async def fill(self, response: InferResponse) -> None:
        """Take the answer, as fast as it is read."""
        try:
            async with aclosing(aiter(response)) as parts:
                async for part in parts:
                    if part.says_something:
                        await self._parts.until_there_is_room()
                        self._append(part)
        except MeshError as error:
            self._error = error
        except Exception:  # a runtime's mistake: its reader must not wait for ever
            log.exception("the stream of model %r broke off", self._model)
            self._error = InferenceFailed("this node failed while it answered; its log says why")
        self._is_complete = True
        self._news.set()

    def end(self, error: MeshError) -> None:
        """Stop the work, and forget what is kept; a reader is told why."""
        self._has_ended = True
        self._stay()
        if self.task is not None:
            self.task.cancel()
        self._parts.clear()
        self._error = self._error or error
        self._is_complete = True
        self._news.set()
        self._all.forget(self)

    async def parts_for(self, me: _Reader, after: int) -> AsyncGenerator[ResponsePart, None]:
        """Yield the parts after a number to the reader of the moment, until another comes."""
        self._stay()
        me.has_begun = True
        while self._reader is me:
            found = self._parts.after(after)
            if found is not None:
                yield found.piece
                after = found.number
                if self._reader is me:
                    self._parts.has_sent(after)
            elif self._is_complete:
                if self._error is not None:
                    raise self._error.with_traceback(None)  # each reader may come to it
                return
            else:
                self._news.clear()
                await self._news.wait()
        raise _taken_up()

    def left(self, reader: _Reader) -> None:
        """End, if this was the last reader and nothing waits for another one."""
        if self._reader is not reader:
            return
        self._reader = None
        if self._is_complete:
            self.wait_for_reader()  # the gateway may be lost before its client has it all
        elif self._leave is None:
            self.end(_taken_up())

    def wait_for_reader(self) -> None:
        """Go on without a reader for a while, should this one leave."""
        if self._has_ended:  # its last reader leaves after that
            return
        self._stay()
        self._leave = asyncio.get_running_loop().call_later(STREAM_RESUME_S, self._give_up)

    def _stay(self) -> None:
        if self._leave is not None:
            self._leave.cancel()
            self._leave = None

    def _give_up(self) -> None:
        self._leave = None
        if self._reader is None or not self._reader.has_begun:
            self.end(NotFound("nobody came for the stream"))

    def _append(self, part: ResponsePart) -> None:
        if self._head is None:
            self._head = part.parameters
        outputs = tuple(
            msgspec.structs.replace(each, data=bytes(each.data)) for each in part.outputs
        )
        size_bytes = _PART_OVERHEAD_BYTES + sum(each.size_bytes for each in outputs)
        self._parts.append(ResponsePart(outputs, part.parameters), size_bytes)
        self._news.set()


class _Reader:
    """One gateway's way through an answer; closing it counts, too, if it was never begun."""

    def __init__(self, kept: _Kept, after: int) -> None:
        self.has_begun = False
        self._kept = kept
        self._parts = kept.parts_for(self, after)

    def __aiter__(self) -> AsyncIterator[ResponsePart]:
        return self

    async def __anext__(self) -> ResponsePart:
        return await anext(self._parts)

    async def aclose(self) -> None:
        await self._parts.aclose()
        self._kept.left(self)


class KeepingExecutor:
    """This node's model server, whose streamed answers are kept where they are asked for that way."""

    def __init__(self, models: LocalExecutor, kept: KeptStreams) -> None:
        """Keep what `models` answers in `kept`."""
        self._models = models
        self._kept = kept
        self.try_infer_inline = models.try_infer_inline  # the fastest way there is: no call more
        self.load_report = models.load_report

    def __repr__(self) -> str:
        return f"<KeepingExecutor of {self._models!r}>"

    async def infer(self, request: InferRequest) -> InferResponse:
        """Run a request, in its turn; see `LocalExecutor.infer`."""
        return self._kept.keep(request, await self._models.infer(request))


class StreamFinder:
    """Finds streams wherever in the mesh they are kept."""

    def __init__(self, me: NodeId, kept: KeptStreams, peers: PeerStreams) -> None:
        """Look here (`me`), or ask the node that keeps one."""
        self._me = me
        self._kept = kept
        self._peers = peers

    def __repr__(self) -> str:
        return f"<StreamFinder of {self._me}>"

    async def resume(self, node: NodeId, keep: KeptAs, timeout_s: float) -> InferResponse:
        """Return what follows of a stream that a node keeps; see `PeerStreams.resume`."""
        if node == self._me:
            response = self._kept.resume(keep)
        else:
            response = await self._peers.resume(node, keep, timeout_s)
        response.executor = node
        return response

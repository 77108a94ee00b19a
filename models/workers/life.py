"""The life of one worker process as its node sees it: what it was asked, and the memory lent to it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final
from weakref import finalize

from meshnode.errors import (
    InferenceFailed,
    MeshError,
    NotServing,
    Saturated,
    TooLarge,
)
from meshnode.limits import (
    MAX_WORKER_CALLS,
    MAX_WORKER_UNREAD_BYTES,
    STREAM_PAUSE_S,
    WORKER_IDLE_SHARED_BYTES,
    WORKER_INLINE_BYTES,
    WORKER_PING_S,
    WORKER_STREAM_CREDITS,
)
from meshnode.models.workers import protocol as say
from meshnode.models.workers.arena import Arena
from meshnode.models.workers.channel import Channel
from meshnode.models.workers.outcomes import Outcome, failure_of, outcome_of
from meshnode.models.workers.placing import find, inline, needed_bytes, place
from meshnode.models.workers.sequence_tensors import kept_outputs, with_kept
from meshnode.models.workers.supervision import verdict
from meshnode.types import InferRequest, ResponsePart, Tensor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from meshnode.models.workers.host import Infer
    from meshnode.models.workers.launch import Child, Plan

log = logging.getLogger(__name__)

_CREDIT_PARTS: Final = max(1, WORKER_STREAM_CREDITS // 2)
_CALLS: Final = -1  # the batch that a process names where it needs room for a call


class _Batch:
    """A batch or stream that the process has been given."""

    __slots__ = (
        "done", "due_s", "inputs", "interrupted", "parts", "rooms", "since_s", "timeout_s", "wanted",
    )  # fmt: skip

    def __init__(self, requests: Sequence[InferRequest], now: float, *, streams: bool) -> None:
        loop = asyncio.get_running_loop()
        self.done: asyncio.Future[list[Outcome]] = loop.create_future()
        self.parts: asyncio.Queue[ResponsePart | None] | None = asyncio.Queue() if streams else None
        self.since_s = now
        self.timeout_s = max(request.timeout_s for request in requests)
        self.due_s = now + self.timeout_s
        self.interrupted = False
        self.wanted = [request.outputs for request in requests]
        self.inputs: list[int] = []
        self.rooms: set[int] = set()


class Life:
    """One process that is ready, on the event loop."""

    def __init__(self, plan: Plan, child: Child, started: say.Started, infer: Infer | None) -> None:
        """Take over the process; `attach` comes next.

        Attributes:
            child: The process.
            since_s: When it was taken over, in monotonic seconds.
            memory_bytes: What it took at the last look.
        """
        self.child = child
        self.since_s = time.monotonic()
        self.memory_bytes = 0
        self._plan = plan
        self._infer = infer
        kept = kept_outputs(started.execution, started.max_batch_size)
        self._specs = {spec.name: spec for spec in with_kept(started.outputs, kept)}
        self._decoupled = started.execution.decoupled
        memory = child.memory
        assert memory is not None
        self._memory = memory
        self._arena = Arena(memory.size_bytes)
        self._returned: deque[int] = deque()  # by finalisers, in any thread
        self._batches: dict[int, _Batch] = {}
        self._lent: set[int] = set()  # inputs, and answers of calls, that the process has
        self._call_rooms: set[int] = set()
        self._number = 0
        self._room_bytes = 0
        self._longest_run_s = 0.0
        self._heard_s = self.since_s
        self._pings = 0
        self._reason = ""
        self._ended: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._work: asyncio.WriteTransport | None = None
        self._side: asyncio.WriteTransport | None = None
        self._gone: Callable[[Life, str], None] | None = None

    def __repr__(self) -> str:
        return f"<Life {self.child!r} {len(self._batches)} batches {self._arena!r}>"

    async def attach(self, gone: Callable[[Life, str], None]) -> None:
        """Begin to listen and to watch; `gone` is told once, with the reason, when the process ended."""
        self._gone = gone
        loop = asyncio.get_running_loop()
        work, _ = await loop.create_connection(lambda: Channel(self), sock=self.child.work)
        side, _ = await loop.create_connection(lambda: Channel(self), sock=self.child.side)
        self._work, self._side = work, side
        self._watching = loop.create_task(self._watch())
        self._watching.add_done_callback(self._watched)

    # Requests

    async def execute(self, requests: Sequence[InferRequest]) -> list[Outcome]:
        """Have a batch executed; see `ProcessModel.execute`."""
        number, batch = self._begin(requests, streams=False)
        try:
            wire = tuple(self._placed(batch, request) for request in requests)
            room, length = self._guessed_room(batch)
            self._send(self._work, say.Execute(number, wire, room, length))
        except BaseException:
            self._forget(number)
            raise
        try:
            return await asyncio.shield(batch.done)
        except asyncio.CancelledError:
            await self._drained(number, batch)
            raise

    async def stream(self, request: InferRequest) -> AsyncGenerator[ResponsePart, None]:
        """Have a request executed that gives any number of parts; see `ProcessModel.stream`."""
        number, batch = self._begin([request], streams=True)
        try:
            wire = self._placed(batch, request)
            self._send(self._work, say.OpenStream(number, wire, WORKER_STREAM_CREDITS))
        except BaseException:
            self._forget(number)
            raise
        assert batch.parts is not None
        taken = 0
        try:
            while (part := await batch.parts.get()) is not None:
                yield part
                taken += 1
                if taken == _CREDIT_PARTS and not batch.done.done():
                    self._send(self._side, say.Credit(number, taken))
                    taken = 0
            (outcome,) = batch.done.result()
            if isinstance(outcome, MeshError):
                raise outcome
        finally:
            if not batch.done.done():
                await self._drained(number, batch)

    def _begin(self, requests: Sequence[InferRequest], *, streams: bool) -> tuple[int, _Batch]:
        if self._reason:
            raise NotServing(f"the model has no process: {self._reason}")
        self._number += 1
        batch = _Batch(requests, time.monotonic(), streams=streams)
        self._batches[self._number] = batch
        return self._number, batch

    async def _drained(self, number: int, batch: _Batch) -> None:
        """Tell the process that nobody waits, and wait until it has let go or was ended for it."""
        self._interrupt(number, batch, "cancelled")
        while not batch.done.done():
            with suppress(asyncio.CancelledError):  # the slot is not free before this is done
                await asyncio.shield(batch.done)

    def _interrupt(self, number: int, batch: _Batch, reason: str) -> None:
        if not batch.interrupted and not batch.done.done():
            batch.interrupted = True
            batch.due_s = min(batch.due_s, time.monotonic())
            if not self._reason:
                self._send(self._side, say.Interrupt(number, reason))

    def _placed(self, batch: _Batch, request: InferRequest) -> say.WireRequest:
        length = needed_bytes(request.inputs)
        region = region_bytes = -1
        if length <= WORKER_INLINE_BYTES:
            inputs = inline(request.inputs)
        else:
            region = self._lend(length)
            region_bytes = self._arena.length_of(region)
            self._lent.add(region)
            batch.inputs.append(region)
            inputs, _ = place(request.inputs, self._memory.view, region)
        return say.WireRequest(
            inputs, request.outputs, request.request_id, dict(request.parameters),
            request.timeout_s, region, region_bytes,
        )  # fmt: skip

    def _guessed_room(self, batch: _Batch) -> tuple[int, int]:
        """Lend as much as the last answers took, which saves a question; perhaps nothing."""
        if self._room_bytes <= WORKER_INLINE_BYTES:
            return -1, 0
        try:
            room = self._lend(self._room_bytes)
        except MeshError:
            return -1, 0
        batch.rooms.add(room)
        return room, self._arena.length_of(room)

    def _lend(self, length: int) -> int:
        """Return the offset of a region.

        Raises:
            TooLarge: if there can be none.
            Saturated: if there is none now.
        """
        self._take_back()
        offset = self._arena.lend(length)
        if offset is not None:
            return offset
        if length > self._arena.size_bytes:
            raise TooLarge(
                f"{length} bytes of tensors exceed the {self._arena.size_bytes} bytes that a model's process "
                "shares with its node"
            )
        raise Saturated(
            f"the memory that this model shares with its node is full: {self._arena.lent_bytes} of "
            f"{self._arena.size_bytes} bytes are taken"
        )

    def _take_back(self) -> None:
        with suppress(IndexError):
            while True:
                self._arena.give_back(self._returned.popleft())

    def _freed(self, regions: Sequence[int]) -> None:
        for region in regions:
            if region in self._lent:
                self._lent.discard(region)
                self._arena.give_back(region)

    # What the process says

    def heard(self, message: say.ToProcess | say.FromProcess) -> None:
        """Take a message; called on the event loop."""
        if self._is_life(message):
            self._heard_s = time.monotonic()
        if isinstance(message, say.Outcomes):
            self._freed(message.freed)
            self._answered(message)
        elif isinstance(message, say.Part):
            self._streamed(message)
        elif isinstance(message, say.Ended):
            self._freed(message.freed)
            failed = message.code != ""
            self._finish(message.batch, [failure_of(message.code, message.error) if failed else ()])
        elif isinstance(message, say.Pong):
            self._freed(message.freed)
        elif isinstance(message, say.Freed):
            self._freed(message.regions)
        elif isinstance(message, say.NeedRoom):
            self._give_room(message)
        elif isinstance(message, say.CallModel):
            self._called(message)

    def _is_life(self, message: say.ToProcess | say.FromProcess) -> bool:
        """Whether a message shows that the process does what it was asked, not only that it talks."""
        if isinstance(message, say.Pong):
            return message.number == self._pings
        if isinstance(message, say.Outcomes | say.Part | say.Ended):
            return message.batch in self._batches
        return False

    def _answered(self, message: say.Outcomes) -> None:
        batch = self._batches.get(message.batch)
        if batch is None or batch.parts is not None:
            return
        if len(message.answers) != len(batch.wanted):
            self.end("its process answered a batch with the wrong number of answers and was ended")
            return
        region = self._taken(batch, message.room, message.answers)
        taken = sum(each.length for answer in message.answers for each in answer.outputs)
        self._room_bytes = max(taken * 5 // 4, self._room_bytes * 9 // 10)
        if not batch.interrupted:
            self._longest_run_s = max(self._longest_run_s, time.monotonic() - batch.since_s)
        outcomes = [
            outcome_of(
                answer, region, message.room, wanted, self._specs, may_be_empty=self._decoupled
            )
            for answer, wanted in zip(message.answers, batch.wanted, strict=True)
        ]
        self._finish(message.batch, outcomes)

    def _streamed(self, message: say.Part) -> None:
        batch = self._batches.get(message.batch)
        if batch is None or batch.parts is None:
            return
        if not batch.interrupted:  # a stream may take for ever, but not from one part to the next
            batch.due_s = time.monotonic() + max(STREAM_PAUSE_S, batch.timeout_s)
        region = self._taken(batch, message.room, (message.answer,))
        wanted = batch.wanted[0]
        outcome = outcome_of(
            message.answer, region, message.room, wanted, self._specs, may_be_empty=self._decoupled
        )
        if isinstance(outcome, tuple):
            outcome = ResponsePart(outcome)
        if isinstance(outcome, MeshError):
            self._finish(message.batch, [outcome])
        elif batch.parts.qsize() >= 2 * WORKER_STREAM_CREDITS:
            self.end("its process sent more of a stream than it was allowed and was ended")
        elif not batch.interrupted:
            batch.parts.put_nowait(outcome)

    def _taken(
        self, batch: _Batch, room: int, answers: Sequence[say.WireAnswer]
    ) -> memoryview | None:
        """Return the memory that answers lie in; it is given back when nobody looks at it any more."""
        if room not in batch.rooms:
            return None
        batch.rooms.discard(room)
        if all(each.offset < 0 for answer in answers for each in answer.outputs):
            self._arena.give_back(room)
            return None
        lease = self._memory.array(room, self._arena.length_of(room))
        finalize(lease, self._returned.append, room).atexit = False
        return lease.data

    def _finish(self, number: int, outcomes: list[Outcome]) -> None:
        batch = self._batches.pop(number, None)
        if batch is None:
            return
        for room in batch.rooms:
            self._arena.give_back(room)
        if not batch.done.done():
            batch.done.set_result(outcomes)
        if batch.parts is not None:
            batch.parts.put_nowait(None)

    def _forget(self, number: int) -> None:
        """Undo `_begin`: the process was told nothing."""
        batch = self._batches.pop(number)
        for region in (*batch.inputs, *batch.rooms):
            self._lent.discard(region)
            self._arena.give_back(region)

    def _give_room(self, message: say.NeedRoom) -> None:
        batch = self._batches.get(message.batch)
        offset = -1
        if batch is not None or message.batch == _CALLS:
            with suppress(MeshError):
                offset = self._lend(message.length)
        length = self._arena.length_of(offset) if offset >= 0 else 0
        if offset >= 0:
            (batch.rooms if batch is not None else self._call_rooms).add(offset)
        self._send(self._side, say.Room(message.ask, offset, length))

    # Calls of the model to other models

    def _called(self, message: say.CallModel) -> None:
        if self._infer is None or len(self._calls) >= MAX_WORKER_CALLS:
            why = (
                "too many calls are open"
                if self._infer
                else "this node lets it ask no other models"
            )
            answer = say.WireAnswer((), {}, Saturated.code if self._infer else NotServing.code, why)
            self._send(self._side, say.Called(message.ask, (answer,), -1, 0))
            return
        task = asyncio.get_running_loop().create_task(self._call(message))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _call(self, message: say.CallModel) -> None:
        region, region_bytes = -1, 0
        try:
            parts = await self._asked(message)
            tensors = [tensor for part in parts for tensor in part.outputs]
            if needed_bytes(tensors) > WORKER_INLINE_BYTES:
                offset = region = self._lend(needed_bytes(tensors))
                region_bytes = self._arena.length_of(region)
                self._lent.add(region)
            answers = []
            for part in parts:
                if region >= 0:
                    placed, offset = place(part.outputs, self._memory.view, offset)
                else:
                    placed = inline(part.outputs)
                answers.append(say.WireAnswer(placed, dict(part.parameters)))
        except MeshError as error:
            answers = [say.WireAnswer((), {}, error.code, str(error))]
        if not self._reason:
            self._send(self._side, say.Called(message.ask, tuple(answers), region, region_bytes))

    async def _asked(self, message: say.CallModel) -> list[ResponsePart]:
        assert self._infer is not None
        wire = message.request
        region: memoryview | None = None
        if wire.region in self._call_rooms:
            length = self._arena.length_of(wire.region)
            region = self._memory.view[wire.region : wire.region + length]
        try:
            inputs = tuple(
                Tensor(each.name, each.datatype, each.shape, bytes(data))
                for each, data in find(wire.inputs, region, wire.region)
            )
        finally:
            if region is not None:
                self._call_rooms.discard(wire.region)
                self._arena.give_back(wire.region)
        response = await self._infer(
            InferRequest(
                message.model, inputs, message.version, wire.outputs, wire.request_id,
                wire.parameters, wire.timeout_s,
            )
        )  # fmt: skip
        return [part async for part in response]

    # The watch over it, and its end

    async def _watch(self) -> None:
        settings = self._plan.settings
        pinged_s = float("-inf")
        written = self.child.disk_watch(self._plan)
        while True:
            now = time.monotonic()
            search = False
            if now - pinged_s >= min(WORKER_PING_S, settings.silence_s / 4):
                pinged_s, search = now, True
                self._pings += 1
                self._send(self._side, say.Ping(self._pings))
            overdue_s = self._overdue_s(now)
            look = asyncio.to_thread(
                self.child.reading, now - self._heard_s, overdue_s, search=search
            )
            reading = await look
            self.memory_bytes = reading.memory_bytes or self.memory_bytes
            reason = verdict(reading, self._plan.bounds, self._longest_run_s)
            if not reason and written.is_due(now):
                reason = await asyncio.to_thread(written.look, now)
            if reason:
                self.end(reason)
                return
            if not self._batches:
                self._take_back()
                for offset, length in self._arena.untouched(WORKER_IDLE_SHARED_BYTES):
                    self._memory.drop(offset, length)
            await asyncio.sleep(settings.watch_s)

    def _watched(self, watching: asyncio.Task[None]) -> None:
        """The watch is over; without one, a process must not go on."""
        if not watching.cancelled() and (error := watching.exception()) is not None:
            log.error("a model's process could not be watched", exc_info=error)
            self.end("its node could not look at its process any more, which was ended")

    def _overdue_s(self, now: float) -> float:
        """Interrupt what is past its deadline; return how long the worst runs on, in seconds."""
        # Not in `_watch`, whose frame would keep the last batch, and with it the memory of its answers.
        for number, batch in [*self._batches.items()]:
            if now > batch.due_s:
                self._interrupt(number, batch, "its deadline has passed")
        return max(
            (now - each.due_s for each in self._batches.values() if now > each.due_s), default=0.0
        )

    def end(self, reason: str) -> None:
        """End the process for a reason; what it was asked fails."""
        if self._ended is None:
            self._reason = reason or "its process has ended"
            self._ended = asyncio.get_running_loop().create_task(self._bury(reason))

    async def _bury(self, reason: str) -> None:
        said = "its process could not be ended as usual"
        try:
            if reason:
                await asyncio.to_thread(self.child.kill)
            self._detach()
            said = await asyncio.to_thread(self.child.end, 0.0 if reason else 1.0)
        except Exception:  # whoever waits must hear of it, and the model comes back
            log.exception("a model's process could not be ended as usual")
        self._reason = reason or said
        for number, batch in [*self._batches.items()]:
            failed = InferenceFailed(f"the model ended while it ran this: {self._reason}")
            self._finish(number, [failed] * len(batch.wanted))
        if self._gone is not None:
            self._gone(self, self._reason)

    def _detach(self) -> None:
        for task in (self._watching, *self._calls):
            if task is not None:
                task.cancel()
        for transport in (self._work, self._side):
            if transport is not None:
                transport.close()

    async def close(self, grace_s: float) -> None:
        """Let the model finish, for so many seconds, and end its process."""
        self._gone = None
        if self._ended is None and not self._reason:
            self._send(self._work, say.Stop())
            self._reason = "it was closed"
            self._ended = asyncio.get_running_loop().create_task(self._buried(grace_s))
        if self._ended is not None:
            await asyncio.shield(self._ended)

    async def _buried(self, grace_s: float) -> None:
        if self._watching is not None:
            self._watching.cancel()
        with suppress(Exception):
            await asyncio.to_thread(self.child.process.wait, grace_s)
        await self._bury("it was closed")

    def lost(self) -> None:
        """The process closed a socket: it is gone, or as good as gone."""
        if self._ended is None:
            self.end("")

    def _send(self, transport: asyncio.WriteTransport | None, message: say.Message) -> None:
        data = say.encode(message)
        assert transport is not None
        if self._ended is not None and self._ended.done():
            return
        transport.write(data)
        if transport.get_write_buffer_size() > MAX_WORKER_UNREAD_BYTES:
            self.end("its process asked and was told more than it read, and was ended")

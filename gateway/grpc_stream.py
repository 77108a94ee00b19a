"""`ModelStreamInfer`: many inferences on one call, each answered as its parts come.

    read ──> begin, in the order in which they came ──> answers, each part a message
                 │                                        ▲
                 └── a sequence's next request waits for the one before it

What is promised of the order, as in Triton: the requests of a sequence run one after the other, and models that answer
in one part are answered in the order in which they were asked. Answers of several parts go out as they are made,
among the others.

The id of a request, in logs and for feedback, is that of the call (`x-request-id` in the initial metadata), a colon, and
its own `id`, or else its number, from 1 on.

What goes wrong with one request is told in its place, and the call goes on. It ends when its caller sends no more
and all is answered, or at once when the caller goes away or does not take what it is sent.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from grpc.aio import InternalError, UsageError

from meshnode.errors import Cancelled, MeshError, NotServing, Saturated
from meshnode.gateway.caller_shares import CallerShares
from meshnode.gateway.grpc_calls import parse, request_id_of, version_in
from meshnode.gateway.protocols.dialect import Asked
from meshnode.gateway.protocols.grpc_messages import Streamed, error_in_stream
from meshnode.gateway.protocols.http import HttpResponse, HttpStream
from meshnode.limits import (
    BODY_GRACE_S,
    GRPC_STREAM_IDLE_S,
    MAX_GRPC_STREAM_REQUESTS,
    MAX_GRPC_STREAMS,
    MAX_GRPC_STREAMS_PER_CALLER,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from meshnode.gateway.bodies import Body
    from meshnode.gateway.grpc_calls import Asking, GrpcCalls
    from meshnode.types import Buffer

log = logging.getLogger(__name__)


class InferStreams:
    """Answers `ModelStreamInfer` calls."""

    def __init__(self, calls: GrpcCalls) -> None:
        """Answer with the parts of these calls."""
        self._calls = calls
        self._running = 0
        self._shares = CallerShares(MAX_GRPC_STREAMS_PER_CALLER)

    def __repr__(self) -> str:
        return f"<InferStreams: {self._running} open>"

    async def answer(self, asking: Asking, context: Any) -> None:
        """Answer one call.

        Raises:
            Saturated: if too many are open, or too many of this caller.
        """
        if self._running >= MAX_GRPC_STREAMS:
            raise Saturated(
                f"{MAX_GRPC_STREAMS} gRPC streams are open at this gateway already; try again later, or use one "
                "stream for several requests"
            )
        with self._shares.one_of(asking.caller):
            self._running += 1
            try:
                await context.send_initial_metadata((("x-request-id", asking.request_id),))
                await _Stream(self._calls, asking, context).run()
            finally:
                self._running -= 1


class _Stream:
    """One call."""

    def __init__(self, calls: GrpcCalls, asking: Asking, context: Any) -> None:
        self._calls = calls
        self._asking = asking
        self._context = context
        self._dialect = Streamed(calls.regions(asking))
        self._room = asyncio.Semaphore(MAX_GRPC_STREAM_REQUESTS)
        self._writing = asyncio.Lock()
        self._sending: asyncio.Future[None] | None = None
        self._last: asyncio.Event | None = None  # set when all single answers so far are written
        self._sequences: dict[object, asyncio.Event] = {}  # of the last request of each
        self._working = 0
        self._read = 0
        self._is_idle = False
        # The call itself was counted for its caller's key: one request for the rate, and one place.
        self._has_token = self._has_place = True

    async def run(self) -> None:
        """Read until the caller sends no more; return when all is answered.

        Raises:
            NotServing: if the node leaves; what was read is answered before.
            Cancelled: if the caller does not take what it is sent, or sends nothing for long.
        """
        gave_up = False
        try:
            async with asyncio.TaskGroup() as group:
                while (found := await self._next()) is not None:
                    data, held = found
                    self._read += 1
                    group.create_task(self._one(data, held, self._read))
        except* TimeoutError:
            gave_up = True
        if gave_up:
            # All of it is let go but the one message that is on its way: grpcio ends no call before that is taken.
            assert self._sending is not None
            await asyncio.wait((self._sending,))
            raise Cancelled(f"the caller took nothing of its answers for {BODY_GRACE_S:.0f} s")
        if self._is_idle:
            raise Cancelled(
                f"nothing ran on this stream and no request came for {GRPC_STREAM_IDLE_S:.0f} s; open another when you "
                "need one"
            )
        if self._calls.leaving.is_set():
            raise NotServing("this node is leaving the mesh; go on at another gateway")

    async def _next(self) -> tuple[bytes, Body] | None:
        """Return the next message; None after the last, when the node leaves, and when none comes for long."""
        await self._room.acquire()
        while True:
            reading = asyncio.ensure_future(self._calls.read(self._context))
            leaving = asyncio.ensure_future(self._calls.leaving.wait())
            try:
                while True:
                    done, _ = await asyncio.wait(
                        (reading, leaving),
                        timeout=GRPC_STREAM_IDLE_S,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    if done or not self._working:
                        break
                self._is_idle = not done
                return await reading if reading.done() else None
            except MeshError as error:  # too much is held: whose request it was, nobody has read
                await self._write(error_in_stream(str(error), "", ""))
            finally:
                reading.cancel()
                leaving.cancel()

    async def _one(self, data: bytes, held: Body, number: int) -> None:
        """Answer one request, in its turn."""
        self._working += 1
        try:
            await self._in_turn(data, number)
        finally:
            self._working -= 1
            held.end()
            self._room.release()

    async def _in_turn(self, data: bytes, number: int) -> None:
        try:
            message = parse("ModelInferRequest", data)
        except MeshError as error:
            await self._write(error_in_stream(str(error), "", ""))
            return
        before, mine = self._last, asyncio.Event()
        if not self._is_decoupled(message):
            self._last = mine
        sequence = _sequence_of(message)
        previous = self._sequences.get(sequence)
        if sequence is not None:
            self._sequences[sequence] = mine
        try:
            if previous is not None:
                await previous.wait()
            in_order = self._last is not before
            request_id = request_id_of(self._asking.request_id, message.id, number)
            await self._answer(message, data, request_id, before if in_order else None)
        finally:
            mine.set()
            if self._sequences.get(sequence) is mine:
                del self._sequences[sequence]

    def _is_decoupled(self, message: Any) -> bool:
        """Whether the model answers in as many parts as it likes, so that its answers have no place in the order."""
        pipeline = self._calls.parts.dispatcher.inference.pipeline
        manifest = pipeline.announced(message.model_name, _known_version(message.model_version))
        return manifest is not None and manifest.execution.decoupled

    async def _answer(
        self, message: Any, data: bytes, request_id: str, before: asyncio.Event | None
    ) -> None:
        """Run one request and write its answer, after that of `before`, if it is given."""
        parts = self._calls.parts
        own_place, self._has_place = self._has_place, False
        counted = False
        try:
            counted = self._count(takes_place=not own_place)
            stream = await self._begun(message, data, request_id)
            async with aclosing(_generator(stream)) as pieces:
                async for piece in pieces:
                    await self._write_after(before, piece)
        except MeshError as error:
            parts.metrics.errors.add((error.code,))
            told = error_in_stream(str(error), message.model_name, message.id)
            await self._write_after(before, told)
        except (TimeoutError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("request %s of a stream failed", request_id)
            sentence = (
                f"the gateway failed to handle this request; its log has request {request_id}"
            )
            await self._write_after(
                before, error_in_stream(sentence, message.model_name, message.id)
            )
        finally:
            if counted:
                parts.key_limits.end(self._asking.caller)
            if own_place:
                self._has_place = True

    def _count(self, *, takes_place: bool) -> bool:
        """Count a request for its caller's key; return whether a place has to be given back for it.

        The first of a stream has the token that the call took, and one at a time runs in the call's place.
        """
        takes_token, self._has_token = not self._has_token, False
        caller = self._asking.caller
        if caller.limit is None:
            return False
        now = asyncio.get_running_loop().time()
        limits = self._calls.parts.key_limits
        return limits.begin(caller, now, takes_token=takes_token, takes_place=takes_place)

    async def _begun(self, message: Any, data: bytes, request_id: str) -> HttpStream:
        asking = self._asking
        remaining_s = self._context.time_remaining()
        http = self._calls.http_of(asking._replace(remaining_s=remaining_s), data)
        version = version_in(message.model_version)
        asked = Asked(http, message.model_name, version, message)
        inference = self._calls.parts.dispatcher.inference
        reply = inference.answer(self._dialect, asked, request_id)
        assert not isinstance(reply, HttpResponse)  # `Streamed` has streams only
        found = await reply
        assert isinstance(found, HttpStream)
        return found

    async def _write_after(self, before: asyncio.Event | None, message: Buffer) -> None:
        if before is not None:
            await before.wait()
        await self._write(message)

    async def _write(self, message: Buffer) -> None:
        async with self._writing:
            self._sending = asyncio.ensure_future(self._context.write(bytes(message)))
            self._sending.add_done_callback(_heed)
            done, _ = await asyncio.wait((self._sending,), timeout=BODY_GRACE_S)
            if not done:
                raise TimeoutError
            try:
                await self._sending
            except (InternalError, UsageError):
                # The call has ended already: nobody is left to answer.
                raise asyncio.CancelledError from None
        self._calls.parts.metrics.response_body_bytes += len(message)


def _heed(sending: asyncio.Future[None]) -> None:
    """Take note of how a write ended for which nobody waits any more."""
    if not sending.cancelled():
        sending.exception()


def _generator(stream: HttpStream) -> AsyncGenerator[Buffer, None]:
    """Return a stream's parts as what they are, so that they can be closed."""
    return stream.parts  # type: ignore[return-value] # the protocol of its type has no name for it


def _known_version(text: str) -> int | None:
    """Return the version that a message names, if it is one."""
    try:
        return version_in(text)
    except MeshError:
        return None


def _sequence_of(message: Any) -> object:
    """Return what tells a request's sequence from others of the stream; None if it belongs to none."""
    parameter = message.parameters.get("sequence_id")
    if parameter is None:
        return None
    chosen = parameter.WhichOneof("parameter_choice")
    found = getattr(parameter, chosen) if chosen else None
    return (message.model_name, found) if found else None

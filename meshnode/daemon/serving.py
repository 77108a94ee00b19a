"""Answering peers: inference, model files and calls of their gateways, asked over their links.

What a peer asks wrongly fails that one request; bytes that are no message at all close its link.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from msgspec import structs

from meshnode.daemon.file_serving import FileServer
from meshnode.daemon.life_signs import LifeSigns, interval_s
from meshnode.daemon.serving_log import ServingLog
from meshnode.errors import (
    Cancelled,
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    MeshError,
    ProtocolError,
    Saturated,
    SequenceMoved,
)
from meshnode.limits import (
    MAX_CACHE_CONTROL_LENGTH,
    MAX_PEER_TIMEOUT_S,
    MAX_REQUEST_ID_LENGTH,
    MAX_SENT_MESSAGE_LENGTH,
)
from meshnode.net.clock import RealClock
from meshnode.net.infer_call import tensor_headers, tensors_of
from meshnode.tracing import TraceIds
from meshnode.types import (
    NO_HINTS,
    InferRequest,
    InferResponse,
    KeptAs,
    Priority,
    ResponsePart,
    RoutingHints,
)
from meshnode.wire.messages import (
    STREAMS,
    AskChunks,
    AskDisagreements,
    AskFiles,
    AskLoad,
    AskStatistics,
    Checkup,
    Failure,
    FetchBlob,
    Forward,
    Forwarded,
    Infer,
    LoadReport,
    LoadTold,
    Once,
    Result,
    Resumed,
    ResumeStream,
    TakeSequence,
    TellFeedback,
)

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Coroutine, Mapping

    from meshnode.clock import Clock
    from meshnode.daemon.file_serving import Blobs
    from meshnode.daemon.kept_streams import KeptStreams
    from meshnode.gateway.protocols.http import HttpResponse
    from meshnode.net.connection import Connection
    from meshnode.types import Buffer, NodeId
    from meshnode.wire.codec import Message
    from meshnode.wire.messages import Keep

log = logging.getLogger(__name__)

_HUNG_UP = Cancelled("the asking node went away")

# What a peer says of a request, by its priority; of one that is as urgent as most, or of no known priority, nothing.
_HINTS = {int(each): RoutingHints(priority=each) for each in (Priority.LOW, Priority.HIGH)}


class Executor(Protocol):
    """What runs models here."""

    def try_infer_inline(self, request: InferRequest) -> ResponsePart | None:
        """Run a short model at once, or return None if it must not run on the event loop."""

    async def infer(self, request: InferRequest) -> InferResponse:
        """Run a model."""

    def load_report(self, model: str, version: int) -> LoadReport:
        """Say how busy a replica is."""


class Calls(Protocol):
    """What answers calls of other nodes' gateways."""

    @property
    def outcomes(self) -> Mapping[str, int]:
        """How they ended: `ok`, or the code of an error."""

    async def answer(
        self, asker: NodeId, name: str, ask: Forward, body: memoryview
    ) -> HttpResponse:
        """Carry a call out; Saturated or NotServing if it was not begun."""


class CheckupServer(Protocol):
    """What answers checkups (`meshnode.daemon.checkup`).

    Attributes:
        outcomes: How they ended: `ok`, or the code of an error.
    """

    outcomes: Counter[str]

    async def answer(self, connection: Connection, stream: int, ask: Checkup) -> None:
        """Answer on the stream; Saturated if too many ask."""


class StatisticsServer(Protocol):
    """What says what this node's models have done (`meshnode.daemon.statistics`)."""

    def answer(self, connection: Connection, stream: int, ask: AskStatistics) -> None:
        """Answer on the stream."""


class ReleaseServer(Protocol):
    """What remembers answers of releases (`meshnode.daemon.release_words`)."""

    def answer(
        self,
        connection: Connection,
        stream: int,
        ask: TellFeedback | AskDisagreements,
        data: memoryview,
    ) -> None:
        """Answer on the stream; MeshError if what is told is no feedback."""


class Homes(Protocol):
    """What knows of `Idempotency-Key`s (`meshnode.daemon.once`)."""

    async def answer(
        self, connection: Connection, stream: int, ask: Once, body: memoryview
    ) -> None:
        """Answer on the stream; IdempotencyKeyReused or Saturated if it is refused."""


class SequenceTaker(Protocol):
    """What goes on with sequences of other nodes (`meshnode.daemon.sequence_moves`)."""

    def take(
        self, connection: Connection, stream: int, ask: TakeSequence, data: memoryview
    ) -> None:
        """Go on with one, and say so on the stream; MeshError if that cannot be."""


class JobServer(Protocol):
    """What answers about this node's jobs (`meshnode.daemon.job_answers`)."""

    def read(self, meta: bytes) -> Message | None:
        """Return what is asked about jobs; None if it is about something else."""

    async def answer(
        self, peer: NodeId, ask: Message, data: memoryview
    ) -> tuple[bytes, list[Buffer]]:
        """Return the answer to it, and the data that follows."""


class _Asked(NamedTuple):
    """An inference that a peer asked for: `parent` is its span, `started` when it arrived.

    It wants a sign of life each `alive_s`, if that is not 0.
    """

    connection: Connection
    stream: int
    request: InferRequest
    parent: str
    started: float
    alive_s: float = 0.0


class PeerServer:
    """Serves the streams that peers open."""

    def __init__(
        self,
        executor: Executor,
        blobs: Blobs,
        *,
        clock: Clock | None = None,
        traces: TraceIds | None = None,
        name_of: Callable[[Connection], str] = str,
    ) -> None:
        """Answer from this node's own models and files.

        Args:
            executor: The models.
            blobs: The files.
            clock: Times requests; the real one by default.
            traces: Makes this node's spans.
            name_of: The name of the node at the other end, for the log.
        """
        clock = clock or RealClock()
        self.log = ServingLog(clock, traces or TraceIds(random.SystemRandom()))
        """How peers' requests ended."""
        self.forwards: Calls | None = None
        """What answers calls that other nodes' gateways pass on; None as long as nothing does."""
        self.checkups: CheckupServer | None = None
        """What answers `meshnode doctor` of other nodes; None as long as nothing does."""
        self.statistics: StatisticsServer | None = None
        """What says what this node's models have done; None as long as nothing does."""
        self.releases: ReleaseServer | None = None
        """What this node's gateway remembers of releases; None as long as nothing does."""
        self.homes: Homes | None = None
        """What knows of the `Idempotency-Key`s whose home this node is; None as long as nothing does."""
        self.kept: KeptStreams | None = None
        """What keeps streamed answers for gateways that take them up; None as long as nothing does."""
        self.sequences: SequenceTaker | None = None
        """What takes sequences of nodes that are emptied; None as long as nothing does."""
        self.jobs: JobServer | None = None
        """What answers about this node's jobs; None as long as nothing does."""
        self._executor = executor
        self._files = FileServer(blobs)
        self._now = clock.now
        self._name_of = name_of
        self._tasks: dict[tuple[Connection, int], asyncio.Task[None]] = {}
        self._keeps: dict[tuple[Connection, int], str] = {}  # names of streams that are kept

    @property
    def running(self) -> int:
        """Requests of peers that are being worked on."""
        return len(self._tasks)

    def opened(self, connection: Connection, stream: int, meta: bytes, data: memoryview) -> None:
        """Begin to answer. A short model answers before this returns."""
        try:
            message = STREAMS.decode(meta)
        except ProtocolError as error:
            connection.close(error)
            return
        try:
            if isinstance(message, Infer):
                self._infer(connection, stream, message, data)
            elif isinstance(message, FetchBlob):
                send = partial(self._files.send, connection, stream, message)
                self._start_sending(connection, stream, send)
            elif isinstance(message, AskFiles):
                send = partial(self._files.tell, connection, stream, message, data)
                self._start_sending(connection, stream, send)
            elif isinstance(message, AskChunks):
                send = partial(self._files.send_chunks, connection, stream, message)
                self._start_sending(connection, stream, send)
            elif isinstance(message, Forward) and self.forwards is not None:
                self._start(connection, stream, self._forward(connection, stream, message, data))
            else:
                self._begin(connection, stream, message, meta, data)
        except MeshError as error:
            _fail(connection, stream, error, None)
        except Exception as error:  # a runtime's mistake must not cost the link
            log.error("answering a peer failed", exc_info=error)
            _fail(connection, stream, InferenceFailed("this node failed while it answered"), None)

    def _begin(
        self,
        connection: Connection,
        stream: int,
        message: Message | None,
        meta: bytes,
        data: memoryview,
    ) -> None:
        """Begin to answer what is about neither inferences, files nor changes of the mesh.

        Raises:
            InvalidRequest: if it is about nothing that is known here.
        """
        if isinstance(message, ResumeStream) and self.kept is not None:
            self._start(connection, stream, self._resume(connection, stream, message))
        elif isinstance(message, Once) and self.homes is not None:
            send = partial(self.homes.answer, connection, stream, message, data)
            self._start_sending(connection, stream, send)
        elif isinstance(message, Checkup) and self.checkups is not None:
            self._start(connection, stream, self._check_up(connection, stream, message))
        elif isinstance(message, TakeSequence) and self.sequences is not None:
            self.sequences.take(connection, stream, message, data)
        elif isinstance(message, AskLoad):
            report = self._executor.load_report(message.model, message.version)
            connection.reply(stream, STREAMS.encode(LoadTold(report)), [], end=True)
        elif isinstance(message, AskStatistics) and self.statistics is not None:
            self.statistics.answer(connection, stream, message)
        elif isinstance(message, TellFeedback | AskDisagreements) and self.releases is not None:
            self.releases.answer(connection, stream, message, data)
        elif (
            message is None
            and self.jobs is not None
            and (asked := self.jobs.read(meta)) is not None
        ):
            answer = self._answer_job(self.jobs, connection, stream, asked, data)
            self._start(connection, stream, answer)
        else:
            raise InvalidRequest("this node does not know what is asked")

    def cancelled(self, connection: Connection, stream: int) -> None:
        """Stop working for a stream that nobody waits for.

        A gateway that is leaving waits for nothing any more, but its clients go on elsewhere.
        """
        key = (connection, stream)
        task = self._tasks.get(key)
        if task is not None:
            if connection.going_away:
                self._reader_lost(key)
            task.cancel()

    def closed(self, connection: Connection) -> None:
        """Stop everything that a lost connection had asked for, but for streams that another gateway may take up."""
        for key, task in list(self._tasks.items()):
            if key[0] is connection:
                self._reader_lost(key)
                task.cancel()

    def _reader_lost(self, key: tuple[Connection, int]) -> None:
        if self.kept is not None and key in self._keeps:
            self.kept.reader_lost(self._keeps[key])

    def _infer(self, connection: Connection, stream: int, ask: Infer, data: memoryview) -> None:
        started = self._now()
        request = InferRequest(
            ask.model,
            tensors_of(ask.inputs, data),
            ask.version or None,
            ask.outputs,
            ask.request_id[:MAX_REQUEST_ID_LENGTH],
            ask.parameters,
            _timeout_s(ask),
            cache_control=ask.cache_control[:MAX_CACHE_CONTROL_LENGTH],
            hints=_HINTS.get(ask.priority, NO_HINTS),
            keep=_kept_as(ask.keep),
            elsewhere=ask.elsewhere,
        )
        asked = _Asked(connection, stream, request, ask.trace, started, interval_s(ask.alive_ms))
        try:
            part = self._executor.try_infer_inline(request)
            if part is None:
                self._start(connection, stream, self._run(asked))
                return
            self._reply(connection, stream, request, part, end=True)
        except MeshError as error:
            self._refused(asked, error)
        except Exception as defect:  # noqa: BLE001 - a runtime's mistake must not cost the link
            self._broke(asked, defect)
        else:
            if self.log.is_detailed:
                self._ended(asked, None)
            else:  # what runs inline is never slow
                self.log.outcomes["ok"] += 1

    async def _run(self, asked: _Asked) -> None:
        try:
            await self._answer(asked)
        except MeshError as error:
            self._refused(asked, error)
        except asyncio.CancelledError:
            self._ended(asked, _HUNG_UP)
            raise
        except Exception as defect:  # noqa: BLE001 - likewise
            self._broke(asked, defect)
        else:
            self._ended(asked, None)

    async def _answer(self, asked: _Asked) -> None:
        connection, stream, request = asked.connection, asked.stream, asked.request
        response = await self._executor.infer(request)
        if response.single is not None:
            self._reply(
                connection, stream, request, response.single, end=True, run_ms=response.run_ms
            )
            return
        if self.kept is not None:
            response = self.kept.keep(request, response)
        await self._send_parts(asked, response)

    async def _send_parts(self, asked: _Asked, response: InferResponse) -> None:
        connection, stream, alive_s = asked.connection, asked.stream, asked.alive_s
        if asked.request.keep is not None:
            self._keeps[connection, stream] = asked.request.keep.stream
        send = partial(self._reply, connection, stream, asked.request, alive_s=alive_s)
        signs = LifeSigns(alive_s, lambda: send(ResponsePart(()), end=False))
        try:
            async with aclosing(aiter(response)) as parts:
                async for part in parts:
                    send(part, end=False)
                    signs.told()
                    signs.hold(held=True)
                    await connection.drained(stream)
                    signs.hold(held=False)
        finally:
            signs.close()
            self._keeps.pop((connection, stream), None)
        send(ResponsePart(()), end=True)

    async def _resume(self, connection: Connection, stream: int, ask: ResumeStream) -> None:
        """Go on with a stream that is kept here."""
        assert self.kept is not None
        try:
            keep = KeptAs(ask.stream, ask.owner, ask.after)
            response = self.kept.resume(keep)
            found = Resumed(response.model, response.version, dict(response.head or {}))
            connection.reply(stream, STREAMS.encode(found), (), end=False)
            request = InferRequest(response.model, (), response.version, keep=keep)
            alive_s = interval_s(ask.alive_ms)
            await self._send_parts(_Asked(connection, stream, request, "", 0.0, alive_s), response)
        except MeshError as error:
            _fail(connection, stream, error, None)

    def _refused(self, asked: _Asked, error: MeshError) -> None:
        _fail(asked.connection, asked.stream, error, self._load(asked.request))
        self._ended(asked, error)

    def _broke(self, asked: _Asked, defect: Exception) -> None:
        error = InferenceFailed("this node failed while it answered")
        _fail(asked.connection, asked.stream, error, None)
        self._ended(asked, error, defect)

    def _ended(
        self, asked: _Asked, error: MeshError | None, defect: Exception | None = None
    ) -> None:
        took_s = self._now() - asked.started
        self.log.outcomes["ok" if error is None else error.code] += 1
        if self.log.wants(error, took_s):
            peer = self._name_of(asked.connection)
            self.log.ended(asked.request, asked.parent, peer, error, took_s, defect)

    def _reply(
        self,
        connection: Connection,
        stream: int,
        request: InferRequest,
        part: ResponsePart,
        *,
        end: bool,
        alive_s: float = 0.0,
        run_ms: float = 0.0,
    ) -> None:
        report = self._load(request)
        if report is not None and run_ms > 0:
            report = structs.replace(report, run_ms=run_ms)
        outputs, parameters = tensor_headers(part.outputs), dict(part.parameters)
        meta = STREAMS.encode(Result(outputs, report, parameters, alive_s * 1e3))
        connection.reply(stream, meta, [tensor.data for tensor in part.outputs], end=end)

    def _load(self, request: InferRequest) -> LoadReport | None:
        try:
            return self._executor.load_report(request.model, request.version or 0)
        except MeshError:
            return None  # it is being unloaded; this was one of its last answers

    async def _check_up(self, connection: Connection, stream: int, ask: Checkup) -> None:
        assert self.checkups is not None
        try:
            await self.checkups.answer(connection, stream, ask)
        except MeshError as error:
            _fail(connection, stream, error, None)

    async def _answer_job(
        self, jobs: JobServer, connection: Connection, stream: int, ask: Message, data: memoryview
    ) -> None:
        assert connection.hello is not None
        try:
            meta, parts = await jobs.answer(connection.hello.peer.node_id, ask, data)
        except MeshError as error:
            _fail(connection, stream, error, None)
            return
        connection.reply(stream, meta, parts, end=True)

    async def _forward(
        self, connection: Connection, stream: int, ask: Forward, body: memoryview
    ) -> None:
        assert self.forwards is not None
        assert connection.hello is not None
        asker = connection.hello.peer.node_id
        try:
            answer = await self.forwards.answer(asker, self._name_of(connection), ask, body)
        except MeshError as error:
            _fail(connection, stream, error, None)
            return
        parts = [answer.body] if isinstance(answer.body, bytes) else answer.body
        meta = STREAMS.encode(Forwarded(answer.status, dict(answer.headers)))
        connection.reply(stream, meta, parts, end=True)

    async def _send_files(
        self, connection: Connection, stream: int, send: Callable[[], Coroutine[None, None, None]]
    ) -> None:
        try:
            await send()
        except MeshError as error:
            _fail(connection, stream, error, None)

    def _start_sending(
        self, connection: Connection, stream: int, send: Callable[[], Coroutine[None, None, None]]
    ) -> None:
        self._start(connection, stream, self._send_files(connection, stream, send))

    def _start(
        self, connection: Connection, stream: int, work: Coroutine[None, None, None]
    ) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        key = (connection, stream)
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._finished(key, done))

    def _finished(self, key: tuple[Connection, int], task: asyncio.Task[None]) -> None:
        self._tasks.pop(key, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("answering a peer failed", exc_info=error)
            _fail(*key, InferenceFailed("this node failed while it answered"), None)


def _kept_as(keep: Keep | None) -> KeptAs | None:
    return None if keep is None else KeptAs(keep.stream, keep.owner, keep.after)


def _timeout_s(ask: Infer) -> float:
    timeout_s = ask.timeout_ms / 1e3
    if not math.isfinite(timeout_s) or timeout_s > MAX_PEER_TIMEOUT_S:
        raise InvalidRequest("a request's time limit is out of range")
    if timeout_s <= 0:
        raise DeadlineExceeded("the request's deadline has passed")
    return timeout_s


def _fail(connection: Connection, stream: int, error: MeshError, load: LoadReport | None) -> None:
    retry_after_ms = error.retry_after_s * 1000 if isinstance(error, Saturated) else 0.0
    node = error.node if isinstance(error, SequenceMoved) else ""
    meta = STREAMS.encode(
        Failure(error.code, str(error)[:MAX_SENT_MESSAGE_LENGTH], load, retry_after_ms, node)
    )
    try:
        connection.reply(stream, meta, end=True)
    except (Saturated, ValueError):  # it reads nothing, or its answer had ended
        connection.refuse(stream, error)

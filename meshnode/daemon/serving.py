"""Answering peers: inference, model files and calls of their gateways, asked over their links.

What a peer asks wrongly fails that one request; bytes that are no message at all close its link.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from typing import TYPE_CHECKING, NamedTuple, Protocol

from meshnode.daemon.serving_log import ServingLog
from meshnode.errors import (
    Cancelled,
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    MeshError,
    ProtocolError,
    Saturated,
)
from meshnode.limits import (
    BLOB_CHUNK_BYTES,
    MAX_BLOBS_SENT,
    MAX_PEER_TIMEOUT_S,
    MAX_REQUEST_ID_LENGTH,
    MAX_SENT_MESSAGE_LENGTH,
)
from meshnode.net.clock import RealClock
from meshnode.net.peers import tensor_headers, tensors_of
from meshnode.tracing import TraceIds
from meshnode.types import InferRequest, InferResponse, ResponsePart
from meshnode.wire.messages import (
    STREAMS,
    BlobChunk,
    Checkup,
    Failure,
    FetchBlob,
    Forward,
    Forwarded,
    Infer,
    LoadReport,
    Result,
)

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Coroutine, Mapping

    from meshnode.clock import Clock
    from meshnode.gateway.protocols.http import HttpResponse
    from meshnode.net.connection import Connection
    from meshnode.types import NodeId

log = logging.getLogger(__name__)

_HUNG_UP = Cancelled("the asking node went away")
_SHA256_BYTES = 32


class Executor(Protocol):
    """What runs models here."""

    def try_infer_inline(self, request: InferRequest) -> ResponsePart | None:
        """Run a short model at once, or return None if it must not run on the event loop."""

    async def infer(self, request: InferRequest) -> InferResponse:
        """Run a model."""

    def load_report(self, model: str, version: int) -> LoadReport:
        """Say how busy a replica is."""


class Blobs(Protocol):
    """Where model files are."""

    def size_bytes(self, sha256: bytes) -> int:
        """Length of a blob; TransferFailed if it is not here."""

    def read_chunk(self, sha256: bytes, offset: int, length: int) -> bytes:
        """Read a part of a blob."""


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


class _Asked(NamedTuple):
    """An inference that a peer asked for: `parent` is its span, `started` when it arrived."""

    connection: Connection
    stream: int
    request: InferRequest
    parent: str
    started: float


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
        self._executor = executor
        self._blobs = blobs
        self._now = clock.now
        self._name_of = name_of
        self._tasks: dict[tuple[Connection, int], asyncio.Task[None]] = {}
        self._blobs_sent = 0

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
                self._start(connection, stream, self._send_blob(connection, stream, message))
            elif isinstance(message, Forward) and self.forwards is not None:
                self._start(connection, stream, self._forward(connection, stream, message, data))
            elif isinstance(message, Checkup) and self.checkups is not None:
                self._start(connection, stream, self._check_up(connection, stream, message))
            else:
                raise InvalidRequest("this node does not know what is asked")
        except MeshError as error:
            _fail(connection, stream, error, None)
        except Exception as error:  # a runtime's mistake must not cost the link
            log.error("answering a peer failed", exc_info=error)
            _fail(connection, stream, InferenceFailed("this node failed while it answered"), None)

    def cancelled(self, connection: Connection, stream: int) -> None:
        """Stop working for a stream that nobody waits for."""
        task = self._tasks.get((connection, stream))
        if task is not None:
            task.cancel()

    def closed(self, connection: Connection) -> None:
        """Stop everything that a lost connection had asked for."""
        for (owner, _), task in list(self._tasks.items()):
            if owner is connection:
                task.cancel()

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
        )
        asked = _Asked(connection, stream, request, ask.trace, started)
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
            await self._answer(asked.connection, asked.stream, asked.request)
        except MeshError as error:
            self._refused(asked, error)
        except asyncio.CancelledError:
            self._ended(asked, _HUNG_UP)
            raise
        except Exception as defect:  # noqa: BLE001 - likewise
            self._broke(asked, defect)
        else:
            self._ended(asked, None)

    async def _answer(self, connection: Connection, stream: int, request: InferRequest) -> None:
        response = await self._executor.infer(request)
        if response.single is not None:
            self._reply(connection, stream, request, response.single, end=True)
            return
        async for part in response:
            self._reply(connection, stream, request, part, end=False)
            await connection.drained(stream)
        self._reply(connection, stream, request, ResponsePart(()), end=True)

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
    ) -> None:
        report = self._load(request)
        meta = STREAMS.encode(Result(tensor_headers(part.outputs), report, dict(part.parameters)))
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

    async def _send_blob(self, connection: Connection, stream: int, ask: FetchBlob) -> None:
        if self._blobs_sent >= MAX_BLOBS_SENT:
            busy = Saturated("this node is sending as many files as it can; try again")
            _fail(connection, stream, busy, None)
            return
        self._blobs_sent += 1
        try:
            if len(ask.sha256) != _SHA256_BYTES:
                raise InvalidRequest("a file is named by its SHA-256")
            total = self._blobs.size_bytes(ask.sha256)
            if not 0 <= ask.offset <= total:
                raise InvalidRequest(f"the file has no byte {ask.offset}")
            await self._send_rest(connection, stream, ask, total)
        except MeshError as error:
            _fail(connection, stream, error, None)
        finally:
            self._blobs_sent -= 1

    async def _send_rest(
        self, connection: Connection, stream: int, ask: FetchBlob, total: int
    ) -> None:
        offset = ask.offset
        end = False
        while not end:
            chunk = await asyncio.to_thread(
                self._blobs.read_chunk, ask.sha256, offset, BLOB_CHUNK_BYTES
            )
            end = offset + len(chunk) >= total or not chunk
            meta = STREAMS.encode(BlobChunk(offset, total))
            connection.reply(stream, meta, [chunk], end=end)
            offset += len(chunk)
            await connection.drained(stream)

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


def _timeout_s(ask: Infer) -> float:
    timeout_s = ask.timeout_ms / 1e3
    if not math.isfinite(timeout_s) or timeout_s > MAX_PEER_TIMEOUT_S:
        raise InvalidRequest("a request's time limit is out of range")
    if timeout_s <= 0:
        raise DeadlineExceeded("the request's deadline has passed")
    return timeout_s


def _fail(connection: Connection, stream: int, error: MeshError, load: LoadReport | None) -> None:
    meta = STREAMS.encode(Failure(error.code, str(error)[:MAX_SENT_MESSAGE_LENGTH], load))
    try:
        connection.reply(stream, meta, end=True)
    except (Saturated, ValueError):  # it reads nothing, or its answer had ended
        connection.refuse(stream, error)

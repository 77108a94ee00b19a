"""One inference on a peer: its message, its parts as they come, and its end.

A stream whose node has said that it tells signs of life between parts is watched for them: where neither a part nor a
sign came for `STREAM_STALL_S`, nor bytes of a part that is on its way, it has stalled. A node whose whole loop stands
still is found out by the link itself (`meshnode.wire.liveness`). The request's time counts until its first part; a
stream may take for ever, but not from one part to the next (`STREAM_PAUSE_S`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

from meshnode.errors import (
    DeadlineExceeded,
    LinkLost,
    MeshError,
    ProtocolError,
    Saturated,
    SequenceMoved,
)
from meshnode.limits import (
    MAX_PEER_TENSOR_RANK,
    MAX_RETRY_AFTER_S,
    MAX_WAITING_PARTS,
    STREAM_ALIVE_S,
    STREAM_LATE_S,
    STREAM_PAUSE_S,
    STREAM_STALL_S,
)
from meshnode.net.connection import peer_error
from meshnode.types import DataType, InferRequest, KeptAs, NodeId, ResponsePart, Tensor
from meshnode.wire.messages import (
    STREAMS,
    Failure,
    Infer,
    Keep,
    LoadReport,
    Result,
    Resumed,
    ResumeStream,
    TensorHeader,
)

if TYPE_CHECKING:
    from meshnode.net.connection import Connection


LoadListener = Callable[[NodeId, str, int, LoadReport], None]
"""Told of every load report that comes with an answer: (node, model, version, report)."""


def tensor_headers(tensors: Sequence[Tensor]) -> tuple[TensorHeader, ...]:
    """Describe tensors whose bytes follow in the same order."""
    return tuple(
        TensorHeader(tensor.name, tensor.datatype, tensor.shape, tensor.size_bytes)
        for tensor in tensors
    )


def tensors_of(headers: Sequence[TensorHeader], data: memoryview) -> tuple[Tensor, ...]:
    """Cut a message's data into its tensors, without a copy.

    Raises:
        ProtocolError: if sizes or types do not fit.
    """
    tensors = []
    offset = 0
    for header in headers:
        end = offset + header.size_bytes
        try:
            datatype = DataType(header.datatype)
        except ValueError:
            raise ProtocolError(
                f"a peer sent a tensor of unknown type {header.datatype[:32]!r}"
            ) from None
        if (
            header.size_bytes < 0
            or end > data.nbytes
            or len(header.shape) > MAX_PEER_TENSOR_RANK
            or any(size < 0 for size in header.shape)
        ):
            raise ProtocolError(f"tensor {header.name[:64]!r} from a peer does not fit its data")
        tensor = Tensor(header.name, datatype, header.shape, data[offset:end])
        size = datatype.size_bytes
        if size is not None and tensor.elements * size != header.size_bytes:
            raise ProtocolError(f"tensor {header.name[:64]!r} from a peer does not fit its shape")
        tensors.append(tensor)
        offset = end
    if offset != data.nbytes:
        raise ProtocolError("a peer sent more data than tensors")
    return tuple(tensors)


class InferCall:
    """One inference on a peer: a future for the first part, a queue once there are more.

    Attributes:
        first: The first part.
        is_unary: Whether that is the whole answer; known once it is there.
        resumed: What a peer says first of a stream that it kept.
    """

    __slots__ = (
        "_alive_s", "_connection", "_heard_at", "_left_bytes", "_loop", "_node", "_on_load", "_pause_s", "_queue",
        "_request", "_stream", "first", "is_unary", "resumed", "run_ms",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_load: LoadListener,
        node: NodeId,
        request: InferRequest,
    ) -> None:
        self._loop = loop
        self._pause_s = max(STREAM_PAUSE_S, request.timeout_s)
        self._on_load = on_load
        self._node = node
        self._request = request
        self._connection: Connection | None = None
        self._stream = 0
        self._queue: asyncio.Queue[tuple[ResponsePart, int] | MeshError | None] | None = None
        self._alive_s = 0.0  # as the peer says
        self._heard_at = 0.0
        self.run_ms = 0.0
        """How long the peer's model ran for the answer, as it says; 0 if it does not."""
        self._left_bytes = 0  # of a part that is on its way
        self.first: asyncio.Future[ResponsePart] = self._loop.create_future()
        self.is_unary = False
        self.resumed: Resumed | None = None

    def attach(self, connection: Connection, stream: int) -> None:
        """Take the stream on which it was asked."""
        self._connection = connection
        self._stream = stream

    def cancel(self) -> None:
        """Tell the peer that nobody waits for the answer any more."""
        assert self._connection is not None
        self._connection.cancel(self._stream)

    def meta(self) -> bytes:
        """Return the message that asks for it."""
        request = self._request
        return STREAMS.encode(
            Infer(
                request.model,
                request.version or 0,
                tensor_headers(request.inputs),
                request.timeout_s * 1e3,
                request.request_id,
                request.outputs,
                dict(request.parameters),
                request.trace.traceparent if request.trace is not None else "",
                request.cache_control,
                int(request.hints.priority),
                STREAM_ALIVE_S * 1e3,
                _keep(request.keep),
                request.elsewhere,
            )
        )

    def expect_first_part(self, timeout_s: float) -> asyncio.TimerHandle:
        """Fail when so many seconds have passed without a part; the caller cancels what is returned."""
        return self._loop.call_later(
            min(timeout_s, self._request.timeout_s), self._no_first_part, timeout_s
        )

    def _no_first_part(self, timeout_s: float) -> None:
        if timeout_s < self._request.timeout_s:
            self._fail(LinkLost(f"no answer within {timeout_s:.3f} s"))
        else:
            waited = f"no answer within {self._request.timeout_s:.3f} s"
            self._fail(DeadlineExceeded(f"{waited}; the request may have run"))

    def part(self, meta: bytes, data: memoryview, end: bool) -> None:
        """Take what the peer sent."""
        try:
            message = STREAMS.decode(meta)
            if isinstance(message, Failure):
                self._learn(message.load)
                self._fail(failure_of(message))
                return
            if isinstance(message, Resumed) and self._takes_up:
                self.resumed = message
                self._deliver(ResponsePart((), message.parameters), 0, end)
                return
            if not isinstance(message, Result) or (self._takes_up and self.resumed is None):
                raise ProtocolError("a peer answered an inference with something else")
            part = ResponsePart(tensors_of(message.outputs, data), message.parameters)
        except ProtocolError as error:
            self._fail(error)
            return
        self._learn(message.load)
        if message.alive_ms > 0:
            self._alive_s = message.alive_ms / 1e3
            self._heard_at = self._loop.time()
            if not (end or part.outputs or part.parameters):
                return  # only a sign of life
        self._deliver(part, data.nbytes, end)

    def _deliver(self, part: ResponsePart, size_bytes: int, end: bool) -> None:
        if self._queue is None:
            if self.first.done():
                return  # too late: it was given up
            self.is_unary = end
            self.first.set_result(part)
            if not end:
                self._queue = asyncio.Queue()
                self._consumed(size_bytes)
            return
        if not end or part.outputs or part.parameters:  # else it only says that all parts are here
            if self._queue.qsize() >= MAX_WAITING_PARTS:
                self.cancel()
                self._fail(Saturated("the answer is read more slowly than it comes"))
                return
            self._queue.put_nowait((part, size_bytes))
        if end:
            self._queue.put_nowait(None)

    def lost(self, error: MeshError) -> None:
        """Take note that nothing more comes."""
        if isinstance(error, LinkLost):  # it has the peer's address, which not everybody may know
            lost = LinkLost("the link to the node was lost")
            lost.nothing_ran, lost.__cause__ = error.nothing_ran, error
            error = lost
        self._fail(error)

    def _fail(self, error: MeshError) -> None:
        if self._queue is not None:
            self._queue.put_nowait(error)
        elif not self.first.done():
            self.first.set_exception(error)

    def _consumed(self, size_bytes: int) -> None:
        assert self._connection is not None
        self._connection.consumed(self._stream, size_bytes)

    def _learn(self, load: LoadReport | None) -> None:
        if load is not None:
            self.run_ms = load.run_ms
            self._on_load(self._node, self._request.model, self._request.version or 0, load)

    async def parts(self, first: ResponsePart | None) -> AsyncIterator[ResponsePart]:
        """Yield the first part, if there is one, and those that follow."""
        assert self._queue is not None
        try:
            if first is not None:
                yield first
            while True:
                item = await self._next(self._queue)
                if item is None:
                    return
                if isinstance(item, MeshError):
                    raise item
                part, size_bytes = item
                self._consumed(size_bytes)
                yield part
        finally:
            self.cancel()

    async def _next(
        self, queue: asyncio.Queue[tuple[ResponsePart, int] | MeshError | None]
    ) -> tuple[ResponsePart, int] | MeshError | None:
        """Wait for what comes next.

        Raises:
            DeadlineExceeded: if nothing comes, although the peer says that the model is at work.
            LinkLost: if the stream has stalled.
        """
        if not queue.empty():
            return queue.get_nowait()
        since = self._loop.time()
        while True:
            ends_at = since + self._pause_s
            due = min(ends_at, self._stall_at(since))
            try:
                async with asyncio.timeout_at(due):
                    return await queue.get()
            except TimeoutError:
                now = self._loop.time()
            if now - due > STREAM_LATE_S or self._brings_bytes():
                since = now
            elif now >= ends_at:
                raise DeadlineExceeded(
                    f"no further part of the answer came for {now - since:.1f} s"
                )
            elif now >= self._stall_at(since):
                raise LinkLost(
                    f"the stream has stalled: neither a part nor a sign of life came for {now - since:.1f} s"
                )

    def _stall_at(self, since: float) -> float:
        """Return when silence means a stall: never where the peer told no signs of life."""
        if not self._alive_s:
            return math.inf
        return max(self._heard_at, since) + max(
            STREAM_STALL_S, STREAM_STALL_S / STREAM_ALIVE_S * self._alive_s
        )

    def _brings_bytes(self) -> bool:
        """Whether more of a large part has come since it was asked last."""
        assert self._connection is not None
        before, self._left_bytes = self._left_bytes, self._connection.left_bytes(self._stream)
        return before != self._left_bytes

    @property
    def _takes_up(self) -> bool:
        return False


class ResumeCall(InferCall):
    """A stream that a peer keeps, from some part on: `first` is there when the peer has found it."""

    __slots__ = ("_keep",)

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_load: LoadListener,
        node: NodeId,
        keep: KeptAs,
        timeout_s: float,
    ) -> None:
        super().__init__(loop, on_load, node, InferRequest("", (), timeout_s=timeout_s))
        self._keep = keep

    def meta(self) -> bytes:
        """Return the message that asks for it."""
        keep = self._keep
        return STREAMS.encode(
            ResumeStream(keep.stream, keep.owner, keep.after, STREAM_ALIVE_S * 1e3)
        )

    def _learn(self, load: LoadReport | None) -> None:
        if load is not None and self.resumed is not None:
            self._on_load(self._node, self.resumed.model, self.resumed.version, load)

    @property
    def _takes_up(self) -> bool:
        return True


def _keep(keep: KeptAs | None) -> Keep | None:
    return None if keep is None else Keep(keep.stream, keep.owner, keep.after)


def failure_of(failure: Failure) -> MeshError:
    """Return the error that a peer ended an answer with."""
    error = peer_error(failure.code, failure.message)
    if isinstance(error, Saturated) and 0 < failure.retry_after_ms < math.inf:
        error.retry_after_s = min(failure.retry_after_ms / 1000, MAX_RETRY_AFTER_S)
    if isinstance(error, SequenceMoved):
        error.node = failure.node
    return error

"""Asking a peer: inference and model files over its link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from meshnode.errors import (
    DeadlineExceeded,
    LinkLost,
    MeshError,
    ProtocolError,
    Saturated,
    TransferFailed,
)
from meshnode.limits import (
    BLOB_CHUNK_BYTES,
    BLOB_IDLE_TIMEOUT_S,
    MAX_PEER_TENSOR_RANK,
    MAX_WAITING_PARTS,
)
from meshnode.net.connection import peer_error
from meshnode.types import DataType, InferRequest, InferResponse, NodeId, ResponsePart, Tensor
from meshnode.wire.messages import (
    STREAMS,
    BlobChunk,
    Failure,
    FetchBlob,
    Infer,
    LoadReport,
    Result,
    TensorHeader,
)

if TYPE_CHECKING:
    from meshnode.net.connection import Connection
    from meshnode.net.links import LinkHub


LoadListener = Callable[[NodeId, str, int, LoadReport], None]
"""Told of every load report that comes with an answer: (node, model, version, report)."""


class BlobSink(Protocol):
    """Where fetched bytes go: it knows how much it has, and verifies the whole at the end."""

    @property
    def offset(self) -> int:
        """Bytes that are there already."""

    def write(self, data: memoryview) -> None:
        """Append bytes; called in a thread."""


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


class PeerClient:
    """Calls peers over the hub's links."""

    def __init__(self, hub: LinkHub, on_load: LoadListener) -> None:
        """`on_load` hears of every load report. Make it within the running loop, and use it there."""
        self._hub = hub
        self._on_load = on_load
        # Asking for the running loop costs a system call each time (Python 3.11 compares the pid).
        self._loop = asyncio.get_running_loop()

    async def infer(
        self, node: NodeId, request: InferRequest, first_byte_timeout_s: float
    ) -> InferResponse:
        """Run a request on a peer; return when its first part is here.

        Cancelling this coroutine, or closing the answer's iterator, cancels the work over there.

        Raises:
            LinkLost: if there is no usable link, it broke or stalled, or nothing came in
                `first_byte_timeout_s` while the request still had time.
            DeadlineExceeded: if nothing came in the time that the request had.
            MeshError: what the peer answered.
        """
        connection = self._connection(node)
        call = _InferCall(self._loop, self._on_load, node, request)
        call.attach(connection, connection.open(call.meta(), _buffers(request.inputs), call))
        timer = call.expect_first_part(first_byte_timeout_s)
        try:
            part = await call.first
        except BaseException:
            call.cancel()
            raise
        finally:
            timer.cancel()
        parts = part if call.is_unary else call.parts(part)
        return InferResponse(request.model, request.version or 0, parts)

    async def fetch_blob(self, node: NodeId, sha256: bytes, sink: BlobSink) -> None:
        """Append the rest of a blob to `sink`, which verifies it afterwards.

        The peer may be ahead of the disk by a stream's credit and one chunk.

        Raises:
            TransferFailed: if the peer does not have it or stops sending; what has arrived is kept.
            ProtocolError: if it sends something else; what has arrived is kept.
            LinkLost: if there is no usable link, or it broke.
        """
        connection = self._connection(node)
        call = _BlobCall(sink.offset)
        stream = connection.open(STREAMS.encode(FetchBlob(sha256, sink.offset)), (), call)
        try:
            while (chunk := await call.next_chunk()) is not None:
                await asyncio.to_thread(sink.write, chunk)
                connection.consumed(stream, chunk.nbytes)
        finally:
            connection.cancel(stream)

    def _connection(self, node: NodeId) -> Connection:
        connection = self._hub.connection(node)
        if connection is None:
            raise LinkLost("there is no usable link to the node")
        return connection


def _buffers(tensors: Sequence[Tensor]) -> list[bytes | bytearray | memoryview]:
    return [tensor.data for tensor in tensors]


class _InferCall:
    """One inference on a peer: a future for the first part, a queue once there are more.

    Attributes:
        first: The first part.
        is_unary: Whether that is the whole answer; known once it is there.
    """

    __slots__ = (
        "_connection", "_deadline", "_loop", "_node", "_on_load", "_queue", "_request", "_stream",
        "first", "is_unary",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_load: LoadListener,
        node: NodeId,
        request: InferRequest,
    ) -> None:
        self._loop = loop
        self._deadline = loop.time() + request.timeout_s
        self._on_load = on_load
        self._node = node
        self._request = request
        self._connection: Connection | None = None
        self._stream = 0
        self._queue: asyncio.Queue[tuple[ResponsePart, int] | MeshError | None] | None = None
        self.first: asyncio.Future[ResponsePart] = self._loop.create_future()
        self.is_unary = False

    def attach(self, connection: Connection, stream: int) -> None:
        self._connection = connection
        self._stream = stream

    def cancel(self) -> None:
        assert self._connection is not None
        self._connection.cancel(self._stream)

    def meta(self) -> bytes:
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
            )
        )

    def expect_first_part(self, timeout_s: float) -> asyncio.TimerHandle:
        return self._loop.call_later(
            min(timeout_s, self._request.timeout_s), self._no_first_part, timeout_s
        )

    def _no_first_part(self, timeout_s: float) -> None:
        if timeout_s < self._request.timeout_s:
            self.lost(LinkLost(f"no answer within {timeout_s:.3f} s"))
        else:
            self.lost(DeadlineExceeded(f"no answer within {self._request.timeout_s:.3f} s"))

    def part(self, meta: bytes, data: memoryview, end: bool) -> None:
        try:
            message = STREAMS.decode(meta)
            if isinstance(message, Failure):
                self._learn(message.load)
                self.lost(peer_error(message.code, message.message))
                return
            if not isinstance(message, Result):
                raise ProtocolError("a peer answered an inference with something else")
            part = ResponsePart(tensors_of(message.outputs, data), message.parameters)
        except ProtocolError as error:
            self.lost(error)
            return
        self._learn(message.load)
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
        if self._queue.qsize() >= MAX_WAITING_PARTS:
            self.cancel()
            self.lost(Saturated("the answer is read more slowly than it comes"))
            return
        self._queue.put_nowait((part, size_bytes))
        if end:
            self._queue.put_nowait(None)

    def lost(self, error: MeshError) -> None:
        if self._queue is not None:
            self._queue.put_nowait(error)
        elif not self.first.done():
            self.first.set_exception(error)

    def _consumed(self, size_bytes: int) -> None:
        assert self._connection is not None
        self._connection.consumed(self._stream, size_bytes)

    def _learn(self, load: LoadReport | None) -> None:
        if load is not None:
            self._on_load(self._node, self._request.model, self._request.version or 0, load)

    async def parts(self, first: ResponsePart) -> AsyncIterator[ResponsePart]:
        assert self._queue is not None
        try:
            yield first
            while True:
                try:
                    async with asyncio.timeout_at(self._deadline):
                        item = await self._queue.get()
                except TimeoutError:
                    raise DeadlineExceeded("the answer did not end in time") from None
                if item is None:
                    return
                if isinstance(item, MeshError):
                    raise item
                part, size_bytes = item
                self._consumed(size_bytes)
                yield part
        finally:
            self.cancel()


class _BlobCall:
    """One transfer: chunks in order, then None, or an error after what arrived before it.

    No more than a stream's credit waits here: the reader returns credit when a chunk is written.
    """

    def __init__(self, offset: int) -> None:
        self._offset = offset
        self._items: asyncio.Queue[memoryview | MeshError | None] = asyncio.Queue()

    def part(self, meta: bytes, data: memoryview, end: bool) -> None:
        try:
            message = STREAMS.decode(meta)
        except ProtocolError as error:
            self.lost(error)
            return
        if isinstance(message, Failure):
            self.lost(TransferFailed(str(peer_error(message.code, message.message))))
            return
        if (
            not isinstance(message, BlobChunk)
            or message.offset != self._offset
            or data.nbytes > BLOB_CHUNK_BYTES
            or not (data.nbytes or end)
        ):
            self.lost(ProtocolError("a peer sent a model's file in an unknown form"))
            return
        self._offset += data.nbytes
        if data.nbytes:
            self._items.put_nowait(data)
        if end:
            self._items.put_nowait(None)

    def lost(self, error: MeshError) -> None:
        self._items.put_nowait(error)

    async def next_chunk(self) -> memoryview | None:
        try:
            async with asyncio.timeout(BLOB_IDLE_TIMEOUT_S):
                item = await self._items.get()
        except TimeoutError:
            raise TransferFailed("the peer stopped sending a model's file") from None
        if isinstance(item, MeshError):
            raise item
        return item

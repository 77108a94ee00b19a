"""Asking a peer: inference and model files over its link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from meshnode.config import BLOB_CHUNK_BYTES
from meshnode.errors import (
    DeadlineExceeded,
    LinkLost,
    MeshError,
    ProtocolError,
    TransferFailed,
    error_of,
)
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

BLOB_IDLE_TIMEOUT_S = 10.0
"""Seconds without a chunk after which a transfer is given up and resumed from another holder."""

LoadListener = Callable[[NodeId, str, int, LoadReport], None]
"""Told of every load report that comes with an answer: (node, model, version, report)."""


class BlobSink(Protocol):
    """Where fetched bytes go: it knows how much it has, and verifies the whole at the end."""

    @property
    def offset(self) -> int:
        """Bytes that are there already."""

    def write(self, data: memoryview) -> None:
        """Append bytes."""


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
                f"a peer sent a tensor of unknown type {header.datatype!r}"
            ) from None
        if header.size_bytes < 0 or end > data.nbytes or any(size < 0 for size in header.shape):
            raise ProtocolError(f"tensor {header.name!r} from a peer does not fit its data")
        tensor = Tensor(header.name, datatype, header.shape, data[offset:end])
        size = datatype.size_bytes
        if size is not None and tensor.elements * size != header.size_bytes:
            raise ProtocolError(f"tensor {header.name!r} from a peer does not fit its shape")
        tensors.append(tensor)
        offset = end
    if offset != data.nbytes:
        raise ProtocolError("a peer sent more data than tensors")
    return tuple(tensors)


class PeerClient:
    """Calls peers over the hub's links."""

    def __init__(self, hub: LinkHub, on_load: LoadListener) -> None:
        """`on_load` hears of every load report."""
        self._hub = hub
        self._on_load = on_load

    async def infer(
        self, node: NodeId, request: InferRequest, first_byte_timeout_s: float
    ) -> InferResponse:
        """Run a request on a peer; return when its first part is here.

        Cancelling this coroutine cancels the work over there.

        Raises:
            LinkLost: if there is no usable link, it broke or stalled, or nothing came in
                `first_byte_timeout_s` while the request still had time.
            DeadlineExceeded: if nothing came in the time that the request had.
            MeshError: what the peer answered.
        """
        connection = self._hub.connection(node)
        if connection is None:
            raise LinkLost("there is no usable link to the node")
        meta = STREAMS.encode(
            Infer(
                request.model,
                request.version or 0,
                tensor_headers(request.inputs),
                request.timeout_s * 1e3,
                request.request_id,
                request.outputs,
                dict(request.parameters),
            )
        )
        call = _InferCall(self._on_load, node, request)
        stream = connection.open(meta, [tensor.data for tensor in request.inputs], call)
        timer = call.fail_after(first_byte_timeout_s, first_byte_timeout_s < request.timeout_s)
        try:
            part = await call.first
        except BaseException:
            connection.cancel(stream)
            raise
        finally:
            timer.cancel()
        version = request.version or 0
        if call.ended:
            return InferResponse(request.model, version, part)
        return InferResponse(request.model, version, call.stream_parts(part, connection, stream))

    async def fetch_blob(self, node: NodeId, sha256: bytes, sink: BlobSink) -> None:
        """Append the rest of a blob to `sink`, which verifies it afterwards.

        Raises:
            TransferFailed: if the peer does not have it or stops sending; what has arrived is kept.
            LinkLost: if there is no usable link, or it broke.
        """
        connection = self._hub.connection(node)
        if connection is None:
            raise LinkLost("there is no usable link to the node")
        call = _BlobCall()
        stream = connection.open(STREAMS.encode(FetchBlob(sha256, sink.offset)), (), call)
        try:
            while True:
                try:
                    async with asyncio.timeout(BLOB_IDLE_TIMEOUT_S):
                        item = await call.chunks.get()
                except TimeoutError:
                    raise TransferFailed("the peer stopped sending a model's file") from None
                if isinstance(item, MeshError):
                    raise item
                if item is None:
                    return
                if item.nbytes:
                    await asyncio.to_thread(sink.write, item)
        except BaseException:
            connection.cancel(stream)
            raise


class _InferCall:
    """One inference on a peer: a future for the first part, a queue once there are more."""

    __slots__ = ("_node", "_on_load", "_queue", "_request", "ended", "first")

    def __init__(self, on_load: LoadListener, node: NodeId, request: InferRequest) -> None:
        self.first: asyncio.Future[ResponsePart] = asyncio.get_running_loop().create_future()
        self.ended = False
        self._on_load = on_load
        self._node = node
        self._request = request
        self._queue: asyncio.Queue[ResponsePart | MeshError | None] | None = None

    def fail_after(self, timeout_s: float, elsewhere: bool) -> asyncio.TimerHandle:
        error: MeshError
        if elsewhere:
            error = LinkLost(f"no answer within {timeout_s:.3f} s")
        else:
            error = DeadlineExceeded(f"no answer within {timeout_s:.3f} s")
        return asyncio.get_running_loop().call_later(timeout_s, self.lost, error)

    def part(self, meta: bytes, data: memoryview, end: bool) -> None:
        try:
            message = STREAMS.decode(meta)
            if isinstance(message, Failure):
                self._learn(message.load)
                self.lost(error_of(message.code, message.message))
                return
            if not isinstance(message, Result):
                raise ProtocolError("a peer answered an inference with something else")
            part = ResponsePart(tensors_of(message.outputs, data), message.parameters)
        except ProtocolError as error:
            self.lost(error)
            return
        self._learn(message.load)
        self.ended = end
        if not self.first.done():
            self.first.set_result(part)
        elif self._queue is not None:
            self._queue.put_nowait(part)
        if end and self._queue is not None:
            self._queue.put_nowait(None)
        elif not end and self._queue is None:
            self._queue = asyncio.Queue()  # bounded by the stream's credit

    def lost(self, error: MeshError) -> None:
        self.ended = True
        if not self.first.done():
            self.first.set_exception(error)
        elif self._queue is not None:
            self._queue.put_nowait(error)

    def _learn(self, load: LoadReport | None) -> None:
        if load is not None:
            self._on_load(self._node, self._request.model, self._request.version or 0, load)

    async def stream_parts(
        self, first: ResponsePart, connection: Connection, stream: int
    ) -> AsyncIterator[ResponsePart]:
        assert self._queue is not None
        try:
            yield first
            while (item := await self._queue.get()) is not None:
                if isinstance(item, MeshError):
                    raise item
                yield item
        finally:
            connection.cancel(stream)


class _BlobCall:
    """One transfer: chunks, then None, or an error."""

    def __init__(self) -> None:
        # Bounded by the stream's credit, which the connection returns as chunks arrive; a disk
        # slower than the network is covered by BLOB_CHUNK_BYTES x the few chunks in flight.
        self.chunks: asyncio.Queue[memoryview | MeshError | None] = asyncio.Queue()

    def part(self, meta: bytes, data: memoryview, end: bool) -> None:
        try:
            message = STREAMS.decode(meta)
        except ProtocolError as error:
            self.lost(error)
            return
        if isinstance(message, Failure):
            self.lost(TransferFailed(message.message))
            return
        if not isinstance(message, BlobChunk) or data.nbytes > BLOB_CHUNK_BYTES:
            self.lost(ProtocolError("a peer sent a model's file in an unknown form"))
            return
        self.chunks.put_nowait(data)
        if end:
            self.chunks.put_nowait(None)

    def lost(self, error: MeshError) -> None:
        self.chunks.put_nowait(error)

"""Asking a peer: inference and model files over its link."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from meshnode.errors import LinkLost, MeshError, ProtocolError, TransferFailed
from meshnode.limits import BLOB_CHUNK_BYTES, BLOB_IDLE_TIMEOUT_S, STREAM_STALL_S
from meshnode.net.connection import peer_error
from meshnode.net.infer_call import InferCall, ResumeCall
from meshnode.net.one_answer import OneAnswer, answer_message
from meshnode.types import InferRequest, InferResponse
from meshnode.wire.messages import (
    STATE_COMPLETE,
    STATE_PARTIAL,
    STREAMS,
    AskChunks,
    AskFiles,
    BlobChunk,
    Failure,
    FetchBlob,
    FileStates,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.net.connection import Connection
    from meshnode.net.infer_call import LoadListener
    from meshnode.net.links import LinkHub
    from meshnode.types import KeptAs, NodeId, Tensor


class BlobSink(Protocol):
    """Where fetched bytes go: it knows how much it has, and verifies the whole at the end."""

    @property
    def offset(self) -> int:
        """Bytes that are there already."""

    def write(self, data: memoryview) -> None:
        """Append bytes; called in a thread."""


class PeerClient:
    """Calls peers over the hub's links."""

    def __init__(self, hub: LinkHub, on_load: LoadListener) -> None:
        """`on_load` hears of every load report. Make it within the running loop, and use it there."""
        self._hub = hub
        self._on_load = on_load
        # Asking for the running loop costs a system call each time (Python 3.11 compares the pid).
        self._loop = asyncio.get_running_loop()

    async def infer(self, node: NodeId, request: InferRequest) -> InferResponse:
        """Run a request on a peer; return when its first part is here.

        Cancelling this coroutine, or closing the answer's iterator, cancels the work over there.

        Raises:
            LinkLost: if there is no usable link (`nothing_ran` is true then), or it broke or stalled.
            DeadlineExceeded: if nothing came in the time that the request had.
            MeshError: what the peer answered.
        """
        call = InferCall(self._loop, self._on_load, node, request)
        try:
            connection = self._connection(node)
            call.attach(connection, connection.open(call.meta(), _buffers(request.inputs), call))
        except LinkLost as error:
            error.nothing_ran = True  # nothing was written
            raise
        timer = call.expect_first_part(request.timeout_s)
        try:
            part = await call.first
        except BaseException:
            call.cancel()
            raise
        finally:
            timer.cancel()
        parts = part if call.is_unary else call.parts(part)
        response = InferResponse(request.model, request.version or 0, parts)
        response.run_ms = call.run_ms
        return response

    async def resume(self, node: NodeId, keep: KeptAs, timeout_s: float) -> InferResponse:
        """Return what follows of a stream that a peer keeps; its `head` is set.

        Args:
            node: The peer.
            keep: The stream, who asks for it, and what came of it already.
            timeout_s: What its request gave the first part; see `STREAM_PAUSE_S`.

        Raises:
            NotFound: if the peer does not keep it for that owner, or not all that follows.
            LinkLost: if there is no usable link, it broke, or the peer says nothing.
            MeshError: what else the peer answered.
        """
        call = ResumeCall(self._loop, self._on_load, node, keep, timeout_s)
        connection = self._connection(node)
        call.attach(connection, connection.open(call.meta(), (), call))
        timer = call.expect_first_part(STREAM_STALL_S)
        try:
            await call.first
        except BaseException:
            call.cancel()
            raise
        finally:
            timer.cancel()
        if call.resumed is None or call.is_unary:
            call.cancel()
            raise ProtocolError("a peer answered a question for a stream with something else")
        found = call.resumed
        response = InferResponse(found.model, found.version, call.parts(None))
        response.head = found.parameters
        return response

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

    async def fetch_part(
        self, node: NodeId, sha256: bytes, offset: int, length: int
    ) -> bytes | bytearray | memoryview:
        """Return a part of a blob, unverified; a peer that is still fetching it may have it too.

        Args:
            node: The peer.
            sha256: The blob.
            offset: Where the part begins.
            length: Its bytes, more than none.

        Raises:
            TransferFailed: if the peer does not have it or stops sending.
            ProtocolError: if it sends something else.
            LinkLost: if there is no usable link, or it broke.
        """
        return await self._collect(node, FetchBlob(sha256, offset, length), offset, length)

    async def fetch_chunk_list(self, node: NodeId, sha256: bytes, length: int) -> bytes:
        """Return the hashes of a blob's chunks as a peer says them, unverified.

        Raises:
            TransferFailed: if the peer does not have it, or its version knows no chunks.
            ProtocolError: if it sends something else.
            LinkLost: if there is no usable link, or it broke.
        """
        return bytes(await self._collect(node, AskChunks(sha256), 0, length))

    async def _collect(
        self, node: NodeId, ask: FetchBlob | AskChunks, offset: int, length: int
    ) -> bytes | bytearray | memoryview:
        connection = self._connection(node)
        call = _BlobCall(offset)
        stream = connection.open(STREAMS.encode(ask), (), call)
        data = bytearray()
        try:
            while (chunk := await call.next_chunk()) is not None:
                connection.consumed(stream, chunk.nbytes)
                if not data and chunk.nbytes == length:
                    return chunk
                data += chunk[: length - len(data)]
                if len(data) == length:
                    return data
        finally:
            connection.cancel(stream)
        raise TransferFailed(f"the peer sent {len(data)} bytes of a model's file, not {length}")

    async def ask_files(
        self, node: NodeId, names: Sequence[bytes], known: int, wait_s: float
    ) -> tuple[int, tuple[bytes | None, ...]]:
        """Ask a peer what it has of some files.

        Args:
            node: The peer.
            names: SHA-256s, at most `MAX_FILES_ASKED`.
            known: The sum that it answered before, or -1: it answers again when that has changed.
            wait_s: How long it may wait for that.

        Returns:
            The sum; and for each file None if it is complete there, else the bits of its chunks, empty
            where nothing is there.

        Raises:
            InvalidRequest: if the peer's version knows no such question.
            TransferFailed: if it does not answer.
            ProtocolError: if it answers something else.
            LinkLost: if there is no usable link, or it broke.
        """
        connection = self._connection(node)
        call = OneAnswer(_files_answer)
        meta = STREAMS.encode(AskFiles(len(names), known, wait_s * 1e3))
        stream = connection.open(meta, [b"".join(names)], call)
        try:
            async with asyncio.timeout(wait_s + BLOB_IDLE_TIMEOUT_S):
                total, data = await call.answer
            connection.consumed(stream, data.nbytes)
            return total, _file_states(data, len(names))
        except TimeoutError:
            raise TransferFailed("the peer does not say which files it has") from None
        finally:
            connection.cancel(stream)

    def _connection(self, node: NodeId) -> Connection:
        connection = self._hub.connection(node)
        if connection is None:
            raise LinkLost("there is no usable link to the node")
        return connection


def _buffers(tensors: Sequence[Tensor]) -> list[bytes | bytearray | memoryview]:
    return [tensor.data for tensor in tensors]


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


def _files_answer(meta: bytes, data: memoryview, end: bool) -> tuple[int, memoryview]:
    """Return the sum of a peer's files, and the states' bytes."""
    message = answer_message(meta)
    if not isinstance(message, FileStates) or not end:
        raise ProtocolError("a peer answered a question for its files with something else")
    return message.sum, data


def _file_states(data: memoryview, count: int) -> tuple[bytes | None, ...]:
    """Read the states of `count` files.

    Raises:
        ProtocolError: if they are not that.
    """
    states: list[bytes | None] = []
    place = 0
    while place < data.nbytes and len(states) < count:
        kind = data[place]
        place += 1
        if kind == STATE_PARTIAL:
            length = int.from_bytes(data[place : place + 4], "little")
            states.append(bytes(data[place + 4 : place + 4 + length]))
            place += 4 + length
        else:
            states.append(None if kind == STATE_COMPLETE else b"")
    if place != data.nbytes or len(states) != count:
        raise ProtocolError("a peer sent states of other files than were asked for")
    return tuple(states)

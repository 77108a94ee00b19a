"""Answering peers that fetch model files: which files and chunks are here, and their bytes.

A file is sent while it is still being received, as far as it is here and verified: so nodes that fetch
the same version at once get it from each other.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from meshnode.errors import InvalidRequest, Saturated
from meshnode.limits import BLOB_CHUNK_BYTES, FILES_WAIT_S, MAX_BLOBS_SENT, MAX_FILES_ASKED
from meshnode.wire.messages import (
    STATE_ABSENT,
    STATE_COMPLETE,
    STATE_PARTIAL,
    STREAMS,
    AskChunks,
    AskFiles,
    BlobChunk,
    FetchBlob,
    FileStates,
)

if TYPE_CHECKING:
    from meshnode.models.artifacts.chunks import Chunks
    from meshnode.net.connection import Connection

_SHA256_BYTES: Final = 32

_NEWS_INTERVAL_S: Final = 0.05
"""How often a node looks for news that a peer waits for: one chunk of 1 MiB at 20 MB/s."""


class Blobs(Protocol):
    """Where model files are."""

    def size_bytes(self, sha256: bytes) -> int:
        """Length of a blob; TransferFailed if it is not here."""

    def read_chunk(self, sha256: bytes, offset: int, length: int) -> bytes:
        """Read a part of a blob."""

    def state_of(self, sha256: bytes) -> tuple[bool, bytes]:
        """Whether a blob is complete, and else which chunks have arrived, as bits."""

    def chunks_of(self, sha256: bytes) -> Chunks:
        """Return a blob's chunks; TransferFailed if it is not here."""


class FileServer:
    """Sends this node's model files."""

    def __init__(self, blobs: Blobs) -> None:
        """Send from these."""
        self._blobs = blobs
        self._sending = 0

    def __repr__(self) -> str:
        return f"<FileServer: {self._sending} are being sent>"

    async def send(self, connection: Connection, stream: int, ask: FetchBlob) -> None:
        """Send a blob, or a part of it.

        Raises:
            Saturated: if as many are being sent as may.
            InvalidRequest: if it is not asked for as it should be.
            TransferFailed: if it is not here.
        """
        if self._sending >= MAX_BLOBS_SENT:
            raise Saturated("this node is sending as many files as it can; try again")
        self._sending += 1
        try:
            if len(ask.sha256) != _SHA256_BYTES:
                raise InvalidRequest("a file is named by its SHA-256")
            if ask.length:
                if not (ask.offset >= 0 and 0 < ask.length <= 2**40):
                    raise InvalidRequest(f"the file has no {ask.length} bytes at {ask.offset}")
                total = ask.offset + ask.length
            else:
                total = self._blobs.size_bytes(ask.sha256)
                if not 0 <= ask.offset <= total:
                    raise InvalidRequest(f"the file has no byte {ask.offset}")
            await self._send_until(connection, stream, ask, total)
        finally:
            self._sending -= 1

    async def _send_until(
        self, connection: Connection, stream: int, ask: FetchBlob, total: int
    ) -> None:
        offset = ask.offset
        end = False
        while not end:
            length = min(BLOB_CHUNK_BYTES, total - offset)
            chunk = await asyncio.to_thread(self._blobs.read_chunk, ask.sha256, offset, length)
            end = offset + len(chunk) >= total or not chunk
            meta = STREAMS.encode(BlobChunk(offset, total))
            connection.reply(stream, meta, [chunk], end=end)
            offset += len(chunk)
            await connection.drained(stream)

    async def tell(
        self, connection: Connection, stream: int, ask: AskFiles, data: memoryview
    ) -> None:
        """Say which of some files are here, at once or when there is more than the asker knows.

        Raises:
            InvalidRequest: if it is not asked for as it should be.
        """
        if not 0 < ask.count <= MAX_FILES_ASKED or data.nbytes != ask.count * _SHA256_BYTES:
            raise InvalidRequest(
                f"at most {MAX_FILES_ASKED} files are asked for, each by its SHA-256"
            )
        names = [
            bytes(data[start : start + _SHA256_BYTES])
            for start in range(0, data.nbytes, _SHA256_BYTES)
        ]
        wait_s = min(max(0.0, ask.wait_ms / 1e3), FILES_WAIT_S)
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while True:
            states = await asyncio.to_thread(self._states, names)
            total = sum(count for _, count in states)
            is_moving = any(state[0] == STATE_PARTIAL for state, _ in states)
            if total != ask.known or not is_moving or loop.time() >= until:
                break
            await asyncio.sleep(_NEWS_INTERVAL_S)
        meta = STREAMS.encode(FileStates(total))
        connection.reply(stream, meta, [b"".join(state for state, _ in states)], end=True)

    def _states(self, names: list[bytes]) -> list[tuple[bytes, int]]:
        return [self._state(name) for name in names]

    def _state(self, sha256: bytes) -> tuple[bytes, int]:
        """Return a file's state as it is sent, and what it counts in the sum."""
        is_complete, bits = self._blobs.state_of(sha256)
        if is_complete:
            return bytes([STATE_COMPLETE]), 1 << 32
        if not bits:
            return bytes([STATE_ABSENT]), 0
        length = len(bits).to_bytes(4, "little")
        return bytes([STATE_PARTIAL]) + length + bits, 1 + int.from_bytes(
            bits, "little"
        ).bit_count()

    async def send_chunks(self, connection: Connection, stream: int, ask: AskChunks) -> None:
        """Send the list of a blob's chunks.

        Raises:
            TransferFailed: if it is not here.
        """
        chunks = await asyncio.to_thread(self._blobs.chunks_of, ask.sha256)
        total = len(chunks.hashes)
        for offset in range(0, total, BLOB_CHUNK_BYTES):
            part = chunks.hashes[offset : offset + BLOB_CHUNK_BYTES]
            meta = STREAMS.encode(BlobChunk(offset, total))
            connection.reply(stream, meta, [part], end=offset + len(part) >= total)
            await connection.drained(stream)

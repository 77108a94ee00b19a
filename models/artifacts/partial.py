"""One blob that is being received in chunks, from several nodes, in any order.

    <sha256>.pieces   what has arrived, each chunk at its place
    <sha256>.have     which chunks those are: four bytes for each, appended after the chunk was written
    <sha256>.chunks   the list of all chunks' hashes

A chunk is verified before it is written. Nothing is synced until the blob is complete, so after a
crash `.have` may name chunks that did not reach the disk: whoever resumes reads and verifies each of
them again. What is not named there is fetched again.

The SHA-256 of the whole decides at the end. It is worked out while further chunks arrive, in one
thread at a time and without keeping the others from writing, as far as chunks are there without a gap.

All functions block, and may be called from several threads at once.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, Self

from meshnode.errors import TransferFailed
from meshnode.models.artifacts.durable import sync, write_pieces, writing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from meshnode.models.artifacts.chunks import Chunks
    from meshnode.types import Buffer

PIECES = ".pieces"
HAVE = ".have"
CHUNKS = ".chunks"

_INDEX = struct.Struct("<I")

_HASHED_WITH_EACH = 4
"""Chunks that the hash of the whole may catch up with after each write: it is done by a thread that
the next chunk may need."""

_WAITING = 4
"""Chunks kept in memory that are to be hashed next, without a gap; others are read once more."""


class PartialBlob:
    """What there is of a blob. Made by `BlobStore.open_partial`; a context manager.

    Leaving its context without `finish` keeps what has arrived for a later attempt.

    Attributes:
        chunks: What the blob consists of.
        have: Indexes of the chunks that are here.
    """

    def __init__(
        self,
        blob: Path,
        sha256: bytes,
        chunks: Chunks,
        placed: Callable[[Path, bytes], None],
        closed: Callable[[bytes], None],
    ) -> None:
        """Take up what an earlier attempt has left beside `blob`.

        Args:
            blob: Where the complete blob will lie.
            sha256: What it must hash to.
            chunks: Its chunks.
            placed: Gives the complete, synced file its name.
            closed: Told once when this is closed.
        """
        self.chunks = chunks
        self.have: set[int] = set()
        self._sha256 = sha256
        self._pieces = blob.with_suffix(PIECES)
        self._journal_path = blob.with_suffix(HAVE)
        self._placed = placed
        self._closed = closed
        self._lock = threading.Lock()  # of the files, `have` and `_waiting`
        # Of `_whole` and `_hashed`; whoever has the other lock never waits for this one.
        self._hashing = threading.Lock()
        self._waiting: dict[int, Buffer] = {}  # chunks that were written, to be hashed
        self._whole = hashlib.sha256()
        self._hashed = 0  # chunks that `_whole` has, without a gap
        self._is_open = True
        self._is_told = False
        self._file: BinaryIO = _open_both_ways(self._pieces)
        try:
            self._journal: BinaryIO = self._journal_path.open("a+b")
            try:
                self._resume()
            except BaseException:
                self._journal.close()
                raise
        except BaseException:
            self._file.close()
            raise

    def __repr__(self) -> str:
        return f"<PartialBlob {self._sha256.hex()[:12]} {len(self.have)}/{self.chunks.count}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def received_bytes(self) -> int:
        """Length of all chunks that are here."""
        return sum(self.chunks.length(index) for index in tuple(self.have))

    def write(self, index: int, data: Buffer) -> bool:
        """Keep a chunk; one that is here already is taken for a repetition.

        Returns:
            Whether it is that chunk; otherwise nothing has changed.

        Raises:
            TransferFailed: if the disk is full; nothing of it counts.
            ConfigError: if the data folder cannot be written.
        """
        if not self.chunks.fits(index, data):
            return False
        with self._lock:
            if index in self.have or not self._is_open:
                return True
            with writing(self._pieces.parent):
                self._file.seek(self.chunks.offset(index))
                write_pieces(self._file, data)
                self._file.flush()
                self._journal.write(_INDEX.pack(index))
                self._journal.flush()
            self.have.add(index)
            before = range(self._hashed, index)
            if len(before) < _WAITING and self.have.issuperset(before):
                self._waiting[index] = data
        if self._hashing.acquire(blocking=False):  # else another thread is at it
            try:
                self._hash_on(_HASHED_WITH_EACH)
            finally:
                self._hashing.release()
        return True

    def read(self, offset: int, length: int) -> bytes | None:
        """Return bytes of a blob that is not complete, or None where not all of them are here."""
        first = offset // self.chunks.chunk_bytes
        last = max(offset, offset + length - 1) // self.chunks.chunk_bytes
        with self._lock:
            if not self._is_open or not self.have.issuperset(range(first, last + 1)):
                return None
            self._file.seek(offset)
            return self._file.read(length)

    def finish(self) -> None:
        """Verify the blob and give it its name, durably.

        Raises:
            TransferFailed: if chunks are missing or the disk is full (what is here stays, to be resumed),
                or if the content does not match its SHA-256 (all of it is removed).
            ConfigError: if the data folder cannot be written.
        """
        missing = self.chunks.count - len(self.have)
        if missing:
            raise TransferFailed(
                f"blob {self._sha256.hex()[:12]}… lacks {missing} of {self.chunks.count} chunks"
            )
        with self._hashing:
            self._hash_on(self.chunks.count)
            if self._hashed < self.chunks.count:
                raise TransferFailed(
                    f"blob {self._sha256.hex()[:12]}… was given up; fetch it again"
                )
        try:
            with self._lock:
                try:
                    self._settle()
                finally:
                    self._is_open = (
                        False  # before others get the lock: they read the blob itself then
                    )
        finally:
            self.close()

    def close(self) -> None:
        """Stop; what has arrived stays for a later attempt. Does nothing a second time."""
        with self._lock:
            was_told, self._is_told, self._is_open = self._is_told, True, False
            self._waiting.clear()
            for file in (self._file, self._journal):
                with suppress(OSError):  # buffered bytes that no longer fit are fetched again
                    file.close()
        if not was_told:
            self._closed(self._sha256)

    def _settle(self) -> None:
        if self._whole.digest() != self._sha256:
            for file, path in ((self._journal, self._journal_path), (self._file, self._pieces)):
                file.close()
                path.unlink(missing_ok=True)
            raise TransferFailed(
                f"blob {self._sha256.hex()[:12]}… does not match its SHA-256, although each of its "
                "chunks does: whoever published it told the mesh of other chunks"
            )
        with writing(self._pieces.parent):
            self._file.truncate(self.chunks.size_bytes)  # what was damaged may have been longer
            sync(self._file)
            self._file.close()
            self._placed(self._pieces, self._sha256)
            self._journal.close()
            self._journal_path.unlink(missing_ok=True)

    def _hash_on(self, most: int) -> None:
        """Let the whole's hash follow what is there without a gap, so many chunks at most.

        The caller has `_hashing`, and not the lock of the files: others write and read meanwhile.
        """
        for index in range(self._hashed, min(self._hashed + most, self.chunks.count)):
            with self._lock:
                if index not in self.have or not self._is_open:
                    return
                data = self._waiting.pop(index, None)
                if data is None:
                    data = self._stored(index)
            self._whole.update(data)
            self._hashed += 1

    def _resume(self) -> None:
        """Count the chunks of an earlier attempt that are what they should be."""
        self._journal.seek(0)
        noted = self._journal.read()
        whole = noted[: len(noted) // _INDEX.size * _INDEX.size]
        for index in sorted({index for (index,) in _INDEX.iter_unpack(whole)}):
            if index < self.chunks.count and self.chunks.fits(index, data := self._stored(index)):
                self.have.add(index)
                if index == self._hashed:
                    self._whole.update(data)
                    self._hashed += 1
        with writing(self._pieces.parent):
            self._journal.truncate(len(whole))  # an index that was cut in two is dropped

    def _stored(self, index: int) -> bytes:
        self._file.seek(self.chunks.offset(index))
        return self._file.read(self.chunks.length(index))


def _open_both_ways(path: Path) -> BinaryIO:
    with suppress(FileNotFoundError):
        return path.open("r+b")
    return path.open("w+b")


def leave_pieces(blob: Path, chunks: Chunks) -> None:
    """Make of a complete blob one that is to be received: who does so finds which of its chunks are right.

    Args:
        blob: Where it lies; nothing has its name then.
        chunks: What it should consist of.

    Raises:
        OSError: if that cannot be written.
    """
    # In this order: a list of chunks without their file is removed at the next start.
    blob.with_suffix(HAVE).write_bytes(b"".join(map(_INDEX.pack, range(chunks.count))))
    blob.replace(blob.with_suffix(PIECES))

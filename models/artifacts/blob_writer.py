"""One blob that is being received from its start to its end, from one node after the other.

For long files of which only the SHA-256 is known, as versions published them that knew no chunks. All
others are received in chunks (`meshnode.models.artifacts.partial`).
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, Self

from meshnode.errors import MeshError, TransferFailed
from meshnode.limits import BLOB_CHUNK_BYTES
from meshnode.models.artifacts.durable import sync, write_pieces, writing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from meshnode.types import Buffer


class BlobWriter:
    """One blob being received: write what arrives at `offset`, then `finish`.

    Leaving its context without `finish` keeps what has arrived for a later attempt.

    Attributes:
        offset: Bytes that are here already; the transfer goes on from there.
    """

    def __init__(
        self,
        file: BinaryIO,
        part: Path,
        sha256: bytes,
        size_bytes: int,
        placed: Callable[[Path, bytes], None],
        closed: Callable[[bytes], None],
    ) -> None:
        """Made by `BlobStore.open_writer` alone.

        Args:
            file: A `.part`, opened for append and read.
            part: Where that is.
            sha256: What the complete blob must hash to.
            size_bytes: Its length.
            placed: Gives the complete, synced file its name.
            closed: Told when this is closed.
        """
        self._placed = placed
        self._closed = closed
        self._file = file
        self._part = part
        self._sha256 = sha256
        self._size_bytes = size_bytes
        self._hash = hashlib.sha256()
        self.offset = file.seek(0, os.SEEK_END)
        if self.offset > size_bytes:  # of another promise: its content cannot be right
            self.offset = 0
            file.truncate(0)
        file.seek(0)
        while chunk := file.read(BLOB_CHUNK_BYTES):
            self._hash.update(chunk)

    def __repr__(self) -> str:
        return f"<BlobWriter {self._sha256.hex()[:12]} {self.offset}/{self._size_bytes}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, data: Buffer) -> None:
        """Append what arrived.

        Raises:
            TransferFailed: if the sender sends more than it promised, or the disk is full; the
                part is removed.
        """
        view = memoryview(data).cast("B")
        if self.offset + len(view) > self._size_bytes:
            self._discard()
            raise TransferFailed(
                f"blob {self._sha256.hex()[:12]}… is longer than the {self._size_bytes} bytes promised"
            )
        try:
            with writing(self._part.parent):
                write_pieces(self._file, view)
        except MeshError:
            self._discard()
            raise
        self._hash.update(view)
        self.offset += len(view)

    def finish(self) -> None:
        """Verify the blob and give it its name, durably.

        Raises:
            TransferFailed: if bytes are missing (the part stays, to be resumed), or if the content
                does not match its SHA-256 or the disk is full (the part is removed).
        """
        if self.offset != self._size_bytes:
            raise TransferFailed(
                f"blob {self._sha256.hex()[:12]}… ended after {self.offset} of {self._size_bytes} bytes"
            )
        if self._hash.digest() != self._sha256:
            self._discard()
            raise TransferFailed(f"blob {self._sha256.hex()[:12]}… does not match its SHA-256")
        try:
            with writing(self._part.parent):
                sync(self._file)
                self._file.close()
                self._placed(self._part, self._sha256)
        except MeshError:
            self._discard()
            raise
        self.close()

    def close(self) -> None:
        """Stop; what has arrived stays for a later attempt. Does nothing a second time."""
        with suppress(OSError):  # buffered bytes that no longer fit: they will be asked for again
            self._file.close()
        self._closed(self._sha256)

    def _discard(self) -> None:
        self.close()
        self._part.unlink(missing_ok=True)

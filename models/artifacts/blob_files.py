"""Blobs that are complete: whether they are what their names say, and reading from them.

Disks lose and users edit what was verified. So a blob is hashed once more before it is first used after a
start, and again when its file was changed; chunk by chunk while it is sent. One that is damaged stands for
nothing any more: what is right of it is kept to be received again with the rest.

All functions block, and may be called from several threads at once.
"""

from __future__ import annotations

import errno
import logging
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from meshnode.errors import ConfigError, TransferFailed
from meshnode.limits import BLOB_CHUNK_BYTES
from meshnode.models.artifacts.chunk_lists import ChunkLists
from meshnode.models.artifacts.chunks import single
from meshnode.models.artifacts.durable import place, writing
from meshnode.models.artifacts.partial import leave_pieces
from meshnode.models.artifacts.verified import Verified
from meshnode.models.manifest import FileEntry, Manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Container
    from pathlib import Path

log = logging.getLogger(__name__)


class BlobFiles:
    """The complete blobs of one store.

    Attributes:
        lists: Of their chunks.
        on_damaged: Told of each blob that was found damaged while it was read, in the reader's thread.
    """

    on_damaged: Callable[[bytes], object]

    def __init__(self, folder: Path, receiving: Container[bytes]) -> None:
        """Look after the blobs in a folder.

        Args:
            folder: Where they are.
            receiving: Blobs whose chunks are being received.
        """
        self._folder = folder
        self._receiving = receiving
        self._verified = Verified()
        self._putting_aside = threading.Lock()
        self.lists = ChunkLists(folder)
        self.on_damaged = _nobody

    def __repr__(self) -> str:
        return f"<BlobFiles in {self._folder}>"

    def path(self, sha256: bytes) -> Path:
        """Return where a blob lies or would lie."""
        name = sha256.hex()
        return self._folder / name[:2] / name

    def is_sound(self, sha256: bytes) -> bool:
        """Whether a blob is here and is what its name says; one that is damaged is put aside.

        Reads all of it, unless it is known since the start and its file has not changed.

        Raises:
            ConfigError: if it cannot be read, or cannot be put aside.
        """
        path = self.path(sha256)
        try:
            if self._verified.is_right(path, sha256):
                return True
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            if error.errno != errno.EIO:
                raise ConfigError(
                    f"{path} cannot be read: {error.strerror}; give its owner access"
                ) from None
        self._put_aside(sha256)
        return False

    def are_in(self, folder: Path, manifest: Manifest) -> bool:
        """Whether a model folder holds every file of a version as it should be."""
        try:
            return folder.is_dir() and all(
                self._verified.is_right(folder / file.path, file.sha256) for file in manifest.files
            )
        except OSError:
            return False

    def read(self, sha256: bytes, offset: int, length: int) -> bytes:
        """Return up to `length` bytes of a blob from `offset` on; empty at its end.

        Raises:
            TransferFailed: if it is not here, cannot be read, or is damaged.
            ConfigError: if it is damaged and cannot be put aside.
        """
        try:
            compared = self._compared(sha256, offset, length)
            if compared is not None:
                return compared
            self.lists.forget(sha256)  # it may be the list that is damaged
            self._verified.forget(self.path(sha256))
            if self._verified.is_right(self.path(sha256), sha256):
                return self.read_unseen(sha256, offset, length)
        except OSError as error:
            if error.errno != errno.EIO:
                raise not_here(sha256) from None
        self._put_aside(sha256)
        self.on_damaged(sha256)
        raise TransferFailed(f"blob {sha256.hex()[:12]}… is damaged on this node's disk")

    def read_unseen(self, sha256: bytes, offset: int, length: int) -> bytes:
        """Return bytes of a blob as they are on the disk: whoever gets them verifies them.

        Raises:
            OSError: if they cannot be read.
        """
        with self.path(sha256).open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def place(self, complete: Path, sha256: bytes) -> None:
        """Give a synced file its name, durably; it was hashed as it was written.

        Raises:
            OSError: if that cannot be written.
        """
        place(complete, self.path(sha256))
        self._verified.note(self.path(sha256), sha256)

    def touch(self, sha256: bytes) -> None:
        """Note that a blob was wanted until now.

        Raises:
            OSError: if that cannot be written.
        """
        self._verified.touch(self.path(sha256))

    def _compared(self, sha256: bytes, offset: int, length: int) -> bytes | None:
        """Return a part of a blob, or None if it is not what the list of its chunks says."""
        path = self.path(sha256)
        if self._verified.is_fresh(path):
            return self.read_unseen(sha256, offset, length)
        size_bytes = path.stat().st_size
        chunks = self.lists.kept(sha256, size_bytes)
        if chunks is None and size_bytes <= BLOB_CHUNK_BYTES:
            chunks = single(FileEntry("", size_bytes, sha256))
        if chunks is None:
            is_right = self._verified.is_right(path, sha256)
            return self.read_unseen(sha256, offset, length) if is_right else None
        first = offset // chunks.chunk_bytes
        last = max(offset, offset + length - 1) // chunks.chunk_bytes
        parts = []
        for index in range(first, min(last + 1, chunks.count)):
            part = self.read_unseen(sha256, chunks.offset(index), chunks.length(index))
            if not chunks.fits(index, part):
                return None
            parts.append(part)
        start = offset - first * chunks.chunk_bytes
        return b"".join(parts)[start : start + length]

    def _put_aside(self, sha256: bytes) -> None:
        """Take its name from a blob that is damaged; who receives it finds what of it is right."""
        path = self.path(sha256)
        with self._putting_aside, writing(self._folder), suppress(FileNotFoundError):
            self._verified.forget(path)
            is_readable = True
            try:
                if self._verified.is_right(path, sha256):  # another thread has put a good one there
                    return
            except OSError as error:
                is_readable = error.errno != errno.EIO
            log.warning("the model file %s… is damaged on this disk", sha256.hex()[:12])
            chunks = self.lists.kept(sha256, path.stat().st_size)
            if chunks is None or not is_readable or sha256 in self._receiving:
                path.unlink()
            else:
                leave_pieces(path, chunks)


def not_here(sha256: bytes) -> TransferFailed:
    """Return the error for a blob that is not here."""
    return TransferFailed(f"blob {sha256.hex()[:12]}… is not on this node")


def _nobody(_: bytes) -> None:
    """Tell nobody."""

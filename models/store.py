"""Blobs on disk: every model file once, under the SHA-256 of its content.

    <data_dir>/blobs/<first two hex digits>/<sha256>        complete and verified, never changed
    <data_dir>/blobs/<first two hex digits>/<sha256>.part   being received, or left by a broken transfer
    <data_dir>/models/<manifest digest>/<path>              a model version as its runtime opens it

A blob appears under its name only when it is complete, verified and on disk: it is written as
`.part`, synced, and renamed. A `.part` outlives its writer, so that a transfer resumes where it
broke, after a restart too; its bytes are hashed again when it is opened, and a wrong sum at the end
removes it. Model folders are hard links to blobs where the file system has them. The user's own
files are always copied, never linked: they may be edited in place.

All functions block; a daemon calls them in threads. One process owns a data folder.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

from meshnode.errors import ConfigError, MeshError, ModelError, TransferFailed
from meshnode.limits import BLOB_CHUNK_BYTES
from meshnode.models.manifest import FileEntry, Manifest, check_relative_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from meshnode.types import Buffer

COLLECT_AGE_S = 600.0
"""What is younger is not collected: publishing a model of 100 GB to a disk that writes 200 MB/s
takes this long, and until then its first files belong to no manifest."""

_PART = ".part"


class BlobStore:
    """The blobs and model folders of one node."""

    def __init__(self, data_dir: Path) -> None:
        """Use a node's data folder; it and its subfolders are made when something is written."""
        self._blobs = data_dir / "blobs"
        self._models = data_dir / "models"
        self._receiving: set[bytes] = set()
        self._lock = threading.Lock()  # of the set above: the store is called from threads

    def __repr__(self) -> str:
        return f"<BlobStore {self._blobs.parent} receiving={len(self._receiving)}>"

    def path(self, sha256: bytes) -> Path:
        """Return where a blob lies or would lie."""
        name = sha256.hex()
        return self._blobs / name[:2] / name

    def has(self, sha256: bytes) -> bool:
        """Whether a blob is here, complete."""
        return self.path(sha256).is_file()

    def size_bytes(self, sha256: bytes) -> int:
        """Return a blob's size.

        Raises:
            TransferFailed: if it is not here.
        """
        try:
            return self.path(sha256).stat().st_size
        except OSError:
            raise _not_here(sha256) from None

    def read_chunk(self, sha256: bytes, offset: int, length: int) -> bytes:
        """Return up to `length` bytes of a blob from `offset` on; empty at its end.

        Raises:
            TransferFailed: if the blob is not here or cannot be read.
        """
        try:
            with self.path(sha256).open("rb") as file:
                file.seek(offset)
                return file.read(min(length, BLOB_CHUNK_BYTES))
        except OSError:
            raise _not_here(sha256) from None

    def add_file(self, source: Path, name: str | None = None) -> FileEntry:
        """Copy a file into the store.

        Args:
            source: The file; it is read once and not changed.
            name: Relative path within its model version; the file's own name if None.

        Raises:
            ModelError: if the file cannot be read.
            ConfigError: if the data folder cannot be written.
            TransferFailed: if the disk is full; nothing is left behind.
        """
        path = check_relative_path(source.name if name is None else name)
        with _writing(self._blobs):
            self._blobs.mkdir(parents=True, exist_ok=True)
            descriptor, temporary_name = tempfile.mkstemp(suffix=_PART, dir=self._blobs)
            temporary = Path(temporary_name)
            try:
                with os.fdopen(descriptor, "wb") as target:
                    sha256, size = _copy(source, target)
                    _sync(target)
                if self.has(sha256):
                    os.utime(self.path(sha256))  # wanted again: `collect` goes by age
                else:
                    self._place(temporary, sha256)
            finally:
                temporary.unlink(missing_ok=True)
        return FileEntry(path, size, sha256)

    def open_writer(self, sha256: bytes, size_bytes: int) -> BlobWriter:
        """Begin or resume receiving a blob.

        Args:
            sha256: What the complete blob must hash to.
            size_bytes: Its complete size.

        Returns:
            A writer, to be used as a context manager; `offset` says where to go on.

        Raises:
            ConfigError: if the data folder cannot be written.
            TransferFailed: if the disk has no room for the rest, or this blob is being received.
        """
        with self._lock:
            if sha256 in self._receiving:
                raise TransferFailed(f"blob {sha256.hex()[:12]}… is already being received")
            self._receiving.add(sha256)
        try:
            return self._open_part(sha256, size_bytes)
        except BaseException:
            self._stop_receiving(sha256)
            raise

    def materialise(self, manifest: Manifest) -> Path:
        """Return a folder that holds exactly a manifest's files, made from blobs if need be.

        Raises:
            TransferFailed: if a blob is missing or the disk is full; nothing is left behind.
            ConfigError: if the data folder cannot be written.
        """
        folder = self._models / manifest.digest
        if _is_complete(folder, manifest):
            with _writing(folder):
                os.utime(folder)  # wanted again: `collect` goes by age
            return folder
        with _writing(self._models):
            self._models.mkdir(parents=True, exist_ok=True)
            building = Path(tempfile.mkdtemp(suffix=_PART, dir=self._models))
            try:
                for file in manifest.files:
                    if not self.has(file.sha256):
                        raise _not_here(file.sha256)
                    target = building / check_relative_path(file.path)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _link(self.path(file.sha256), target)
                shutil.rmtree(folder, ignore_errors=True)  # one that lost files
                building.rename(folder)
            finally:
                shutil.rmtree(building, ignore_errors=True)
        return folder

    def collect(self, keep: Iterable[Manifest], *, min_age_s: float = COLLECT_AGE_S) -> int:
        """Remove all blobs, parts and model folders that no kept manifest uses.

        What is being received stays, and so does what is young: it may belong to a manifest that
        another thread is still making, or that was made after the caller looked.

        Args:
            keep: The manifests of everything that this node serves, is fetching, or holds for
                others.
            min_age_s: Seconds since a file was added, received or laid out, below which it stays.

        Returns:
            The number of blobs removed.
        """
        kept = list(keep)
        names = {file.sha256.hex() for manifest in kept for file in manifest.files}
        names |= {sha256.hex() for sha256 in tuple(self._receiving)}
        digests = {manifest.digest for manifest in kept}
        before_s = time.time() - min_age_s
        removed = 0
        with _writing(self._blobs):
            for path in self._blobs.rglob("*"):
                used = path.name.removesuffix(_PART) in names
                if not used and path.is_file() and _modified_s(path) <= before_s:
                    path.unlink(missing_ok=True)
                    removed += not path.name.endswith(_PART)
        with _writing(self._models):
            if self._models.is_dir():
                for folder in self._models.iterdir():
                    if folder.name not in digests and _modified_s(folder) <= before_s:
                        shutil.rmtree(folder, ignore_errors=True)
        return removed

    def _place(self, complete: Path, sha256: bytes) -> None:
        """Give a synced file its name, durably."""
        target = self.path(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        complete.replace(target)
        _sync_folder(target.parent)

    def _open_part(self, sha256: bytes, size_bytes: int) -> BlobWriter:
        part = self.path(sha256).with_suffix(_PART)
        with _writing(self._blobs):
            part.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(part.parent).free
            file = part.open("a+b")
            try:
                writer = BlobWriter(self, file, part, sha256, size_bytes)
                missing = size_bytes - writer.offset
                if missing > free:
                    raise TransferFailed(
                        f"a model file needs {missing:,} bytes, but {self._blobs} has {free:,} free"
                    )
            except BaseException:
                file.close()
                raise
        return writer

    def _stop_receiving(self, sha256: bytes) -> None:
        self._receiving.discard(sha256)


class BlobWriter:
    """One blob being received: write what arrives at `offset`, then `finish`.

    Leaving its context without `finish` keeps what has arrived for a later attempt.

    Attributes:
        offset: Bytes that are here already; the transfer goes on from there.
    """

    def __init__(
        self, store: BlobStore, file: BinaryIO, part: Path, sha256: bytes, size_bytes: int
    ) -> None:
        """Made by `BlobStore.open_writer` alone, around a `.part` opened for append and read."""
        self._store = store
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
        for chunk in _chunks(file):
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
            with _writing(self._part.parent):
                self._file.write(view)
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
            with _writing(self._part.parent):
                _sync(self._file)
                self._file.close()
                self._store._place(self._part, self._sha256)
        except MeshError:
            self._discard()
            raise
        self.close()

    def close(self) -> None:
        """Stop; what has arrived stays for a later attempt. Does nothing a second time."""
        with suppress(OSError):  # buffered bytes that no longer fit: they will be asked for again
            self._file.close()
        self._store._stop_receiving(self._sha256)

    def _discard(self) -> None:
        self.close()
        self._part.unlink(missing_ok=True)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Translate what the file system says while something is written below `folder`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise TransferFailed(
                f"the disk that holds {folder} is full: {error.strerror}"
            ) from None
        reason = error.strerror or str(error)
        raise ConfigError(f"the data folder {folder} cannot be written: {reason}") from None


def _not_here(sha256: bytes) -> TransferFailed:
    return TransferFailed(f"blob {sha256.hex()[:12]}… is not on this node")


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(BLOB_CHUNK_BYTES):
        yield chunk


def _copy(source: Path, target: BinaryIO) -> tuple[bytes, int]:
    """Copy a user's file and return the SHA-256 and size of what was written."""
    digest = hashlib.sha256()
    size = 0
    try:
        file = source.open("rb")
    except OSError as error:
        raise ModelError(f"{source} cannot be read: {error.strerror}") from None
    with file:
        for chunk in _chunks(file):
            digest.update(chunk)
            target.write(chunk)
            size += len(chunk)
    return digest.digest(), size


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; Windows has no such call and needs none."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _modified_s(path: Path) -> float:
    """Return when a file or folder was last modified; one that is gone needs no removal."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return math.inf


def _link(blob: Path, target: Path) -> None:
    """Hard-link a blob, or copy it where the file system cannot link."""
    try:
        os.link(blob, target)
    except FileExistsError:  # two paths that differ in case, on a file system that does not
        raise TransferFailed(f"{target.name!r} names two files on this file system") from None
    except OSError:
        shutil.copyfile(blob, target)


def _is_complete(folder: Path, manifest: Manifest) -> bool:
    """Whether a model folder still holds every file in its full size."""
    try:
        return (
            all((folder / file.path).stat().st_size == file.size_bytes for file in manifest.files)
            and folder.is_dir()
        )
    except OSError:
        return False

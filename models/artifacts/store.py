"""Blobs on disk: every model file once, under the SHA-256 of its content.

    <data_dir>/blobs/<first two hex digits>/<sha256>          complete and verified, never changed
    <data_dir>/blobs/<first two hex digits>/<sha256>.chunks   the hashes of its chunks, if there are several
    <data_dir>/blobs/<first two hex digits>/<sha256>.pieces   being received in chunks, with `.have` beside it
    <data_dir>/blobs/<first two hex digits>/<sha256>.part     being received from start to end
    <data_dir>/blobs/*.part                                   being copied here
    <data_dir>/models/<manifest digest>/<path>                a model version as its runtime opens it
    <data_dir>/compiled/<manifest digest>                     what a version has compiled for itself (`caches`)

A blob appears under its name only when it is complete, verified and on disk: it is written under
another name, synced, and renamed. What was received outlives its writer, so that a transfer resumes
where it broke, after a restart too; it is hashed again when it is opened. Model folders are hard links
to blobs where the file system has them. The user's own files are always copied, never linked: they may
be edited in place.

When a blob was last wanted is the time of its file. What nothing wants any more stays for as long as
there is room for it: a version that is deployed again, or rolled back to, need not travel again.

All functions block; a daemon calls them in threads. One process owns a data folder.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from meshnode.errors import ModelError, TransferFailed
from meshnode.limits import BLOB_CHUNK_BYTES
from meshnode.models.artifacts.blob_files import BlobFiles, not_here
from meshnode.models.artifacts.blob_writer import BlobWriter
from meshnode.models.artifacts.caches import VersionCaches
from meshnode.models.artifacts.chunks import (
    ChunkHasher,
    Chunks,
    pack_bits,
    root_of,
    single,
)
from meshnode.models.artifacts.disk_budget import Unused, evicted
from meshnode.models.artifacts.durable import (
    sync,
    sync_folder,
    write_pieces,
    writing,
)
from meshnode.models.artifacts.partial import HAVE, PIECES, PartialBlob
from meshnode.models.manifest import FileEntry, Manifest, check_relative_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

COLLECT_AGE_S = 600.0
"""What is younger is not collected: publishing a model of 100 GB to a disk that writes 200 MB/s
takes this long, and until then its first files belong to no manifest."""

_PART = ".part"


class BlobStore:
    """The blobs and model folders of one node.

    Attributes:
        files: The blobs that are complete.
        caches: What versions keep for themselves.
    """

    def __init__(self, data_dir: Path) -> None:
        """Use a node's data folder; it and its subfolders are made when something is written."""
        self._blobs = data_dir / "blobs"
        self._models = data_dir / "models"
        self._scratch = data_dir / "scratch"
        self.caches = VersionCaches(data_dir / "compiled")
        self._receiving: dict[bytes, PartialBlob | None] = {}
        self._lock = threading.Lock()  # of the dict above: the store is called from threads
        self._laying_out = threading.Lock()
        self.files = BlobFiles(self._blobs, self._receiving)

    def __repr__(self) -> str:
        return f"<BlobStore {self._blobs.parent} receiving={len(self._receiving)}>"

    def path(self, sha256: bytes) -> Path:
        """Return where a blob lies or would lie."""
        return self.files.path(sha256)

    def has(self, sha256: bytes) -> bool:
        """Whether a blob is here, complete."""
        return self.path(sha256).is_file()

    def is_sound(self, sha256: bytes) -> bool:
        """Whether a blob is here and is what its name says; see `BlobFiles.is_sound`."""
        return self.files.is_sound(sha256)

    def size_bytes(self, sha256: bytes) -> int:
        """Return a blob's size.

        Raises:
            TransferFailed: if it is not here.
        """
        try:
            return self.path(sha256).stat().st_size
        except OSError:
            raise not_here(sha256) from None

    def read_chunk(self, sha256: bytes, offset: int, length: int) -> bytes:
        """Return up to `length` bytes of a blob from `offset` on; empty at its end.

        Of one that is being received, what has arrived may be read. What is complete is compared with the
        hashes of its chunks, unless it was verified lately.

        Raises:
            TransferFailed: if the blob is not here, cannot be read or is damaged, or not this part of it.
        """
        length = min(length, BLOB_CHUNK_BYTES)
        partial = self._receiving.get(sha256)
        with suppress(OSError):
            if partial is not None and (data := partial.read(offset, length)) is not None:
                return data
        return self.files.read(sha256, offset, length)

    def state_of(self, sha256: bytes) -> tuple[bool, bytes]:
        """Return whether a blob is complete, and else which chunks are here, as bits; none if empty.

        Only what is being received is counted: nobody adds to the rest, or has verified it.
        """
        partial = self._receiving.get(sha256)
        if partial is not None and not self.has(sha256):  # else it was published here meanwhile
            return False, pack_bits(tuple(partial.have), partial.chunks.count)
        return self.has(sha256), b""

    def chunks_of(self, sha256: bytes) -> Chunks:
        """Return the chunks of a blob that is here or being received.

        Raises:
            TransferFailed: if it is neither, or cannot be read.
        """
        partial = self._receiving.get(sha256)
        if partial is not None:
            return partial.chunks
        size_bytes = self.size_bytes(sha256)
        kept = self.files.lists.kept(sha256, size_bytes)
        if kept is not None:
            return kept
        hasher = ChunkHasher()
        try:
            with self.path(sha256).open("rb") as file:
                for data in _pieces(file):
                    hasher.update(data)
        except OSError:
            raise not_here(sha256) from None
        _, chunks = hasher.finish()
        self.files.lists.keep(sha256, chunks)
        return chunks

    def kept_chunks(self, entry: FileEntry) -> Chunks | None:
        """Return a file's chunks if an earlier attempt to receive it has kept their list."""
        if not entry.chunks:
            return single(entry)
        kept = self.files.lists.kept(entry.sha256, entry.size_bytes)
        return kept if kept is not None and root_of(kept) == entry.chunks else None

    def add_file(self, source: Path, name: str | None = None) -> FileEntry:
        """Copy a file into the store; it replaces a blob of its name that is damaged.

        Args:
            source: The file; it is read once and not changed.
            name: Relative path within its model version; the file's own name if None.

        Raises:
            ModelError: if the file cannot be read.
            ConfigError: if the data folder cannot be written.
            TransferFailed: if the disk is full; nothing is left behind.
        """
        path = check_relative_path(source.name if name is None else name)
        with writing(self._blobs):
            self._blobs.mkdir(parents=True, exist_ok=True)
            descriptor, temporary_name = tempfile.mkstemp(suffix=_PART, dir=self._blobs)
            temporary = Path(temporary_name)
            try:
                with os.fdopen(descriptor, "wb") as target:
                    sha256, chunks = _copy(source, target)
                    sync(target)
                if self.is_sound(sha256):
                    self.files.touch(sha256)  # wanted again: `collect` goes by age
                else:
                    self.files.place(temporary, sha256)
                    for suffix in (HAVE, PIECES):  # of an attempt to receive it
                        if sha256 not in self._receiving:
                            self.path(sha256).with_suffix(suffix).unlink(missing_ok=True)
            finally:
                temporary.unlink(missing_ok=True)
            self.files.lists.keep(sha256, chunks)
        return FileEntry(path, chunks.size_bytes, sha256, root_of(chunks))

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
        self._start_receiving(sha256)
        try:
            return self._open_part(sha256, size_bytes)
        except BaseException:
            self._stop_receiving(sha256)
            raise

    def open_partial(self, entry: FileEntry, chunks: Chunks) -> PartialBlob:
        """Begin or resume receiving a blob in chunks; meanwhile others can read what has arrived.

        Args:
            entry: The file.
            chunks: Its chunks, checked against the manifest.

        Returns:
            What there is of it, to be used as a context manager.

        Raises:
            ConfigError: if the data folder cannot be written.
            TransferFailed: if the disk has no room for the rest, or this blob is being received.
        """
        sha256 = entry.sha256
        self._start_receiving(sha256)
        try:
            blob = self.path(sha256)
            with writing(self._blobs):
                blob.parent.mkdir(parents=True, exist_ok=True)
                free = shutil.disk_usage(blob.parent).free
                if self.files.lists.kept(sha256, chunks.size_bytes) != chunks:
                    self.files.lists.keep(sha256, chunks)
                partial = PartialBlob(blob, sha256, chunks, self.files.place, self._stop_receiving)
        except BaseException:
            self._stop_receiving(sha256)
            raise
        self._receiving[sha256] = partial
        missing = chunks.size_bytes - partial.received_bytes
        if missing > free:
            partial.close()
            raise _no_room(missing, self._blobs, free)
        return partial

    def reuse(self, partial: PartialBlob) -> int:
        """Copy those chunks of a partial blob that lie in other blobs here; return how many did."""
        wanted: dict[bytes, list[int]] = {}
        for index in range(partial.chunks.count):
            if index not in partial.have:
                wanted.setdefault(partial.chunks.hash_of(index), []).append(index)
        before = len(partial.have)
        for sha256, size_bytes in self.files.lists.of_blobs() if wanted else ():
            chunks = self.files.lists.kept(sha256, size_bytes)
            if chunks is None:
                continue
            for found in range(chunks.count):
                for index in wanted.get(chunks.hash_of(found), ()):
                    with suppress(OSError):  # damaged, or gone: it is fetched then
                        offset = chunks.offset(found)
                        partial.write(
                            index, self.files.read_unseen(sha256, offset, chunks.length(found))
                        )
        return len(partial.have) - before

    def materialise(self, manifest: Manifest) -> Path:
        """Return a folder that holds exactly a manifest's files, made from blobs if need be.

        All of them are what the manifest says, as far as is known since the start.

        Raises:
            TransferFailed: if a blob is missing or the disk is full; nothing is left behind.
            ConfigError: if the data folder cannot be written.
        """
        folder = self._models / manifest.digest
        if self.files.are_in(folder, manifest):
            with writing(folder):
                os.utime(folder)  # wanted again: `collect` goes by age
            return folder
        with writing(self._models):
            self._models.mkdir(parents=True, exist_ok=True)
            building = Path(tempfile.mkdtemp(suffix=_PART, dir=self._models))
            try:
                for file in manifest.files:
                    if not self.is_sound(file.sha256):
                        raise not_here(file.sha256)
                    target = building / check_relative_path(file.path)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _link(self.path(file.sha256), target)
                with self._laying_out:
                    if not self.files.are_in(folder, manifest):  # else another thread was faster
                        shutil.rmtree(folder, ignore_errors=True)  # one that lost files
                        building.rename(folder)
                        sync_folder(self._models)
            finally:
                shutil.rmtree(building, ignore_errors=True)
        return folder

    def scratch(self) -> Path:
        """Make an empty folder on this disk, whose maker removes it; `sweep` does after a crash.

        Raises:
            ConfigError: if the data folder cannot be written.
        """
        with writing(self._scratch):
            self._scratch.mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(dir=self._scratch))

    def here_bytes(self, keep: Iterable[Manifest]) -> int:
        """Return what those files of these manifests take that are here, complete."""
        sizes = {file.sha256: file.size_bytes for manifest in keep for file in manifest.files}
        return sum(size for sha256, size in sizes.items() if self.has(sha256))

    def missing_bytes(self, coming: Iterable[Manifest]) -> int:
        """Return what of the files of these manifests has still to come."""
        sizes = {file.sha256: file.size_bytes for manifest in coming for file in manifest.files}
        return sum(
            max(0, size - _allocated_bytes(self.path(sha256).with_suffix(PIECES)))
            for sha256, size in sizes.items()
            if not self.has(sha256)
        )

    def free_bytes(self) -> tuple[int, int]:
        """Return how much of the disk is free, and its size."""
        folder = self._blobs
        while not folder.is_dir():
            folder = folder.parent
        usage = shutil.disk_usage(folder)
        return usage.free, usage.total

    def touch(self, manifest: Manifest) -> None:
        """Note that a version was wanted until now."""
        for file in manifest.files:
            with suppress(OSError):
                self.files.touch(file.sha256)

    def sweep(self) -> None:
        """Remove what a former process left half written and nobody can go on with."""
        left = [*self._blobs.glob(f"*{_PART}")]
        noted = self._blobs.glob(f"*/*{HAVE}")
        left += [path for path in noted if not path.with_suffix(PIECES).exists()]
        for path in left:
            with suppress(OSError):  # a folder that cannot be written is told when it has to be
                path.unlink(missing_ok=True)
        for folder in (*self._models.glob(f"*{_PART}"), self._scratch):
            shutil.rmtree(folder, ignore_errors=True)

    def collect(
        self,
        keep: Iterable[Manifest],
        *,
        min_age_s: float = COLLECT_AGE_S,
        spare: Callable[[int], int] = lambda _: 0,
    ) -> int:
        """Remove blobs, parts and model folders that no kept manifest uses.

        What is being received stays, and so does what is young: it may belong to a manifest that
        another thread is still making, or that was made after the caller looked. Of the rest, what was
        wanted last stays as far as there is room.

        Args:
            keep: The manifests of everything that this node serves, is fetching, or holds for
                others.
            min_age_s: Seconds since a file was added, received or laid out, below which it stays.
            spare: Says what blobs that nobody wants may take, of what they take now, in bytes.

        Returns:
            The number of blobs removed.
        """
        kept = list(keep)
        names = {file.sha256.hex() for manifest in kept for file in manifest.files}
        names |= {sha256.hex() for sha256 in tuple(self._receiving)}
        digests = {manifest.digest for manifest in kept}
        before_s = time.time() - min_age_s
        unused: dict[str, list[Path]] = {}
        removed = 0
        # Folders first: their links hold what the blobs take of the disk.
        with writing(self._models):
            for folder in self._models.iterdir() if self._models.is_dir() else ():
                if folder.name not in digests and _modified_s(folder) <= before_s:
                    shutil.rmtree(folder, ignore_errors=True)
        with writing(self._blobs):
            for path in self._blobs.rglob("*"):
                name = path.name.partition(".")[0]
                if name not in names and path.is_file():
                    unused.setdefault(name, []).append(path)
            found = [_unused(name, paths) for name, paths in unused.items()]
            room = spare(sum(each.size_bytes for each in found))
            for name in evicted(found, room, before_s):
                for path in unused[name]:
                    path.unlink(missing_ok=True)
                    removed += not path.suffix
        return removed

    def _start_receiving(self, sha256: bytes) -> None:
        with self._lock:
            if sha256 in self._receiving:
                raise TransferFailed(f"blob {sha256.hex()[:12]}… is already being received")
            self._receiving[sha256] = None

    def _stop_receiving(self, sha256: bytes) -> None:
        self._receiving.pop(sha256, None)

    def _open_part(self, sha256: bytes, size_bytes: int) -> BlobWriter:
        part = self.path(sha256).with_suffix(_PART)
        with writing(self._blobs):
            part.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(part.parent).free
            file = part.open("a+b")
            try:
                writer = BlobWriter(
                    file, part, sha256, size_bytes, self.files.place, self._stop_receiving
                )
                missing = size_bytes - writer.offset
                if missing > free:
                    raise _no_room(missing, self._blobs, free)
            except BaseException:
                file.close()
                raise
        return writer


def _allocated_bytes(path: Path) -> int:
    """Return what a file takes of the disk; one with holes takes less than its length."""
    try:
        found = path.stat()
    except OSError:
        return 0
    blocks: int | None = getattr(found, "st_blocks", None)  # Windows has none, and tells no holes
    return found.st_size if blocks is None else min(found.st_size, 512 * blocks)


def _no_room(missing_bytes: int, folder: Path, free_bytes: int) -> TransferFailed:
    return TransferFailed(
        f"a model file needs {missing_bytes:,} bytes, but {folder} has {free_bytes:,} free; free some "
        "space on that disk"
    )


def _unused(name: str, paths: list[Path]) -> Unused:
    """Describe what lies of a blob that nobody wants."""
    size_bytes = 0
    for path in paths:
        with suppress(FileNotFoundError):
            size_bytes += path.stat().st_size
    return Unused(name, size_bytes, max(map(_modified_s, paths)))


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(BLOB_CHUNK_BYTES):
        yield piece


def _copy(source: Path, target: BinaryIO) -> tuple[bytes, Chunks]:
    """Copy a user's file and return the SHA-256 and the chunks of what was written."""
    hasher = ChunkHasher()
    try:
        file = source.open("rb")
    except OSError as error:
        raise ModelError(f"{source} cannot be read: {error.strerror}") from None
    with file:
        for piece in _pieces(file):
            hasher.update(piece)
            write_pieces(target, piece)
    return hasher.finish()


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

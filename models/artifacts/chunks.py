"""How a model file is cut into chunks that are verified one by one.

A file is cut at every `CHUNK_BYTES`; the last chunk may be shorter. The SHA-256 of all chunks, one
after the other, are the file's list; the root is a hash over that list and the chunk size. A manifest
carries the root (`FileEntry.chunks`), the list is asked for and checked against it, and then each
chunk is checked as it arrives, whoever sends it. A file of one chunk needs no list: the hash of its
only chunk is its own.

That a file is what its manifest says is decided by the SHA-256 of the whole, never by a root alone:
the root is no part of a version's digest.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meshnode.errors import TransferFailed

if TYPE_CHECKING:
    from collections.abc import Collection

    from meshnode.models.manifest import FileEntry
    from meshnode.types import Buffer

HASH_BYTES: Final = 32
ROOT_BYTES: Final = 1 + HASH_BYTES
"""Length of `FileEntry.chunks`: the binary logarithm of the chunk size, then the root."""

_EXPONENT: Final = 20
CHUNK_BYTES: Final = 1 << _EXPONENT
"""One MiB: at 20 MB/s a chunk takes 50 ms, so a node soon has something to pass on; the list of a file
of `MAX_MODEL_FILE_BYTES` takes 2 MiB."""

_LEAST_EXPONENT: Final = 20  # so that no list is longer than 2 MiB
_GREATEST_EXPONENT: Final = 22  # so that those under way fit a small device's memory
_ROOT_PREFIX: Final = b"meshnode chunks"


@dataclass(frozen=True, slots=True)
class Chunks:
    """A file's chunks.

    Attributes:
        size_bytes: Length of the file.
        chunk_bytes: Length of each chunk but the last.
        hashes: Their SHA-256, one after the other.
    """

    size_bytes: int
    chunk_bytes: int
    hashes: bytes

    @property
    def count(self) -> int:
        """How many there are; an empty file has one, which is empty."""
        return len(self.hashes) // HASH_BYTES

    def hash_of(self, index: int) -> bytes:
        """Return the SHA-256 of a chunk."""
        return self.hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES]

    def offset(self, index: int) -> int:
        """Return where a chunk begins."""
        return index * self.chunk_bytes

    def length(self, index: int) -> int:
        """Return how long a chunk is."""
        return min(self.chunk_bytes, self.size_bytes - self.offset(index))

    def fits(self, index: int, data: Buffer) -> bool:
        """Whether these bytes are the chunk."""
        return hashlib.sha256(data).digest() == self.hash_of(index)


class ChunkHasher:
    """Hashes a file once, for its own SHA-256 and for those of its chunks."""

    def __init__(self) -> None:
        """Begin an empty file."""
        self._whole = hashlib.sha256()
        self._chunk = hashlib.sha256()
        self._room = CHUNK_BYTES
        self._hashes = bytearray()
        self._size_bytes = 0

    def update(self, data: Buffer) -> None:
        """Take the next bytes."""
        view = memoryview(data).cast("B")
        self._whole.update(view)
        self._size_bytes += len(view)
        while len(view) > self._room:
            self._chunk.update(view[: self._room])
            view = view[self._room :]
            self._end_chunk()
        self._chunk.update(view)
        self._room -= len(view)

    def finish(self) -> tuple[bytes, Chunks]:
        """Return the SHA-256 of the whole, and its chunks; nothing may follow."""
        self._end_chunk()
        return self._whole.digest(), Chunks(self._size_bytes, CHUNK_BYTES, bytes(self._hashes))

    def _end_chunk(self) -> None:
        self._hashes += self._chunk.digest()
        self._chunk = hashlib.sha256()
        self._room = CHUNK_BYTES


def root_of(chunks: Chunks) -> bytes:
    """Return what a manifest says of a file's chunks: empty if there is only one."""
    if chunks.count == 1:
        return b""
    exponent = bytes([chunks.chunk_bytes.bit_length() - 1])
    return exponent + hashlib.sha256(_ROOT_PREFIX + exponent + chunks.hashes).digest()


def is_root(root: bytes) -> bool:
    """Whether a manifest may say this of a file's chunks."""
    return not root or (
        len(root) == ROOT_BYTES and _LEAST_EXPONENT <= root[0] <= _GREATEST_EXPONENT
    )


def is_chunked(entry: FileEntry) -> bool:
    """Whether each chunk of a file can be verified alone.

    A longer file without a root was published by a version that knew no chunks.
    """
    return bool(entry.chunks) or entry.size_bytes <= CHUNK_BYTES


def chunk_count(entry: FileEntry) -> int:
    """Return how many chunks a file has."""
    if not entry.chunks:
        return 1
    return max(1, -(-entry.size_bytes // (1 << entry.chunks[0])))


def chunk_length(entry: FileEntry, index: int) -> int:
    """Return how long a chunk of a file is."""
    if not entry.chunks:
        return entry.size_bytes
    return min(1 << entry.chunks[0], entry.size_bytes - (index << entry.chunks[0]))


def single(entry: FileEntry) -> Chunks:
    """Return the chunks of a file that is one chunk."""
    return Chunks(entry.size_bytes, max(1, entry.size_bytes), entry.sha256)


def check_list(entry: FileEntry, hashes: bytes) -> Chunks:
    """Return a file's chunks from the list that somebody sent.

    Raises:
        TransferFailed: if it is not the list that the manifest's root stands for.
    """
    chunk_bytes = 1 << entry.chunks[0] if entry.chunks else max(1, entry.size_bytes)
    chunks = Chunks(entry.size_bytes, chunk_bytes, hashes)
    if len(hashes) != chunk_count(entry) * HASH_BYTES or root_of(chunks) != entry.chunks:
        raise TransferFailed(
            f"the list of chunks of {entry.path!r} is not the one that was published"
        )
    return chunks


def pack_bits(have: Collection[int], count: int) -> bytes:
    """Return which chunks of `count` are there, one bit each, the lowest first."""
    bits = bytearray((count + 7) // 8)
    for index in have:
        bits[index >> 3] |= 1 << (index & 7)
    return bytes(bits)


def unpack_bits(bits: Buffer, count: int) -> frozenset[int]:
    """Return which chunks of `count` are there; bits beyond them mean nothing."""
    view = bytes(bits)
    return frozenset(
        index for index in range(min(count, 8 * len(view))) if view[index >> 3] >> (index & 7) & 1
    )

"""The lists of chunks that a store keeps beside its blobs, as `<sha256>.chunks`."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from meshnode.models.artifacts.chunks import HASH_BYTES, Chunks, chunk_count, root_of
from meshnode.models.artifacts.durable import write_whole, writing
from meshnode.models.artifacts.partial import CHUNKS
from meshnode.models.manifest import FileEntry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_REMEMBERED: Final = 4  # lists, of at most 2 MiB: of the blobs that are being sent


class ChunkLists:
    """The lists of one store."""

    def __init__(self, blobs: Path) -> None:
        """Keep them in the folder of its blobs."""
        self._blobs = blobs
        self._remembered: dict[bytes, Chunks] = {}

    def __repr__(self) -> str:
        return f"<ChunkLists in {self._blobs}>"

    def keep(self, sha256: bytes, chunks: Chunks) -> None:
        """Write a blob's list of chunks beside it; one of a single chunk needs none.

        Raises:
            ConfigError: if the data folder cannot be written.
            TransferFailed: if the disk is full.
        """
        path = self._path(sha256)
        self.forget(sha256)
        if chunks.count > 1:
            exponent = bytes([chunks.chunk_bytes.bit_length() - 1])
            with writing(self._blobs):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, exponent + chunks.hashes, self._blobs / f"{sha256.hex()}.part")

    def kept(self, sha256: bytes, size_bytes: int) -> Chunks | None:
        """Return a list that was kept, if there is one for a blob of this length.

        It is not verified, and what it says is not trusted.
        """
        known = self._remembered.get(sha256)
        if known is not None and known.size_bytes == size_bytes:
            return known
        try:
            kept = self._path(sha256).read_bytes()
        except OSError:
            return None
        if len(kept) < 1 + HASH_BYTES or kept[0] >= 63:
            return None
        chunks = Chunks(size_bytes, 1 << kept[0], kept[1:])
        described = FileEntry("", size_bytes, sha256, root_of(chunks))
        if len(chunks.hashes) != HASH_BYTES * chunk_count(described):
            return None
        self._remembered[sha256] = chunks
        for oldest in tuple(self._remembered)[:-_REMEMBERED]:
            self._remembered.pop(oldest, None)
        return chunks

    def forget(self, sha256: bytes) -> None:
        """Remember a list no more; it is read from the disk when it is needed again."""
        self._remembered.pop(sha256, None)

    def of_blobs(self) -> Iterator[tuple[bytes, int]]:
        """Yield the name and length of every complete blob that has a list."""
        for path in self._blobs.glob(f"*/*{CHUNKS}"):
            with suppress(ValueError, OSError):
                yield bytes.fromhex(path.stem), path.with_suffix("").stat().st_size

    def _path(self, sha256: bytes) -> Path:
        name = sha256.hex()
        return self._blobs / name[:2] / f"{name}{CHUNKS}"

"""How files are cut into chunks, and what of it is believed."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.errors import TransferFailed
from meshnode.models.artifacts.chunks import (
    CHUNK_BYTES,
    ROOT_BYTES,
    ChunkHasher,
    Chunks,
    check_list,
    chunk_count,
    chunk_length,
    is_chunked,
    is_root,
    pack_bits,
    root_of,
    single,
    unpack_bits,
)
from meshnode.models.manifest import FileEntry

DATA = random.Random(1).randbytes(2 * CHUNK_BYTES + 5)


def hashed(data: bytes, piece: int = 1 << 16) -> tuple[bytes, Chunks]:
    hasher = ChunkHasher()
    for start in range(0, len(data), piece):
        hasher.update(data[start : start + piece])
    return hasher.finish()


def entry_of(data: bytes) -> FileEntry:
    sha256, chunks = hashed(data)
    return FileEntry("f", len(data), sha256, root_of(chunks))


@pytest.mark.parametrize("piece", [1 << 16, CHUNK_BYTES, 3 * CHUNK_BYTES])
def test_a_file_has_the_same_hashes_in_whatever_pieces_it_is_read(piece: int) -> None:
    sha256, chunks = hashed(DATA, piece)
    assert sha256 == hashlib.sha256(DATA).digest()
    assert chunks.count == 3
    assert [chunks.length(index) for index in range(3)] == [CHUNK_BYTES, CHUNK_BYTES, 5]
    assert chunks.hash_of(2) == hashlib.sha256(DATA[-5:]).digest()
    assert chunks.fits(2, DATA[-5:])
    assert not chunks.fits(1, DATA[-5:])


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES])
def test_a_file_of_one_chunk_needs_no_list(size: int) -> None:
    entry = entry_of(DATA[:size])
    assert entry.chunks == b""
    assert is_chunked(entry)
    assert (chunk_count(entry), chunk_length(entry, 0)) == (1, size)
    assert single(entry) == check_list(entry, entry.sha256)
    assert single(entry).fits(0, DATA[:size])


def test_a_longer_file_has_a_root_that_its_list_is_checked_against() -> None:
    entry = entry_of(DATA)
    _, chunks = hashed(DATA)
    assert len(entry.chunks) == ROOT_BYTES
    assert is_root(entry.chunks)
    assert (chunk_count(entry), chunk_length(entry, 2)) == (3, 5)
    assert check_list(entry, chunks.hashes) == chunks
    for wrong in (b"", chunks.hashes[:-32], chunks.hashes + bytes(32), bytes(96)):
        with pytest.raises(TransferFailed, match="not the one that was published"):
            check_list(entry, wrong)


def test_a_long_file_without_a_root_is_of_a_version_that_knew_none() -> None:
    assert not is_chunked(FileEntry("f", CHUNK_BYTES + 1, bytes(32)))


@pytest.mark.parametrize(
    "root", [b"x", bytes(33), b"\x13" + bytes(32), b"\x17" + bytes(32), bytes(34)]
)
def test_other_roots_are_refused(root: bytes) -> None:
    assert not is_root(root)


@given(st.sets(st.integers(0, 40)), st.integers(41, 64))
def test_bits_say_which_chunks_are_there(have: set[int], count: int) -> None:
    assert unpack_bits(pack_bits(have, count), count) == have
    assert unpack_bits(b"\xff" * 20, count) == set(range(count)), "bits beyond mean nothing"

"""Blobs that come in chunks, and writers that are killed."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, BinaryIO, cast

import pytest

from meshnode.errors import TransferFailed
from meshnode.models.artifacts.chunks import CHUNK_BYTES, ChunkHasher, Chunks, root_of
from meshnode.models.artifacts.durable import WRITE_BYTES, write_pieces
from meshnode.models.artifacts.partial import PartialBlob
from meshnode.models.artifacts.store import BlobStore
from meshnode.models.manifest import FileEntry, Manifest

if TYPE_CHECKING:
    from pathlib import Path

DATA = random.Random(2).randbytes(4 * CHUNK_BYTES + 7)


def described(data: bytes) -> tuple[FileEntry, Chunks]:
    hasher = ChunkHasher()
    hasher.update(data)
    sha256, chunks = hasher.finish()
    return FileEntry("f", len(data), sha256, root_of(chunks)), chunks


ENTRY, LIST = described(DATA)


def chunk(index: int) -> bytes:
    return DATA[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "data")


def beside(store: BlobStore) -> list[str]:
    return sorted(path.suffix for path in store.path(ENTRY.sha256).parent.iterdir())


def test_chunks_may_come_in_any_order_and_twice(store: BlobStore) -> None:
    with store.open_partial(ENTRY, LIST) as partial:
        for index in (4, 0, 2, 2, 1, 3):
            assert partial.write(index, chunk(index))
        assert partial.received_bytes == len(DATA)
        partial.finish()
    assert store.path(ENTRY.sha256).read_bytes() == DATA
    assert beside(store) == ["", ".chunks"]
    assert store.chunks_of(ENTRY.sha256) == LIST
    assert not store._receiving


def test_a_wrong_chunk_changes_nothing(store: BlobStore) -> None:
    with store.open_partial(ENTRY, LIST) as partial:
        assert not partial.write(0, chunk(1))
        assert not partial.write(4, chunk(4)[:-1])
        assert partial.have == set()
        with pytest.raises(TransferFailed, match="lacks 5 of 5 chunks"):
            partial.finish()


def test_what_has_arrived_can_be_read_while_the_rest_comes(store: BlobStore) -> None:
    assert store.state_of(ENTRY.sha256) == (False, b"")
    with store.open_partial(ENTRY, LIST) as partial:
        partial.write(1, chunk(1))
        partial.write(2, chunk(2))
        assert store.state_of(ENTRY.sha256) == (False, b"\x06")
        assert store.chunks_of(ENTRY.sha256) == LIST
        middle = store.read_chunk(ENTRY.sha256, CHUNK_BYTES + 9, CHUNK_BYTES)
        assert middle == DATA[CHUNK_BYTES + 9 : 2 * CHUNK_BYTES + 9]
        with pytest.raises(TransferFailed, match="not on this node"):
            store.read_chunk(ENTRY.sha256, 0, 10)
        for index in (0, 3, 4):
            partial.write(index, chunk(index))
        partial.finish()
    assert store.state_of(ENTRY.sha256) == (True, b"")
    assert store.read_chunk(ENTRY.sha256, 0, 10) == DATA[:10]


def test_a_blob_can_be_read_at_every_moment_of_its_end(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others get the lock between its file being closed and its writer."""
    read: list[bytes] = []
    close = PartialBlob.close

    def close_late(partial: PartialBlob) -> None:
        read.append(store.read_chunk(ENTRY.sha256, 5, 10))
        close(partial)

    with store.open_partial(ENTRY, LIST) as partial:
        for index in range(5):
            partial.write(index, chunk(index))
        monkeypatch.setattr(PartialBlob, "close", close_late)
        partial.finish()
    assert read == [DATA[5:15]] * 2
    assert not store._receiving


def test_chunks_are_written_and_read_while_the_whole_is_being_hashed(store: BlobStore) -> None:
    with store.open_partial(ENTRY, LIST) as partial:
        with partial._hashing:  # as a thread has it that hashes
            for index in range(LIST.count):
                assert partial.write(index, chunk(index))
            assert partial.read(0, 3) == DATA[:3]
        partial.finish()
    assert store.path(ENTRY.sha256).read_bytes() == DATA


def test_chunks_behind_a_gap_take_no_memory(store: BlobStore) -> None:
    with store.open_partial(ENTRY, LIST) as partial:
        for index in (1, 2, 3, 4):
            assert partial.write(index, chunk(index))
        assert not partial._waiting
        assert partial.write(0, chunk(0))
        partial.finish()


def test_what_was_given_up_before_its_end_stays_to_be_resumed(store: BlobStore) -> None:
    with store.open_partial(ENTRY, LIST) as partial, partial._hashing:
        for index in range(LIST.count):
            assert partial.write(index, chunk(index))
        partial.close()
    with pytest.raises(TransferFailed, match="given up"):
        partial.finish()
    with store.open_partial(ENTRY, LIST) as resumed:
        assert resumed.received_bytes == len(DATA)
        resumed.finish()


def test_a_model_file_is_written_in_small_pieces() -> None:
    pieces: list[bytes] = []

    file = SimpleNamespace(writelines=lambda lines: pieces.extend(map(bytes, lines)))
    write_pieces(cast("BinaryIO", file), DATA)
    assert max(map(len, pieces)) <= WRITE_BYTES
    assert b"".join(pieces) == DATA


def test_an_interrupted_blob_goes_on_with_the_chunks_that_are_right(store: BlobStore) -> None:
    with store.open_partial(ENTRY, LIST) as partial:
        for index in (0, 1, 3):
            partial.write(index, chunk(index))
    pieces = store.path(ENTRY.sha256).with_suffix(".pieces")
    with pieces.open("r+b") as file:  # as after a crash: noted, but never on the disk
        file.seek(CHUNK_BYTES)
        file.write(bytes(100))
    with store.path(ENTRY.sha256).with_suffix(".have").open("ab") as file:
        file.write(b"\x04\0")  # an index that was cut in two
    with store.open_partial(ENTRY, LIST) as partial:
        assert partial.have == {0, 3}
        for index in (1, 2, 4):
            partial.write(index, chunk(index))
        partial.finish()
    assert store.path(ENTRY.sha256).read_bytes() == DATA


def test_a_blob_whose_chunks_were_lied_about_is_removed(store: BlobStore) -> None:
    other = random.Random(3).randbytes(len(DATA))
    _, wrong = described(other)
    with store.open_partial(ENTRY, wrong) as partial:
        for index in range(5):
            partial.write(index, other[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
        with pytest.raises(TransferFailed, match="told the mesh of other chunks"):
            partial.finish()
    assert beside(store) == [".chunks"]
    with store.open_partial(ENTRY, LIST) as partial:  # with the right list it can begin again
        assert partial.have == set()


def test_a_blob_is_received_once_at_a_time(store: BlobStore) -> None:
    with (
        store.open_partial(ENTRY, LIST),
        pytest.raises(TransferFailed, match="already being received"),
    ):
        store.open_partial(ENTRY, LIST)
    store.open_partial(ENTRY, LIST).close()


def test_chunks_of_other_blobs_are_copied_but_only_if_they_are_whole(
    store: BlobStore, tmp_path: Path
) -> None:
    source = tmp_path / "other"
    source.write_bytes(chunk(1) + chunk(0) + bytes(CHUNK_BYTES))
    other = store.add_file(source)
    with store.path(other.sha256).open("r+b") as file:
        file.write(b"damaged")  # within the copy of chunk 1
    with store.open_partial(ENTRY, LIST) as partial:
        assert store.reuse(partial) == 1
        assert partial.have == {0}


def test_a_list_that_was_not_kept_is_worked_out_again(store: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(DATA)
    assert store.add_file(source, "f") == ENTRY
    kept = store.path(ENTRY.sha256).with_suffix(".chunks")
    for damaged in (None, b"", b"\x14short", b"\xff" * 161):
        kept.unlink()
        if damaged is not None:
            kept.write_bytes(damaged)
        assert store.chunks_of(ENTRY.sha256) == LIST
    with pytest.raises(TransferFailed, match="not on this node"):
        store.chunks_of(bytes(32))


KILLED = """
import os, pathlib, sys
from meshnode.models.artifacts import durable
from meshnode.models.artifacts.store import BlobStore
from tests.unit.models.test_partial import DATA, ENTRY, LIST, MANIFEST, chunk

def steps(folder):
    store = BlobStore(folder)
    store.sweep()
    source = folder / "source"
    source.write_bytes(b"small")
    store.add_file(source, "s")
    if not store.has(ENTRY.sha256):
        with store.open_partial(ENTRY, LIST) as partial:
            for index in (3, 0, 1, 4, 2):
                partial.write(index, chunk(index))
            partial.finish()
    store.materialise(MANIFEST)

def kill_at(step):
    count = 0
    def counted(real):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == step:
                os._exit(9)
            return real(*args, **kwargs)
        return call
    os.fsync = counted(os.fsync)
    os.link = counted(os.link)
    for name in ("replace", "rename", "unlink", "open", "mkdir"):
        setattr(pathlib.Path, name, counted(getattr(pathlib.Path, name)))

root = pathlib.Path(sys.argv[1])
step = 0
while True:
    step += 1
    folder = root / str(step)
    folder.mkdir()
    child = os.fork()
    if child == 0:
        kill_at(step)
        steps(folder)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
print(step)
"""

_SMALL = FileEntry("s", 5, hashlib.sha256(b"small").digest())
MANIFEST = Manifest("m", 1, "onnx", "onnxruntime_onnx", (), (), 0, (ENTRY, _SMALL), "f")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a copy of itself")
def test_a_writer_that_is_killed_at_any_step_leaves_blobs_whole_or_absent(tmp_path: Path) -> None:
    """At each call that changes the disk; then another process goes on and comes to the end."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    steps = int(done.stdout)
    assert steps > 20, "there are that many moments to be killed at"
    for step in range(1, steps):
        folder = tmp_path / str(step)
        for path in (folder / "blobs").glob("*/*"):
            if not path.suffix:
                assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name, step
        _go_on(folder, step)


def _go_on(folder: Path, step: int) -> None:
    store = BlobStore(folder)
    store.sweep()
    source = folder / "source"
    source.write_bytes(b"small")
    store.add_file(source, "s")
    if not store.has(ENTRY.sha256):
        with store.open_partial(ENTRY, LIST) as partial:
            for index in set(range(5)) - partial.have:
                partial.write(index, chunk(index))
            partial.finish()
    made = store.materialise(MANIFEST)
    assert (made / "f").read_bytes() == DATA, step
    left = sorted(path.name for path in (folder / "blobs").rglob("*") if path.is_file())
    blobs = {ENTRY.sha256.hex(), _SMALL.sha256.hex()}
    assert set(left) - blobs == {f"{ENTRY.sha256.hex()}.chunks"}, step
    assert [path.name for path in (folder / "models").iterdir()] == [MANIFEST.digest], step

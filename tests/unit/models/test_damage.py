"""Blobs that a disk or somebody has damaged: found, put aside, and never taken for what they were."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import ConfigError, TransferFailed
from meshnode.models.artifacts import verified
from meshnode.models.artifacts.chunks import CHUNK_BYTES
from meshnode.models.artifacts.store import BlobStore
from meshnode.models.manifest import FileEntry, Manifest

if TYPE_CHECKING:
    from pathlib import Path

SMALL = b"weights" * 1000
LARGE = random.Random(5).randbytes(3 * CHUNK_BYTES + 7)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "data")


@pytest.fixture(params=[SMALL, LARGE], ids=["of one chunk", "of several"])
def content(request: pytest.FixtureRequest) -> bytes:
    found: bytes = request.param
    return found


def added(store: BlobStore, tmp_path: Path, content: bytes) -> FileEntry:
    source = tmp_path / "model.onnx"
    source.write_bytes(content)
    return store.add_file(source)


def manifest_of(*files: FileEntry) -> Manifest:
    return Manifest("m", 1, "onnx", "onnxruntime_onnx", (), (), 0, files, files[0].path)


def damage(path: Path, at: int = 5000) -> None:
    """Change a byte as a disk does: neither the length nor the time of the file tells."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_damaged_blob_is_found_when_it_is_first_used_after_a_start(
    store: BlobStore, tmp_path: Path, content: bytes
) -> None:
    entry = added(store, tmp_path, content)
    store.materialise(manifest_of(entry))
    damage(store.path(entry.sha256))
    restarted = BlobStore(tmp_path / "data")
    with pytest.raises(TransferFailed, match="is not on this node"):
        restarted.materialise(manifest_of(entry))
    assert not restarted.has(entry.sha256)
    assert restarted.state_of(entry.sha256) == (False, b""), "others are not told that it is here"


def test_a_blob_that_somebody_wrote_to_is_found_without_a_start(
    store: BlobStore, tmp_path: Path, content: bytes
) -> None:
    entry = added(store, tmp_path, content)
    folder = store.materialise(manifest_of(entry))
    (folder / "model.onnx").write_bytes(bytes(len(content)))  # the same file, by its other name
    assert not store.is_sound(entry.sha256)
    assert not store.has(entry.sha256)


def test_publishing_a_file_again_replaces_its_damaged_blob(
    store: BlobStore, tmp_path: Path, content: bytes
) -> None:
    entry = added(store, tmp_path, content)
    store.materialise(manifest_of(entry))
    damage(store.path(entry.sha256))
    restarted = BlobStore(tmp_path / "data")
    assert added(restarted, tmp_path, content) == entry
    assert restarted.path(entry.sha256).read_bytes() == content
    assert (restarted.materialise(manifest_of(entry)) / "model.onnx").read_bytes() == content
    left = {path.suffix for path in restarted.path(entry.sha256).parent.iterdir()}
    assert left <= {"", ".chunks"}, "nothing is left of the damaged one"


def test_a_damaged_copy_in_a_version_s_folder_is_made_again(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", no_links)
    entry = added(store, tmp_path, SMALL)
    folder = store.materialise(manifest_of(entry))
    damage(folder / "model.onnx")
    assert (store.materialise(manifest_of(entry)) / "model.onnx").read_bytes() == SMALL


def test_damage_is_found_while_a_blob_is_sent(
    store: BlobStore, tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "FRESH_S", 0.0)
    entry = added(store, tmp_path, content)
    assert store.read_chunk(entry.sha256, 3, 100) == content[3:103]
    told: list[bytes] = []
    store.files.on_damaged = told.append
    damage(store.path(entry.sha256), 6000)
    with pytest.raises(TransferFailed, match="is damaged on this node's disk"):
        store.read_chunk(entry.sha256, 0, CHUNK_BYTES)
    assert told == [entry.sha256]
    assert not store.has(entry.sha256)


def test_a_blob_that_is_not_damaged_is_read_from_any_offset_though_it_was_verified_long_ago(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "FRESH_S", 0.0)
    sha256 = added(store, tmp_path, LARGE).sha256
    for offset, length in (
        (0, 10), (CHUNK_BYTES - 5, 10), (CHUNK_BYTES + 1, CHUNK_BYTES), (len(LARGE) - 3, 100),
        (len(LARGE), 100), (len(LARGE) + CHUNK_BYTES, 5),
    ):  # fmt: skip
        assert store.read_chunk(sha256, offset, length) == LARGE[offset : offset + length]


def test_a_damaged_list_of_chunks_does_not_condemn_a_blob(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "FRESH_S", 0.0)
    sha256 = added(store, tmp_path, LARGE).sha256
    damage(store.path(sha256).with_suffix(".chunks"), 9)
    assert store.read_chunk(sha256, 0, 10) == LARGE[:10]
    assert store.has(sha256)


def test_only_the_damaged_chunks_are_received_again(store: BlobStore, tmp_path: Path) -> None:
    entry = added(store, tmp_path, LARGE)
    chunks = store.chunks_of(entry.sha256)
    folder = store.materialise(manifest_of(entry))
    damage(store.path(entry.sha256), CHUNK_BYTES + 1)
    restarted = BlobStore(tmp_path / "data")
    assert not restarted.is_sound(entry.sha256)
    with restarted.open_partial(entry, chunks) as partial:
        assert partial.have == {0, 2, 3}
        partial.write(1, LARGE[CHUNK_BYTES : 2 * CHUNK_BYTES])
        partial.finish()
    assert restarted.is_sound(entry.sha256)
    assert restarted.materialise(manifest_of(entry)) == folder
    assert (folder / "model.onnx").read_bytes() == LARGE


def test_a_blob_of_another_length_is_received_again(store: BlobStore, tmp_path: Path) -> None:
    entry = added(store, tmp_path, LARGE)
    chunks = store.chunks_of(entry.sha256)
    with store.path(entry.sha256).open("ab") as file:
        file.write(b"more")
    assert not store.is_sound(entry.sha256)
    with store.open_partial(entry, chunks) as partial:
        for index in range(chunks.count):
            partial.write(index, LARGE[chunks.offset(index) :][: chunks.length(index)])
        partial.finish()
    assert store.path(entry.sha256).read_bytes() == LARGE


def test_a_sector_that_cannot_be_read_is_damage(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = added(store, tmp_path, LARGE)
    restarted = BlobStore(tmp_path / "data")

    def fails(*_: object) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(hashlib, "file_digest", fails)
        assert not restarted.is_sound(entry.sha256)
    assert not restarted.has(entry.sha256)


def test_a_blob_that_may_not_be_read_is_not_thrown_away(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = added(store, tmp_path, SMALL)
    restarted = BlobStore(tmp_path / "data")

    def fails(*_: object) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(hashlib, "file_digest", fails)
        with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
            restarted.is_sound(entry.sha256)
    assert restarted.has(entry.sha256)


def test_a_file_is_hashed_once_after_a_start_whatever_its_time_is_set_to(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = added(store, tmp_path, LARGE)
    manifest = manifest_of(entry)
    store.materialise(manifest)
    restarted = BlobStore(tmp_path / "data")
    hashed: list[str] = []
    real = hashlib.file_digest

    def counting(file: Any, name: str) -> Any:
        hashed.append(name)
        return real(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    for _ in range(2):
        assert restarted.is_sound(entry.sha256)
        restarted.materialise(manifest)
        restarted.touch(manifest)
    assert len(hashed) == 1


def test_a_sector_that_cannot_be_read_while_it_is_sent_is_damage_though_the_blob_was_verified(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = added(store, tmp_path, LARGE).sha256

    def fails(*_: object) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(store.files, "read_unseen", fails)
    monkeypatch.setattr(hashlib, "file_digest", fails)
    with pytest.raises(TransferFailed, match="is damaged"):
        store.read_chunk(sha256, 0, 10)
    assert not store.has(sha256)


def test_two_threads_that_lay_out_one_version_do_not_meet(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(added(store, tmp_path, SMALL))
    both = threading.Barrier(2, timeout=10)
    real = store.is_sound

    def together(sha256: bytes) -> bool:
        both.wait()  # each has seen that the folder is not there
        return real(sha256)

    monkeypatch.setattr(store, "is_sound", together)
    with ThreadPoolExecutor(2) as threads:
        made = [*threads.map(store.materialise, [manifest, manifest])]
    assert made[0] == made[1]
    assert (made[0] / "model.onnx").read_bytes() == SMALL
    assert [path.name for path in made[0].parent.iterdir()] == [manifest.digest]

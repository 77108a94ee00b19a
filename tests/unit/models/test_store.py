from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest

from meshnode.errors import ConfigError, ModelError, TransferFailed
from meshnode.models.artifacts.store import BlobStore, _modified_s
from meshnode.models.manifest import FileEntry, Manifest

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).digest()


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "data")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(CONTENT)
    return path


def files_below(store: BlobStore) -> list[str]:
    root = store.path(SHA256).parents[2]
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def manifest_of(*files: FileEntry) -> Manifest:
    return Manifest("m", 1, "onnx", "onnxruntime_onnx", (), (), 0, files, files[0].path)


def raiser(code: int) -> Any:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return fail


def test_an_added_file_is_a_copy_under_its_hash(store: BlobStore, source: Path) -> None:
    assert store.add_file(source) == FileEntry("model.onnx", len(CONTENT), SHA256)
    source.write_bytes(b"edited in place")
    assert store.has(SHA256)
    assert store.path(SHA256).read_bytes() == CONTENT
    assert store.size_bytes(SHA256) == len(CONTENT)
    assert files_below(store) == [f"blobs/{SHA256.hex()[:2]}/{SHA256.hex()}"]


def test_adding_the_same_content_twice_keeps_one_blob(store: BlobStore, source: Path) -> None:
    store.add_file(source)
    assert store.add_file(source, "sub/other.bin").path == "sub/other.bin"
    assert len(files_below(store)) == 1


def test_a_file_that_cannot_be_read_leaves_nothing(store: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        store.add_file(tmp_path / "missing.onnx")
    assert files_below(store) == []


def test_chunks_are_read_from_any_offset(store: BlobStore, source: Path) -> None:
    store.add_file(source)
    assert store.read_chunk(SHA256, 0, 7) == b"weights"
    assert store.read_chunk(SHA256, len(CONTENT) - 2, 100) == b"ts"
    assert store.read_chunk(SHA256, len(CONTENT), 100) == b""
    with pytest.raises(TransferFailed, match="is not on this node"):
        store.read_chunk(bytes(32), 0, 1)
    with pytest.raises(TransferFailed, match="is not on this node"):
        store.size_bytes(bytes(32))


def test_a_received_blob_appears_when_it_is_complete(store: BlobStore) -> None:
    with store.open_writer(SHA256, len(CONTENT)) as writer:
        assert writer.offset == 0
        writer.write(CONTENT[:3000])
        assert not store.has(SHA256)
        writer.write(memoryview(CONTENT)[3000:])
        assert repr(writer) == f"<BlobWriter {SHA256.hex()[:12]} 7000/7000>"
        writer.finish()
    assert store.path(SHA256).read_bytes() == CONTENT
    assert len(files_below(store)) == 1


def test_an_empty_blob_needs_no_bytes(store: BlobStore) -> None:
    empty = hashlib.sha256().digest()
    with store.open_writer(empty, 0) as writer:
        writer.finish()
    assert store.size_bytes(empty) == 0


def test_a_broken_transfer_resumes_where_it_ended(store: BlobStore, tmp_path: Path) -> None:
    with store.open_writer(SHA256, len(CONTENT)) as writer:
        writer.write(CONTENT[:5000])
        with pytest.raises(TransferFailed, match="ended after 5000 of 7000 bytes"):
            writer.finish()
    after_restart = BlobStore(tmp_path / "data")
    with after_restart.open_writer(SHA256, len(CONTENT)) as writer:
        assert writer.offset == 5000
        writer.write(CONTENT[5000:])
        writer.finish()
    assert after_restart.has(SHA256)


def test_a_part_that_a_crash_truncated_or_damaged_never_becomes_a_blob(store: BlobStore) -> None:
    """A power cut may leave zeros where bytes had been written: the sum at the end tells."""
    with store.open_writer(SHA256, len(CONTENT)) as writer:
        writer.write(CONTENT[:5000])
    part = store.path(SHA256).with_suffix(".part")
    part.write_bytes(CONTENT[:2000] + bytes(1000))
    with store.open_writer(SHA256, len(CONTENT)) as writer:
        assert writer.offset == 3000
        writer.write(CONTENT[3000:])
        with pytest.raises(TransferFailed, match="does not match its SHA-256"):
            writer.finish()
    assert files_below(store) == []
    with store.open_writer(SHA256, len(CONTENT)) as writer:
        assert writer.offset == 0


def test_a_part_that_is_longer_than_promised_starts_again(store: BlobStore) -> None:
    with store.open_writer(SHA256, 9000) as writer:
        writer.write(bytes(8000))
    with store.open_writer(SHA256, len(CONTENT)) as writer:
        assert writer.offset == 0
        writer.write(CONTENT)
        writer.finish()
    assert store.has(SHA256)


def test_a_sender_that_sends_too_much_is_cut_off(store: BlobStore) -> None:
    writer = store.open_writer(SHA256, 10)
    with pytest.raises(TransferFailed, match="longer than the 10 bytes promised"):
        writer.write(bytes(11))
    assert files_below(store) == []


def test_one_blob_is_received_once_at_a_time(store: BlobStore) -> None:
    with store.open_writer(SHA256, 10):
        assert "receiving=1" in repr(store)
        with pytest.raises(TransferFailed, match="already being received"):
            store.open_writer(SHA256, 10)
    store.open_writer(SHA256, 10).close()


def test_a_transfer_that_cannot_fit_is_refused_before_it_begins(store: BlobStore) -> None:
    with pytest.raises(TransferFailed, match="a model file needs"):
        store.open_writer(SHA256, 2**60)
    store.open_writer(SHA256, 10).close()  # and is not held as being received


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing_half_written(
    store: BlobStore, source: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    writer = store.open_writer(SHA256, len(CONTENT))
    writer.write(CONTENT)
    monkeypatch.setattr(os, "fsync", raiser(code))
    with pytest.raises(TransferFailed, match="is full"):
        writer.finish()
    with pytest.raises(TransferFailed, match="is full"):
        store.add_file(source)
    assert files_below(store) == []


def test_a_disk_that_fills_during_a_write_leaves_nothing(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = store.open_writer(SHA256, len(CONTENT))

    class FullFile:
        write = staticmethod(raiser(errno.ENOSPC))
        writelines = write
        close = staticmethod(raiser(errno.ENOSPC))  # its buffer cannot be flushed either

    real = writer._file
    monkeypatch.setattr(writer, "_file", FullFile())
    with pytest.raises(TransferFailed, match="is full"):
        writer.write(CONTENT)
    real.close()
    assert files_below(store) == []


def test_a_data_folder_that_cannot_be_written_is_a_config_error(
    store: BlobStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = store.add_file(source)
    monkeypatch.setattr(Path, "mkdir", raiser(errno.EACCES))
    for act in (
        lambda: store.add_file(source),
        lambda: store.open_writer(SHA256, 1),
        lambda: store.materialise(manifest_of(entry)),
    ):
        with pytest.raises(ConfigError, match="cannot be written: Permission denied"):
            act()


def test_a_model_folder_is_made_of_links_to_blobs(store: BlobStore, source: Path) -> None:
    manifest = manifest_of(store.add_file(source), store.add_file(source, "sub/same.bin"))
    folder = store.materialise(manifest)
    assert folder.name == manifest.digest
    assert (folder / "model.onnx").read_bytes() == CONTENT
    assert (folder / "sub" / "same.bin").samefile(store.path(SHA256))
    assert store.materialise(manifest) == folder
    assert [path.name for path in folder.parent.iterdir()] == [manifest.digest]


def test_where_links_are_not_possible_blobs_are_copied(
    store: BlobStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(store.add_file(source))
    monkeypatch.setattr(os, "link", raiser(errno.EPERM))
    folder = store.materialise(manifest)
    assert (folder / "model.onnx").read_bytes() == CONTENT
    assert not (folder / "model.onnx").samefile(store.path(SHA256))


def test_two_paths_that_a_file_system_takes_for_one_are_refused(
    store: BlobStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(store.add_file(source))
    monkeypatch.setattr(os, "link", raiser(errno.EEXIST))
    with pytest.raises(TransferFailed, match="names two files"):
        store.materialise(manifest)


def test_a_model_folder_that_lost_a_file_is_made_again(store: BlobStore, source: Path) -> None:
    manifest = manifest_of(store.add_file(source))
    (store.materialise(manifest) / "model.onnx").unlink()
    assert (store.materialise(manifest) / "model.onnx").read_bytes() == CONTENT


def test_a_missing_blob_stops_the_folder_and_leaves_nothing(store: BlobStore) -> None:
    with pytest.raises(TransferFailed, match="is not on this node"):
        store.materialise(manifest_of(FileEntry("model.onnx", 1, SHA256)))
    assert files_below(store) == []


def test_a_path_that_leads_out_is_never_written(store: BlobStore, source: Path) -> None:
    entry = msgspec.structs.replace(store.add_file(source), path="../evil")
    with pytest.raises(ModelError, match="not a plain relative path"):
        store.materialise(manifest_of(entry))


def test_collecting_keeps_what_is_used_and_what_is_being_received(
    store: BlobStore, source: Path, tmp_path: Path
) -> None:
    kept = manifest_of(store.add_file(source))
    folder = store.materialise(kept)
    other = tmp_path / "other.bin"
    other.write_bytes(b"other")
    dropped = manifest_of(store.add_file(other))
    store.materialise(dropped)
    stale, current = b"\x01" * 32, b"\x02" * 32
    store.open_writer(stale, 10).close()
    with store.open_writer(current, 10) as writer:
        assert store.collect([kept], min_age_s=0) == 1
        writer.write(bytes(3))
    assert store.has(SHA256)
    assert not store.has(dropped.files[0].sha256)
    assert [path.name for path in folder.parent.iterdir()] == [kept.digest]
    assert not store.path(stale).with_suffix(".part").exists()
    assert store.path(current).with_suffix(".part").stat().st_size == 3


def test_what_is_young_is_not_collected(store: BlobStore, source: Path) -> None:
    """It may belong to a manifest that is still being made."""
    entry = store.add_file(source)
    folder = store.materialise(manifest_of(entry))
    assert store.collect([]) == 0
    for path in (store.path(SHA256), folder):
        os.utime(path, (0, 0))
    store.add_file(source)  # wanted again
    assert store.materialise(manifest_of(entry)) == folder
    assert store.collect([]) == 0
    for path in (store.path(SHA256), folder):
        os.utime(path, (0, 0))
    assert store.collect([]) == 1
    assert not folder.exists()


def test_what_vanishes_while_it_is_collected_is_no_error(tmp_path: Path) -> None:
    assert _modified_s(tmp_path / "gone") == math.inf


def test_collecting_an_empty_store_does_nothing(store: BlobStore) -> None:
    assert store.collect([], min_age_s=0) == 0


def test_a_folder_that_cannot_be_removed_is_left(
    store: BlobStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, while a runtime has a file of it open."""
    folder = store.materialise(manifest_of(store.add_file(source)))
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    assert store.collect([], min_age_s=0) == 1
    assert folder.is_dir()


def test_what_nobody_wants_stays_as_far_as_there_is_room_the_last_wanted_longest(
    store: BlobStore, tmp_path: Path
) -> None:
    made = []
    for number in range(3):
        source = tmp_path / f"f{number}"
        source.write_bytes(bytes([number]) * 1000)
        made.append(manifest_of(store.add_file(source)))
        os.utime(store.path(made[-1].files[0].sha256), (number + 1, number + 1))
    store.touch(made[0])  # it was served until now
    asked: list[int] = []

    def spare(unused_bytes: int) -> int:
        asked.append(unused_bytes)
        return 2000

    assert store.collect([], min_age_s=0, spare=spare) == 1
    assert asked == [3000]
    assert [store.has(each.files[0].sha256) for each in made] == [True, False, True]
    assert store.collect([made[2]], min_age_s=0, spare=lambda _: 0) == 1
    assert store.has(made[2].files[0].sha256), "what is wanted never goes"


def test_a_start_removes_what_was_left_half_copied(store: BlobStore, source: Path) -> None:
    manifest = manifest_of(store.add_file(source))
    folder = store.materialise(manifest)
    blobs = store.path(SHA256).parents[1]
    received = store.path(b"\x01" * 32).with_suffix(".pieces")
    received.parent.mkdir(exist_ok=True)
    received.write_bytes(b"some")
    received.with_suffix(".have").write_bytes(bytes(4))
    left = [blobs / "tmpabc.part", store.path(b"\x02" * 32).with_suffix(".have")]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    building = folder.parent / "tmpdef.part"
    building.mkdir()
    store.sweep()
    assert not any(path.exists() for path in [*left, building])
    assert store.has(SHA256)
    assert folder.is_dir()
    assert received.with_suffix(".have").exists(), "a transfer goes on with these"


def test_room_is_counted_once_for_each_file_and_only_for_what_is_missing(
    store: BlobStore, source: Path, tmp_path: Path
) -> None:
    here = store.add_file(source)
    coming = FileEntry("other", 500, b"\x01" * 32)
    both = manifest_of(here, coming)
    assert store.here_bytes([both, both]) == len(CONTENT)
    assert store.missing_bytes([both, both]) == 500
    part = store.path(coming.sha256).with_suffix(".pieces")
    part.parent.mkdir(exist_ok=True)
    part.write_bytes(bytes(400))
    assert store.missing_bytes([both]) <= 500
    free, size = BlobStore(tmp_path / "not" / "made").free_bytes()
    assert 0 < free <= size

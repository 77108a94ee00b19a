"""Room for files that are to come, on a store whose disk the test makes up."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from meshnode.daemon.disk_room import DiskRoom
from meshnode.errors import TransferFailed
from meshnode.models.artifacts.store import BlobStore
from meshnode.models.manifest import FileEntry, Manifest

if TYPE_CHECKING:
    from pathlib import Path

KIB = 1 << 10


class MadeUp(BlobStore):
    """A store on a disk of a size of its own."""

    disk = (1000 * KIB, 1000 * KIB)

    def free_bytes(self) -> tuple[int, int]:
        return self.disk


@pytest.fixture
def store(tmp_path: Path) -> MadeUp:
    return MadeUp(tmp_path / "data")


def add(store: BlobStore, folder: Path, name: str, size_bytes: int) -> Manifest:
    source = folder / name
    source.write_bytes(name.encode() * size_bytes)
    made = manifest_of(store.add_file(source))
    os.utime(store.path(made.files[0].sha256), (1, 1))
    return made


def manifest_of(*entries: FileEntry) -> Manifest:
    return Manifest("m", 1, "onnx", "onnxruntime_onnx", (), (), 0, entries, entries[0].path)


COMING = manifest_of(FileEntry("c", 50 * KIB, b"\x01" * 32))


def test_what_nobody_wants_makes_room_for_what_comes(store: MadeUp, tmp_path: Path) -> None:
    wanted, former = add(store, tmp_path, "w", 30 * KIB), add(store, tmp_path, "f", 30 * KIB)
    keep = [wanted, COMING]
    DiskRoom(store, 120 * KIB).make(keep, "it", coming=[COMING])
    assert store.has(former.files[0].sha256), "there is room for all"
    DiskRoom(store, 100 * KIB).make(keep, "it", coming=[COMING])
    assert not store.has(former.files[0].sha256)
    assert store.has(wanted.files[0].sha256)


@pytest.mark.parametrize("max_disk", [70 * KIB, 0.07])
def test_what_is_wanted_never_goes_and_the_rest_is_refused(
    store: MadeUp, tmp_path: Path, max_disk: float
) -> None:
    wanted = add(store, tmp_path, "w", 30 * KIB)
    with pytest.raises(TransferFailed, match="--max-disk"):
        DiskRoom(store, max_disk).make([wanted, COMING], "it", coming=[COMING])
    assert store.has(wanted.files[0].sha256)


def test_what_versions_keep_for_themselves_counts_too(store: MadeUp, tmp_path: Path) -> None:
    wanted = add(store, tmp_path, "w", 30 * KIB)
    DiskRoom(store, 120 * KIB).make([wanted, COMING], "it", coming=[COMING])
    folder = store.caches.root / wanted.digest
    folder.mkdir(parents=True)
    (folder / "engine").write_bytes(os.urandom(60 * KIB))
    with pytest.raises(TransferFailed, match="--max-disk"):
        DiskRoom(store, 120 * KIB).make([wanted, COMING], "it", coming=[COMING])


def test_versions_of_other_nodes_count_only_if_they_come_here(store: MadeUp) -> None:
    huge = manifest_of(FileEntry("h", 10**12, b"\x02" * 32))
    DiskRoom(store).make([huge, COMING], "it", coming=[COMING])
    with pytest.raises(TransferFailed, match="are still to come"):
        DiskRoom(store).make([huge], "it", coming=[huge])
    with pytest.raises(TransferFailed, match="are still to come"):
        DiskRoom(store).make([], "it", copied_bytes=10**12)


def test_room_is_given_back_when_the_disk_fills(store: MadeUp, tmp_path: Path) -> None:
    former = add(store, tmp_path, "f", 30 * KIB)
    room = DiskRoom(store)
    room.give_back([], [])
    assert store.has(former.files[0].sha256), "it may be wanted again"
    store.disk = (10 * KIB, 1000 * KIB)
    room.give_back([], [])
    assert not store.has(former.files[0].sha256)

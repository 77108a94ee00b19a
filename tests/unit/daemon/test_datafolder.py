"""The data folder: durable, private, one daemon at a time, and clear about what is wrong."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from meshnode import datafolder, folderlock
from meshnode.datafolder import DataFolder, MeshFile
from meshnode.errors import ConfigError
from meshnode.folderlock import Holder, holder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[DataFolder]:
    opened = DataFolder(tmp_path / "data")
    yield opened
    opened.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_written_is_there_after_a_restart_and_private(tmp_path: Path) -> None:
    first = DataFolder(tmp_path / "data")
    assert repr(first) == f"<DataFolder {tmp_path / 'data'}>"
    identity = first.identity()
    mesh = MeshFile("mesh", b"chain", b"seed", (("host", 1),))
    first.save_mesh(mesh)
    first.save_state("roster", b"bytes")
    epoch = first.next_epoch(1000.0)
    first.close()
    first.close()
    second = DataFolder(tmp_path / "data")
    assert second.identity().node_id == identity.node_id
    assert second.mesh() == mesh
    assert second.state("roster") == b"bytes"
    assert second.next_epoch(1000.0) == epoch + 1
    second.close()
    for name in ("identity.key", "mesh", "epoch", "state/roster"):
        assert mode(second.path / name) == 0o600
    for name in (".", "state"):
        assert mode(second.path / name) == 0o700


@pytest.mark.skipif(os.name == "nt", reason="Unix")
def test_a_key_that_others_could_read_is_closed_to_them_and_the_owner_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = DataFolder(tmp_path / "data")
    identity = first.identity()
    first.save_mesh(MeshFile("mesh", b"chain", b"seed"))
    first.close()
    key = first.path / "identity.key"
    key.chmod(0o644)
    (first.path / "mesh").chmod(0o660)
    second = DataFolder(first.path)
    assert second.identity().node_id == identity.node_id
    assert (mode(key), mode(first.path / "mesh")) == (0o600, 0o600)
    assert "identity.key could be read or written by other users" in caplog.text
    second.close()
    key.chmod(0o640)

    def refuse(_path: Path, _mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "chmod", refuse)
        with pytest.raises(ConfigError, match="cannot be closed to them"):
            DataFolder(first.path)
    DataFolder(first.path).close()


def test_an_empty_folder_knows_nothing(folder: DataFolder) -> None:
    assert folder.mesh() is None
    assert folder.state("members") is None


def test_a_second_daemon_is_refused_and_the_first_one_unharmed(folder: DataFolder) -> None:
    with pytest.raises(ConfigError, match="another meshnode daemon is running"):
        DataFolder(folder.path)
    folder.save_state("x", b"y")


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folderlock, "_try_lock", unsupported)
    with pytest.raises(ConfigError, match=r"cannot be locked: No locks available; .*local disk"):
        DataFolder(tmp_path)


def test_a_write_that_was_torn_leaves_the_former_content(folder: DataFolder) -> None:
    folder.save_state("roster", b"former")
    (folder.path / "state" / "roster.new").write_bytes(b"to")
    assert folder.state("roster") == b"former"
    folder.save_state("roster", b"newer")
    assert folder.state("roster") == b"newer"


@pytest.mark.parametrize(
    ("name", "content", "ask"),
    [
        ("identity.key", b"short", lambda folder: folder.identity()),
        ("identity.key", b"", lambda folder: folder.identity()),
        ("mesh", b"\xc1garbage", lambda folder: folder.mesh()),
        ("mesh", msgspec.msgpack.encode([1, 2]), lambda folder: folder.mesh()),
        ("mesh", b"", lambda folder: folder.mesh()),
        ("epoch", b"", lambda folder: folder.next_epoch(1.0)),
        ("epoch", b"12x", lambda folder: folder.next_epoch(1.0)),
        ("epoch", b"9" * 5000, lambda folder: folder.next_epoch(1.0)),
    ],
)
def test_every_damaged_file_is_named_with_what_to_do_and_left_alone(
    folder: DataFolder, name: str, content: bytes, ask: Callable[[DataFolder], object]
) -> None:
    path = folder.path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{name} is damaged .*(remove|restore)"):
        ask(folder)
    assert path.read_bytes() == content


def test_a_file_that_is_far_too_large_is_not_read(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datafolder, "MAX_STATE_FILE_BYTES", 10)
    (folder.path / "mesh").write_bytes(bytes(11))
    with pytest.raises(ConfigError, match="too large"):
        folder.mesh()


def test_a_folder_in_the_place_of_a_file_is_named(folder: DataFolder) -> None:
    (folder.path / "mesh").mkdir()
    with pytest.raises(ConfigError, match=r"cannot read .*mesh: Is a directory"):
        folder.mesh()


@pytest.mark.parametrize("step", ["write", "fsync"])
def test_a_full_disk_keeps_the_former_content_and_gives_its_room_back(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    folder.save_state("roster", b"former")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    class Full:
        def __init__(self, descriptor: int, how: str) -> None:
            self._descriptor = descriptor

        def __enter__(self) -> Full:  # noqa: PYI034 - a test's stand-in
            return self

        def __exit__(self, *_: object) -> None:
            os.close(self._descriptor)

        write = full

    with monkeypatch.context() as patch:
        patch.setattr(os, *(("fsync", full) if step == "fsync" else ("fdopen", Full)))
        with pytest.raises(ConfigError, match=r"cannot write .*roster: No space left .*free some"):
            folder.save_state("roster", b"newer")
    assert folder.state("roster") == b"former"
    assert [path.name for path in (folder.path / "state").iterdir()] == ["roster"]
    folder.save_state("roster", b"newer")
    assert folder.state("roster") == b"newer"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot use the data folder"):
        DataFolder(tmp_path / "file" / "data")


def test_a_read_only_folder_is_named(folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(ConfigError, match=r"cannot write .*Read-only file system; .*--data-dir"):
        folder.save_state("roster", b"x")


def test_the_epoch_rises_also_when_the_clock_goes_back(folder: DataFolder) -> None:
    assert folder.next_epoch(5000.7) == 5000
    assert folder.next_epoch(1.0) == 5001
    assert folder.next_epoch(0.0) == 5002
    assert folder.next_epoch(6000.0) == 6000


def test_an_epoch_that_was_taken_while_running_is_exceeded_by_the_next(folder: DataFolder) -> None:
    folder.next_epoch(5000.0)
    folder.keep_epoch(7000)
    folder.keep_epoch(6000)
    assert folder.next_epoch(5001.0) == 7001


def test_who_runs_on_a_folder_is_known_by_its_process_id(folder: DataFolder) -> None:
    assert holder(folder.path) == Holder(os.getpid())
    with pytest.raises(ConfigError, match=rf"\(pid {os.getpid()}\).*`meshnode stop`"):
        DataFolder(folder.path)
    folder.close()
    assert holder(folder.path) is None  # the id is still in the file, and means nothing
    assert holder(folder.path / "nowhere") is None


def test_nothing_is_left_of_a_former_holder_s_longer_id(tmp_path: Path) -> None:
    (tmp_path / "lock").write_bytes(b"%d99\n" % os.getpid())
    opened = DataFolder(tmp_path)
    assert holder(tmp_path) == Holder(os.getpid())
    opened.close()


def test_a_holder_that_has_not_written_its_id_yet_is_one_all_the_same(folder: DataFolder) -> None:
    (folder.path / "lock").write_bytes(b"")
    assert holder(folder.path) == Holder(None)
    (folder.path / "lock").write_bytes(b"12; garbage")
    assert str(holder(folder.path)) == "a meshnode daemon"


def test_a_look_at_the_lock_does_not_keep_a_daemon_out(tmp_path: Path) -> None:
    first = DataFolder(tmp_path)
    threading.Timer(0.1, first.close).start()
    DataFolder(tmp_path).close()


def joined(path: Path) -> DataFolder:
    """Return a folder with a mesh and everything that comes with it."""
    folder = DataFolder(path)
    folder.identity()
    folder.next_epoch(1000.0)
    folder.save_mesh(MeshFile("mesh", b"chain", b"seed"))
    folder.save_state("roster", b"members")
    for name in ("blobs", "models", "uploads", "logs"):
        (path / name).mkdir()
        (path / name / "file").write_bytes(b"x")
    return folder


def test_forgetting_removes_what_belongs_to_the_mesh_and_keeps_the_device(tmp_path: Path) -> None:
    folder = joined(tmp_path / "data")
    identity = folder.identity().node_id
    folder.forget()
    assert folder.mesh() is None
    assert folder.state("roster") is None
    kept = {path.name for path in folder.path.iterdir()}
    assert kept == {"identity.key", "epoch", "lock", "logs", "state"}
    assert folder.identity().node_id == identity
    assert folder.next_epoch(1.0) == 1001
    folder.save_state("roster", b"of the next mesh")
    folder.close()


@pytest.mark.parametrize("name", ["state", "blobs", "models", "uploads", "mesh.forgotten"])
def test_a_crash_while_forgetting_leaves_a_folder_of_no_mesh_that_the_next_start_cleans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = joined(tmp_path / "data")

    def crash(path: Path, **_: object) -> None:
        if Path(path).name == name:
            raise KeyboardInterrupt
        remove(path)

    remove, unlink = shutil.rmtree, Path.unlink
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", crash)
        patch.setattr(
            Path, "unlink", lambda path, **_: crash(path) if path.name == name else unlink(path)
        )
        with pytest.raises(KeyboardInterrupt):
            folder.forget()
    folder.close()
    again = DataFolder(tmp_path / "data")
    assert again.mesh() is None
    assert again.state("roster") is None
    assert not [each for each in again.path.iterdir() if each.name in ("blobs", "mesh.forgotten")]
    again.close()


def test_a_crash_before_the_rename_leaves_the_mesh_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = joined(tmp_path / "data")
    mesh = folder.mesh()

    def full(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(ConfigError, match=r"cannot forget the mesh of .*: Input/output error"):
            folder.forget()
    assert folder.mesh() == mesh
    assert folder.state("roster") == b"members"
    folder.close()

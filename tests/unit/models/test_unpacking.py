"""Archives from elsewhere: what is in them comes out, and nothing that attacks does."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import ModelError
from meshnode.models.repository import unpacking
from meshnode.models.repository.unpacking import is_archive, unpack

if TYPE_CHECKING:
    from pathlib import Path

ROOM = 10**9


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    mode: Any = "w" if path.suffix == ".tar" else f"w:{path.suffix[1:]}"
    with tarfile.open(path, mode) as archive:
        for member, content in members:
            member.size = len(content) if member.isfile() else 0
            archive.addfile(member, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


GOOD = {"net/config.pbtxt": b"", "net/1/model.onnx": b"m" * 3_000_000}


def test_a_zip_file_is_unpacked(tmp_path: Path) -> None:
    unpack(zipped(tmp_path / "a.ZIP", GOOD), tmp_path / "out", ROOM)
    assert contents(tmp_path / "out") == GOOD


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz", ".tar.bz2"])
def test_tar_files_are_unpacked(tmp_path: Path, suffix: str) -> None:
    members = [(member(f"./{name}"), content) for name, content in GOOD.items()]
    archive = tarred(tmp_path / f"a{suffix}", (member("net", tarfile.DIRTYPE), b""), *members)
    assert is_archive(archive.name)
    unpack(archive, tmp_path / "out", ROOM)
    assert contents(tmp_path / "out") == GOOD


ATTACKS = [
    "../out.onnx",
    "/etc/passwd",
    "net/../../x",
    "C:/x",
    "net\\..\\x",
    "net/aux.txt",
    "net/mode\u200bl.onnx",
    "net/\uff4dodel.onnx",
    "net/x.",
]


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_name_that_leads_elsewhere_or_deceives_is_refused(
    tmp_path: Path, name: str, kind: str
) -> None:
    if kind == "zip":
        archive = zipped(tmp_path / "a.zip", {"net/good": b"", name: b"x"})
    else:
        archive = tarred(tmp_path / "a.tar", (member("net/good"), b""), (member(name), b"x"))
    with pytest.raises(ModelError, match="cannot be taken under this name"):
        unpack(archive, tmp_path / "out", ROOM)
    assert sorted(path.name for path in tmp_path.iterdir()) == [archive.name]


def test_names_that_hide_one_another_are_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"net/Model.onnx": b"", "NET/model.onnx": b""})
    with pytest.raises(ModelError, match="are the same name on some systems"):
        unpack(archive, tmp_path / "out", ROOM)


def test_links_in_a_zip_file_are_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("net/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ModelError, match="'net/link' in the archive is a link"):
        unpack(tmp_path / "a.zip", tmp_path / "out", ROOM)


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE],
)
def test_what_is_no_plain_file_in_a_tar_file_is_refused(tmp_path: Path, kind: bytes) -> None:
    archive = tarred(tmp_path / "a.tar", (member("net/x", kind, "/etc/passwd"), b""))
    with pytest.raises(ModelError, match=r"is a link or no regular file|that can be read"):
        unpack(archive, tmp_path / "out", ROOM)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb_is_stopped_while_it_unpacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(unpacking, "MIN_UNPACKED_BYTES", 100_000)
    zeros = bytes(20_000_000)
    place = tmp_path / f"bomb.{kind}"
    archive = zipped(place, {"x": zeros}) if kind == "zip" else tarred(place, (member("x"), zeros))
    with pytest.raises(ModelError, match="more than 200 times its own size, as a zip bomb does"):
        unpack(archive, tmp_path / "out", ROOM)
    assert not (tmp_path / "out").exists()


def test_a_size_that_an_archive_claims_is_not_believed(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"x": bytes(1_000_000)})
    raw = archive.read_bytes()
    claimed = raw.replace((1_000_000).to_bytes(4, "little"), (5).to_bytes(4, "little"))
    archive.write_bytes(claimed)
    with pytest.raises(ModelError, match="that can be read"):
        unpack(archive, tmp_path / "out", ROOM)
    assert not (tmp_path / "out").exists()


def test_more_than_there_is_room_for_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="unpacks to more than 1000000 bytes"):
        unpack(zipped(tmp_path / "a.zip", GOOD), tmp_path / "out", 1_000_000)


def test_limits_on_files_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MAX_MODEL_FILES", 2)
    archive = zipped(tmp_path / "a.zip", {f"f{index}": b"" for index in range(3)})
    with pytest.raises(ModelError, match="has 3 files; at most 2"):
        unpack(archive, tmp_path / "out", ROOM)
    many = tarred(tmp_path / "a.tar", *((member(f"f{index}"), b"") for index in range(6)))
    with pytest.raises(ModelError, match="has more than 4 members"):
        unpack(many, tmp_path / "out", ROOM)
    monkeypatch.setattr(unpacking, "MAX_MODEL_FILE_BYTES", 10)
    with pytest.raises(ModelError, match="'x' in the archive is larger than 10 bytes"):
        unpack(zipped(tmp_path / "b.zip", {"x": b"1" * 11}), tmp_path / "out", ROOM)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz"])
def test_what_is_no_archive_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no archive at all" * 100)
    with pytest.raises(ModelError, match="that can be read"):
        unpack(tmp_path / name, tmp_path / "out", ROOM)
    with pytest.raises(ModelError, match="cannot be unpacked: No such file"):
        unpack(tmp_path / f"missing-{name}", tmp_path / "out", ROOM)


def test_a_truncated_or_encrypted_archive_leaves_nothing_behind(tmp_path: Path) -> None:
    archive = tarred(tmp_path / "a.tar.gz", (member("x"), bytes(range(256)) * 4000))
    archive.write_bytes(archive.read_bytes()[:-500])
    with pytest.raises(ModelError, match="that can be read"):
        unpack(archive, tmp_path / "out", ROOM)
    locked = zipped(tmp_path / "a.zip", {"x": b"1"})
    raw = bytearray(locked.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    locked.write_bytes(bytes(raw))
    with pytest.raises(ModelError, match="'x' in the archive is encrypted"):
        unpack(locked, tmp_path / "out", ROOM)
    assert not (tmp_path / "out").exists()

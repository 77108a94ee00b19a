"""Archives from elsewhere, unpacked so that nothing of them lies outside the folder, or fills the disk.

| refused | because |
|---|---|
| names as `meshnode.models.repository.upload_paths` refuses them: absolute, `..`, NUL, look-alikes, twins by case | they lead elsewhere, or hide one another |
| links, hard links, devices, pipes, sparse files | they reach what is not in the archive |
| encrypted members | nobody is there to ask for the password |
| more files, or larger ones, than a model may have | there is no end to them |
| bytes beyond what the caller has room for, or beyond 200 times the archive's own (a zip bomb) | the disk is full |

Sizes are counted as they are written: what an archive's directory says of itself is not believed.
"""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
import zlib
from typing import IO, TYPE_CHECKING, Final

from meshnode.errors import InvalidRequest, ModelError
from meshnode.limits import (
    MAX_MODEL_FILE_BYTES,
    MAX_MODEL_FILES,
    MAX_UNPACKED_RATIO,
    MIN_UNPACKED_BYTES,
)
from meshnode.models.repository.upload_paths import check_names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ARCHIVE_SUFFIXES: Final = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
"""Names of what `unpack` takes."""

_PIECE_BYTES: Final = 1024 * 1024


def is_archive(name: str) -> bool:
    """Whether a file of this name is unpacked before models are looked for in it."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def unpack(archive: Path, folder: Path, room_bytes: int) -> None:
    """Unpack an archive of any kind above into a new folder.

    Args:
        archive: The file; its name tells the kind.
        folder: Is made; taken away again if anything is wrong.
        room_bytes: How much may be written.

    Raises:
        ModelError: saying which member is refused, or that it is no such archive.
    """
    if archive.name.lower().endswith(".zip"):
        unpack_zip(archive, folder, room_bytes)
    else:
        unpack_tar(archive, folder, room_bytes)


def unpack_zip(archive: Path, folder: Path, room_bytes: int) -> None:
    """Unpack a zip file, a TorchServe `.mar` for one; as `unpack`."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            for member in members:
                _check_zip_member(member)
            target = _Target(archive, folder, room_bytes, [each.filename for each in members])
            with target:
                for member in members:
                    with opened.open(member) as stream:
                        target.write(member.filename, stream)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"{archive.name!r} is no zip file that can be read: {error}") from None
    except OSError as error:
        raise _unreadable(archive, error) from None


def unpack_tar(archive: Path, folder: Path, room_bytes: int) -> None:
    """Unpack a tar file, compressed or not; as `unpack`."""
    try:
        with tarfile.open(archive) as opened:
            members = list(_tar_members(opened, archive))
            target = _Target(archive, folder, room_bytes, [_plain(each.name) for each in members])
            with target:
                for member in members:
                    stream = opened.extractfile(member)
                    if stream is not None:
                        with stream:
                            target.write(_plain(member.name), stream)
    except (tarfile.TarError, zlib.error, EOFError, ValueError) as error:
        raise ModelError(f"{archive.name!r} is no tar file that can be read: {error}") from None
    except OSError as error:
        raise _unreadable(archive, error) from None


def _unreadable(archive: Path, error: OSError) -> ModelError:
    return ModelError(f"{archive.name!r} cannot be unpacked: {error.strerror or error}")


def _check_zip_member(member: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise ModelError(f"{member.filename!r} in the archive is a link or no regular file")
    if member.flag_bits & 0x1:
        raise ModelError(f"{member.filename!r} in the archive is encrypted")


def _tar_members(opened: tarfile.TarFile, archive: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the files; reading the list of a compressed archive unpacks it, so sizes are added up here."""
    total_bytes = 0
    limit_bytes = _limit_bytes(archive)
    for count, member in enumerate(opened):
        if count > 2 * MAX_MODEL_FILES:
            raise ModelError(f"{archive.name!r} has more than {2 * MAX_MODEL_FILES} members")
        if member.isdir():
            continue
        if not member.isfile() or member.issparse():
            raise ModelError(f"{member.name!r} in the archive is a link or no regular file")
        total_bytes += member.size
        if total_bytes > limit_bytes:
            raise _bomb(archive, limit_bytes)
        yield member


def _plain(name: str) -> str:
    """Return a member's name without the `./` that tar writes before all of them."""
    return name.removeprefix("./")


def _limit_bytes(archive: Path) -> int:
    return max(MIN_UNPACKED_BYTES, archive.stat().st_size * MAX_UNPACKED_RATIO)


def _bomb(archive: Path, limit_bytes: int) -> ModelError:
    return ModelError(
        f"{archive.name!r} unpacks to more than {limit_bytes} bytes: that is more than {MAX_UNPACKED_RATIO} "
        "times its own size, as a zip bomb does, or more than there is room for"
    )


class _Target:
    """The folder that is written; it is gone again if anything was wrong."""

    def __init__(self, archive: Path, folder: Path, room_bytes: int, names: list[str]) -> None:
        self._archive = archive
        self._folder = folder
        self._left_bytes = self._limit_bytes = min(_limit_bytes(archive), room_bytes)
        if len(names) > MAX_MODEL_FILES:
            raise ModelError(f"{archive.name!r} has {len(names)} files; at most {MAX_MODEL_FILES}")
        try:
            check_names(names)
        except InvalidRequest as error:
            raise ModelError(f"{archive.name!r} is refused: {error}") from None

    def __enter__(self) -> None:
        self._folder.mkdir(parents=True)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def write(self, name: str, stream: IO[bytes]) -> None:
        place = self._folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        size_bytes = 0
        with place.open("xb") as file:
            while piece := stream.read(_PIECE_BYTES):
                size_bytes += len(piece)
                self._left_bytes -= len(piece)
                if self._left_bytes < 0:
                    raise _bomb(self._archive, self._limit_bytes)
                if size_bytes > MAX_MODEL_FILE_BYTES:
                    raise ModelError(
                        f"{name!r} in the archive is larger than {MAX_MODEL_FILE_BYTES} bytes"
                    )
                file.write(piece)

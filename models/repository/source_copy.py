"""The local copy of a source: whole, verified, and kept across restarts.

Layout below the folder of one source::

    source.json       which URL, and of each file its stamp, size and SHA-256
    files/<name>/     the files, in a folder that is named like the last part of the URL
    staging/          files that are on their way; what has arrived whole is not fetched again

A copy is brought up to date in two steps: everything that is new is fetched into `staging` and checked
there, then all of it takes its place by renames. So a transfer that breaks off changes nothing, and who has an
old file open keeps it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.errors import TransferFailed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from meshnode.models.repository.source_stores import RemoteFile

_PIECE_BYTES: Final = 1024 * 1024


class KeptFile(msgspec.Struct, frozen=True):
    """One file of a copy: what the source said of it, and the hash of what is here."""

    stamp: str
    size_bytes: int
    sha256: str


class Kept(msgspec.Struct, frozen=True):
    """What a copy is of.

    Attributes:
        url: Where it comes from.
        is_single: Whether the URL names one file.
        files: By relative path.
        is_whole: False while renames are under way.
    """

    url: str
    is_single: bool = False
    files: dict[str, KeptFile] = {}
    is_whole: bool = False


class SourceCopy:
    """The copy of one source. One process at a time uses it."""

    def __init__(self, folder: Path, url: str, name: str) -> None:
        """Use what is in a folder; nothing is written before `replace`.

        Args:
            folder: Of this source alone.
            url: Its URL.
            name: What the folder of its files is called.
        """
        self._folder = folder
        self._staging = folder / "staging"
        self.files = folder / "files" / name
        self.kept = self._read(url)

    def _read(self, url: str) -> Kept:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            kept = msgspec.json.decode((self._folder / "source.json").read_bytes(), type=Kept)
            if kept.url == url:
                return kept
        return Kept(url)

    def damaged(self) -> list[str]:
        """Return the paths of files that are not here, or not as they came: all are read and hashed."""
        return [
            path
            for path, kept in self.kept.files.items()
            if not self._has_size(path, kept) or _sha256(self.files / path) != kept.sha256
        ]

    def _has_size(self, path: str, kept: KeptFile) -> bool:
        try:
            return (self.files / path).stat().st_size == kept.size_bytes
        except OSError:
            return False

    def forget(self, paths: list[str]) -> None:
        """Have these files fetched again."""
        left = {path: kept for path, kept in self.kept.files.items() if path not in paths}
        self._write(msgspec.structs.replace(self.kept, files=left, is_whole=False))

    def has(self, file: RemoteFile) -> bool:
        """Whether a file is here as the source has it now, by what the source says of it."""
        kept = self.kept.files.get(file.path)
        return (
            kept is not None
            and file.stamp != ""
            and kept.stamp == file.stamp
            and file.size_bytes in (None, kept.size_bytes)
            and self._has_size(file.path, kept)
        )

    def staged(self, file: RemoteFile) -> Path:
        """Return where a file is put on its way; a file there is whole."""
        told = f"{file.path}\0{file.stamp}\0{file.size_bytes}"
        return self._staging / hashlib.sha256(told.encode()).hexdigest()

    def begin(self) -> None:
        """Make the folder for files on their way."""
        self._staging.mkdir(parents=True, exist_ok=True)

    def replace(self, files: Mapping[str, RemoteFile], *, is_single: bool) -> None:
        """Put every staged file in its place, and take away what the source has no more.

        Raises:
            TransferFailed: if a name cannot be used on this disk.
        """
        kept = {path: entry for path, entry in self.kept.files.items() if path in files}
        for path, file in files.items():
            staged = self.staged(file)
            if staged.exists():
                size_bytes = staged.stat().st_size
                kept[path] = KeptFile(file.stamp, size_bytes, _sha256(staged))
        self._write(msgspec.structs.replace(self.kept, is_whole=False))
        self._remove(set(self.kept.files) - set(files))
        for path, file in files.items():
            staged = self.staged(file)
            if staged.exists():
                self._place(staged, self.files / path)
        self._write(Kept(self.kept.url, is_single, kept, is_whole=True))
        shutil.rmtree(self._staging, ignore_errors=True)

    def _remove(self, paths: set[str]) -> None:
        for path in paths:
            place = self.files / path
            place.unlink(missing_ok=True)
            for parent in place.relative_to(self.files).parents:
                if parent.parts:
                    with contextlib.suppress(OSError):  # it is not empty
                        (self.files / parent).rmdir()

    def _place(self, staged: Path, place: Path) -> None:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.is_dir():
                shutil.rmtree(place)
            staged.replace(place)
        except OSError as error:
            raise TransferFailed(f"{place} cannot be written: {error.strerror}") from None

    def _write(self, kept: Kept) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / "source.json.new"
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(kept))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._folder / "source.json")
        self.kept = kept


def _sha256(place: Path) -> str:
    try:
        with place.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""


def md5_of(place: Path) -> str:
    """Return the MD5 of a file as hex, to compare with what a store says; it protects from mistakes only."""
    with place.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()

"""Models from a bucket or a web server: fetched, checked, and kept as a local copy.

| URL | what it may be |
|---|---|
| `s3://bucket/path`, `gs://bucket/path` | a repository, a model's folder, a bare model file, or an archive |
| `http(s)://host/path/` with a slash at its end | a folder whose pages link to its files, as web servers list them |
| `http(s)://host/path` | a bare model file, or an archive |

Archives (`meshnode.models.repository.unpacking`) hold a repository or a model's folder. Only files that have changed are
fetched again, told by ETag, generation or time, and size. Room on the disk is looked at first. What arrives is
compared with the size that was told, and with the MD5 where the store has one. When the source cannot be
reached, the copy serves if it is whole.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from meshnode.errors import InvalidRequest, MeshError, ModelError, TransferFailed
from meshnode.limits import MAX_MODEL_FILE_BYTES, UPLOAD_RESERVE_BYTES
from meshnode.models.repository.config_backend import BARE_SUFFIXES
from meshnode.models.repository.local_archive import only_root, stem_of
from meshnode.models.repository.source_copy import SourceCopy, md5_of
from meshnode.models.repository.source_stores import Listing, RemoteFile, Store
from meshnode.models.repository.source_urls import check_url, last_part, shown
from meshnode.models.repository.unpacking import ARCHIVE_SUFFIXES, is_archive, unpack
from meshnode.models.repository.upload_paths import check_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

log = logging.getLogger(__name__)

_LOOK_AT_ROOM_EACH_BYTES: Final = 64 * 1024 * 1024
_HIDDEN_BUT_READ: Final = frozenset({".env"})


def _ignore(_done_bytes: int, _total_bytes: int) -> None:
    pass


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@dataclass(slots=True)
class Source:
    """One source and its local copy; used in one thread at a time.

    Attributes:
        url: Where it is.
        folder: Where copies are kept, of all sources.
        progress: Told of the bytes that have arrived, and of all that are to come, as far as known.
        free_bytes: Says how much room the disk of a folder has.
        open_store: Opens the other side.
        warnings: Sentences about the last `refresh`.
    """

    url: str
    folder: Path
    progress: Callable[[int, int], None] = _ignore
    free_bytes: Callable[[Path], int] = _free_bytes
    open_store: Callable[[str], Store] = Store
    warnings: list[str] = field(default_factory=list)
    _is_checked: bool = False

    def refresh(self, *, may_be_old: bool) -> Path:
        """Bring the copy up to date.

        Args:
            may_be_old: Whether a whole copy will do when the source cannot be read.

        Returns:
            What `meshnode.models.repository.scanning.scan` takes.

        Raises:
            ConfigError: if the URL is none, a library or credentials are missing.
            ModelError: if there is nothing, or what is there cannot be taken.
            TransferFailed: if it cannot be reached, or the disk has no room.
        """
        check_url(self.url)
        self.warnings.clear()
        try:
            return self._refresh(may_be_old=may_be_old)
        except OSError as error:
            raise TransferFailed(
                f"{error.filename or self.folder} cannot be written: {error.strerror}; the copy of "
                f"{shown(self.url)} is kept there"
            ) from None

    def _refresh(self, *, may_be_old: bool) -> Path:
        key = hashlib.sha256(self.url.encode()).hexdigest()[:32]
        copy = SourceCopy(self.folder / key, self.url, _folder_name(self.url))
        if not self._is_checked:
            self._forget_damaged(copy)
            self._is_checked = True
        try:
            self._update(copy)
        except MeshError as error:
            if not may_be_old or not copy.kept.is_whole:
                raise
            self.warnings.append(f"{error}; the copy that was fetched before is used")
        return self._unpacked(copy, self.folder / key)

    def _forget_damaged(self, copy: SourceCopy) -> None:
        damaged = copy.damaged()
        if damaged:
            log.warning(
                "the copy of %s is damaged (%s); it is fetched again", shown(self.url), damaged[0]
            )
            copy.forget(damaged)

    def _update(self, copy: SourceCopy) -> None:
        store = self.open_store(self.url)
        try:
            listing = store.list()
            files = {file.path: file for file in self._wanted(listing)}
            missing = [file for file in files.values() if not copy.has(file)]
            if missing or set(files) != set(copy.kept.files) or not copy.kept.is_whole:
                self._fetch_all(store, copy, missing)
                copy.replace(files, is_single=listing.is_single)
        finally:
            store.close()

    def _wanted(self, listing: Listing) -> Iterable[RemoteFile]:
        """Return what belongs to models, and nothing whose name could lead elsewhere."""
        if listing.is_single:
            (file,) = listing.files
            if not file.path.endswith(BARE_SUFFIXES) and not is_archive(file.path):
                kinds = ", ".join((*BARE_SUFFIXES, *ARCHIVE_SUFFIXES))
                raise ModelError(
                    f"{shown(self.url)} is neither a model file nor an archive (names end in {kinds}); a folder "
                    "on a web server ends in a slash"
                )
        good: list[RemoteFile] = []
        for file in listing.files:
            is_hidden = any(part.startswith(".") for part in file.path.split("/"))
            if is_hidden and file.path not in _HIDDEN_BUT_READ:
                continue
            try:
                check_names([file.path])
            except InvalidRequest as error:
                self.warnings.append(f"{shown(self.url)}: {error}; it is left out")
                continue
            if (file.size_bytes or 0) > MAX_MODEL_FILE_BYTES:
                raise ModelError(f"{file.path!r} is larger than {MAX_MODEL_FILE_BYTES} bytes")
            good.append(file)
        if not good:
            raise ModelError(f"{shown(self.url)} has no file that could belong to a model")
        try:
            check_names([file.path for file in good])
        except InvalidRequest as error:
            raise ModelError(f"{shown(self.url)}: {error}") from None
        return good

    def _fetch_all(self, store: Store, copy: SourceCopy, missing: list[RemoteFile]) -> None:
        copy.begin()
        missing = [file for file in missing if not (file.stamp and copy.staged(file).exists())]
        total_bytes = sum(file.size_bytes or 0 for file in missing)
        self._check_room(total_bytes)
        done_bytes = 0
        for file in missing:
            place = copy.staged(file)
            part = place.with_suffix(".part")
            try:
                self._fetch(store, file, part, done_bytes, total_bytes)
                part.replace(place)
                done_bytes += place.stat().st_size
            finally:
                part.unlink(missing_ok=True)

    def _check_room(self, size_bytes: int) -> None:
        free = self.free_bytes(self.folder)
        if size_bytes + UPLOAD_RESERVE_BYTES > free:
            raise TransferFailed(
                f"{shown(self.url)} needs {size_bytes} bytes, but {self.folder} has {free} free, of which "
                f"{UPLOAD_RESERVE_BYTES} stay free: make room, or use another --data-dir"
            )

    def _fetch(
        self, store: Store, file: RemoteFile, place: Path, done_bytes: int, total_bytes: int
    ) -> None:
        """Fetch one file and compare it; a second time if only its MD5 differs.

        An MD5 that differs twice in the same way is none: S3 shows something else of that form for objects
        that it encrypts with a key of its own.
        """
        before = ""
        while True:
            took = _Counter(self, file, done_bytes, total_bytes)
            store.fetch(file, place, took)
            size_bytes = place.stat().st_size
            if file.size_bytes not in (None, size_bytes):
                raise TransferFailed(
                    f"{file.path!r} of {shown(self.url)} has {size_bytes} bytes, but {file.size_bytes} were told; "
                    "try again"
                )
            if not file.md5:
                return
            md5 = md5_of(place)
            if md5 in (file.md5, before):
                return
            if before:
                raise TransferFailed(
                    f"{file.path!r} of {shown(self.url)} arrived damaged twice: its MD5 is {md5}, and "
                    f"{file.md5} was told"
                )
            before = md5

    def _unpacked(self, copy: SourceCopy, folder: Path) -> Path:
        """Return where models are looked for, unpacking an archive if it has changed."""
        if not copy.kept.is_single:
            return copy.files
        ((name, kept),) = copy.kept.files.items()
        if not is_archive(name):
            return copy.files / name
        place = folder / "unpacked" / kept.sha256[:16]
        if not place.exists():
            shutil.rmtree(folder / "unpacking", ignore_errors=True)
            room = self.free_bytes(self.folder) - UPLOAD_RESERVE_BYTES
            unpack(copy.files / name, folder / "unpacking" / stem_of(name), max(0, room))
            place.parent.mkdir(exist_ok=True)
            (folder / "unpacking").replace(place)
            for old in place.parent.iterdir():
                if old != place:
                    shutil.rmtree(old, ignore_errors=True)
        return only_root(place / stem_of(name))


@dataclass(slots=True)
class _Counter:
    """Counts what arrives, and ends a transfer that has no end."""

    source: Source
    file: RemoteFile
    done_bytes: int
    total_bytes: int
    taken_bytes: int = 0
    looked_at_bytes: int = 0

    def __call__(self, size_bytes: int) -> None:
        self.taken_bytes += size_bytes
        if self.taken_bytes > min(
            self.file.size_bytes or MAX_MODEL_FILE_BYTES, MAX_MODEL_FILE_BYTES
        ):
            raise TransferFailed(
                f"{self.file.path!r} of {shown(self.source.url)} is longer than was told; try again"
            )
        if self.taken_bytes - self.looked_at_bytes > _LOOK_AT_ROOM_EACH_BYTES:
            self.looked_at_bytes = self.taken_bytes
            self.source._check_room(0)  # others write to the disk too
        done_bytes = self.done_bytes + self.taken_bytes
        self.source.progress(done_bytes, max(self.total_bytes, done_bytes))


def _folder_name(url: str) -> str:
    """Return what the folder of a source's files is called: a model's folder gives the model its name."""
    name = last_part(url)
    try:
        check_names([name])
    except InvalidRequest:
        return "models"
    return name

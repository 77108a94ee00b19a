"""An archive of models on this machine's own disk: unpacked once, and again when it has changed.

What reads archives is imported when there is one: an idle node does without.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from typing import TYPE_CHECKING

from meshnode.errors import ModelError
from meshnode.limits import UPLOAD_RESERVE_BYTES
from meshnode.models.repository.version_names import read_version

if TYPE_CHECKING:
    from pathlib import Path


def is_local_archive(path: Path) -> bool:
    """Whether a path is unpacked before models are looked for in it."""
    if not path.is_file():
        return False
    from meshnode.models.repository.unpacking import is_archive

    return is_archive(path.name)


def unpacked(archive: Path, copies: Path) -> Path:
    """Return the folder with the content of an archive, unpacked if that was not done yet.

    Args:
        archive: The file.
        copies: The folder in which what was unpacked is kept; that of former contents is removed.

    Raises:
        ModelError: if it is no archive, holds what it must not, or the disk has no room.
    """
    from meshnode.models.repository.unpacking import unpack

    try:
        status = archive.stat()
        place = copies / hashlib.sha256(os.fsencode(archive)).hexdigest()[:32]
        folder = place / f"{status.st_size}-{status.st_mtime_ns}"
        stem = stem_of(archive.name)
        if not folder.exists():
            working = place / "unpacking"
            shutil.rmtree(working, ignore_errors=True)
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            room_bytes = shutil.disk_usage(place).free - UPLOAD_RESERVE_BYTES
            unpack(archive, working / stem, max(0, room_bytes))
            working.replace(folder)
            for old in place.iterdir():
                if old != folder:
                    shutil.rmtree(old, ignore_errors=True)
        return only_root(folder / stem)
    except OSError as error:
        raise ModelError(f"{archive} cannot be unpacked: {error.strerror or error}") from None


def stem_of(name: str) -> str:
    """Return an archive's name without the ending that tells its kind."""
    from meshnode.models.repository.unpacking import ARCHIVE_SUFFIXES

    lower = name.lower()
    suffix = max((each for each in ARCHIVE_SUFFIXES if lower.endswith(each)), key=len)
    return name[: -len(suffix)] or "models"


def only_root(folder: Path) -> Path:
    """Return the only folder in what was unpacked, if it has nothing else: people pack a model's folder so."""
    children = list(folder.iterdir())
    if len(children) == 1 and children[0].is_dir() and read_version(children[0].name) is None:
        return children[0]
    return folder

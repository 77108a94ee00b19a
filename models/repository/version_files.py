"""The files of a model on disk, taken so that nothing from outside its folder comes along.

Links are followed while they stay inside the model's folder; others, and what is no regular file, are left
out with a reason. Names that begin with a dot are what editors and file managers leave behind, and
`__pycache__` is what running a model leaves: neither belongs to a version.

A hard link cannot be told from the file itself: who may put one there may as well copy the file.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meshnode.errors import ModelError
from meshnode.limits import MAX_MODEL_FILE_BYTES, MAX_MODEL_FILES
from meshnode.models.manifest import check_relative_path

if TYPE_CHECKING:
    from collections.abc import Iterator

_CACHES: Final = frozenset({"__pycache__"})


@dataclass(frozen=True, slots=True)
class FoundFile:
    """One file of a version: its relative POSIX path there, where it lies now, and its size."""

    path: str
    source: Path
    size_bytes: int


def is_inside(path: Path, boundary: Path) -> bool:
    """Whether a path, links followed, lies below a folder."""
    try:
        return path.resolve(strict=True).is_relative_to(boundary.resolve())
    except (OSError, RuntimeError, ValueError):  # a dangling link; a loop of links; a NUL
        return False


def is_passed_over(name: str) -> bool:
    """Whether a file or folder of this name never belongs to a model."""
    return name.startswith(".") or name in _CACHES


def collect(
    folder: Path, boundary: Path, notes: list[str], whose: str, leave_out: frozenset[str]
) -> tuple[FoundFile, ...]:
    """Return all files below a folder, sorted by path.

    Args:
        folder: Where to look.
        boundary: The model's folder, which links must not leave.
        notes: Takes a sentence for each file that is left out.
        whose: Such as `version 1`, for messages.
        leave_out: Paths right in the folder that are no part of it.

    Raises:
        ModelError: if there are too many.
        OSError: if a folder cannot be read.
    """
    files: list[FoundFile] = []
    for parent, folders, names in os.walk(folder, onerror=_raise):
        here = Path(parent)
        for name in sorted(folders):
            if is_passed_over(name) or (here == folder and name in leave_out):
                folders.remove(name)
            elif (here / name).is_symlink():  # os.walk does not enter it
                notes.append(f"folder {name!r} of {whose} is left out: a link")
        for name in sorted(names):
            if not (is_passed_over(name) or (here == folder and name in leave_out)):
                path = here / name
                files.extend(take(path, path.relative_to(folder).as_posix(), boundary, notes))
        if len(files) > MAX_MODEL_FILES:
            raise ModelError(f"{whose} has more than {MAX_MODEL_FILES} files")
    return tuple(sorted(files, key=lambda file: file.path))


def _raise(error: OSError) -> None:
    raise error


def take(path: Path, relative: str, boundary: Path, notes: list[str]) -> Iterator[FoundFile]:
    """Yield a file, or note why it is left out."""
    try:
        yield take_one(path, relative, boundary)
    except ModelError as error:
        notes.append(f"file {relative!r} is left out: {error}")


def take_one(path: Path, relative: str, boundary: Path) -> FoundFile:
    """Return a file.

    Raises:
        ModelError: if it leads out of the boundary, is none, is too large, or has no plain name.
    """
    if not is_inside(path, boundary):
        raise ModelError("it is a link that leads out of the folder, or nowhere")
    return FoundFile(check_relative_path(relative), path, regular_size(path))


def regular_size(path: Path) -> int:
    """Return a regular file's size, following a link.

    Raises:
        ModelError: if it is something else, or too large.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{path.name!r} is not a regular file")
    if status.st_size > MAX_MODEL_FILE_BYTES:
        raise ModelError(f"{path.name!r} is larger than {MAX_MODEL_FILE_BYTES} bytes")
    return status.st_size


def read_text(path: Path, boundary: Path, limit_bytes: int, what: str) -> str:
    """Return the text of a file that lies beside a model.

    Args:
        path: The file.
        boundary: The folder that it must not lead out of.
        limit_bytes: How long it may be.
        what: Its name, for messages.

    Raises:
        ModelError: if it is something else, or no text.
        OSError: if it cannot be read.
    """
    if not is_inside(path, boundary):
        raise ModelError(f"{what} is a link that leads out of {boundary}")
    if regular_size(path) > limit_bytes:
        raise ModelError(f"{what} is longer than {limit_bytes} bytes")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ModelError(f"{what} is not UTF-8 text") from None


def find_file(folder: Path, path: str) -> Path:
    """Return where a file of a version lies that its settings name, such as `warmup/zebra.raw`.

    Where a node serves its own folder in place, such files lie beside the version folders, not in them.

    Args:
        folder: The version's folder.
        path: Its relative path there.

    Raises:
        ModelError: if it is not there, or leads out of the model's folder.
    """
    for base in (folder, folder.parent):
        place = base / check_relative_path(path)
        if place.is_file() and is_inside(place, base):
            return place
    raise ModelError(f"{path!r} is not there; it belongs beside the model's version folders")

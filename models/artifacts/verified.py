"""Which files on the disk are known to be what their names say, so that each is hashed once.

A file is known by its inode, its size and when it was changed: a hard link to a file that was verified needs
no reading, and one that somebody wrote to is read again. What a disk loses by itself changes none of these:
so nothing is known after a start, and what was verified long ago is not sent unread.

Functions may be called from several threads at once, and block.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

FRESH_S: Final = 600.0
"""Seconds after which what was verified is read again before it is sent: a fleet has fetched a new version
by then, and comparing each MiB costs its sender half a millisecond."""


@dataclass(frozen=True, slots=True)
class _Known:
    size_bytes: int
    modified_ns: int
    sha256: bytes
    verified_at: float  # monotonic


class Verified:
    """The files of one store that were verified since the process started."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._known: dict[tuple[int, int], _Known] = {}

    def __repr__(self) -> str:
        return f"<Verified: {len(self._known)} files>"

    def note(self, path: Path, sha256: bytes) -> None:
        """Remember that a file was hashed as it was written.

        Raises:
            OSError: if it is not there.
        """
        self._remember(path.stat(), sha256, time.monotonic())

    def touch(self, path: Path) -> None:
        """Set a file's time to now; what is known of it stays known.

        Raises:
            OSError: if it is not there.
        """
        known = self._of(path.stat())
        os.utime(path)
        if known is not None:
            self._remember(path.stat(), known.sha256, known.verified_at)

    def forget(self, path: Path) -> None:
        """Know nothing of a file any more, nor of its links.

        Raises:
            OSError: if it is not there.
        """
        found = path.stat()
        self._known.pop((found.st_dev, found.st_ino), None)

    def is_fresh(self, path: Path) -> bool:
        """Whether a file was verified a short while ago, and has not been written to since.

        Raises:
            OSError: if it is not there.
        """
        known = self._of(path.stat())
        return known is not None and time.monotonic() - known.verified_at < FRESH_S

    def is_right(self, path: Path, sha256: bytes) -> bool:
        """Whether a file's content is what it should be; reads it unless that is known.

        Raises:
            OSError: if it cannot be read.
        """
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            known = self._of(before)
            if known is not None:
                return known.sha256 == sha256
            if hashlib.file_digest(file, "sha256").digest() != sha256:
                return False
        self._remember(before, sha256, time.monotonic())
        return True

    def _of(self, found: os.stat_result) -> _Known | None:
        known = self._known.get((found.st_dev, found.st_ino))
        if known is None or (known.size_bytes, known.modified_ns) != (
            found.st_size,
            found.st_mtime_ns,
        ):
            return None
        return known

    def _remember(self, found: os.stat_result, sha256: bytes, at: float) -> None:
        self._known[found.st_dev, found.st_ino] = _Known(
            found.st_size, found.st_mtime_ns, sha256, at
        )

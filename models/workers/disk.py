"""What a model's process may take of the disk, in its temporary folder and its cache."""

from __future__ import annotations

import logging
import shutil
import time
from typing import TYPE_CHECKING

from meshnode.limits import MAX_WORKER_FILES, WORKER_DISK_WATCH_S
from meshnode.models.artifacts.disk_use import DiskUse, disk_use
from meshnode.owner_limits import size_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

log = logging.getLogger(__name__)


def why_too_much(use: DiskUse, limit_bytes: int) -> str:
    """Return why a process must be ended for what its folders take, as a sentence, or an empty text."""
    if use.size_bytes > limit_bytes:
        return (
            f"its process took {size_text(use.size_bytes)} of the disk, above its limit of "
            f"{size_text(limit_bytes)} (parameter disk_limit), and was ended"
        )
    if use.files > MAX_WORKER_FILES:
        return f"its process wrote more than {MAX_WORKER_FILES} files and was ended"
    return ""


def empty_if_over(cache: Path | None, limit_bytes: int) -> None:
    """Empty a cache that has outgrown the limit: with it, no process could be started again."""
    if cache is not None and why_too_much(disk_use([cache], MAX_WORKER_FILES), limit_bytes):
        log.warning("the cache folder %s had outgrown its limit and was emptied", cache)
        shutil.rmtree(cache, ignore_errors=True)


def disk_bytes(place: Path) -> int:
    """Return the size of the disk that a folder is on, or will be."""
    while not place.is_dir():
        place = place.parent
    return shutil.disk_usage(place).total


class DiskWatch:
    """Looks at one process's folders now and then."""

    def __init__(self, folders: Sequence[Path], limit_bytes: int) -> None:
        """Watch over these."""
        self._folders = folders
        self._limit_bytes = limit_bytes
        self._next_s = float("-inf")

    def __repr__(self) -> str:
        return f"<DiskWatch of {self._limit_bytes} bytes>"

    def is_due(self, now: float) -> bool:
        """Whether it is time to look again; `now` is in monotonic seconds."""
        return now >= self._next_s

    def look(self, now: float) -> str:
        """Look, and return why the process must be ended, or an empty text; blocks."""
        began = time.monotonic()
        use = disk_use(self._folders, MAX_WORKER_FILES)
        # A walk through many files takes its time: it must not become all that the node does.
        self._next_s = now + max(WORKER_DISK_WATCH_S, 20 * (time.monotonic() - began))
        return why_too_much(use, self._limit_bytes)

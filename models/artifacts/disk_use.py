"""What folders that others write into take of the disk: measured by walking them, so it blocks."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_BLOCK_BYTES: Final = 512  # what `st_blocks` counts, whatever the file system's own blocks are


class DiskUse(NamedTuple):
    """What folders take: bytes, and how many files and folders they have."""

    size_bytes: int = 0
    files: int = 0


def disk_use(folders: Iterable[Path], max_files: int) -> DiskUse:
    """Measure folders; ends early after more than `max_files` files, links not followed."""
    size_bytes = files = 0
    waiting = [os.fspath(folder) for folder in folders]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:  # it may go meanwhile
            for entry in entries:
                files += 1
                if files > max_files:
                    return DiskUse(size_bytes, files)
                with suppress(OSError):
                    size_bytes += _taken_bytes(entry.stat(follow_symlinks=False))
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
    return DiskUse(size_bytes, files)


def _taken_bytes(status: os.stat_result) -> int:
    """Return what a file takes: without its holes, where the system tells."""
    blocks: int | None = getattr(status, "st_blocks", None)
    return status.st_size if blocks is None else blocks * _BLOCK_BYTES

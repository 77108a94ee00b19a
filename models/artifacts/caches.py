"""The folders in which versions keep what they compiled or fetched, across restarts: one per digest."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

from meshnode.limits import MAX_WORKER_FILES
from meshnode.models.artifacts.disk_use import disk_use

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path


class VersionCaches:
    """All of them on one node. Its functions block."""

    def __init__(self, root: Path) -> None:
        """Look after a folder; it need not exist.

        Attributes:
            root: The folder.
        """
        self.root = root

    def __repr__(self) -> str:
        return f"<VersionCaches {self.root}>"

    def size_bytes(self) -> int:
        """Return what all of them take of the disk."""
        return sum(disk_use([folder], MAX_WORKER_FILES).size_bytes for folder in self._folders())

    def sweep(self, keep: Collection[str], min_age_s: float) -> list[str]:
        """Remove those of versions that nothing refers to any more.

        Args:
            keep: Digests whose folders stay.
            min_age_s: Seconds since a folder was last wanted or got a new entry, below which it stays: its
                version may be one that others learn of only now.

        Returns:
            The digests of what was removed.
        """
        before_s = time.time() - min_age_s
        gone = []
        for folder in self._folders():
            try:
                is_old = folder.stat().st_mtime <= before_s
            except OSError:
                continue
            if is_old and folder.name not in keep:
                shutil.rmtree(folder, ignore_errors=True)
                gone.append(folder.name)
        return gone

    def _folders(self) -> Iterator[Path]:
        try:
            yield from [each for each in self.root.iterdir() if each.is_dir()]
        except OSError:
            return  # there is none yet

"""The data folder of a virtual daemon: a real folder, with a disk that can fill up and be torn.

Nothing waits for a real disk: what a machine's crash may cost is what `tear` does, not what this
machine's kernel had in its cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshnode.datafolder import DataFolder
from meshnode.errors import ConfigError

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

_NEVER_TORN: Final = frozenset({"identity.key", "mesh"})
"""Files that are written once, at the first start, and damaged only if the crash comes then: without
them a device is another one, and has to be invited anew by a person."""


class VirtualDisk:
    """What outlives a virtual daemon's boots besides its files.

    Attributes:
        is_full: Whether nothing more can be written.
        writes: How many files were written.
    """

    def __init__(self) -> None:
        """Begin with room."""
        self.is_full = False
        self.writes = 0
        self._last: tuple[Path, bytes | None] | None = None

    def __repr__(self) -> str:
        return f"<VirtualDisk {self.writes} writes{', full' if self.is_full else ''}>"

    def write(self, path: Path, data: bytes) -> None:
        """Write a file; the next `tear` damages it.

        Raises:
            ConfigError: if the disk is full.
        """
        if self.is_full:
            raise ConfigError(
                f"cannot write {path}: no space left on device; free some space, or name another "
                "folder with --data-dir"
            )
        if path.name not in _NEVER_TORN:
            self._last = (path, path.read_bytes() if path.exists() else None)
        path.write_bytes(data)
        self.writes += 1

    def tear(self, rng: random.Random) -> str:
        """Damage what was written last, as a machine does that loses power in the middle of it.

        The daemon writes a new file and renames it over the old one, so that the old one is there still
        at worst; beside it lies a new one that is cut at a random byte.

        Returns:
            What was done, for people; empty if nothing was written yet.
        """
        if self._last is None:
            return ""
        path, before = self._last
        if not path.exists():
            return ""
        written = path.read_bytes()
        length = rng.randrange(len(written)) if written else 0
        path.with_name(path.name + ".new").write_bytes(written[:length])
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)
        return f"{path.name} is as before its last write, and beside it are {length} bytes of that"


class VirtualDataFolder(DataFolder):
    """A `DataFolder` on a virtual disk."""

    def __init__(self, path: Path, disk: VirtualDisk, random_bytes: Callable[[int], bytes]) -> None:
        """Open the folder of this boot.

        Raises:
            ConfigError: as `DataFolder`.
        """
        self._disk = disk
        super().__init__(path, random_bytes)

    def _write(self, path: Path, data: bytes) -> None:
        self._disk.write(path, data)
